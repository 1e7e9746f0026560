"""The user's own clip: a recording and pictures from anywhere on the disk -> one row that a model can be asked about.

Pictures are a folder with one a second, a video, a film strip (square frames, top to bottom), or a single picture that
then stands for every second of the sound. What cannot be used is one line: the option, the file, the reason.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..av_uie.integrity import PICTURES, VIDEOS
from ..av_uie.log_mel import fbank
from ..av_uie.media import picture_size, pieces, read_audio, read_image
from ..av_uie.resample import RATE
from ..av_uie.rows import FRAMES, LONG_CLIP, STRIDE, Sample
from ..av_uie.video import FilmStrip, FrameFolder, open_clip
from ..config import ConfigError
from ..errors import DataError
from ..features.encoders import Features
from ..features.rows import Posed, Prepared
from ..tasks.base import TASKS
from ..tokenizer import Tokenizer

SHORTEST = 0.5              # seconds of sound
MOST = 10                   # seconds of a clip that are looked at


@dataclass(frozen=True)
class Request:
    """What the user asks. second: the one in question (None: the first); frames, audio: files or a folder."""
    task: str
    frames: Path
    audio: Path | None = None       # None: the video's own soundtrack
    second: int | None = None
    question: str = ""
    expression: str = ""

    def fields(self) -> dict:
        """What the task's prompt reads, under the annotation's names."""
        return dict(frame_idx=self.second, idx=self.second, description=self.expression, question=self.question)


class Still:
    """One picture for every second."""
    seconds = math.inf

    def __init__(self, path: Path):
        self.path = path

    def frames(self, seconds: list[int], size: int) -> Tensor:
        """(T, 3, size, size) uint8, T times the same."""
        return read_image(self.path, size, "--frames").expand(len(seconds), -1, -1, -1)


def open_frames(path: Path):
    """The pictures as a clip: `.seconds` and `.frames(seconds, size)`."""
    if path.is_dir() or path.suffix.lower() not in PICTURES:
        return open_clip(path, "--frames")
    width, height = picture_size(path, "--frames")
    return FilmStrip(path, "--frames") if height > width and height % width == 0 else Still(path)


def frame_size(clip, second: int) -> tuple[int, int] | None:
    """(width, height) of the frame of a second; None for a video, whose masks stay in the model's square."""
    if isinstance(clip, FilmStrip):
        return clip.image.width, clip.image.width
    if isinstance(clip, (FrameFolder, Still)):
        return picture_size(clip.files[second] if isinstance(clip, FrameFolder) else clip.path, "--frames")
    return None


def sample_of(request: Request, size: int) -> tuple[Sample, tuple[int, int] | None]:
    """Decodes the files -> the sample, without any truth, and `frame_size` of the frame in question.

    size: side of the model's frames in pixels. DataError or ConfigError where that cannot be.
    """
    if request.audio is None and request.frames.suffix.lower() not in VIDEOS:
        raise ConfigError("--frames of pictures needs --audio FILE, their sound")
    clip = open_frames(request.frames)
    wave = clip.soundtrack() if request.audio is None else read_audio(request.audio, "--audio")     # (S,)
    heard = len(wave) / RATE
    if heard < SHORTEST:
        raise DataError(request.audio or request.frames, "--audio", f"too short: {heard:.2f} s of sound")
    length, second = min(heard, clip.seconds), request.second or 0
    if request.task == "avqa" and length > LONG_CLIP:
        seconds = [s for s in range(0, MOST * STRIDE, STRIDE) if s + 0.5 < length]
        sound = pieces(wave, [s - 0.5 for s in seconds], 2.0)                       # (T, 32000)
    else:
        shared = min(MOST if FRAMES[request.task] == 1 else FRAMES[request.task], max(1, int(length + 0.5)))
        if second >= shared:
            raise ConfigError(f"--second {second}: expected 0 to {shared - 1}, found {clip.seconds:g} s of frames and "
                              f"{heard:.1f} s of sound ({request.task} sees the first {FRAMES[request.task]} at most)"
                              if FRAMES[request.task] > 1 else
                              f"--second {second}: expected 0 to {shared - 1}, which frames and sound share")
        seconds = [second] if FRAMES[request.task] == 1 else list(range(shared))
        sound = pieces(wave, seconds)                                               # (T, 16000)
    sample = Sample(request.task, str(request.frames), clip.frames(seconds, size), sound, seconds, request.fields(),
                    seconds.index(second))
    return sample, frame_size(clip, second)


def pose(sample: Sample, features: Features, tokenizer: Tokenizer, classes: tuple[str, ...]) -> Posed:
    """The sample as the only row of its task; ConfigError for a prompt with the model's own marks in it."""
    prompt = tokenizer.encode(TASKS[sample.task].prompt(sample.row))
    for mark in (tokenizer.visual, tokenizer.audio, tokenizer.answer):
        if mark in prompt:
            raise ConfigError(f"--question, --expression: expected no '{tokenizer.names[mark]}', the model's own mark")
    frames = features.see(sample.frames)                                            # (T,)
    sounds = features.hear(fbank(sample.audio.reshape(-1, RATE)).half())            # (T·n,)
    size = sample.frames.shape[-1]
    unknown = torch.zeros(1, size, size, dtype=torch.bool) if TASKS[sample.task].masks else None
    posed = Posed(features, tokenizer)
    posed.rows = [Prepared(sample.task, sample.uid, sample.uid, sample.row, sample.seconds, sample.target, frames,
                           sounds.view(len(frames), -1), unknown, None, None, classes)]
    posed.by_task = {sample.task: [0]}
    return posed
