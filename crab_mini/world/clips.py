"""The clips of a miniature data set, in memory: frames, class maps, log-mels and views.

Pre-training and alignment use them. Only a data set that `world.write` made has what is read here
(clips.json and clips/). Instruction tuning reads the nine task folders instead, through av_uie, as
it does for any AV-UIE data.
"""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import soundfile
import torch
from PIL import Image
from tqdm import tqdm

from ..av_uie.log_mel import fbank
from ..errors import DataError
from .bank import class_names
from .scene import RATE, SECONDS, WORLD, sample_scene
from .view import View


def index_of(root: Path) -> dict:
    """The contents of clips.json: `version`, `categories`, `image` (frame side in pixels), `clips`
    (by name).

    Raises DataError if the file is absent or unreadable, or if another version of the world wrote
    it.
    """
    try:
        index = json.loads((root / "clips.json").read_text())
        version = index.get("version", 1)
    except (OSError, ValueError, AttributeError) as error:
        reason = f"no miniature data set: {type(error).__name__}"
        raise DataError(root / "clips.json", "file", reason) from None
    if version != WORLD:
        reason = (f"expected {WORLD}, found {version}: made by another version of this world; "
                  "delete the folder, and it can be made anew")
        raise DataError(root / "clips.json", "version", reason)
    return index


class Clips:
    """All clips of one split. N clips, T seconds, C categories.

    vids    N names
    views   N views (see `View`)
    frames  (N,T,3,H,W) uint8
    labels  (N,T,H,W) uint8: 0 is background, k + 1 the category `categories[k]`
    mels    (N,T,F,128) float16: log-mels of one second each
    """

    def __init__(self, root: str | Path, split: str):
        """split: `train` or `test`. Raises DataError as `index_of` does."""
        self.root = Path(root)
        index = index_of(self.root)
        self.categories = tuple(index["categories"])
        self.vids = [vid for vid in index["clips"] if vid.startswith(split)]
        # The scene follows from its seed. The boxes are those of the rendered picture.
        self.views = []
        for vid in self.vids:
            entry = index["clips"][vid]
            scene = sample_scene(entry["seed"], self.categories)
            self.views.append(View(scene, np.array(entry["boxes"])))
        # Class maps on disk use the numbers of AVSBench's palette; here categories are numbered
        # from 1.
        self.label_of = np.zeros(256, np.uint8)
        for k, name in enumerate(self.categories):
            self.label_of[class_names(self.categories).index(name)] = k + 1
        count, image = len(self.vids), index["image"]
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
        path = self.root / "clips" / self.vids[i]
        image = self.frames.shape[-1]
        strip = np.asarray(Image.open(path.with_suffix(".png"))).reshape(SECONDS, image, image, 3)
        self.frames[i] = torch.from_numpy(strip.copy()).permute(0, 3, 1, 2)
        numbers = np.asarray(Image.open(path.with_suffix(".labels.png")))
        labels = self.label_of[numbers].reshape(SECONDS, image, image)
        self.labels[i] = torch.from_numpy(labels)
        waveform = soundfile.read(path.with_suffix(".flac"), dtype="float32")[0]
        self.mels[i] = fbank(torch.from_numpy(waveform).view(SECONDS, RATE)).half()

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
