"""The user's own clip: a recording and pictures from anywhere on the disk -> a sample.

Pictures are a folder with one a second, a video, a film strip (square frames, top to bottom), or a
single picture that then stands for every second of the sound. Pictures and sound may also be tensors
(api.py). What cannot be used is one line: the option, the file, the reason.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ..av_uie.integrity import PICTURES, VIDEOS
from ..av_uie.log_mel import fbank
from ..av_uie.media import picture_size, picture_tensor, read_audio, read_image
from ..av_uie.mono import must_be_quiet_enough
from ..av_uie.resample import RATE
from ..av_uie.samples import SECONDS, Sample, seconds_seen, sounds_of
from ..av_uie.video import FilmStrip, FrameFolder, open_clip
from ..config import ConfigError
from ..errors import DataError
from ..features.encoders import Features
from ..features.rows import Samples
from ..tasks.base import TASKS
from ..tasks.fields import is_text, shortened
from ..tokenizer import Tokenizer

SHORTEST = 0.5              # seconds of sound
LONGEST_TEXT = 2000         # characters of a question or an expression


@dataclass(frozen=True)
class Request:
    """What the user asks. second: the one in question (None: the first)."""
    task: str
    frames: Path | Tensor           # a file, a folder, or (T,3,H,W) uint8
    audio: Path | Tensor | None = None      # a file, or (S,) at 16 kHz; None: the video's own sound
    second: int | None = None
    question: str = ""
    expression: str = ""

    def fields(self) -> dict:
        """What the task's prompt reads, under the annotation's keys."""
        return {key: getattr(self, option) for option, key in TASKS[self.task].own_options.items()}


class Still:
    """One picture for every second."""
    seconds = math.inf

    def __init__(self, path: Path):
        self.path = path

    def frames(self, seconds: list[int], size: int) -> Tensor:
        """(T, 3, size, size) uint8, T times the same."""
        return read_image(self.path, size, "--frames").expand(len(seconds), -1, -1, -1)


class FramesInMemory:
    """Pictures that are no files: a tensor (T,3,H,W) uint8, one a second."""

    def __init__(self, pictures: Tensor):
        if pictures.ndim != 4 or pictures.shape[1] != 3 or pictures.dtype != torch.uint8 or not len(pictures):
            raise DataError("frames", "frames", "expected uint8 of shape (T, 3, H, W) with T at least 1, "
                                                f"found {pictures.dtype} of shape {tuple(pictures.shape)}")
        self.pictures, self.seconds = pictures, float(len(pictures))

    def frames(self, seconds: list[int], size: int) -> Tensor:
        """(T, 3, size, size) uint8, squeezed to a square as files are."""
        images = [Image.fromarray(self.pictures[second].permute(1, 2, 0).numpy()) for second in seconds]
        return torch.stack([picture_tensor(image, size) for image in images])


def waveform_of(request: Request, clip) -> Tensor:
    """The sound (S,) at 16 kHz of a request: its file, its tensor, or the soundtrack of its video."""
    if request.audio is None:
        return clip.soundtrack()
    if not isinstance(request.audio, Tensor):
        return read_audio(request.audio, "--audio")
    wave = request.audio
    if wave.ndim != 1 or not wave.is_floating_point() or not bool(wave.isfinite().all()):
        raise DataError("audio", "audio", "expected finite floating-point samples of shape (S,) at "
                                          f"{RATE} Hz, found {wave.dtype} of shape {tuple(wave.shape)}")
    if len(wave):
        must_be_quiet_enough(wave, "audio", "audio")
    return wave.float()


def open_frames(path: Path | Tensor):
    """The pictures as a clip: `.seconds` and `.frames(seconds, size)`."""
    if isinstance(path, Tensor):
        return FramesInMemory(path)
    if path.is_dir() or path.suffix.lower() not in PICTURES:
        return open_clip(path, "--frames")
    width, height = picture_size(path, "--frames")
    return FilmStrip(path, "--frames") if height > width and height % width == 0 else Still(path)


def frame_size(clip, second: int) -> tuple[int, int] | None:
    """(width, height) of the frame of a second; None for a video: its masks stay square."""
    if isinstance(clip, FramesInMemory):
        return clip.pictures.shape[3], clip.pictures.shape[2]
    if isinstance(clip, FilmStrip):
        return clip.image.width, clip.image.width
    if isinstance(clip, (FrameFolder, Still)):
        path = clip.files[second] if isinstance(clip, FrameFolder) else clip.path
        return picture_size(path, "--frames")
    return None


def sample_of(request: Request, size: int,
              classes: tuple[str, ...] = ()) -> tuple[Sample, tuple[int, int] | None]:
    """Decodes the files -> the sample, without any truth, and `frame_size` of its target frame.

    size: side of the model's frames in pixels. classes: the names that the model knows classes by.
    DataError or ConfigError where that cannot be.
    """
    in_memory = isinstance(request.frames, Tensor)
    if request.audio is None and (in_memory or request.frames.suffix.lower() not in VIDEOS):
        raise ConfigError("--frames of pictures needs --audio FILE, their sound")
    clip = open_frames(request.frames)
    waveform = waveform_of(request, clip)                                           # (S,)
    clip_name = "frames" if in_memory else str(request.frames)
    heard = len(waveform) / RATE
    if heard < SHORTEST:
        source = request.audio if isinstance(request.audio, Path) else clip_name
        raise DataError(source, "--audio", f"too short: {heard:.2f} s of sound")

    # The seconds that frames and sound share, as far as the task looks at them.
    task, second = TASKS[request.task], request.second or 0
    seconds, piece = seconds_seen(request.task, min(heard, clip.seconds))
    if not task.long_clips:
        most = SECONDS if task.frames == 1 else task.frames
        seconds = seconds[:most]
        if second >= len(seconds):
            raise ConfigError(f"--second {second}: expected 0 to {len(seconds) - 1}, " + (
                "which frames and sound share" if task.frames == 1 else
                f"found {clip.seconds:g} s of frames and {heard:.1f} s of sound ({request.task} "
                f"sees the first {task.frames} at most)"))
        seconds = [second] if task.frames == 1 else seconds

    sounds = sounds_of(waveform, seconds, piece)                                    # (T,S)
    sample = Sample(request.task, clip_name, clip_name, request.fields(),
                    clip.frames(seconds, size), sounds, seconds, seconds.index(second),
                    classes=classes)
    return sample, frame_size(clip, second)


def encoded(sample: Sample, features: Features, tokenizer: Tokenizer) -> Samples:
    """The sample, encoded; ConfigError for a prompt that is too long, holds half of a surrogate
    pair, or holds the model's own marks.
    """
    for value in sample.fields.values():
        if isinstance(value, str) and value and (len(value) > LONGEST_TEXT or not is_text(value)):
            raise ConfigError(f"--question, --expression: expected text of {LONGEST_TEXT} "
                              f"characters at most, found {len(value)}: {shortened(value)}")
    prompt = tokenizer.encode(TASKS[sample.task].prompt(sample.fields))
    for mark in (tokenizer.visual, tokenizer.audio, tokenizer.answer):
        if mark in prompt:
            raise ConfigError("--question, --expression: expected no "
                              f"'{tokenizer.names[mark]}', the model's own mark")
    frames = features.add_frames(sample.frames)                                     # (T,)
    sounds = features.add_sounds(fbank(sample.sounds.reshape(-1, RATE)).half())     # (T·n,)

    # Samples.sequence gives the target frame's features to samples with masks: these are empty.
    size = sample.frames.shape[-1]
    masks = torch.zeros(1, size, size, dtype=torch.bool) if TASKS[sample.task].masks else None
    samples = Samples(features, tokenizer)
    samples.add([replace(sample, frames=frames, sounds=sounds.view(len(frames), -1), masks=masks)])
    return samples
