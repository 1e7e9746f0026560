"""Frozen encoders run once: the features of every frame and every second of sound, found again by their content.

The mechanism is feature_cache.py's; here the model is put behind it. With a folder (--cache-features) features outlive
the run; without one they lie in a temporary folder until it ends. Nothing is encoded, and no weight hashed, before the
first picture or sound is asked for: by then the encoders must have learned all they will.
"""

import tempfile
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from ..errors import DataError
from ..model.crab import Crab
from ..model.state_hash import weights_key
from .cache import FORMAT, FeatureCache, Store


class Features:
    """Both modalities' stores. precision: "fp32" or "bf16" of the encoders' arithmetic. DataError for a folder that
    cannot be."""

    def __init__(self, crab: Crab, device: torch.device, precision: str = "fp32", folder: Path | None = None):
        self.crab, self.device, self.precision = crab, device, precision
        self.temporary = None if folder else tempfile.TemporaryDirectory(prefix="crab_features_")
        self.folder = folder or Path(self.temporary.name)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(self.folder, "feature cache", f"cannot be written: {error.strerror}") from error

    @cached_property
    def cache(self) -> FeatureCache:
        """The cache that belongs to the encoders' weights as they are now."""
        crab, vision = self.crab, self.crab.cfg.vision
        state = {f"{part}.{name}": value for part in ("vision", "audio")
                 for name, value in getattr(crab, part).state_dict().items()}
        key = weights_key(state, FORMAT, vision.image, vision.kept, self.precision, self.device.type)
        return FeatureCache(self.folder, key, self._encode_frames, self._encode_sounds, vision.image)

    def _encode_frames(self, frames: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            return self.crab.encode_frames(frames.to(self.device))

    def _encode_sounds(self, mels: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            return self.crab.encode_audio(mels.to(self.device).float())

    def see(self, frames: Tensor) -> Tensor:
        """frames (N,3,H,W) uint8 -> rows (N,) of visual.array() (.,layers,P,Dv)."""
        with self.cache.alone():
            return self.cache.see.add(frames, self._encode_frames)

    def hear(self, mels: Tensor) -> Tensor:
        """mels (N,F,128) float16 -> rows (N,) of audio.array() (.,P,Da)."""
        with self.cache.alone():
            return self.cache.hear.add(mels, self._encode_sounds)

    @property
    def visual(self) -> Store:
        """The frames' features."""
        return self.cache.see

    @property
    def audio(self) -> Store:
        """The seconds' features."""
        return self.cache.hear
