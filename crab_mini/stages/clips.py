"""The world's clips, as the stages before `instruct` use them: their folder, then their features.

A stage that is taken from its checkpoint needs no clips. So `TrainingClips` loads them, and runs
the encoders over them, only when a batch asks.
"""

import dataclasses
from collections import Counter
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from ..config import Config, ConfigError
from ..features.encoders import Features
from ..world.clips import Clips, index_of
from ..world.scene import CATEGORIES, SEED_STRIDE
from ..world.script import script
from ..world.write import write

MINIATURE = Path("data/av_uie_mini")        # the data set that train.py makes by itself


def is_rendered(folder: Path) -> bool:
    """Whether a data folder holds clips that the world rendered: these serve all stages."""
    return (folder / "clips.json").is_file()


def clips_folder(data: Path | None, cfg: Config, overrides: dict[str, str]) -> Path:
    """The folder of the clips: `data` if it was rendered by the world, else the miniature's.

    The miniature of the preset `tiny` is MINIATURE; the numbers that differ from it are appended.
    overrides: the fields that the command line names. ConfigError for one that changes the
    miniature where it is not used.
    """
    if data is None or not is_rendered(data):
        usual, parts = miniature_numbers(Config()), [MINIATURE.name]
        for name, number in miniature_numbers(cfg).items():
            if number != usual[name]:
                parts.append(f"{name.partition('.')[2]}_{number}")
        return MINIATURE.with_name("_".join(parts))
    for name in overrides:
        if name.startswith("world."):
            raise ConfigError(f"--{name}: {data} is rendered already; it is for the miniature that "
                              "train.py makes")
    return data


def miniature_numbers(cfg: Config) -> dict[str, int]:
    """The fields of the configuration that the miniature follows from."""
    world = {f"world.{name}": value for name, value in dataclasses.asdict(cfg.world).items()}
    return {"vision.image": cfg.vision.image, **world}


def render_clips(folder: Path, cfg: Config) -> None:
    """Makes the miniature's folder, if it is not there."""
    world = cfg.world
    if not is_rendered(folder):
        print(f"making the data set {folder}: {world.clips} training and {world.test_clips} test "
              "clips")
        write(folder, world.clips, world.test_clips, cfg.vision.image, world.seed,
              world.rows_per_task)


def check_clips(folder: Path, cfg: Config, miniature: bool) -> None:
    """ConfigError unless the rendered frames are as large as the model's.

    miniature: whether it must be the data set that train.py itself would make. A folder of that
    name may hold another one, which `python -m crab_mini.world` has made.
    """
    # Any folder has to fit the model.
    index = index_of(folder)
    if index["image"] != cfg.vision.image:
        raise ConfigError(f"{folder}: expected frames of {cfg.vision.image} pixels, found "
                          f"{index['image']}: --vision.image is the model's side, --image that of "
                          "python -m crab_mini.world")
    if not miniature:
        return

    # The miniature's own folder has to hold what train.py would have rendered.
    wanted, advice = miniature_numbers(cfg), f"; --data {folder} takes it as it is"
    splits = Counter(vid.partition("_")[0] for vid in index["clips"])
    first = min(clip["seed"] for clip in index["clips"].values())       # of the training clips
    found = {"world.clips": splits["train"], "world.test_clips": splits["test"],
             "world.rows_per_task": index.get("rows_per_task", wanted["world.rows_per_task"]),
             "world.seed": first // SEED_STRIDE}
    for name, number in found.items():
        if number != wanted[name]:
            raise ConfigError(f"{folder}: expected {name} {wanted[name]}, found {number}{advice}")
    if index["categories"] != list(CATEGORIES):
        raise ConfigError(f"{folder}: expected the world's own categories, found "
                          f"{', '.join(index['categories'])}{advice}")


class ClipFeatures:
    """The frozen encoders' features and the scripts of all clips. N clips, T seconds, Q slots.

    visual (M,K,P,Dv), audio (M,P,Da)   float16; M: each different frame, or second of sound, once
    frames, sounds (N,T)                which row of `visual` and `audio` a second has
    visual_script, audio_script         (N,T,Q,words) float16: see world/script.py
    llm_layer, mask_layers              which of the K kept layers the Q-Former and the masks read
    """

    def __init__(self, clips: Clips, encoders: Features):
        """Encodes every clip."""
        self.clips = clips
        vision = encoders.crab.cfg.vision
        self.llm_layer, self.mask_layers = vision.kept_for_llm, vision.kept_for_masks
        shape = clips.frames.shape[:2]                                              # (N,T)
        self.frames = encoders.add_frames(clips.frames.flatten(0, 1)).view(shape)
        self.sounds = encoders.add_sounds(clips.mels.flatten(0, 1)).view(shape)
        self.visual, self.audio = encoders.frames.array(), encoders.sounds.array()
        scripts = [script(view, list(clips.categories)) for view in clips.views]
        self.visual_script = torch.from_numpy(np.stack([visual for visual, _ in scripts])).half()
        self.audio_script = torch.from_numpy(np.stack([audio for _, audio in scripts])).half()


class TrainingClips:
    """The training clips of a data folder and their features; both are loaded on first use."""

    def __init__(self, folder: Path, encoders: Features):
        """folder: one that `world.write` made."""
        self.folder, self.encoders = folder, encoders

    @cached_property
    def clips(self) -> Clips:
        """The clips in memory."""
        return Clips(self.folder, "train")

    @cached_property
    def features(self) -> ClipFeatures:
        """The clips' features, by the encoders as they are when this is first asked for."""
        return ClipFeatures(self.clips, self.encoders)
