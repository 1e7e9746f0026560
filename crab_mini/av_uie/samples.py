"""A row's media -> `Sample`: frames, sound and masks of one clip as tensors.

T seconds, H = W = the model's image size, S waveform samples.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError
from ..tasks.base import TASKS
from ..tasks.drawing import Box
from .integrity import PICTURES
from .media import (
    class_pixels,
    mask_pixels,
    picture_size,
    pieces,
    read_audio,
    read_image,
    resize_nearest,
)
from .paths import inside
from .resample import RATE
from .rows import Row
from .video import open_clip

SECONDS = 10                # frames of a clip at most
# Of a clip of more than LONG_CLIP seconds a task with `long_clips` sees every STRIDE-th second.
LONG_CLIP = 20.0
STRIDE = 6
SHORTEST = 0.1              # seconds of a piece of sound that must be there; the rest is zeros


@dataclass
class Sample:
    """One clip of a row. It is decoded first: then it holds pixels and waveforms.

    Once it is encoded (features/cache.py), `frames` and `sounds` are places in the stores of
    features: (T,) and (T,n), n one-second pieces of sound for each frame.
    """
    task: str
    uid: str
    clip: str                       # the file that its sound is in; all frames of a clip share it
    fields: dict                    # the annotation
    frames: Tensor                  # (T,3,H,W) uint8
    sounds: Tensor                  # (T,S) float32 at 16 kHz; S is one second, two in long clips
    seconds: list[int]              # which second of the clip each frame and piece of sound is of
    target: int = 0                 # place in `seconds` of the frame in question
    masks: Tensor | None = None     # (G,H,W) bool: one for each mask group of the answer
    class_map: Tensor | None = None     # (H,W) int64: the masks of a task `by_class` are cut from it
    visible: Tensor | None = None   # (H,W) int64 class map of all that is visible, where known
    box: Box | None = None
    classes: tuple[str, ...] = ()   # names of the numbers in class maps


def seconds_seen(task: str, length: float) -> tuple[list[int], float]:
    """(the seconds of a clip of some length that a task sees, how long its pieces of sound are)."""
    if TASKS[task].long_clips and length > LONG_CLIP:
        return [s for s in range(0, SECONDS * STRIDE, STRIDE) if s + 0.5 < length], 2.0
    most = TASKS[task].frames if TASKS[task].on_video else SECONDS
    return list(range(min(most, max(1, int(length + 0.5))))), 1.0


def sounds_of(waveform: Tensor, seconds: list[int], length: float) -> Tensor:
    """(S,) -> (T,length · 16000): a piece of sound around the middle of each second."""
    return pieces(waveform, [second + 0.5 - length / 2 for second in seconds], length)


def media_files(row: Row) -> list[Path]:
    """Every file that `decode` reads for the frames and the sound (not the masks)."""
    if row.video is not None:
        pictures = [row.video]
        if row.video.is_dir():
            pictures = open_clip(row.video, "video_path", row.root).files
    else:
        pictures = list(siblings(row).values())
    return pictures + ([row.audio] if row.audio else [])


def decode(row: Row, image_size: int) -> Sample:
    """Reads a row's frames, sound and masks; DataError (one line) if any of them cannot be used.

    image_size: side of the model's frames in pixels.
    """
    try:
        if row.video is not None:
            return decode_video(row, image_size)
        return decode_picture(row, image_size)
    except OSError as error:
        reason = f"{error.filename}: {error.strerror}"
        raise DataError(row.video or row.image, "file", reason) from error


def sample_of(row: Row, frames: Tensor, sounds: Tensor, seconds: list[int], target: int = 0,
              size: int | None = None) -> Sample:
    """A row's sample; size: side of its masks, which are read here (None: the row has none)."""
    masks, class_map, visible = read_masks(row, size)
    box = TASKS[row.task].box(row.fields)
    return Sample(row.task, row.uid, str(row.audio or row.video), row.fields, frames, sounds,
                  seconds, target, masks, class_map, visible, box, row.classes)


def decode_video(row: Row, size: int) -> Sample:
    """The first ten seconds, one frame a second; of some long clips ten pieces over a minute."""
    clip = open_clip(row.video, "video_path", row.root)
    if row.audio is None:
        waveform = clip.soundtrack()                                      # (S,)
    else:
        waveform = read_audio(row.audio, "audio_path")                    # (S,)

    # The clip is as long as both its pictures and its sound.
    heard = len(waveform) / RATE
    if heard < min(clip.seconds, SECONDS) - 1:
        raise DataError(row.audio or row.video, "audio_path",
                        f"too short: {heard:.1f} s of sound, {clip.seconds:.1f} s of video")
    length = min(clip.seconds, heard)
    if length < 0.5:
        raise DataError(row.video, "video_path", f"too short: {length:.2f} s")

    seconds, piece = seconds_seen(row.task, length)
    sounds = sounds_of(waveform, seconds, piece)                          # (T,S)
    check_length(row, seconds)
    return sample_of(row, clip.frames(seconds, size), sounds, seconds)


def check_length(row: Row, seconds: list[int]) -> None:
    """DataError if a clip that shows these seconds ends before an event of its label does."""
    end = TASKS[row.task].last_second(row.fields)
    if end > len(seconds):
        raise DataError(row.video, "video_path", f"too short: {len(seconds)} s, but the label names "
                                                 f"second {end}")


def siblings(row: Row) -> dict[int, Path]:
    """second -> picture of the clip, for tasks that see several frames; only those that exist."""
    own = own_second(row)
    if TASKS[row.task].frames == 1:
        return {own: row.image}
    suffixes = [row.image.suffix] + [s for s in PICTURES if s != row.image.suffix]
    found = {}
    for second in range(TASKS[row.task].frames):
        names = (row.image.with_name(f"{second}{suffix}") for suffix in suffixes)
        path = row.image if second == own else next((name for name in names if name.exists()), None)
        if path is not None:
            found[second] = inside(path, row.root, path, "image_path")
    return found | {own: row.image}


def own_second(row: Row) -> int:
    """The second that a row's picture is of: the number that is its name, or 0."""
    return int(row.image.stem) if row.image.stem.isdecimal() else 0


def decode_picture(row: Row, size: int) -> Sample:
    """The frame in question, its siblings, and a second of sound for each."""
    waveform = read_audio(row.audio, "audio_path")                                   # (S,)
    heard = len(waveform) / RATE
    files, own = siblings(row), own_second(row)

    if TASKS[row.task].loose_pictures and own + SHORTEST > heard:
        # The picture's name is no second of this sound: it is shown with the middle second.
        files, own = {0: row.image}, 0
        starts = {0: max(0.0, (heard - 1) / 2)}
    else:
        if own + SHORTEST > heard:
            raise DataError(row.audio, "audio_path", f"too short: {heard:.1f} s, the frame is of "
                                                     f"second {own}")
        files = {second: path for second, path in files.items() if second + SHORTEST <= heard}
        starts = {second: float(second) for second in files}

    seconds = sorted(files)
    pictures = [read_image(files[second], size, "image_path") for second in seconds]
    frames = torch.stack(pictures)                                                  # (T,3,H,W)
    sounds = pieces(waveform, [starts[second] for second in seconds])               # (T,16000)
    return sample_of(row, frames, sounds, seconds, seconds.index(own), size)


def read_masks(row: Row, size: int | None) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The row's masks (G,H,W) bool, its class map (H,W), and the class map of all that is visible.

    None where a task or a data set has none. DataError where the file shows nothing of what the
    annotation names; that is looked for in all pixels, before small things are lost.
    """
    if row.mask is None:
        return None, None, None
    task, shape = TASKS[row.task], picture_size(row.image, "image_path")
    if task.by_class:
        pixels = numbers_in(row.mask, "mask", row, shape)                        # (height,width)
        numbers = task.class_numbers(row.fields, row.classes, row.place)
        for number in numbers:
            if not (pixels == number).any():
                raise DataError(row.mask, "mask", f"shows no {row.classes[number]}, which the "
                                                  f"annotation names: {row.place}")
        class_map = resize_nearest(pixels, size)                                         # (H,W)
        masks = torch.stack([class_map == number for number in numbers])                 # (G,H,W)
    else:
        pixels = mask_pixels(row.mask, shape)                                    # (height,width)
        if not task.empty_masks and not pixels.any():
            raise DataError(row.mask, "mask", "empty, and the annotation names an object: "
                                              f"{row.place}")
        class_map, masks = None, resize_nearest(pixels, size)[None]                      # (1,H,W)
    path = row.image.parent.parent / "visible" / f"{row.image.stem}.png"
    path = inside(path, row.root, row.image, "visible")
    visible = None
    if path.exists():
        visible = resize_nearest(numbers_in(path, "visible", row, shape), size)
    return masks, class_map, visible


def numbers_in(path: Path, field: str, row: Row, shape: tuple[int, int]) -> np.ndarray:
    """A class map (height,width); DataError for a number that no name of the data folder has."""
    pixels = class_pixels(path, shape, field)
    if pixels.max() >= len(row.classes):
        raise DataError(path, field, f"class {pixels.max()}: expected less than "
                                     f"{len(row.classes)}, the names in classes.json")
    return pixels
