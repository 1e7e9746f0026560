"""Pre-training the two encoders on what the world gives for free; the heads are thrown away afterwards.

ViT: every patch says how much of each category it shows, and which of its pixels belong to anything; the earlier mask
layer says the pixels too. BEATs: the first part of the steps is its own masked prediction of discrete acoustic labels
(BEATs, section 3.2), the rest adds what is heard in the second and what is loudest.
"""

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ..model.crab import Crab
from ..world.clips import Clips
from .acoustic_labels import AcousticTokenizer, draw_hidden, masked_prediction_loss

MASKED_SHARE = 0.15         # of the audio stage's steps


class Draw:
    """Which single seconds of random clips a step takes; its subclasses' `at(step)` return what is seen or heard there."""

    def __init__(self, clips: Clips, batch: int, seed: int, rank: int = 0, world: int = 1):
        self.clips, self.batch, self.seed, self.rank, self.world = clips, batch, seed, rank, world

    def draw(self, step: int) -> tuple[Tensor, Tensor]:
        """The seconds of clips of a whole step, over all processes."""
        rng = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        clip = torch.randint(len(self.clips), (self.batch,), generator=rng)
        return clip, torch.randint(self.clips.frames.shape[1], (self.batch,), generator=rng)

    def index(self, step: int) -> tuple[Tensor, Tensor]:
        """Which seconds of which clips this process takes."""
        return tuple(places[self.rank::self.world] for places in self.draw(step))

    def ids(self, step: int) -> list[str]:
        """Which samples a step uses, for messages."""
        return [f"{self.clips.vids[c]} second {t}" for c, t in zip(*map(Tensor.tolist, self.index(step)))]


class Pictures(Draw):
    """at(step) -> frames (n,3,H,W) uint8, labels (n,H,W) int64."""

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        clip, second = self.index(step)
        return self.clips.frames[clip, second], self.clips.labels[clip, second].long()


class Sounds(Draw):
    """at(step) -> mels (n,F,128), heard (n,C) float, loudest (n,) int64, hidden (n,N) bool: the patches whose labels
    are to be predicted, none once the first part of the stage is over. patch: side of the encoder's patches."""

    def __init__(self, clips: Clips, batch: int, seed: int, steps: int, patch: int, rank: int = 0, world: int = 1):
        super().__init__(clips, batch, seed, rank, world)
        heard, loudest = zip(*(clips.present(i) for i in range(len(clips))))
        self.heard, self.loudest = torch.tensor(np.stack(heard)).float(), torch.tensor(np.stack(loudest))   # (N,T,C), (N,T)
        self.masked_steps = int(MASKED_SHARE * steps)
        self.patches = (clips.mels.shape[2] // patch) * (clips.mels.shape[3] // patch)

    def at(self, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        at = self.index(step)
        hidden = torch.zeros(self.batch, self.patches, dtype=torch.bool)
        if step < self.masked_steps:
            rng = torch.Generator().manual_seed((1 << 40) + self.seed * 1_000_003 + step)
            hidden = draw_hidden(self.batch, self.patches, rng)
        return self.clips.mels[at].float(), self.heard[at], self.loudest[at], hidden[self.rank::self.world]


class SeeStage(nn.Module):
    """The ViT with a head on each layer that the mask decoder reads."""

    def __init__(self, crab: Crab, categories: int):
        super().__init__()
        cfg = crab.cfg.vision
        self.crab, self.patch = crab, cfg.patch
        crab.freeze_except(crab.vision)
        self.solid_heads = nn.ModuleList(nn.Linear(cfg.dim, cfg.patch ** 2) for _ in cfg.mask_layers)
        self.share_heads = nn.ModuleList(nn.Linear(cfg.dim, categories + 1) for _ in cfg.mask_layers)

    def losses(self, batch: tuple[Tensor, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        """{part: (sum, count)}: cross-entropy of a patch's shares, binary cross-entropy of its pixels."""
        frames, labels = batch
        crab = self.crab
        states = crab.vision.hidden_states(crab.normalised(frames))
        tiles = labels.unfold(1, self.patch, self.patch).unfold(2, self.patch, self.patch).flatten(3).flatten(1, 2)
        share = F.one_hot(tiles, self.share_heads[0].out_features).float().mean(2)                # (n,P,1+C)
        solid = (tiles > 0).float()                                                          # (n,P,patch*patch)
        parts = {"share": 0.0, "solid": 0.0}
        for layer, by_share, by_pixel in zip(crab.cfg.vision.mask_layers, self.share_heads, self.solid_heads):
            patches = states[layer][:, 1:]
            logits = by_share(patches).float()
            parts["share"] = parts["share"] + F.cross_entropy(logits.flatten(0, 1), share.flatten(0, 1), reduction="sum")
            parts["solid"] = parts["solid"] + F.binary_cross_entropy_with_logits(
                by_pixel(patches).float(), solid, reduction="sum")
        return {"share": (parts["share"], torch.tensor(share.shape[0] * share.shape[1])),
                "solid": (parts["solid"], torch.tensor(solid.numel()))}


class HearStage(nn.Module):
    """BEATs with its label head and a head on the mean of a second's features."""

    def __init__(self, crab: Crab, categories: int):
        super().__init__()
        self.crab = crab
        crab.freeze_except(crab.audio)
        self.labels = AcousticTokenizer(crab.cfg.audio)
        self.label_head = nn.Linear(crab.cfg.audio.dim, self.labels.codes)
        self.heard_head = nn.Linear(crab.cfg.audio.dim, categories)
        self.loudest_head = nn.Linear(crab.cfg.audio.dim, categories + 1)

    def losses(self, batch: tuple[Tensor, Tensor, Tensor, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        """{part: (sum, count)}."""
        mels, heard, loudest, hidden = batch
        if hidden.any():
            return {"masked": masked_prediction_loss(self.crab.audio, self.label_head, self.labels, mels, hidden)}
        features = self.crab.audio(mels)[0].mean(1)                                          # (n,Da)
        return {"heard": (F.binary_cross_entropy_with_logits(self.heard_head(features).float(), heard, reduction="sum"),
                          torch.tensor(len(heard))),
                "loudest": (F.cross_entropy(self.loudest_head(features).float(), loudest, reduction="sum"),
                            torch.tensor(len(heard)))}
