"""The clips of a miniature data set, in memory: frames, class maps, log-mels and views.

Pre-training and alignment use them. Only a data set that `world.write` made has what is read here
(clips.json and clips/), the masters. Instruction tuning reads the nine task folders instead,
through av_uie, as it does for any AV-UIE data. Both read files through av_uie/media.py: what cannot
be used is one line, here and in `python -m crab_mini.av_uie check`.
"""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..av_uie.class_lists import classes_of, names_of
from ..av_uie.integrity import PICTURES, SOUNDS
from ..av_uie.json_files import read_json
from ..av_uie.log_mel import fbank
from ..av_uie.media import decoding, must_be_whole, open_picture, read_audio
from ..av_uie.paths import inside
from ..errors import DataError
from ..tasks.fields import is_whole, shortened
from .bank import MIN_CLASSES, class_names
from .scene import RATE, SECONDS, WORLD, sample_scene
from .view import View

REMEDY = "; delete the folder, and it can be made anew"
LARGEST = 1024              # side of a rendered frame in pixels
VID = re.compile(r"(train|test)_[0-9]{1,9}")


def index_of(root: Path) -> dict:
    """The contents of clips.json: `version`, `categories`, `image` (frame side in pixels), `clips`
    (by name: `seed`, `boxes`).

    Raises DataError if the file is absent or damaged, if another version of the world wrote it, or
    if a key does not hold what it must.
    """
    root = Path(root)
    path = root / "clips.json"
    index = read_json(path, root, dict, "an object", REMEDY)

    def refuse(field: str, reason: str):
        raise DataError(path, field, reason + REMEDY)

    version = index.get("version", 1)
    if version != WORLD:
        refuse("version", f"expected {WORLD}, found {shortened(version)}: made by another version "
                          "of this world")
    if not is_whole(index.get("image")) or not 1 <= index["image"] <= LARGEST:
        refuse("image", f"expected a whole number up to {LARGEST}, found "
                        f"{shortened(index.get('image'))}")
    # The numbers in class maps follow from the categories; classes.json lists them, too.
    categories = names_of(index.get("categories"), path, "categories")
    if not MIN_CLASSES <= len(categories) < len(classes_of(root)):
        refuse("categories", f"{len(categories)}: expected {MIN_CLASSES} or more, and a number in "
                             "class maps for each")
    if class_names(categories) != classes_of(root):
        refuse("categories", "not those of classes.json")
    clips = index.get("clips")
    if not isinstance(clips, dict) or not clips:
        refuse("clips", f"expected an object with clips, found {shortened(clips)}")
    for vid, entry in clips.items():
        if not VID.fullmatch(vid):
            refuse("clips", f"expected names such as train_00000, found {shortened(vid)}")
        seed = entry.get("seed") if isinstance(entry, dict) else None
        if not is_whole(seed) or not 0 <= seed < 1 << 63:
            refuse(f"clips.{vid}", f"expected a seed, found {shortened(entry)}")
    return index


class Masters:
    """The files of the clips, opened one by one. C categories."""

    def __init__(self, root: Path):
        """Raises DataError as `index_of` does."""
        self.root = Path(root)
        self.path = self.root / "clips.json"
        self.index = index_of(self.root)
        self.categories = tuple(self.index["categories"])
        self.image = self.index["image"]
        # Class maps on disk use the numbers of AVSBench's palette.
        names = class_names(self.categories)
        self.numbers = {name: names.index(name) for name in self.categories}

    def vids(self, split: str) -> list[str]:
        """The names of a split's clips."""
        return [vid for vid in self.index["clips"] if vid.startswith(split + "_")]

    def view(self, vid: str) -> View:
        """A clip's scene, which follows from its seed, with the boxes of the rendered picture."""
        entry = self.index["clips"][vid]
        scene = sample_scene(entry["seed"], self.categories)
        try:
            boxes = np.array(entry.get("boxes"), float)
            right = boxes.shape == (len(scene.things), SECONDS, 4) and \
                bool(((boxes >= 0) & (boxes <= 1)).all())
        except (TypeError, ValueError):
            right = False
        if not right:
            raise DataError(self.path, f"clips.{vid}.boxes",
                            f"expected shares of the frame, 4 for each of {SECONDS} seconds and "
                            f"{len(scene.things)} things{REMEDY}")
        return View(scene, boxes)

    def file(self, vid: str, suffix: str, kinds: dict[str, str]) -> Path:
        """The path of one file of a clip; DataError unless it is whole and inside the folder."""
        path = self.root / "clips" / f"{vid}{suffix}"
        inside(path, self.root, path, "clips")
        must_be_whole(path, "clips", kinds)
        return path

    def files(self, vid: str) -> tuple[Path, Path, Path]:
        """A clip's film strip, class maps and sound."""
        return (self.file(vid, ".png", PICTURES), self.file(vid, ".labels.png", PICTURES),
                self.file(vid, ".flac", SOUNDS))

    def strip(self, path: Path, modes: tuple[str, ...]) -> np.ndarray:
        """A strip's pixels (T·H,W) or (T·H,W,3); DataError for another size or colour mode."""
        picture = open_picture(path, "clips")
        size = (self.image, SECONDS * self.image)
        if picture.size != size or picture.mode not in modes:
            raise DataError(path, "clips", f"expected a strip of {size[0]}x{size[1]} pixels in mode "
                                           f"{' or '.join(modes)}, found {picture.width}x"
                                           f"{picture.height} in {picture.mode}{REMEDY}")
        with decoding(path, "clips", "picture"):
            return np.asarray(picture)

    def read(self, vid: str, view: View) -> tuple[Tensor, np.ndarray, Tensor]:
        """-> frames (T,3,H,W) uint8, numbers in class maps (T,H,W) uint8, log-mels (T,F,128) float16.

        DataError for files that are broken, or that do not show the things of the scene.
        """
        strip, maps, sound = self.files(vid)
        side = self.image
        frames = self.strip(strip, ("RGB",)).reshape(SECONDS, side, side, 3)
        frames = torch.from_numpy(frames.copy()).permute(0, 3, 1, 2)
        numbers = self.strip(maps, ("P", "L")).reshape(SECONDS, side, side)
        foreign = set(np.unique(numbers).tolist()) - {0, *(self.numbers[n] for n in view.names)}
        if foreign:
            raise DataError(maps, "clips", f"number {min(foreign)} is of no thing in the scene of "
                                           f"its seed{REMEDY}")
        waveform = read_audio(sound, "clips")
        if len(waveform) != SECONDS * RATE:
            raise DataError(sound, "clips", f"expected {SECONDS} s of sound, found "
                                            f"{len(waveform) / RATE:.2f} s{REMEDY}")
        return frames, numbers, fbank(waveform.view(SECONDS, RATE)).half()


def examine(root: Path, progress: bool = True) -> Iterator[tuple[str, DataError | None]]:
    """(split, what is wrong or None) of every clip, as `Clips` opens it; ("", error) for an index
    that cannot be used.
    """
    try:
        masters = Masters(root)
    except DataError as error:
        yield "", error
        return
    for vid in tqdm(masters.index["clips"], desc="clips", unit="clip", disable=not progress):
        try:
            masters.read(vid, masters.view(vid))
            yield vid.partition("_")[0], None
        except DataError as error:
            yield vid.partition("_")[0], error


class Clips:
    """All clips of one split. N clips, T seconds, C categories.

    vids    N names
    views   N views (see `View`)
    frames  (N,T,3,H,W) uint8
    labels  (N,T,H,W) uint8: 0 is background, k + 1 the category `categories[k]`
    mels    (N,T,F,128) float16: log-mels of one second each
    """

    def __init__(self, root: str | Path, split: str):
        """split: `train` or `test`. Raises DataError for an index or a file that cannot be used."""
        self.masters = Masters(Path(root))
        self.categories = self.masters.categories
        self.vids = self.masters.vids(split)
        if not self.vids:
            raise DataError(self.masters.path, "clips", f"no clip of the split {split}{REMEDY}")
        self.views = [self.masters.view(vid) for vid in self.vids]
        for vid in self.vids:
            self.masters.files(vid)             # before memory is taken for them
        # In memory categories are numbered from 1.
        self.label_of = np.zeros(256, np.uint8)
        for k, name in enumerate(self.categories):
            self.label_of[self.masters.numbers[name]] = k + 1
        count, image = len(self.vids), self.masters.image
        self.frames = torch.empty(count, SECONDS, 3, image, image, dtype=torch.uint8)
        self.labels = torch.empty(count, SECONDS, image, image, dtype=torch.uint8)
        self.mels = torch.empty(count, SECONDS, 98, 128, dtype=torch.float16)
        # Decoding releases Python's global lock, so two threads are faster than one.
        with ThreadPoolExecutor(2) as pool:
            progress = tqdm(total=count, desc=f"read {split}", unit="clip")
            for _ in pool.map(self.read, range(count)):
                progress.update()
            progress.close()

    def __len__(self) -> int:
        return len(self.vids)

    def read(self, i: int) -> None:
        """Decodes the files of clip i into frames, labels and mels."""
        self.frames[i], numbers, self.mels[i] = self.masters.read(self.vids[i], self.views[i])
        self.labels[i] = torch.from_numpy(self.label_of[numbers])

    def present(self, clip: int) -> tuple[np.ndarray, np.ndarray]:
        """Which categories a clip's seconds hold: heard (T,C) bool; loudest (T,) int, k + 1 for
        category k, 0 for silence.
        """
        view = self.views[clip]
        heard = np.zeros((SECONDS, len(self.categories)), bool)
        loudest = np.zeros(SECONDS, np.int64)
        for t in range(SECONDS):
            categories = [self.categories.index(view.names[i]) for i in view.heard(t)]
            heard[t, categories] = True
            if categories:
                loudest[t] = categories[0] + 1
        return heard, loudest
