"""The world's clips, as the stages before `instruct` use them: their folder, then their features.

A stage that is taken from its checkpoint needs no clips. So `TrainingClips` loads them, and runs
the encoders over them, only when a batch asks.
"""

from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from ..config import Config, ConfigError
from ..features.encoders import Features
from ..world.clips import Clips, index_of
from ..world.script import script
from ..world.write import write

MINIATURE = Path("data/av_uie_mini")        # the data set that train.py makes by itself


def is_rendered(folder: Path) -> bool:
    """Whether a data folder holds clips that the world rendered: these serve all stages."""
    return (folder / "clips.json").is_file()


def clips_folder(data: Path | None, cfg: Config, overrides: dict[str, str]) -> Path:
    """The folder of the clips: `data` if it was rendered by the world, else the miniature's.

    overrides: the fields that the command line names. ConfigError for one that changes the
    miniature where it is not used.
    """
    if data is None or not is_rendered(data):
        numbers = (cfg.vision.image, cfg.world.clips, cfg.world.test_clips, cfg.world.rows_per_task,
                   cfg.world.seed)
        return MINIATURE.with_name("_".join([MINIATURE.name, *map(str, numbers)]))
    for name in overrides:
        if name.startswith("world."):
            raise ConfigError(f"--{name}: {data} is rendered already; it is for the miniature that "
                              "train.py makes")
    return data


def render_clips(folder: Path, cfg: Config) -> None:
    """Makes the miniature's folder, if it is not there."""
    world = cfg.world
    if not is_rendered(folder):
        print(f"making the data set {folder}: {world.clips} training and {world.test_clips} test "
              "clips")
        write(folder, world.clips, world.test_clips, cfg.vision.image, world.seed,
              world.rows_per_task)


def check_clips(folder: Path, cfg: Config) -> None:
    """ConfigError unless the rendered frames are as large as the model's."""
    image = index_of(folder)["image"]
    if image != cfg.vision.image:
        raise ConfigError(f"{folder}: expected frames of {cfg.vision.image} pixels, found {image}: "
                          "--vision.image is the model's side, --image that of "
                          "python -m crab_mini.world")


class ClipFeatures:
    """The frozen encoders' features and the scripts of all clips. N clips, T seconds, Q slots.

    visual (M,K,P,Dv), audio (M,P,Da)   float16, each different frame and second of sound once
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
