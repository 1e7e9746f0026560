"""Moving pictures as one frame a second: video files through PyAV, folders of frames, and film strips.

A clip is whatever can say how many seconds it holds and show the frame of a given second. A film strip is the
miniature's compact container: one PNG of square frames stacked top to bottom (height = T · width). Video files are
sought, not decoded from start to end: the key frame before a wanted moment is found in the file's index. The frame of
second s is the one on screen at s + 0.5, the middle of its second of sound. PyAV is the optional extra `video`.
"""

import re
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import DataError
from .integrity import FORMATS, PICTURES, VIDEOS
from .media import (
    MAX_SECONDS,
    decoding,
    inside,
    must_be_whole,
    open_picture,
    picture_tensor,
    read_image,
    to_model_rate,
)

INSTALL = 'pip install -e ".[video]"'


def open_clip(path: Path, field: str = "video", root: Path | None = None):
    """A Folder, a Strip or a VideoFile: each with .seconds (float), .frames(seconds, size) and .soundtrack().

    root: no frame of a folder may lie outside it, links followed.
    """
    if path.is_dir():
        return Folder(path, field, root)
    if path.suffix.lower() in PICTURES:
        return Strip(path, field)
    if path.suffix.lower() not in VIDEOS and path.is_file():
        raise DataError(path, field, f"wrong extension '{path.suffix}': expected a folder of frames or one of "
                                     f"{' '.join(VIDEOS)} {' '.join(PICTURES)}")
    return VideoFile(path, field)


def natural(path: Path) -> list:
    """Sorting key: frame 9 before frame 10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"([0-9]+)", path.name)]


class Folder:
    """A folder with one picture a second, in the order of the numbers in their names."""

    def __init__(self, path: Path, field: str, root: Path | None = None):
        self.path, self.field = path, field
        self.files = sorted((p for p in path.iterdir() if p.suffix.lower() in FORMATS), key=natural)
        for file in self.files:
            if root is not None:
                inside(file, root, file, field)
        if not self.files:
            raise DataError(path, field, "folder without frames")
        self.seconds = float(len(self.files))

    def frames(self, seconds: list[int], size: int) -> Tensor:
        """(T, 3, size, size) uint8: the pictures at these places in the order."""
        return torch.stack([read_image(self.files[second], size, self.field) for second in seconds])

    def soundtrack(self) -> Tensor:
        raise DataError(self.path, self.field, "a folder of frames has no soundtrack: give an audio_path")


class Strip:
    """One picture of T square frames, top to bottom."""

    def __init__(self, path: Path, field: str):
        self.path, self.field = path, field
        self.image = open_picture(path, field)
        width, height = self.image.size
        if height % width:
            raise DataError(path, field, f"no film strip: {width}x{height}, the height must be a multiple of the width")
        self.seconds = float(height // width)

    def frames(self, seconds: list[int], size: int) -> Tensor:
        """(T, 3, size, size) uint8: the squares at these places."""
        side = self.image.width
        with decoding(self.path, self.field, "film strip"):
            return torch.stack([picture_tensor(self.image.crop((0, s * side, side, (s + 1) * side)), size)
                                for s in seconds])

    def soundtrack(self) -> Tensor:
        raise DataError(self.path, self.field, "a film strip has no soundtrack: give an audio_path")


class VideoFile:
    """mp4, avi or webm."""

    def __init__(self, path: Path, field: str):
        self.path, self.field = path, field
        must_be_whole(path, field, VIDEOS)
        self.av = _pyav(path, field)
        with self._open() as container:
            if not container.streams.video:
                raise DataError(path, field, "holds no video stream")
            stream = container.streams.video[0]
            length = stream.duration * stream.time_base if stream.duration else (container.duration or 0) / 1e6
            self.seconds = float(length)
        if not 0 < self.seconds <= MAX_SECONDS:
            raise DataError(path, field, f"says that it lasts {self.seconds:.1f} s: expected up to {MAX_SECONDS:.0f} s")

    def _open(self):
        with decoding(self.path, self.field, "video"):
            return self.av.open(str(self.path))

    def frames(self, seconds: list[int], size: int) -> Tensor:
        """(T, 3, size, size) uint8: what is on screen in the middle of these seconds (ascending)."""
        with decoding(self.path, self.field, "video"), self._open() as container:
            stream = container.streams.video[0]
            shown = _frames_at([second + 0.5 for second in seconds], container, stream)
            pictures = []
            for second, frame in zip(seconds, shown):
                if frame is None:
                    raise DataError(self.path, self.field, f"too short: no frame at second {second}")
                if frame.is_corrupt:
                    raise DataError(self.path, self.field, f"damaged frame at second {second}")
                upright = np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)      # phones film sideways
                pictures.append(picture_tensor(Image.fromarray(np.ascontiguousarray(upright)), size))
            return torch.stack(pictures)

    def soundtrack(self) -> Tensor:
        """(S,) float32 at 16 kHz, mono, second 0 = the first frame."""
        with decoding(self.path, self.field, "soundtrack"), self._open() as container:
            if not container.streams.audio:
                raise DataError(self.path, self.field, "no audio_path, and the video has no soundtrack")
            stream = container.streams.audio[0]
            planar = self.av.AudioResampler(format="fltp")          # sample format only: the rate is resample.py's
            blocks = [block.to_ndarray() for frame in container.decode(stream) for block in planar.resample(frame)]
            if not blocks:
                raise DataError(self.path, self.field, "zero-length audio")
            late = float((stream.start_time or 0) * stream.time_base) - _start(container.streams.video[0])
            silence = np.zeros((round(min(max(late, 0.0), MAX_SECONDS) * stream.rate), len(blocks[0])), np.float32)
            samples = np.concatenate([silence, np.concatenate(blocks, axis=1).T])              # (S, channels)
            return to_model_rate(samples, stream.rate, self.path, self.field)


def _pyav(path: Path, field: str):
    try:
        import av
    except ImportError as error:
        raise DataError(path, field, f"reading video files needs PyAV: {INSTALL}") from error
    return av


def _start(stream) -> float:
    return float((stream.start_time or 0) * stream.time_base)


def _frames_at(times: list[float], container, stream) -> list:
    """The frame on screen at each time (ascending, seconds from the start), None where the video has ended."""
    start, shown, ahead, found = _start(stream), None, None, []
    frames = container.decode(stream)
    for time in times:
        stamp = int((time + start) / stream.time_base)
        key = stream.index_entries.search_timestamp(stamp)
        if key >= 0 and shown is not None and stream.index_entries[key].timestamp > (ahead or shown).pts:
            container.seek(stamp, stream=stream)        # to the last key frame before the wanted moment
            shown, ahead, frames = None, None, container.decode(stream)
        elif shown is None and time >= 1:
            container.seek(stamp, stream=stream)
            frames = container.decode(stream)
        while ahead is None or ahead.time - start <= time:
            shown = ahead or shown
            ahead = next(frames, None)
            if ahead is None:
                break
            shown = shown or ahead
        ended = ahead is None and (shown is None or time - (shown.time - start) > 1.0)
        found.append(None if ended else shown)
    return found
