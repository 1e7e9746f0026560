"""Moving pictures as one frame a second: video files through PyAV, folders of frames, and film
strips.

`open_clip` returns an object that knows its length (`seconds`), decodes the frames of given seconds
(`frames`) and its sound (`soundtrack`). A film strip is the compact container of the miniature: one
PNG of square frames, top to bottom (height = T · width). Video files are not decoded from start to
end: the key frame before a wanted time is looked up in the file's index and decoding starts there
(seeking). The frame of second s is the one on screen at s + 0.5, the middle of its second of sound.
PyAV is installed with the optional extra `video`.
"""

import re
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import DataError
from .integrity import FORMATS, PICTURES, VIDEOS
from .media import decoding, must_be_whole, open_picture, picture_tensor, read_image
from .mono import MAX_SECONDS, Mono
from .paths import inside

INSTALL = 'pip install -e ".[video]"'
MAX_HELD = 1.0              # seconds for which the last frame of a video still counts as on screen


def open_clip(path: Path, field: str = "video", root: Path | None = None):
    """A FrameFolder, a FilmStrip or a VideoFile. Raises DataError if the path is none of them or
    cannot be used.

    root: no frame of a folder may lie outside it, also when links are followed.
    """
    if path.is_dir():
        return FrameFolder(path, field, root)
    if path.suffix.lower() in PICTURES:
        return FilmStrip(path, field)
    if path.suffix.lower() not in VIDEOS and path.is_file():
        kinds = " ".join([*VIDEOS, *PICTURES])
        raise DataError(path, field, f"wrong extension '{path.suffix}': "
                                     f"expected a folder of frames or one of {kinds}")
    return VideoFile(path, field)


def numbers_in_order(path: Path) -> list:
    """A key for sorting by the numbers in file names: frame 9 comes before frame 10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"([0-9]+)", path.name)]


class FrameFolder:
    """A folder with one picture a second, in the order of the numbers in their names."""

    def __init__(self, path: Path, field: str, root: Path | None = None):
        self.path, self.field = path, field
        pictures = [file for file in path.iterdir() if file.suffix.lower() in FORMATS]
        self.files = sorted(pictures, key=numbers_in_order)
        for file in self.files:
            if root is not None:
                inside(file, root, file, field)
        if not self.files:
            raise DataError(path, field, "folder without frames")
        self.seconds = float(len(self.files))

    def frames(self, seconds: list[int], size: int) -> Tensor:
        """(T,3,H,W) uint8 with H = W = size: the pictures number `seconds` of the folder."""
        return torch.stack([read_image(self.files[second], size, self.field) for second in seconds])

    def soundtrack(self) -> Tensor:
        """Raises DataError: pictures have no sound."""
        raise DataError(self.path, self.field,
                        "a folder of frames has no soundtrack: give an audio_path")


class FilmStrip:
    """One picture of T square frames, top to bottom."""

    def __init__(self, path: Path, field: str):
        self.path, self.field = path, field
        self.image = open_picture(path, field)
        width, height = self.image.size
        if height % width:
            raise DataError(path, field, f"no film strip: {width}x{height}, "
                                         "the height must be a multiple of the width")
        self.seconds = float(height // width)

    def frames(self, seconds: list[int], size: int) -> Tensor:
        """(T,3,H,W) uint8 with H = W = size: the squares number `seconds` from the top."""
        side = self.image.width
        with decoding(self.path, self.field, "film strip"):
            squares = [self.image.crop((0, s * side, side, (s + 1) * side)) for s in seconds]
            return torch.stack([picture_tensor(square, size) for square in squares])

    def soundtrack(self) -> Tensor:
        """Raises DataError: a picture has no sound."""
        raise DataError(self.path, self.field, "a film strip has no soundtrack: give an audio_path")


class VideoFile:
    """An mp4, avi or webm file."""

    def __init__(self, path: Path, field: str):
        self.path, self.field = path, field
        must_be_whole(path, field, VIDEOS)
        self.av = import_pyav(path, field)
        with self.open() as container:
            if not container.streams.video:
                raise DataError(path, field, "holds no video stream")
            stream = container.streams.video[0]
            # The stream's duration is in units of its time base, the container's in microseconds.
            if stream.duration:
                length = stream.duration * stream.time_base
            else:
                length = (container.duration or 0) / 1e6
            self.seconds = float(length)
        if not 0 < self.seconds <= MAX_SECONDS:
            raise DataError(path, field, f"says that it lasts {self.seconds:.1f} s: "
                                         f"expected up to {MAX_SECONDS:.0f} s")

    def open(self):
        """PyAV's container of the file."""
        with decoding(self.path, self.field, "video"):
            return self.av.open(str(self.path))

    def frames(self, seconds: list[int], size: int) -> Tensor:
        """(T,3,H,W) uint8 with H = W = size: what is on screen in the middle of these seconds
        (ascending).
        """
        with decoding(self.path, self.field, "video"), self.open() as container:
            stream = container.streams.video[0]
            on_screen = frames_at([second + 0.5 for second in seconds], container, stream)
            pictures = []
            for second, frame in zip(seconds, on_screen, strict=True):
                if frame is None:
                    raise DataError(self.path, self.field,
                                    f"too short: no frame at second {second}")
                if frame.is_corrupt:
                    raise DataError(self.path, self.field, f"damaged frame at second {second}")
                # A phone held upright stores its pictures lying and states the rotation.
                upright = np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
                picture = Image.fromarray(np.ascontiguousarray(upright))
                pictures.append(picture_tensor(picture, size))
            return torch.stack(pictures)

    def soundtrack(self) -> Tensor:
        """(S,) float32, mono, 16 kHz. Sample 0 belongs to the time of the first frame."""
        with decoding(self.path, self.field, "soundtrack"), self.open() as container:
            if not container.streams.audio:
                raise DataError(self.path, self.field,
                                "no audio_path, and the video has no soundtrack")
            stream = container.streams.audio[0]
            # PyAV converts only the sample format here; resample.py converts the rate.
            planar = self.av.AudioResampler(format="fltp")
            mono = Mono(stream.rate, stream.channels, self.path, self.field)
            # Where the sound begins later than the picture, silence comes first.
            delay = start_of(stream) - start_of(container.streams.video[0])
            missing = round(min(max(delay, 0.0), MAX_SECONDS) * stream.rate)
            mono.add(np.zeros((missing, 1), np.float32))
            for frame in container.decode(stream):
                for block in planar.resample(frame):
                    mono.add(block.to_ndarray().T)                          # (S,channels)
            return mono.waveform()


def import_pyav(path: Path, field: str):
    """The module `av`. Raises DataError, with the command that installs it, if it is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise DataError(path, field, f"reading video files needs PyAV: {INSTALL}") from error
    return av


def start_of(stream) -> float:
    """The time of a stream's first frame or sample, in seconds."""
    return float((stream.start_time or 0) * stream.time_base)


def frames_at(times: list[float], container, stream) -> list:
    """The frame on screen at each time (seconds from the start, ascending); None where the video
    has ended.

    A frame is on screen until the next one begins, the last one for MAX_HELD seconds at most.
    """
    start = start_of(stream)
    current, following = None, None             # the frame on screen, and the one after it
    decoded, on_screen = container.decode(stream), []
    for time in times:
        # Seek if that skips frames: if a key frame lies between the frame that was decoded last and
        # the wanted time.
        timestamp = int((time + start) / stream.time_base)
        key = stream.index_entries.search_timestamp(timestamp)
        if current is None:
            skips = time >= 1
        else:
            skips = key >= 0 and stream.index_entries[key].timestamp > (following or current).pts
        if skips:
            container.seek(timestamp, stream=stream)  # to the last key frame before the time
            current, following, decoded = None, None, container.decode(stream)
        # Decode until the following frame begins after the time.
        while following is None or following.time - start <= time:
            current = following or current
            following = next(decoded, None)
            if following is None:
                break
            current = current or following
        ended = following is None and (current is None or time - (current.time - start) > MAX_HELD)
        on_screen.append(None if ended else current)
    return on_screen
