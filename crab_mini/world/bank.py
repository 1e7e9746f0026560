"""A bank of real pictures and sounds for the world: dog.png + dog.ogg, anywhere under a folder, become the class dog.

    python -m crab_mini.world --bank DIR --classes cow,dog,horse,owl,pig --out data/farm

`scan` checks every pair before anything is rendered: what cannot be used is listed with its reason and never becomes
an empty sprite or a silent second. Masks are exact because they come from the picture's alpha. A recording is cut free
of pauses, levelled and bent to a loop, as the synthesised sounds are; eight variants of each class differ in colour,
brightness, shape and pitch. In tasks a class is called by its file's name: small letters, hyphens between words.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from ..av_uie.integrity import PICTURES, SOUNDS
from ..av_uie.media import as_rgb, open_picture, read_audio
from ..errors import DataError
from ..tasks.class_names import AVSBENCH_CLASSES
from .backgrounds import background, drifting, margin
from .dials import Dials
from .render import HUE_TURN, tinted
from .scene import RATE, TRAIN_VARIANTS
from .sprites import SIDE
from .synthesis import FINE, LOOP, levelled

FEWEST = 5                  # classes that a scene may need at once
SMALLEST = 48               # pixels of the longer side, so that no sprite is enlarged to a blur
SLIMMEST = 0.2              # shorter side over longer side: thinner is two pixels in a small frame
SPARSEST = 0.2              # share of its box that a cut-out fills
SHORTEST = 0.15             # seconds of sound
SAME = 0.8                  # correlation of two recordings from which on they count as one
PAUSE = 0.2                 # seconds of silence that are kept where a recording pauses
FASTEST = 1.1               # a variant's playing speed is 1 / FASTEST to FASTEST
SIGNS = {"symbols", "alphabets", "roadsigns"}   # folders of Debian's stamps whose recordings are spoken names
TAKEN = {"nothing"}         # words that stand for something else in the tasks' sentences


@dataclass(frozen=True)
class Stamp:
    """One class: a picture with alpha and a recording."""
    name: str
    picture: Path
    sound: Path


@dataclass(frozen=True)
class Skipped:
    """A file that the bank cannot use."""
    path: Path
    reason: str


def class_name(stem: str) -> str:
    """`Sea_Lion 2` -> `sea-lion-2`: one word without the marks that the tasks' answers are parsed by."""
    return re.sub(r"[\W_]+", "-", stem.lower()).strip("-")


def class_names(categories: Iterable[str]) -> tuple[str, ...]:
    """(71,) names by their number in class maps, whose palette is AVSBench's: a class that AVSBench has keeps its number,
    any other takes one that is unused. ValueError for more classes than numbers."""
    names = list(AVSBENCH_CLASSES)
    categories = list(categories)
    if len(categories) >= len(names):
        raise ValueError(f"{len(categories)} classes, at most {len(names) - 1} have a colour in class maps: "
                         "choose some with --classes")
    free = (k for k, name in enumerate(names) if k and name not in categories)
    for name in categories:
        if name not in AVSBENCH_CLASSES:
            names[next(free)] = name
    return tuple(names)


@lru_cache(maxsize=256)
def cut_out(path: Path) -> Image.Image:
    """A picture's opaque part, trimmed, at most SIDE pixels: RGBA. DataError if nothing useful is cut out."""
    picture = open_picture(path)
    if "A" not in picture.mode and "transparency" not in picture.info:
        raise DataError(path, "picture", "no transparency: its outline is not known")
    picture = picture.convert("RGBA")
    solid = picture.getchannel("A").point(lambda a: 255 * (a > 127))
    box = solid.getbbox()
    if box is None:
        raise DataError(path, "picture", "transparent everywhere")
    width, height = box[2] - box[0], box[3] - box[1]
    if max(width, height) < SMALLEST:
        raise DataError(path, "picture", f"{width}x{height} pixels: too small, expected {SMALLEST} or more")
    if min(width, height) < SLIMMEST * max(width, height):
        raise DataError(path, "picture", f"{width}x{height} pixels: too slim to be seen in a small frame")
    share = np.count_nonzero(solid) / (width * height)
    if share < SPARSEST:
        raise DataError(path, "picture", f"fills {share:.0%} of its box: too thin to be seen in a small frame")
    if share == 1 and solid.size == (width, height):
        raise DataError(path, "picture", "opaque everywhere: its outline is not known")
    picture = picture.crop(box)
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return picture


def without_pauses(wave: np.ndarray) -> np.ndarray:
    """(S,) at RATE -> the stretches that sound, each followed by at most PAUSE seconds of what came after it."""
    step = RATE // 50
    frames = np.pad(wave, (0, -len(wave) % step)).reshape(-1, step)                      # (F, 20 ms)
    level = np.sqrt((frames ** 2).mean(1))
    loud = level > 0.03 * level.max()
    hold = int(PAUSE * 50)
    kept = np.convolve(loud, np.ones(hold), "full")[:len(loud)] > 0
    return frames[kept].ravel()


@lru_cache(maxsize=128)
def ring(path: Path) -> np.ndarray:
    """A recording as a loop, (N,) float32 at FINE samples a second, LOOP to 2*LOOP seconds, rms 1 in each of them."""
    wave = without_pauses(read_audio(path).numpy())[:LOOP * RATE]
    if len(wave) < SHORTEST * RATE:
        raise DataError(path, "sound", f"{len(wave) / RATE:.2f} s of sound: too short, expected {SHORTEST} or more")
    fade = np.minimum(np.arange(len(wave)) / (0.005 * RATE), 1)
    wave = np.tile(wave * fade * fade[::-1], -(-LOOP * RATE // len(wave)))
    spectrum = np.fft.rfft(wave)
    spectrum = np.pad(spectrum, (0, len(wave) * FINE // RATE // 2 + 1 - len(spectrum)))
    top = RATE / 2 / FASTEST / 1.06                 # and scenes play up to 6 % faster
    return levelled(np.fft.irfft(spectrum, len(wave) * FINE // RATE), top)


@lru_cache(maxsize=1024)
def variant_look(stamp: Stamp, variant: int) -> Image.Image:
    """One of the eight looks of a picture: its colours turned, made lighter or darker, stretched one way."""
    dial = Dials("bank look " + stamp.name, variant)
    hue, light, stretch = dial(-15, 15), dial(0.75, 1.2), dial(0.85, 1.18)
    picture = cut_out(stamp.picture)
    pixels = np.asarray(picture, np.float32)                                             # (h,w,4)
    colour = (tinted(pixels[..., :3], hue / HUE_TURN) * light).clip(0, 255)
    out = Image.fromarray(np.dstack([colour, pixels[..., 3:]]).astype(np.uint8))
    return out.resize((max(1, round(out.width * stretch ** 0.5)), max(1, round(out.height / stretch ** 0.5))),
                      Image.Resampling.BICUBIC)


@lru_cache(maxsize=256)
def scenery(path: Path) -> Image.Image:
    """A background picture: RGB, shorter side at most 256 pixels."""
    picture = as_rgb(open_picture(path, "background"))
    scale = min(1, 256 / min(picture.size))
    return picture.resize([max(1, round(s * scale)) for s in picture.size], Image.Resampling.BICUBIC)


@dataclass(frozen=True)
class Folder:
    """A `render.Bank` of real pictures and sounds. holdout: the test variants look and sound unlike training's."""
    stamps: tuple[Stamp, ...]
    backgrounds: tuple[Path, ...] = ()
    holdout: bool = False

    @property
    def categories(self) -> tuple[str, ...]:
        """Class names in alphabetical order."""
        return tuple(stamp.name for stamp in self.stamps)

    def _find(self, category: str, variant: int) -> tuple[Stamp, int]:
        return self.stamps[self.categories.index(category)], variant if self.holdout else variant % len(TRAIN_VARIANTS)

    def look(self, category: str, variant: int) -> Image.Image:
        """RGBA, trimmed to its alpha box."""
        return variant_look(*self._find(category, variant))

    def voice(self, category: str, variant: int) -> tuple[np.ndarray, float]:
        """The recording's loop and the variant's playing speed."""
        stamp, variant = self._find(category, variant)
        return ring(stamp.sound), Dials("bank sound " + stamp.name, variant)(1 / FASTEST, FASTEST)

    def background(self, seed: int, frames: int, image: int) -> np.ndarray:
        """(T,H,W,3) float32 in 0..255: a square piece of one of the background pictures, or the procedural texture."""
        if not self.backgrounds:
            return background(seed, frames, image)
        rng = np.random.default_rng([seed, 1])
        picture = scenery(self.backgrounds[rng.integers(len(self.backgrounds))])
        side = min(picture.size) * rng.uniform(0.6, 1)
        left, top = (rng.uniform(0, whole - side) for whole in picture.size)
        wide = image + 2 * margin(image)
        field = picture.resize((wide, wide), Image.Resampling.BICUBIC, (left, top, left + side, top + side))
        return drifting(np.asarray(field, np.float32), frames, image, rng)


def _pairs(root: Path) -> tuple[list[Stamp], list[Skipped]]:
    """All pictures under a folder with a sound of the same name beside them; what has no partner is skipped."""
    pictures, sounds, skipped = {}, {}, []
    for path in sorted(root.rglob("*")):
        kind = pictures if path.suffix.lower() in PICTURES else sounds if path.suffix.lower() in SOUNDS else None
        if kind is None or "_desc" in path.stem or not path.is_file():
            continue
        if SIGNS & set(path.relative_to(root).parts[:-1]):
            skipped.append(Skipped(path, "letters, digits and signs are read out, they make no sound"))
        elif path.with_suffix("") in kind:
            skipped.append(Skipped(path, f"{kind[path.with_suffix('')].name} is used instead"))
        else:
            kind[path.with_suffix("")] = path
    for alone, others, what in ((pictures, sounds, "sound"), (sounds, pictures, "picture")):
        skipped += [Skipped(alone[stem], f"no {what} of the same name") for stem in alone if stem not in others]
    return [Stamp(class_name(stem.name), pictures[stem], sounds[stem]) for stem in pictures if stem in sounds], skipped


def _trouble(stamp: Stamp, taken: dict[str, Stamp]) -> DataError | None:
    """Why a pair cannot be used beside those taken, if so; looks at every pixel and sample."""
    if not stamp.name or stamp.name.isdigit() or stamp.name in TAKEN:
        return DataError(stamp.picture, "name", f"'{stamp.picture.stem}' cannot name a class")
    if stamp.name in taken:
        return DataError(stamp.picture, "name", f"class {stamp.name} is already {taken[stamp.name].picture.name}")
    try:
        cut_out(stamp.picture)
        ring(stamp.sound)
    except DataError as error:
        return error
    for other in taken.values():                    # two classes with one sound could not be told apart
        if len(ring(other.sound)) == len(ring(stamp.sound)) \
                and abs(np.dot(ring(other.sound), ring(stamp.sound))) > SAME * len(ring(stamp.sound)):
            return DataError(stamp.sound, "sound", f"the same recording as {other.name}'s")
    return None


def _chosen(pairs: list[Stamp], classes: Iterable[str], root: Path) -> list[Stamp]:
    """The pairs of the named classes; ValueError for a name that is not there."""
    wanted = {class_name(name): name for name in classes}
    known = {stamp.name for stamp in pairs}
    for name, given in wanted.items():
        if name not in known:
            near = ", ".join(get_close_matches(name, sorted(known), 3, 0.4)) or ", ".join(sorted(known)[:5])
            raise ValueError(f"--classes: no picture and sound named '{given}' under {root}; nearest: {near}")
    return [stamp for stamp in pairs if stamp.name in wanted]


def _sceneries(folder: Path) -> tuple[list[Path], list[Skipped]]:
    """Usable background pictures under a folder, and the others."""
    good, skipped = [], []
    for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in PICTURES):
        try:
            scenery(path)
            good.append(path)
        except DataError as error:
            skipped.append(Skipped(path, error.reason))
    if not good:
        raise DataError(folder, "backgrounds", "no usable picture under this folder")
    return good, skipped


def scan(root: str | Path, classes: Iterable[str] | None = None, backgrounds: str | Path | None = None,
         holdout: bool = False) -> tuple[Folder, list[Skipped]]:
    """Reads a bank: every usable class under `root` (or those named), and the list of files that cannot be used.

    Raises DataError for a missing folder or too few classes, ValueError for a class that is not there.
    """
    root = Path(root)
    for folder, field in ((root, "bank"), (Path(backgrounds or root), "backgrounds")):
        if not folder.is_dir():
            raise DataError(folder, field, "no such folder")
    pairs, skipped = _pairs(root)
    if classes is not None:
        pairs, skipped = _chosen(pairs, classes, root), []
    taken: dict[str, Stamp] = {}
    for stamp in pairs:
        trouble = _trouble(stamp, taken)
        if trouble is None:
            taken[stamp.name] = stamp
        else:
            skipped.append(Skipped(Path(trouble.file), trouble.reason))
    sceneries, bad = _sceneries(Path(backgrounds)) if backgrounds else ([], [])
    skipped += bad
    if len(taken) < FEWEST:
        why = f"; {skipped[0].path.name}: {skipped[0].reason}" if skipped else ""
        raise DataError(root, "bank", f"{len(taken)} usable classes, expected {FEWEST} or more{why}")
    return Folder(tuple(taken[name] for name in sorted(taken)), tuple(sceneries), holdout), skipped
