"""Pre-training of the two encoders on what the world knows about each second of a clip.

Both learn from single frames and seconds of sound. The heads are thrown away afterwards.

    see     the ViT tells which categories a patch shows, and which of its pixels belong to a thing
    hear    BEATs first predicts acoustic labels of hidden patches (BEATs, section 3.2), then tells
            which categories sound in the second, and which of them is the loudest

Departs from the paper, whose encoders are published CLIP and BEATs weights.
"""

from functools import cached_property

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ..config import seed_of
from ..model.crab import Crab
from .acoustic_labels import AcousticTokenizer, draw_hidden, masked_prediction_loss
from .clips import TrainingClips

MASKED_SHARE = 0.15         # of the hear stage's steps, which predict acoustic labels


class SecondBatches:
    """Which single seconds of which clips a step uses. A pure function of seed and step.

    Subclasses have `at(step)`, the batch. A batch has `batch` rows over all processes; process
    `rank` of `world_size` takes its share.
    """

    def __init__(self, source: TrainingClips, batch: int, seed: int, rank: int = 0,
                 world_size: int = 1):
        self.source, self.batch, self.seed = source, batch, seed
        self.mine = slice(rank, None, world_size)       # the rows of this process

    def whole(self, step: int) -> tuple[Tensor, Tensor]:
        """The clip and the second (batch,) of each row of the whole batch, over all processes."""
        clips = self.source.clips
        rng = torch.Generator().manual_seed(seed_of(self.seed, "seconds", step))
        clip = torch.randint(len(clips), (self.batch,), generator=rng)
        return clip, torch.randint(clips.frames.shape[1], (self.batch,), generator=rng)

    def index(self, step: int) -> tuple[Tensor, Tensor]:
        """The clip and the second (B,) of each row of this process."""
        clip, second = self.whole(step)
        return clip[self.mine], second[self.mine]

    def ids(self, step: int) -> list[str]:
        """Names of this process's samples, for error messages."""
        vids = self.source.clips.vids
        clip, second = self.index(step)
        return [f"{vids[c]} second {t}" for c, t in zip(clip.tolist(), second.tolist())]


class FrameBatches(SecondBatches):
    """Frames with their class maps."""

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        """frames (B,3,H,W) uint8, labels (B,H,W) int64: 0 or 1 + the category."""
        clips, at = self.source.clips, self.index(step)
        return clips.frames[at], clips.labels[at].long()


class SoundBatches(SecondBatches):
    """Seconds of sound with what is heard in them."""

    def __init__(self, source: TrainingClips, batch: int, seed: int, steps: int, patch: int,
                 rank: int = 0, world_size: int = 1):
        """steps: of the stage. patch: side of the encoder's patches."""
        super().__init__(source, batch, seed, rank, world_size)
        self.masked_steps = int(MASKED_SHARE * steps)
        self.patch = patch

    @cached_property
    def targets(self) -> tuple[Tensor, Tensor]:
        """Of all seconds of all clips: heard (N,T,C) float, loudest (N,T) int64."""
        clips = self.source.clips
        heard, loudest = zip(*(clips.present(i) for i in range(len(clips))))
        return torch.tensor(np.stack(heard)).float(), torch.tensor(np.stack(loudest))

    def at(self, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """mels (B,F,128), heard (B,C) float, loudest (B,) int64, hidden (B,P) bool.

        hidden: the patches whose labels are to be predicted, none after the first steps.
        """
        at, mels = self.index(step), self.source.clips.mels
        heard, loudest = self.targets
        patches = (mels.shape[2] // self.patch) * (mels.shape[3] // self.patch)
        hidden = torch.zeros(self.batch, patches, dtype=torch.bool)
        if step < self.masked_steps:
            rng = torch.Generator().manual_seed(seed_of(self.seed, "hidden", step))
            hidden = draw_hidden(self.batch, patches, rng)
        return mels[at].float(), heard[at], loudest[at], hidden[self.mine]


class SeeStage(nn.Module):
    """The ViT, with two heads on each layer that the mask decoders read."""

    def __init__(self, crab: Crab, categories: int):
        """Freezes everything in `crab` but the ViT. categories: how many."""
        super().__init__()
        cfg = crab.cfg.vision
        self.crab, self.patch = crab, cfg.patch
        crab.freeze_except(crab.vision)
        layers = cfg.mask_layers
        self.solid_heads = nn.ModuleList(nn.Linear(cfg.dim, cfg.patch ** 2) for _ in layers)
        self.share_heads = nn.ModuleList(nn.Linear(cfg.dim, categories + 1) for _ in layers)

    def losses(self, batch: tuple[Tensor, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        """{part: (sum, count)}.

        share: cross-entropy of how much of a patch each category and the background fill. solid:
        binary cross-entropy of which pixels belong to any thing.
        """
        frames, labels = batch
        crab, side = self.crab, self.patch

        # The targets, patch by patch.
        tiles = labels.unfold(1, side, side).unfold(2, side, side)
        pixels = tiles.flatten(3).flatten(1, 2)                                 # (B,P,side*side)
        classes = self.share_heads[0].out_features                              # 1 + C
        share = F.one_hot(pixels, classes).float().mean(2)                      # (B,P,1+C)
        solid = (pixels > 0).float()                                            # (B,P,side*side)

        # The losses of both layers are added.
        states = crab.vision.hidden_states(crab.normalised(frames))
        share_loss, solid_loss = 0.0, 0.0
        for layer, share_head, solid_head in zip(crab.cfg.vision.mask_layers, self.share_heads,
                                                 self.solid_heads):
            patches = states[layer][:, 1:]                                      # (B,P,Dv)
            logits = share_head(patches).float()                                # (B,P,1+C)
            share_loss = share_loss + F.cross_entropy(
                logits.flatten(0, 1), share.flatten(0, 1), reduction="sum")
            solid_loss = solid_loss + F.binary_cross_entropy_with_logits(
                solid_head(patches).float(), solid, reduction="sum")
        return {"share": (share_loss, torch.tensor(share.shape[0] * share.shape[1])),
                "solid": (solid_loss, torch.tensor(solid.numel()))}


class HearStage(nn.Module):
    """BEATs, with a head for acoustic labels and two heads on the mean of a second's features."""

    def __init__(self, crab: Crab, categories: int):
        """Freezes everything in `crab` but BEATs. categories: how many."""
        super().__init__()
        self.crab = crab
        crab.freeze_except(crab.audio)
        width = crab.cfg.audio.dim
        self.labels = AcousticTokenizer(crab.cfg.audio)
        self.label_head = nn.Linear(width, self.labels.codes)
        self.heard_head = nn.Linear(width, categories)
        self.loudest_head = nn.Linear(width, categories + 1)

    def losses(self, batch: tuple[Tensor, ...]) -> dict[str, tuple[Tensor, Tensor]]:
        """{part: (sum, count)} of what `SoundBatches.at` returns.

        masked: the labels of hidden patches. Without hidden patches, heard: binary cross-entropy of
        each category; loudest: cross-entropy of the loudest one, or of silence.
        """
        mels, heard, loudest, hidden = batch
        encoder = self.crab.audio
        if hidden.any():
            return {"masked": masked_prediction_loss(
                encoder, self.label_head, self.labels, mels, hidden)}

        features = encoder(mels)[0].mean(1)                                     # (B,Da)
        heard_loss = F.binary_cross_entropy_with_logits(
            self.heard_head(features).float(), heard, reduction="sum")
        loudest_loss = F.cross_entropy(
            self.loudest_head(features).float(), loudest, reduction="sum")
        count = torch.tensor(len(heard))
        return {"heard": (heard_loss, count), "loudest": (loudest_loss, count)}
