"""Pictures, masks and sounds from disk: any size, mode, rate or channel count in; the tensors that the model eats out.

Unusual: a file that is damaged, mislabelled or dangerous is refused with one line (`DataError`: file, field, reason)
and never becomes a silent black image or a padded recording. Frames are squeezed to a square, as official Crab does;
masks follow with nearest-neighbour sampling. AVSBench's 71 classes and their label colours live here.
Moving pictures are in video.py. Departs from official Crab: librosa and OpenCV are replaced by soundfile, PIL and
resample.py.
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
from .resample import RATE, resample

MAX_PIXELS = 64_000_000     # a 64-megapixel photograph still passes; a picture bomb does not
MAX_SECONDS = 1800.0        # of one recording
MAX_RATE = 384_000          # samples a second
SILENCE = 1e-4              # peak below which a whole recording counts as silent: 3 steps of 16 bits


@contextmanager
def decoding(path: Path, field: str, what: str):
    """Turns whatever a third-party decoder raises on damaged bytes into one DataError."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:      # PIL alone raises OSError, SyntaxError, struct.error, TypeError, ... on bad bytes
        raise DataError(path, field, f"unreadable {what}: {str(error) or type(error).__name__}") from error


def must_be_whole(path: Path, field: str, kinds: dict[str, str]) -> None:
    """Refuses what is missing, no regular file (a pipe would hang), empty, cut off or not what its extension says."""
    try:
        if not path.is_file():
            raise DataError(path, field, "missing" if not path.exists() else "not a regular file")
        reason = damage(path, kinds)
    except OSError as error:
        raise DataError(path, field, f"cannot be opened: {error.strerror}") from error
    if reason:
        raise DataError(path, field, reason)


def inside(path: Path, root: Path, file: str | Path, field: str) -> Path:
    """The path itself if it stays inside the data folder, links followed; DataError otherwise."""
    try:
        resolved = path.resolve()
        if not resolved.is_relative_to(root.resolve()):
            raise DataError(file, field, f"'{path.name}' leads outside the data folder")
        path.exists()       # a name too long for the file system fails here
    except (OSError, RuntimeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(file, field, f"no usable path: {error}") from error
    return path


def open_picture(path: Path, field: str = "image") -> Image.Image:
    """The decoded PIL image, upright (EXIF), of at most MAX_PIXELS; DataError otherwise."""
    must_be_whole(path, field, PICTURES)
    with decoding(path, field, "picture"), warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(path) as image:
                too_big = image.width * image.height > MAX_PIXELS and f"{image.width}x{image.height} pixels"
                if not too_big:
                    image.load()
                    return ImageOps.exif_transpose(image)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            too_big = "more pixels"
        raise DataError(path, field, f"too large: {too_big}, at most {MAX_PIXELS} allowed")


def as_rgb(image: Image.Image) -> Image.Image:
    """Any mode -> RGB: 16 bits scaled to 8, transparency laid over white."""
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image).astype(np.float64)
        image = Image.fromarray((values / (257 if values.max() > 255 else 1)).clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def picture_tensor(image: Image.Image, size: int) -> Tensor:
    """PIL image -> (3, size, size) uint8, squeezed to a square (antialiased)."""
    image = as_rgb(image)
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()      # (3, H, W)


def read_image(path: str | Path, size: int, field: str = "image") -> Tensor:
    """A picture file -> (3, size, size) uint8; DataError names the file if that cannot be done."""
    path = Path(path)
    image = open_picture(path, field)
    with decoding(path, field, "picture"):
        return picture_tensor(image, size)


def picture_size(path: Path, field: str = "image") -> tuple[int, int]:
    """(width, height) of the upright picture."""
    return open_picture(path, field).size


def nearest(array: np.ndarray, size: int) -> Tensor:
    """(h, w) -> (size, size) by taking the pixel under each new pixel's centre: no class is ever blended."""
    rows, columns = (((np.arange(size) + 0.5) * side / size).astype(np.int64) for side in array.shape)
    return torch.from_numpy(np.ascontiguousarray(array[rows[:, None], columns[None, :]]))


def _label_picture(path: Path, field: str, image_size: tuple[int, int] | None) -> Image.Image:
    label = open_picture(path, field)
    if image_size is not None and label.size != image_size:
        raise DataError(path, field, f"mask of {label.width}x{label.height}, its image has "
                                     f"{image_size[0]}x{image_size[1]}")
    return label


def read_mask(path: str | Path, size: int, image_size: tuple[int, int] | None = None, field: str = "mask") -> Tensor:
    """A binary mask -> (size, size) bool: whatever is above zero (in any colour channel) belongs to the object.

    image_size: (width, height) of the picture it belongs to; another size is a DataError.
    """
    path = Path(path)
    label = _label_picture(path, field, image_size)
    with decoding(path, field, "mask"):
        values = np.asarray(label.convert("RGB") if label.mode in ("P", "PA", "RGBA", "CMYK", "YCbCr") else label)
        if label.mode in ("LA", "La"):
            values = values[..., :1]
        return nearest(values > 0 if values.ndim == 2 else (values > 0).any(-1), size)


def palette() -> np.ndarray:
    """AVSBench's label colours, (71, 3) uint8: class bits, three at a time, fill the channels from the top bit down."""
    colours = np.zeros((len(AVSBENCH_CLASSES), 3), np.uint8)
    for index in range(len(AVSBENCH_CLASSES)):
        for step in range(3):                                   # 71 < 2^9: three triples are enough
            for channel in range(3):
                bit = index >> (3 * step + channel) & 1
                colours[index, channel] |= bit << (7 - step)
    return colours


def encode_classes(classes: np.ndarray | Tensor) -> Image.Image:
    """(H, W) class numbers -> palette PNG image whose indices are the classes and whose colours are AVSBench's."""
    image = Image.fromarray(np.asarray(classes).astype(np.uint8), mode="P")
    image.putpalette(palette().flatten().tolist())
    return image


def decode_classes(label: Image.Image, path: Path, field: str) -> np.ndarray:
    """A label picture -> (H, W) int64 classes. Grey values are class numbers, colours are looked up in the palette."""
    if label.mode in ("1", "L", "I;16", "I", "LA"):
        values = np.asarray(label.getchannel(0) if label.mode == "LA" else label).astype(np.int64)
        if values.max() >= len(AVSBENCH_CLASSES) or values.min() < 0:
            raise DataError(path, field, f"class {values.max()} outside AVSBench's 0..{len(AVSBENCH_CLASSES) - 1}")
        return values
    rgb = np.asarray(label.convert("RGB")).astype(np.int64)                     # (H, W, 3)
    code = rgb[..., 0] << 16 | rgb[..., 1] << 8 | rgb[..., 2]                   # (H, W)
    table = palette().astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])         # (71,)
    order = np.argsort(table)
    classes = order[np.searchsorted(table, code, sorter=order).clip(max=len(table) - 1)]
    wrong = np.argwhere(table[classes] != code)
    if len(wrong):
        y, x = wrong[0]
        raise DataError(path, field, f"colour {tuple(rgb[y, x].tolist())} at ({x}, {y}) is not in AVSBench's palette")
    return classes


def read_classes(path: str | Path, size: int, image_size: tuple[int, int] | None = None, field: str = "mask") -> Tensor:
    """A semantic label picture -> (size, size) int64 class map; a colour outside the palette is a DataError."""
    path = Path(path)
    label = _label_picture(path, field, image_size)
    with decoding(path, field, "mask"):
        return nearest(decode_classes(label, path, field), size)


def to_model_rate(samples: np.ndarray, rate: int, path: Path, field: str) -> Tensor:
    """(S, channels) float at `rate` -> (S',) float32, mono, 16 kHz; refuses nothing, noise-free silence and NaN."""
    if len(samples) == 0:
        raise DataError(path, field, "zero-length audio")
    if not np.isfinite(samples).all():
        raise DataError(path, field, "audio holds NaN or infinity")
    waveform = resample(torch.from_numpy(samples.astype(np.float32).mean(1)), rate)
    if waveform.abs().max() < SILENCE:
        raise DataError(path, field, "silent audio")
    return waveform


def read_audio(path: str | Path, field: str = "audio") -> Tensor:
    """wav, flac, ogg or mp3 of any rate and channel count -> (S,) float32, mono, 16 kHz."""
    path = Path(path)
    must_be_whole(path, field, SOUNDS)
    with decoding(path, field, "audio"), soundfile.SoundFile(path) as file:
        if not 1000 <= file.samplerate <= MAX_RATE or file.channels > 64:
            raise DataError(path, field, f"{file.samplerate} Hz, {file.channels} channels: not a recording")
        if file.frames > MAX_SECONDS * file.samplerate:
            raise DataError(path, field, f"longer than {MAX_SECONDS:.0f} s")
        samples = file.read(dtype="float32", always_2d=True)                    # (S, channels)
        if len(samples) < file.frames:
            raise DataError(path, field, f"cut off: {len(samples)} of {file.frames} samples can be read")
        return to_model_rate(samples, file.samplerate, path, field)


def pieces(waveform: Tensor, starts: list[float], length: float = 1.0) -> Tensor:
    """(S,) -> (T, length · 16000): one piece from each start (seconds); zeros before 0 and after the end."""
    samples = round(length * RATE)
    firsts = [round(start * RATE) for start in starts]
    left = max(0, -min(firsts))
    right = max(0, max(firsts) + samples - len(waveform))
    padded = torch.nn.functional.pad(waveform, (left, right))
    return torch.stack([padded[left + first:left + first + samples] for first in firsts])      # (T, S)
