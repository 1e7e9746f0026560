"""Blocks of decoded sound -> one waveform, mono at 16 kHz, with limits on what a file may ask for.

A file of a few kilobytes can announce, and hold, hours of sound in dozens of channels. So a
recording is mixed to one channel block by block, and refused before it is decoded where its header
asks for too much. With these limits a file takes about ten seconds and 1 GB at most.
"""

from math import gcd
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError
from .resample import RATE, resample

MAX_SECONDS = 1800.0        # of a recording
# Samples of all channels together: 22 minutes at 48 kHz in mono, 11 in stereo.
MAX_SAMPLES = 64_000_000
MIN_RATE, MAX_RATE = 1000, 384_000          # samples a second of a recording
# Above ODD_RATE a rate must share the factor FACTOR with 16 kHz, as those of real recordings do:
# the filters of any other one are larger than the recording.
ODD_RATE, FACTOR = 100_000, 100
MAX_CHANNELS = 64
SILENCE = 1e-4              # a recording whose peak is below counts as silent: 3 steps of 16 bits
LOUDEST = 100.0             # a peak above is no sample of a recording: they lie between -1 and 1
BLOCK = 1 << 20             # samples of all channels that are decoded at once


def must_be_quiet_enough(samples: np.ndarray | Tensor, file: str | Path, field: str) -> None:
    """DataError for samples that are NaN, infinite or beyond LOUDEST: later they would overflow."""
    lowest, highest = float(samples.min()), float(samples.max())
    if not np.isfinite([lowest, highest]).all():
        raise DataError(file, field, "audio holds NaN or infinity")
    peak = max(-lowest, highest)
    if peak > LOUDEST:
        raise DataError(file, field, f"too loud: expected samples from -1 to 1, found {peak:.3g}")


class Mono:
    """Collects the blocks of one recording."""

    def __init__(self, rate: int, channels: int, path: Path, field: str):
        """DataError for a rate or a number of channels that no recording has."""
        odd = rate > ODD_RATE and gcd(rate, RATE) < FACTOR
        if odd or not MIN_RATE <= rate <= MAX_RATE or not 1 <= channels <= MAX_CHANNELS:
            raise DataError(path, field, f"{rate} Hz, {channels} channels: not a recording")
        self.rate, self.channels, self.path, self.field = rate, channels, path, field
        self.blocks: list[np.ndarray] = []      # (S,) float32 each
        self.count = 0                          # samples of one channel in them

    def must_fit(self, count: int) -> None:
        """DataError if `count` samples of each channel are more than a file may hold."""
        if count > MAX_SECONDS * self.rate:
            raise DataError(self.path, self.field, f"longer than {MAX_SECONDS:.0f} s")
        if count * self.channels > MAX_SAMPLES:
            raise DataError(self.path, self.field,
                            f"too large: {count} samples in {self.channels} channels, at most "
                            f"{MAX_SAMPLES} in all allowed")

    def add(self, samples: np.ndarray) -> None:
        """Takes a block (S,channels) in."""
        if len(samples) == 0:
            return
        self.count += len(samples)
        self.must_fit(self.count)
        must_be_quiet_enough(samples, self.path, self.field)
        self.blocks.append(samples.astype(np.float32, copy=False).mean(1))

    def waveform(self) -> Tensor:
        """(S',) float32 at 16 kHz. DataError for no samples, and if none reaches SILENCE."""
        if self.count == 0:
            raise DataError(self.path, self.field, "zero-length audio")
        mixed = np.concatenate(self.blocks)                             # (S,)
        self.blocks = []
        waveform = resample(torch.from_numpy(mixed), self.rate)
        if max(-waveform.min(), waveform.max()) < SILENCE:
            raise DataError(self.path, self.field, "silent audio")
        return waveform
