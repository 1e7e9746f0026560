"""A bank of real pictures and sounds for the world: dog.png + dog.ogg, anywhere under a folder,
become the class dog.

    python -m crab_mini.world --bank DIR --classes cow,dog,horse,owl,pig --out data/farm

`scan` checks every pair before anything is rendered. A file that cannot be used is listed with its
reason; it never becomes an empty sprite or a silent second. How a file is prepared is in
real_media.py. In sentences a class is called by the name of its file: small letters, hyphens
between words.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import numpy as np
from PIL import Image

from ..av_uie.integrity import PICTURES, SOUNDS
from ..errors import DataError
from ..tasks.class_names import AVSBENCH_CLASSES
from .backgrounds import background, drifting, margin
from .real_media import (
    ClassFiles,
    background_picture,
    cut_out,
    recording_loop,
    variant_look,
    variant_speed,
)
from .scene import TRAIN_VARIANTS

MIN_CLASSES = 5             # classes that a scene may need at once
MAX_CORRELATION = 0.8       # of two recordings; above it they count as the same
# Of Debian's stamps: recordings of spoken names.
SPOKEN_FOLDERS = {"symbols", "alphabets", "roadsigns"}
RESERVED_NAMES = {"nothing"}  # words with a meaning of their own in the sentences


@dataclass(frozen=True)
class Skipped:
    """A file that the bank cannot use."""
    path: Path
    reason: str


def class_name(stem: str) -> str:
    """`Sea_Lion 2` -> `sea-lion-2`: one word without the marks by which answers are parsed."""
    return re.sub(r"[\W_]+", "-", stem.lower()).strip("-")


def class_names(categories: Iterable[str]) -> tuple[str, ...]:
    """The names of the 71 numbers in class maps. Class maps have the palette of AVSBench.

    A category that AVSBench has keeps its number there; any other takes a number that is not used.
    Raises ValueError for more categories than numbers.
    """
    names = list(AVSBENCH_CLASSES)
    categories = list(categories)
    if len(categories) >= len(names):
        raise ValueError(f"{len(categories)} classes, at most {len(names) - 1} have a colour in "
                         "class maps: choose some with --classes")
    # Number 0 is the background and never free.
    free = (k for k, name in enumerate(names) if k and name not in categories)
    for name in categories:
        if name not in AVSBENCH_CLASSES:
            names[next(free)] = name
    return tuple(names)


@dataclass(frozen=True)
class FolderBank:
    """A `render.Bank` of real pictures and sounds."""
    classes: tuple[ClassFiles, ...]
    backgrounds: tuple[Path, ...] = ()
    # Whether the test variants look and sound different from those of training.
    holdout: bool = False

    @property
    def categories(self) -> tuple[str, ...]:
        """The names of the classes, in the order of `classes`."""
        return tuple(files.name for files in self.classes)

    def class_and_variant(self, category: str, variant: int) -> tuple[ClassFiles, int]:
        """The files of a category, and the variant to use: without `holdout`, test variants are
        training variants.
        """
        files = self.classes[self.categories.index(category)]
        return files, variant if self.holdout else variant % len(TRAIN_VARIANTS)

    def look(self, category: str, variant: int) -> Image.Image:
        """RGBA, cropped to what is not transparent."""
        return variant_look(*self.class_and_variant(category, variant))

    def voice(self, category: str, variant: int) -> tuple[np.ndarray, float]:
        """The loop of the recording, as `recording_loop` returns it, and the variant's playing
        speed.
        """
        files, variant = self.class_and_variant(category, variant)
        return recording_loop(files.sound), variant_speed(files, variant)

    def background(self, seed: int, frames: int, image: int) -> np.ndarray:
        """(T,H,W,3) float32 in 0..255: a square part of one background picture, or the procedural
        background.
        """
        if not self.backgrounds:
            return background(seed, frames, image)
        rng = np.random.default_rng([seed, 1])
        picture = background_picture(self.backgrounds[rng.integers(len(self.backgrounds))])
        side = min(picture.size) * rng.uniform(0.6, 1)
        left, top = (rng.uniform(0, whole - side) for whole in picture.size)
        # The frame drifts over the part, which is therefore larger than the frame.
        wide = image + 2 * margin(image)
        box = (left, top, left + side, top + side)
        field = picture.resize((wide, wide), Image.Resampling.BICUBIC, box)
        return drifting(np.asarray(field, np.float32), frames, image, rng)


def find_pairs(root: Path) -> tuple[list[ClassFiles], list[Skipped]]:
    """All pictures under a folder that have a sound of the same name beside them, and the files
    that are skipped.
    """
    pictures: dict[Path, Path] = {}                         # path without its extension -> path
    sounds: dict[Path, Path] = {}
    skipped = []
    for path in sorted(root.rglob("*")):
        extension, stem = path.suffix.lower(), path.with_suffix("")
        if extension in PICTURES:
            files = pictures
        elif extension in SOUNDS:
            files = sounds
        else:
            continue
        # `dog_desc_en.ogg` in Debian's stamps: a spoken description.
        if "_desc" in path.stem or not path.is_file():
            continue
        if SPOKEN_FOLDERS & set(path.relative_to(root).parts[:-1]):
            reason = "letters, digits and signs are read out, they make no sound"
            skipped.append(Skipped(path, reason))
        elif stem in files:
            skipped.append(Skipped(path, f"{files[stem].name} is used instead"))
        else:
            files[stem] = path
    pairs = []
    for stem, path in pictures.items():
        if stem in sounds:
            pairs.append(ClassFiles(class_name(stem.name), path, sounds[stem]))
        else:
            skipped.append(Skipped(path, "no sound of the same name"))
    for stem, path in sounds.items():
        if stem not in pictures:
            skipped.append(Skipped(path, "no picture of the same name"))
    return pairs, skipped


def same_recording(first: Path, second: Path) -> bool:
    """Whether two sound files hold the same recording: two classes with one sound could not be told
    apart.
    """
    a, b = recording_loop(first), recording_loop(second)
    return len(a) == len(b) and abs(np.dot(a, b)) > MAX_CORRELATION * len(a)


def reason_against(pair: ClassFiles, accepted: dict[str, ClassFiles]) -> DataError | None:
    """Why a pair cannot be used beside the accepted ones, or None. Decodes both files."""
    if not pair.name or pair.name.isdigit() or pair.name in RESERVED_NAMES:
        return DataError(pair.picture, "name", f"'{pair.picture.stem}' cannot name a class")
    if pair.name in accepted:
        other = accepted[pair.name].picture.name
        return DataError(pair.picture, "name", f"class {pair.name} is already {other}")
    try:
        cut_out(pair.picture)
        recording_loop(pair.sound)
    except DataError as error:
        return error
    for other in accepted.values():
        if same_recording(other.sound, pair.sound):
            return DataError(pair.sound, "sound", f"the same recording as {other.name}'s")
    return None


def choose(pairs: list[ClassFiles], classes: Iterable[str], root: Path) -> list[ClassFiles]:
    """The pairs of the named classes. Raises ValueError for a name that no pair has."""
    wanted = {class_name(name): name for name in classes}
    known = {pair.name for pair in pairs}
    for name, given in wanted.items():
        if name not in known:
            near = get_close_matches(name, sorted(known), 3, 0.4) or sorted(known)[:5]
            raise ValueError(f"--classes: no picture and sound named '{given}' under {root}; "
                             f"nearest: {', '.join(near)}")
    return [pair for pair in pairs if pair.name in wanted]


def find_backgrounds(folder: Path) -> tuple[list[Path], list[Skipped]]:
    """The pictures under a folder that can be used as backgrounds, and the others. DataError if
    there is none.
    """
    usable, skipped = [], []
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in PICTURES:
            continue
        try:
            background_picture(path)
            usable.append(path)
        except DataError as error:
            skipped.append(Skipped(path, error.reason))
    if not usable:
        raise DataError(folder, "backgrounds", "no usable picture under this folder")
    return usable, skipped


def scan(root: str | Path, classes: Iterable[str] | None = None,
         backgrounds: str | Path | None = None,
         holdout: bool = False) -> tuple[FolderBank, list[Skipped]]:
    """Reads a bank: the classes under `root`, or those named in `classes`, and the files that
    cannot be used.

    Classes are in alphabetical order. Raises DataError for a missing folder or fewer than
    MIN_CLASSES classes, ValueError for a class that is not there.
    """
    root = Path(root)
    for folder, field in ((root, "bank"), (Path(backgrounds or root), "backgrounds")):
        if not folder.is_dir():
            raise DataError(folder, field, "no such folder")
    pairs, skipped = find_pairs(root)
    if classes is not None:
        pairs, skipped = choose(pairs, classes, root), []
    # The first pair of a name or of a sound is accepted, later ones are skipped.
    accepted: dict[str, ClassFiles] = {}
    for pair in pairs:
        error = reason_against(pair, accepted)
        if error is None:
            accepted[pair.name] = pair
        else:
            skipped.append(Skipped(Path(error.file), error.reason))
    pictures: list[Path] = []
    if backgrounds:
        pictures, unusable = find_backgrounds(Path(backgrounds))
        skipped += unusable
    if len(accepted) < MIN_CLASSES:
        first = f"; {skipped[0].path.name}: {skipped[0].reason}" if skipped else ""
        reason = f"{len(accepted)} usable classes, expected {MIN_CLASSES} or more{first}"
        raise DataError(root, "bank", reason)
    in_order = tuple(accepted[name] for name in sorted(accepted))
    return FolderBank(in_order, tuple(pictures), holdout), skipped
