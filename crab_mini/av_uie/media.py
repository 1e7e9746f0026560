"""Pictures, masks and sounds: files in, tensors out. Sizes, colour modes, sampling rates and
channels are converted.

A file that is damaged, mislabelled or dangerous raises DataError (file, field, reason). It never
becomes a black image or a padded recording without notice. Frames are squeezed to a square, as
official Crab does. Masks are resized by the nearest pixel, so that no class is blended with
another. Moving pictures are in video.py. Departs from official Crab: soundfile, PIL and resample.py
replace librosa and OpenCV.
"""

import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import soundfile
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..errors import DataError
from ..tasks.class_names import AVSBENCH_CLASSES
from .integrity import PICTURES, SOUNDS, damage
from .mono import BLOCK, Mono
from .resample import RATE

# Of a picture: a photograph of 64 megapixels passes, a decompression bomb does not.
MAX_PIXELS = 64_000_000


# ---- files

@contextmanager
def decoding(path: Path, field: str, what: str):
    """Turns any error of a decoder library into a DataError: `unreadable {what}`."""
    try:
        yield
    except DataError:
        raise
    # On bad bytes PIL alone raises OSError, SyntaxError, TypeError and more.
    except Exception as error:
        reason = f"unreadable {what}: {str(error) or type(error).__name__}"
        raise DataError(path, field, reason) from error


def must_be_whole(path: Path, field: str, kinds: dict[str, str]) -> None:
    """Raises DataError if the file is missing, empty, cut off, not a regular file or not of one of
    `kinds`.

    kinds: extension -> format. A pipe is not a regular file; reading it could wait for ever.
    """
    try:
        if not path.is_file():
            raise DataError(path, field, "missing" if not path.exists() else "not a regular file")
        reason = damage(path, kinds)
    except OSError as error:
        raise DataError(path, field, f"cannot be opened: {error.strerror}") from error
    if reason:
        raise DataError(path, field, reason)


# ---- pictures

def open_picture(path: Path, field: str = "image") -> Image.Image:
    """The decoded picture, turned upright as its EXIF data says. DataError above MAX_PIXELS."""
    must_be_whole(path, field, PICTURES)
    with decoding(path, field, "picture"), warnings.catch_warnings():
        # PIL has a limit of its own; its warning, too, is treated as an error.
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(path) as image:
                # The size stands in the header; the pixels are only decoded if it is small enough.
                if image.width * image.height <= MAX_PIXELS:
                    image.load()
                    return ImageOps.exif_transpose(image)
                size = f"{image.width}x{image.height} pixels"
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            size = "more pixels"
        raise DataError(path, field, f"too large: {size}, at most {MAX_PIXELS} allowed")


def as_rgb(image: Image.Image) -> Image.Image:
    """A picture of any mode as RGB. 16 bits are scaled to 8; transparent parts become white."""
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image).astype(np.float64)
        scale = 257 if values.max() > 255 else 1
        image = Image.fromarray((values / scale).clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def picture_tensor(image: Image.Image, size: int) -> Tensor:
    """A picture as (3,H,W) uint8 with H = W = size, squeezed to a square with antialiasing."""
    image = as_rgb(image)
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()                 # (3,H,W)


def read_image(path: str | Path, size: int, field: str = "image") -> Tensor:
    """A picture file as (3,H,W) uint8 with H = W = size. Raises DataError if it cannot be used."""
    path = Path(path)
    image = open_picture(path, field)
    with decoding(path, field, "picture"):
        return picture_tensor(image, size)


def picture_size(path: Path, field: str = "image") -> tuple[int, int]:
    """(width, height) of the upright picture, in pixels."""
    return open_picture(path, field).size


# ---- masks and class maps

def resize_nearest(array: np.ndarray, size: int) -> Tensor:
    """A map of any size as (H,W) with H = W = size: each new pixel takes the value under its
    centre.
    """
    rows, columns = (((np.arange(size) + 0.5) * side / size).astype(np.int64)
                     for side in array.shape)
    return torch.from_numpy(np.ascontiguousarray(array[rows[:, None], columns[None, :]]))


def open_label(path: Path, field: str, image_size: tuple[int, int] | None) -> Image.Image:
    """A picture of a mask. image_size: (width, height) that it must have, if given; otherwise
    DataError.
    """
    label = open_picture(path, field)
    if image_size is not None and label.size != image_size:
        raise DataError(path, field, f"mask of {label.width}x{label.height}, its image has "
                                     f"{image_size[0]}x{image_size[1]}")
    return label


def mask_pixels(path: Path, image_size: tuple[int, int] | None = None,
                field: str = "mask") -> np.ndarray:
    """A binary mask file as (height,width) bool: true where any colour channel is above zero.

    image_size: (width, height) of the picture that the mask belongs to. A mask of another size
    raises DataError.
    """
    label = open_label(path, field, image_size)
    with decoding(path, field, "mask"):
        # Palettes and other colour spaces are turned to colours first; transparency is ignored.
        if label.mode in ("P", "PA", "RGBA", "CMYK", "YCbCr"):
            label = label.convert("RGB")
        values = np.asarray(label)  # (height,width) or (height,width,C)
        if label.mode in ("LA", "La"):
            values = values[..., :1]
        return values > 0 if values.ndim == 2 else (values > 0).any(-1)


def read_mask(path: str | Path, size: int, image_size: tuple[int, int] | None = None,
              field: str = "mask") -> Tensor:
    """`mask_pixels` as (H,W) bool with H = W = size."""
    return resize_nearest(mask_pixels(Path(path), image_size, field), size)


def palette() -> np.ndarray:
    """AVSBench's colours of the 71 classes: (71,3) uint8.

    The bits of a class number are dealt to the three channels in turn, and fill each channel from
    its highest bit down.
    """
    colours = np.zeros((len(AVSBENCH_CLASSES), 3), np.uint8)
    for index in range(len(AVSBENCH_CLASSES)):
        for step in range(3):  # 71 < 2^9: three bits for each channel are enough
            for channel in range(3):
                bit = index >> (3 * step + channel) & 1
                colours[index, channel] |= bit << (7 - step)
    return colours


def encode_classes(classes: np.ndarray | Tensor) -> Image.Image:
    """Class numbers (H,W) as a palette picture: its indices are the numbers, its colours
    AVSBench's.
    """
    image = Image.fromarray(np.asarray(classes).astype(np.uint8), mode="P")
    image.putpalette(palette().flatten().tolist())
    return image


def decode_classes(label: Image.Image, path: Path, field: str) -> np.ndarray:
    """A picture of a class map as class numbers (H,W) int64. Grey values are numbers, colours are
    AVSBench's.

    Raises DataError for a number or a colour that AVSBench does not have.
    """
    if label.mode in ("1", "L", "I;16", "I", "LA"):
        grey = label.getchannel(0) if label.mode == "LA" else label
        values = np.asarray(grey).astype(np.int64)
        if values.max() >= len(AVSBENCH_CLASSES) or values.min() < 0:
            raise DataError(path, field, f"class {values.max()} outside AVSBench's "
                                         f"0..{len(AVSBENCH_CLASSES) - 1}")
        return values
    # A colour as one number of 24 bits; the class is found by binary search among the colours of
    # the palette.
    rgb = np.asarray(label.convert("RGB")).astype(np.int64)                                # (H,W,3)
    code = rgb[..., 0] << 16 | rgb[..., 1] << 8 | rgb[..., 2]                              # (H,W)
    known = palette().astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])                    # (71,)
    order = np.argsort(known)
    found = np.searchsorted(known, code, sorter=order).clip(max=len(known) - 1)
    classes = order[found]
    wrong = np.argwhere(known[classes] != code)
    if len(wrong):
        y, x = wrong[0]
        raise DataError(path, field, f"colour {tuple(rgb[y, x].tolist())} at ({x}, {y}) "
                                     "is not in AVSBench's palette")
    return classes


def class_pixels(path: Path, image_size: tuple[int, int] | None = None,
                 field: str = "mask") -> np.ndarray:
    """A class map file as class numbers (height,width) int64. image_size as in `mask_pixels`.

    Raises DataError for a number or a colour that AVSBench does not have.
    """
    label = open_label(path, field, image_size)
    with decoding(path, field, "mask"):
        return decode_classes(label, path, field)


def read_classes(path: str | Path, size: int, image_size: tuple[int, int] | None = None,
                 field: str = "mask") -> Tensor:
    """`class_pixels` as (H,W) int64 with H = W = size."""
    return resize_nearest(class_pixels(Path(path), image_size, field), size)


# ---- sound

def read_audio(path: str | Path, field: str = "audio") -> Tensor:
    """A wav, flac, ogg or mp3 file of any rate and number of channels as (S,) float32, mono, 16
    kHz.

    Raises DataError if it cannot be used; mono.py has the limits.
    """
    path = Path(path)
    must_be_whole(path, field, SOUNDS)
    with decoding(path, field, "audio"), soundfile.SoundFile(path) as file:
        # Limits first, so that a wrong header cannot ask for all of the memory.
        mono = Mono(file.samplerate, file.channels, path, field)
        mono.must_fit(file.frames)
        while mono.count < file.frames:
            wanted = min(BLOCK // file.channels, file.frames - mono.count)
            samples = file.read(wanted, dtype="float32", always_2d=True)        # (S,channels)
            if len(samples) == 0:
                raise DataError(path, field, f"cut off: {mono.count} of {file.frames} samples "
                                             "can be read")
            mono.add(samples)
        return mono.waveform()


def pieces(waveform: Tensor, starts: list[float], length: float = 1.0) -> Tensor:
    """Pieces of `length` seconds that begin at `starts` (seconds): waveform (S,) -> (T, length ·
    16000).

    Before 0 and after its end the waveform counts as zero.
    """
    samples = round(length * RATE)
    firsts = [round(start * RATE) for start in starts]
    left = max(0, -min(firsts))
    right = max(0, max(firsts) + samples - len(waveform))
    padded = torch.nn.functional.pad(waveform, (left, right))
    return torch.stack([padded[left + first:left + first + samples] for first in firsts])
