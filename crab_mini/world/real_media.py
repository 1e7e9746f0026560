"""Real pictures and recordings made ready for the world: cut out, freed of pauses, levelled,
varied.

Everything here reads one file and raises DataError if the file cannot be used. bank.py decides
which files are read. Masks are exact, since they come from the transparency of the picture. A
recording becomes a loop, as the synthesised sounds are. A class has one picture and one recording;
its eight variants differ in colour, brightness, shape and speed.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from ..av_uie.media import as_rgb, open_picture, read_audio
from ..errors import DataError
from .dials import Dials
from .render import HUE_TURN, tinted
from .scene import RATE
from .sprites import SIDE
from .synthesis import FINE, LOOP, levelled

MIN_PIXELS = 48             # longer side of a picture, so that no sprite is enlarged and blurred
MIN_ASPECT = 0.2  # shorter side / longer side; a thinner thing has two pixels in a small frame
MIN_COVERAGE = 0.2          # share of its box that a cut-out fills
MIN_SECONDS = 0.15          # length of a recording without its pauses
MAX_PAUSE = 0.2             # seconds of silence that are kept where a recording pauses
MAX_SPEED = 1.1             # a variant's playing speed is 1 / MAX_SPEED to MAX_SPEED
MAX_PITCH = 1.06            # the largest `pitch` of a thing (scene.py), a factor on the speed
BACKGROUND_SIDE = 256       # pixels of the shorter side of a background picture


@dataclass(frozen=True)
class ClassFiles:
    """The two files of one class."""
    name: str
    picture: Path           # with transparency
    sound: Path


@lru_cache(maxsize=256)
def cut_out(path: Path) -> Image.Image:
    """The opaque part of a picture: RGBA, cropped, at most SIDE pixels in each direction.

    Raises DataError if the picture has no transparency or is too small, too slim or too thin.
    """
    picture = open_picture(path)
    if "A" not in picture.mode and "transparency" not in picture.info:
        raise DataError(path, "picture", "no transparency: its outline is not known")
    picture = picture.convert("RGBA")
    # Where the picture is more than half opaque; the box around it.
    opaque = picture.getchannel("A").point(lambda a: 255 * (a > 127))
    box = opaque.getbbox()
    if box is None:
        raise DataError(path, "picture", "transparent everywhere")
    width, height = box[2] - box[0], box[3] - box[1]
    # What would be invisible in a small frame is refused.
    size = f"{width}x{height} pixels"
    if max(width, height) < MIN_PIXELS:
        raise DataError(path, "picture", f"{size}: too small, expected {MIN_PIXELS} or more")
    if min(width, height) < MIN_ASPECT * max(width, height):
        raise DataError(path, "picture", f"{size}: too slim to be seen in a small frame")
    coverage = np.count_nonzero(opaque) / (width * height)
    if coverage < MIN_COVERAGE:
        reason = f"fills {coverage:.0%} of its box: too thin to be seen in a small frame"
        raise DataError(path, "picture", reason)
    if coverage == 1 and opaque.size == (width, height):
        raise DataError(path, "picture", "opaque everywhere: its outline is not known")
    picture = picture.crop(box)
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return picture


def without_pauses(waveform: np.ndarray) -> np.ndarray:
    """(S,) at RATE -> (S',): passages of sound, each followed by at most MAX_PAUSE seconds of the
    pause after it.
    """
    step = RATE // 50
    frames = np.pad(waveform, (0, -len(waveform) % step)).reshape(-1, step)  # (N, 20 ms)
    level = np.sqrt((frames ** 2).mean(1))
    loud = level > 0.03 * level.max()
    # A frame is kept if one of the last MAX_PAUSE seconds is loud.
    hold = int(MAX_PAUSE * 50)
    kept = np.convolve(loud, np.ones(hold), "full")[:len(loud)] > 0
    return frames[kept].ravel()


@lru_cache(maxsize=128)
def recording_loop(path: Path) -> np.ndarray:
    """A recording as a loop of LOOP to 2 * LOOP seconds: (S,) float32 at FINE samples a second, as
    `levelled` returns.

    Raises DataError if less than MIN_SECONDS of sound are left without the pauses.
    """
    waveform = without_pauses(read_audio(path).numpy())[:LOOP * RATE]
    if len(waveform) < MIN_SECONDS * RATE:
        raise DataError(path, "sound", f"{len(waveform) / RATE:.2f} s of sound: too short, "
                                       f"expected {MIN_SECONDS} or more")
    # Fade both ends within 5 ms, then repeat: no click where the end meets the beginning.
    fade = np.minimum(np.arange(len(waveform)) / (0.005 * RATE), 1)
    loop = np.tile(waveform * fade * fade[::-1], -(-LOOP * RATE // len(waveform)))
    # Twice the sampling rate: zeros for the new high frequencies.
    samples = len(loop) * FINE // RATE
    spectrum = np.fft.rfft(loop)
    spectrum = np.pad(spectrum, (0, samples // 2 + 1 - len(spectrum)))
    # Played as fast as possible, the loop must stay below the world's Nyquist frequency.
    top = RATE / 2 / MAX_SPEED / MAX_PITCH
    return levelled(np.fft.irfft(spectrum, samples), top)


@lru_cache(maxsize=1024)
def variant_look(files: ClassFiles, variant: int) -> Image.Image:
    """One of the eight looks of a picture: its colours turned, lighter or darker, wider or higher.
    RGBA.
    """
    dial = Dials("bank look " + files.name, variant)
    hue, light, stretch = dial(-15, 15), dial(0.75, 1.2), dial(0.85, 1.18)
    picture = cut_out(files.picture)
    pixels = np.asarray(picture, np.float32)                                # (height,width,4)
    colour = (tinted(pixels[..., :3], hue / HUE_TURN) * light).clip(0, 255)
    look = Image.fromarray(np.dstack([colour, pixels[..., 3:]]).astype(np.uint8))
    # The area stays the same.
    width, height = look.width * stretch ** 0.5, look.height / stretch ** 0.5
    return look.resize((max(1, round(width)), max(1, round(height))), Image.Resampling.BICUBIC)


def variant_speed(files: ClassFiles, variant: int) -> float:
    """The playing speed of a variant's recording: 1 / MAX_SPEED to MAX_SPEED."""
    return Dials("bank sound " + files.name, variant)(1 / MAX_SPEED, MAX_SPEED)


@lru_cache(maxsize=256)
def background_picture(path: Path) -> Image.Image:
    """A background picture: RGB, shorter side at most BACKGROUND_SIDE pixels."""
    picture = as_rgb(open_picture(path, "background"))
    scale = min(1, BACKGROUND_SIDE / min(picture.size))
    size = [max(1, round(side * scale)) for side in picture.size]
    return picture.resize(size, Image.Resampling.BICUBIC)
