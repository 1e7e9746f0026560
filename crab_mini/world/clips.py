"""The clips of a miniature data set in memory, for pre-training and alignment: pictures, class maps, log-mels, views.

Only a data set made by `world.write` has these masters (clips.json and clips/); instruction tuning reads the nine task
folders through av_uie.py instead, as it does for any AV-UIE data.
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
from .annotate import View
from .bank import class_names
from .scene import RATE, SECONDS, WORLD, sample_scene


def index_of(root: Path) -> dict:
    """What clips.json says: categories, image size, and every clip's scene; DataError where there is none of today's."""
    try:
        index = json.loads((root / "clips.json").read_text())
        version = index.get("version", 1)
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(root / "clips.json", "file", f"no miniature data set: {type(error).__name__}") from None
    if version != WORLD:
        raise DataError(root / "clips.json", "version", f"expected {WORLD}, found {version}: made by another version of "
                                                        "this world; delete the folder, and it can be made anew")
    return index


class Clips:
    """All clips of one split. N clips, T seconds.

    frames (N,T,3,H,W) uint8; labels (N,T,H,W) uint8, 0 or 1 + the category's place in `categories`;
    mels (N,T,F,128) float16, one-second segments; views: one `View` a clip.
    """

    def __init__(self, root: str | Path, split: str):
        self.root = Path(root)
        index = index_of(self.root)
        self.categories = tuple(index["categories"])
        self.vids = [v for v in index["clips"] if v.startswith(split)]
        self.views = [View(sample_scene(index["clips"][v]["seed"], self.categories), np.array(index["clips"][v]["boxes"]))
                      for v in self.vids]
        lookup = np.zeros(256, np.uint8)
        for k, name in enumerate(self.categories):
            lookup[class_names(self.categories).index(name)] = k + 1
        image = index["image"]
        self.frames = torch.empty(len(self.vids), SECONDS, 3, image, image, dtype=torch.uint8)
        self.labels = torch.empty(len(self.vids), SECONDS, image, image, dtype=torch.uint8)
        self.mels = torch.empty(len(self.vids), SECONDS, 98, 128, dtype=torch.float16)

        def read(i: int) -> None:
            master = self.root / "clips" / self.vids[i]
            strip = np.asarray(Image.open(master.with_suffix(".png"))).reshape(SECONDS, image, image, 3)
            self.frames[i] = torch.from_numpy(strip.copy()).permute(0, 3, 1, 2)
            label = np.asarray(Image.open(master.with_suffix(".labels.png"))).reshape(SECONDS, image, image)
            self.labels[i] = torch.from_numpy(lookup[label])
            wave = soundfile.read(master.with_suffix(".flac"), dtype="float32")[0]
            self.mels[i] = fbank(torch.from_numpy(wave).view(SECONDS, RATE)).half()

        with ThreadPoolExecutor(2) as pool:
            list(tqdm(pool.map(read, range(len(self.vids))), total=len(self.vids), desc=f"read {split}", unit="clip"))

    def __len__(self) -> int:
        return len(self.vids)

    def present(self, clip: int) -> tuple[np.ndarray, np.ndarray]:
        """(T,C) bool, which categories are heard, and (T,) int, 1 + the loudest one (0: silence)."""
        view = self.views[clip]
        heard = np.zeros((SECONDS, len(self.categories)), bool)
        loudest = np.zeros(SECONDS, np.int64)
        for t in range(SECONDS):
            for rank, i in enumerate(view.heard(t)):
                k = self.categories.index(view.names[i])
                heard[t, k] = True
                if rank == 0:
                    loudest[t] = k + 1
        return heard, loudest
