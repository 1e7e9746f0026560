"""The model's frozen encoders behind the cache of features (cache.py).

With a folder (--cache-features) features outlive the run; without one they lie in a temporary
folder until it ends. Nothing is encoded, and no weight is hashed, before the first frame or sound
is asked for: by then the encoders must be trained.
"""

import tempfile
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from ..model.crab import Crab
from ..model.state_hash import weights_key
from .cache import FORMAT, FeatureCache
from .store import Store, writing


class Features:
    """The stores of both modalities. DataError for a folder that cannot be made."""

    def __init__(self, crab: Crab, device: torch.device, precision: str = "fp32",
                 folder: Path | None = None):
        """precision: "fp32" or "bf16", of the encoders' arithmetic."""
        self.crab, self.device, self.precision = crab, device, precision
        self.temporary = None if folder else tempfile.TemporaryDirectory(prefix="crab_features_")
        self.folder = folder or Path(self.temporary.name)
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)

    @cached_property
    def cache(self) -> FeatureCache:
        """The cache that belongs to the encoders' weights as they are now."""
        crab, vision = self.crab, self.crab.cfg.vision
        state = {f"{part}.{name}": value for part in ("vision", "audio")
                 for name, value in getattr(crab, part).state_dict().items()}
        key = weights_key(state, FORMAT, vision.image, vision.kept, self.precision,
                          self.device.type)
        return FeatureCache(self.folder, key, self.encode_frames, self.encode_sounds, vision.image)

    def encode_frames(self, frames: Tensor) -> Tensor:
        """frames (N,3,H,W) uint8 -> (N,layers,P,Dv)."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            return self.crab.encode_frames(frames.to(self.device))

    def encode_sounds(self, mels: Tensor) -> Tensor:
        """mels (N,F,128) float16 -> (N,P,Da)."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            return self.crab.encode_audio(mels.to(self.device).float())

    def add_frames(self, frames: Tensor) -> Tensor:
        """frames (N,3,H,W) uint8 -> their places (N,) in `frames.array()`."""
        with self.cache.alone():
            return self.cache.frames.add(frames, self.encode_frames)

    def add_sounds(self, mels: Tensor) -> Tensor:
        """mels (N,F,128) float16 -> their places (N,) in `sounds.array()`."""
        with self.cache.alone():
            return self.cache.sounds.add(mels, self.encode_sounds)

    @property
    def frames(self) -> Store:
        """The frames' features: `frames.array()` is (.,layers,P,Dv)."""
        return self.cache.frames

    @property
    def sounds(self) -> Store:
        """The features of seconds of sound: `sounds.array()` is (.,P,Da)."""
        return self.cache.sounds
