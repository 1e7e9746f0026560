"""AV-UIE on disk: annotations -> `Row` (cheap, validated, no media) -> `decode` -> `Sample` (tensors).

One folder per task with train.json and test.json, media beside them (the layout is described in data/README.md); the
miniature and the published set are read by the same lines. Two steps, so that features can be cached: reading rows
touches no media file. Unusual: an annotation can name no file outside the data folder, and whatever is wrong is one
`DataError` line (file, field, reason) before training starts, not a traceback in the middle of an epoch.

    python -m crab_mini.av_uie check DIR [--json]
    python -m crab_mini.av_uie show DIR --task ms3 --index 4 --out a.png

Departs from official Crab: 2,450 lines of data set classes with a path per task become one table of fields.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import DataError
from .integrity import PICTURES, VIDEOS
from .media import (
    inside,
    picture_size,
    pieces,
    read_audio,
    read_classes,
    read_image,
    read_mask,
)
from .resample import RATE
from .schema import (
    FIELDS,
    SEGMENTATION,
    TASKS,
    VIDEO_TASKS,
    box_of,
    identity,
    last_second,
    validate,
)
from .video import open_clip

SPLITS = ("train", "test")
FRAMES = {"ave": 10, "avvp": 10, "avqa": 10, "avcap": 10, "arig": 1, "s4": 1, "ms3": 5, "avss": 10, "ref_avs": 10}
LONG_CLIP = 20.0            # seconds; a longer clip of AVQA (MUSIC-AVQA's last 60) is looked at every STRIDE seconds
STRIDE = 6
SHORTEST = 0.1              # seconds of a piece of sound that must be there; the rest is filled with zeros


@dataclass(frozen=True)
class Row:
    """One validated annotation: where it stands, what it says, and the files that it needs."""
    task: str
    split: str
    index: int                      # place in its JSON list
    fields: dict                    # the annotation itself
    root: Path                      # the data folder: nothing outside it is read
    video: Path | None = None       # video file, film strip or folder of frames
    image: Path | None = None
    audio: Path | None = None       # None: the video's own soundtrack
    mask: Path | None = None
    box: tuple[float, float, float, float] | None = None    # x0, y0, x1, y1 in a 224 x 224 frame

    @property
    def uid(self) -> str:
        return f"{self.task}/{self.split}/{self.index}"


@dataclass
class Sample:
    """One decoded clip. H = W = the model's image size."""
    task: str
    uid: str
    frames: Tensor                  # (T, 3, H, W) uint8
    audio: Tensor                   # (T, S) float32 at 16 kHz; S is one second, two for AVQA's clips of more than 20 s
    seconds: list[int]              # which second of the clip each frame and piece of sound stands for
    row: dict                       # the validated annotation
    target: int = 0                 # place in `seconds` that the question is about (segmentation, grounding)
    masks: Tensor | None = None     # (1, H, W) bool of the target frame; avss: (H, W) int64 class map
    visible: Tensor | None = None   # (H, W) int64 class map of ALL visible objects; only the miniature has it
    box: tuple[float, float, float, float] | None = None    # as in Row


def tasks_in(root: str | Path, split: str, wanted: list[str] | None = None) -> tuple[list[str], list[str]]:
    """(tasks that DIR has for this split, tasks that it lacks), in the usual order; DataError if it has none."""
    root = Path(root)
    if not root.is_dir():
        raise DataError(root, "data folder", "missing" if not root.exists() else "not a folder")
    for task in wanted or ():
        if task not in TASKS:
            raise DataError(root, "task", f"unknown task '{task}': expected one of {', '.join(TASKS)}")
    names = [task for task in TASKS if wanted is None or task in wanted]
    there = [task for task in names if (root / task / f"{split}.json").is_file()]
    if not there:
        raise DataError(root, "data folder", f"no {split}.json in any of the task folders {', '.join(names)}")
    return there, [task for task in names if task not in there]


def read_annotations(root: str | Path, split: str, tasks: list[str] | None = None,
                     problems: list[DataError] | None = None) -> list[Row]:
    """All rows of the tasks that the folder has (None: all nine), validated; no media file is opened.

    problems: a list that receives what is wrong while the good rows are returned; without it the first is raised.
    A task whose JSON holds no sample is always an error.
    """
    rows = []
    for task in tasks_in(root, split, tasks)[0]:
        found = [] if problems is None else problems
        rows += read_task(Path(root), task, split, found)[0]
        if problems is None and found:
            raise found[0]
    return rows


def read_task(root: Path, task: str, split: str, problems: list[DataError]) -> tuple[list[Row], int]:
    """(the good rows of one task and split, how many samples the file holds); what is wrong goes to `problems`."""
    path = root / task / f"{split}.json"
    try:
        entries = _read_json(inside(path, root, path, "file"), path)
    except DataError as error:
        problems.append(error)
        return [], 0
    rows, seen = [], {}
    for index, entry in enumerate(entries):
        place = f"{path}[{index}]"
        try:
            validate(task, entry, place)
            name = identity(task, entry)
            if name in seen:
                raise DataError(place, " + ".join(FIELDS[task].identity), f"duplicate of sample {seen[name]}")
            seen[name] = index
            rows.append(_resolve(root, task, split, index, entry, place))
        except DataError as error:
            problems.append(error)
        except OSError as error:            # a folder that may not be searched
            problems.append(DataError(place, "file", f"{error.filename}: {error.strerror}"))
    return rows, len(entries)


def _read_json(path: Path, shown: Path) -> list:
    try:
        if not path.is_file():
            raise DataError(shown, "file", "missing, or not a regular file")
        entries = json.loads(path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(shown, "file", f"not UTF-8: byte {error.start}") from error
    except DataError:
        raise
    except (ValueError, RecursionError) as error:
        raise DataError(shown, "file", f"no valid JSON (cut off?): {error}") from error
    except OSError as error:
        raise DataError(shown, "file", f"cannot be opened: {error.strerror}") from error
    if not isinstance(entries, list):
        raise DataError(shown, "file", f"expected a list of samples, found {type(entries).__name__}")
    if not entries:
        raise DataError(shown, "file", "empty: no samples")
    return entries


def _named(entry: dict, key: str, folder: Path, root: Path, place: str) -> Path:
    """The file that an annotation names, relative to `folder`; no absolute path, no '..', no link that leaves root."""
    text = entry[key]
    parts = text.split("/")
    if text.startswith("/") or "\\" in text or "\0" in text or ":" in parts[0]:
        raise DataError(place, key, f"absolute or foreign path '{text}': expected one relative to {folder.name}/")
    if ".." in parts:
        raise DataError(place, key, f"'..' in '{text}': an annotation stays inside its folder")
    return inside(folder / text, root, place, key)


def _resolve(root: Path, task: str, split: str, index: int, entry: dict, place: str) -> Row:
    """Find the files of an annotation that has passed validation."""
    folder = root / task
    if task in VIDEO_TASKS:
        video = _named(entry, "video_path", folder / "video", root, place)
        frames = inside(video.with_suffix(""), root, place, "video_path")
        if not video.exists() and frames.is_dir():
            video = frames                          # a folder of frames stands in for the file of that name
        audio = None                                # the soundtrack
        if entry.get("audio_path") and (folder / "audio").is_dir():
            audio = _named(entry, "audio_path", folder / "audio", root, place)
        if audio is not None and audio.suffix.lower() in VIDEOS:
            audio = None
        return Row(task, split, index, entry, root, video=video, audio=audio)
    image = _named(entry, "image_path", folder, root, place)
    audio = _named(entry, "audio_path", folder, root, place)
    mask = inside(_mask_of(task, entry, image, place), root, place, "image_path") if task in SEGMENTATION else None
    return Row(task, split, index, entry, root, image=image, audio=audio, mask=mask, box=box_of(task, entry))


def _mask_of(task: str, entry: dict, image: Path, place: str) -> Path:
    """Where the layout keeps the mask of this image."""
    if image.parent.name != "frames" or not image.stem.isdecimal():
        raise DataError(place, "image_path", f"'{entry['image_path']}': expected .../frames/NUMBER.jpg")
    key = "idx" if task == "ref_avs" else "frame_idx"
    if int(image.stem) != entry[key]:
        raise DataError(place, key, f"says frame {entry[key]}, but image_path names frame {int(image.stem)}")
    clip = image.parent.parent
    if task == "ref_avs":
        return clip.parent.parent / "gt_mask" / clip.name / f"fid_{entry['fid']}" / f"{int(image.stem):05d}.png"
    places = [clip / folder / f"{image.stem}.png" for folder in ("labels_semantic", "labels_rgb")]
    return next((path for path in places if path.exists()), places[0])


def media_files(row: Row) -> list[Path]:
    """Every file that `decode` reads for the frames and the sound (not the masks): what a feature depends on."""
    if row.video is not None:
        pictures = open_clip(row.video, "video_path", row.root).files if row.video.is_dir() else [row.video]
    else:
        pictures = list(siblings(row).values())
    return pictures + ([row.audio] if row.audio else [])


def decode(row: Row, image_size: int) -> Sample:
    """Read a row's frames, sound and masks; DataError (one line) if any of them cannot be used.

    image_size: side of the model's frames in pixels.
    """
    try:
        return _decode_video(row, image_size) if row.video is not None else _decode_picture(row, image_size)
    except OSError as error:
        raise DataError(row.video or row.image, "file", f"{error.filename}: {error.strerror}") from error


def _decode_video(row: Row, size: int) -> Sample:
    """The first ten seconds of a clip, one frame a second; AVQA: of a long clip ten pieces of two seconds, six apart."""
    clip = open_clip(row.video, "video_path", row.root)
    waveform = clip.soundtrack() if row.audio is None else read_audio(row.audio, "audio_path")       # (S,)
    heard = len(waveform) / RATE
    sound = row.audio or row.video
    if heard < min(clip.seconds, 10) - 1:
        raise DataError(sound, "audio_path", f"too short: {heard:.1f} s of sound, {clip.seconds:.1f} s of video")
    length = min(clip.seconds, heard)
    if length < 0.5:
        raise DataError(row.video, "video_path", f"too short: {length:.2f} s")
    if row.task == "avqa" and length > LONG_CLIP:
        seconds = [s for s in range(0, 10 * STRIDE, STRIDE) if s + 0.5 < length]
        audio = pieces(waveform, [s - 0.5 for s in seconds], 2.0)         # (T, 32000)
    else:
        seconds = list(range(min(10, max(1, int(length + 0.5)))))
        audio = pieces(waveform, seconds)                                 # (T, 16000)
    check_length(row, seconds)
    return Sample(row.task, row.uid, clip.frames(seconds, size), audio, seconds, row.fields)


def check_length(row: Row, seconds: list[int]) -> None:
    """DataError if a clip that shows these seconds ends before an event of its label does."""
    end = last_second(row.task, row.fields)
    if end > len(seconds):
        raise DataError(row.video, "video_path", f"too short: {len(seconds)} s, but the label names second {end}")


def siblings(row: Row) -> dict[int, Path]:
    """second -> picture of the clip, for the tasks that see several frames; only those that are there."""
    if FRAMES[row.task] == 1:
        return {own_second(row): row.image}
    suffixes = [row.image.suffix] + [s for s in PICTURES if s != row.image.suffix]
    own, found = int(row.image.stem), {}
    for second in range(FRAMES[row.task]):
        names = (row.image.with_name(f"{second}{suffix}") for suffix in suffixes)
        path = row.image if second == own else next((name for name in names if name.exists()), None)
        if path is not None:
            found[second] = inside(path, row.root, path, "image_path")
    return found | {own: row.image}


def own_second(row: Row) -> int:
    """The second that a row's image is of: the number that is its name, or 0."""
    return int(row.image.stem) if row.image.stem.isdecimal() else 0


def _decode_picture(row: Row, size: int) -> Sample:
    """The frame in question, its siblings, a second of sound for each, and the target frame's mask or box."""
    waveform = read_audio(row.audio, "audio_path")                                   # (S,)
    heard = len(waveform) / RATE
    files, own = siblings(row), own_second(row)
    if row.task == "arig" and own + SHORTEST > heard:       # one second, or a picture whose name is no second
        files = {0: row.image}
        own, starts = 0, {0: max(0.0, (heard - 1) / 2)}
    else:
        if own + SHORTEST > heard:
            raise DataError(row.audio, "audio_path", f"too short: {heard:.1f} s, the frame is of second {own}")
        files = {second: path for second, path in files.items() if second + SHORTEST <= heard}
        starts = {second: float(second) for second in files}
    seconds = sorted(files)
    frames = torch.stack([read_image(files[second], size, "image_path") for second in seconds])     # (T, 3, H, W)
    audio = pieces(waveform, [starts[second] for second in seconds])      # (T, 16000)
    masks, visible = read_masks(row, size)
    return Sample(row.task, row.uid, frames, audio, seconds, row.fields, seconds.index(own), masks, visible, row.box)


def read_masks(row: Row, size: int) -> tuple[Tensor | None, Tensor | None]:
    """The row's mask (1, H, W) bool or class map (H, W), and the map of all that is visible; None where absent."""
    if row.mask is None:
        return None, None
    shape = picture_size(row.image, "image_path")
    masks = read_classes(row.mask, size, shape) if row.task == "avss" else read_mask(row.mask, size, shape)[None]
    everything = inside(row.image.parent.parent / "visible" / f"{row.image.stem}.png", row.root, row.image, "visible")
    return masks, read_classes(everything, size, shape, "visible") if everything.exists() else None
