"""Frozen encoders run once: the features of every frame and every second of sound, in half precision.

Frames and seconds are kept by the hash of their content, so a picture that serves five tasks is encoded once, and a
changed picture is a new one. `Features.see` and `Features.hear` encode what is new and say where in the arrays each piece is.
"""

import hashlib

import torch
from torch import Tensor
from tqdm import tqdm

from .model import Crab

CHUNK = 256                # frames or seconds encoded at a time


def digest(piece: Tensor) -> bytes:
    """A short hash of a tensor's bytes."""
    return hashlib.blake2b(piece.contiguous().numpy().tobytes(), digest_size=16).digest()


class Store:
    """Content hash -> row of one growing (N,...) float16 array."""

    def __init__(self):
        self.place: dict[bytes, int] = {}
        self.chunks: list[Tensor] = []

    def add(self, pieces: Tensor, encode, note: str) -> Tensor:
        """Encodes the pieces (N,...) that are new; returns every piece's row (N,)."""
        keys = [digest(piece) for piece in pieces]
        new = []
        for i, key in enumerate(keys):
            if key not in self.place:
                self.place[key] = len(self.place)
                new.append(i)
        starts = range(0, len(new), CHUNK)
        for start in tqdm(starts, desc=note, unit="chunk", leave=False, disable=len(starts) < 8):
            self.chunks.append(encode(pieces[new[start:start + CHUNK]]).half().cpu())
        return torch.tensor([self.place[key] for key in keys])

    def array(self) -> Tensor:
        """Everything encoded so far, (N,...) float16."""
        if len(self.chunks) > 1:
            self.chunks = [torch.cat(self.chunks)]
        return self.chunks[0]


class Features:
    """Both modalities' stores, with the model that encodes."""

    def __init__(self, crab: Crab, device: torch.device, autocast):
        self.crab, self.device, self.autocast = crab.eval(), device, autocast
        self.visual, self.audio = Store(), Store()

    def see(self, frames: Tensor) -> Tensor:
        """frames (N,3,H,W) uint8 -> rows (N,) of visual.array() (.,layers,P,Dv)."""
        def encode(part):
            with self.autocast():
                return self.crab.see(part.to(self.device))
        return self.visual.add(frames, encode, "see")

    def hear(self, mels: Tensor) -> Tensor:
        """mels (N,F,128) float16 -> rows (N,) of audio.array() (.,P,Da)."""
        def encode(part):
            with self.autocast():
                return self.crab.hear(part.to(self.device).float())
        return self.audio.add(mels, encode, "hear")
