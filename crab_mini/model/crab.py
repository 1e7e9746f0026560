"""Crab assembled: two encoders, their Q-Formers, the LLM with interaction-aware LoRA, the mask decoders (paper, figure 3).

    frames (T,3,H,W) -> ViT -> (T,P,Dv) -> Q-Former -> (T,Q,D) --+
    sound  (T,F,128) -> BEATs -> (T,P,Da) -> Q-Former -> (T,Q,D) -+-> one masked write -> LLM -> answer
    states that predict <mask_i> -> projection -> mask decoder over two ViT layers -> mask

The encoders are frozen and run once a clip, so the model proper starts at their features. What training reads at a
mask token is what generation reads: the final-norm state one position before it.
"""

from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ..batch import Batch
from ..config import Config
from .audio_encoder import BEATs
from .llm import LLM
from .lora import attach
from .mask_decoder import SegmentationHead, bce_loss, dice_loss
from .qformer import QFormer
from .vision_encoder import ViT

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)      # of CLIP's pictures; used for ours too
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class SpecialIds:
    """The tokenizer's ids that the model treats specially."""
    visual: int
    audio: int
    masks: tuple[int, int]           # first and last <mask_i>
    eos: int


def mask_losses(logits: Tensor, masks: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """(G,H,W) logits and targets -> the binary cross-entropy and the dice loss, summed over groups, with their count."""
    count = torch.tensor(len(masks))
    return {"bce": (bce_loss(logits, masks).sum(), count), "dice": (dice_loss(logits, masks).sum(), count)}


@dataclass
class Output:
    """What `forward` returns."""
    losses: dict[str, tuple[Tensor, Tensor]]     # part -> its sum and its count
    states: Tensor                               # (B,L,D) after the final norm


@dataclass
class Answers:
    """What `generate` returns: ids per row up to the end token, and the mask logits of each row's groups."""
    ids: list[list[int]]
    masks: list[Tensor]              # per row (groups,H,W)


class Crab(nn.Module):
    """The whole model. `with_lora()` is called once, when the instruct stage begins (or before loading its weights)."""

    def __init__(self, cfg: Config, ids: SpecialIds, parts: dict[str, nn.Module] | None = None):
        """parts: "vision", "audio", "llm" with published weights, instead of random ones (see published.py)."""
        super().__init__()
        self.cfg, self.ids, parts = cfg, ids, parts or {}
        self.vision = parts.get("vision") or ViT(cfg.vision)
        self.audio = parts.get("audio") or BEATs(cfg.audio)
        self.llm = parts.get("llm") or LLM(cfg.llm)
        self.visual_qformer = QFormer(cfg.visual_qformer, cfg.vision.dim, cfg.llm.dim)
        self.audio_qformer = QFormer(cfg.audio_qformer, cfg.audio.dim, cfg.llm.dim)
        self.mask_prompt = nn.Linear(cfg.llm.dim, cfg.mask.dim)
        self.segmentation = SegmentationHead(cfg.mask, cfg.vision.dim)
        self.register_buffer("pixel_mean", torch.tensor(CLIP_MEAN)[:, None, None], persistent=False)
        self.register_buffer("pixel_std", torch.tensor(CLIP_STD)[:, None, None], persistent=False)

    def freeze_except(self, *parts: nn.Module) -> None:
        """Freezes everything but these parts (and within them what no output depends on)."""
        self.requires_grad_(False)
        for part in parts:
            part.requires_grad_(True)
        self.segmentation.freeze_unused()

    def with_lora(self, kernel: str = "") -> "Crab":
        """Freezes the LLM and gives every linear layer of its blocks the interaction-aware LoRA.

        kernel: one of fused_lora.KERNELS; "" for the environment variable CRAB_KERNEL.
        """
        self.llm.requires_grad_(False)
        attach(self.llm.blocks, self.cfg.lora, kernel)
        return self

    @torch.no_grad()
    def encode_frames(self, frames: Tensor) -> Tensor:
        """frames (N,3,H,W) uint8 -> (N,K,P,Dv): the patch features of the layers in `cfg.vision.kept`."""
        pixels = (frames.float() / 255 - self.pixel_mean) / self.pixel_std
        states = self.vision.hidden_states(pixels)
        return torch.stack([states[i][:, 1:] for i in self.cfg.vision.kept], 1)

    @torch.no_grad()
    def encode_audio(self, mels: Tensor) -> Tensor:
        """Log-mels (N,F,128) of one piece of sound each -> (N,P,Da)."""
        return self.audio(mels)[0]

    def interface_tokens(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The two Q-Formers on a batch's features: (sum T, Q, D) of each."""
        grid = self.cfg.vision.grid
        bins = 128 // self.cfg.audio.patch
        return (self.visual_qformer(batch.visual.float(), grid, grid),
                self.audio_qformer(batch.audio.float(), batch.audio.shape[1] // bins, bins))

    def embed(self, batch: Batch, visual: Tensor, audio: Tensor) -> Tensor:
        """Token embeddings with the placeholders overwritten by the interfaces' tokens: (B,L,D).

        Each of them also carries the word before its run of placeholders, the number of its second: whoever looks for
        a second finds it in one step of attention. (Official Crab leaves time to the order of tokens.)
        """
        embeds = self.llm.embed(batch.ids)
        slot = (batch.ids == self.ids.visual) | (batch.ids == self.ids.audio)                   # (B,L)
        place = torch.arange(batch.ids.shape[1], device=slot.device).expand_as(slot)
        word = place.masked_fill(slot, 0).cummax(1).values                  # the last place that is no placeholder
        second = self.llm.embed(batch.ids.gather(1, word))                  # (B,L,D)
        for mark, tokens in ((self.ids.visual, visual), (self.ids.audio, audio)):
            here = (batch.ids == mark)[..., None]
            embeds = embeds.masked_scatter(here, tokens.to(embeds.dtype))
        return embeds + second * slot[..., None]

    def mask_logits(self, states: Tensor, features: Tensor) -> Tensor:
        """states (G,scales*tokens,D) that predict <mask_i>, features (G,scales,P,Dv) -> (G,H,W) logits."""
        size = self.cfg.vision.image
        return self.segmentation(list(features.float().unbind(1)), self.mask_prompt(states), (size, size))

    def mask_states(self, hidden: Tensor, ids: Tensor, loss_mask: Tensor) -> Tensor:
        """(B,L,D) -> (G,scales*tokens,D): the states one place before each <mask_i> of the answers."""
        first, last = self.ids.masks
        at = (ids >= first) & (ids <= last) & loss_mask                       # (B,L)
        return hidden[:, :-1][at[:, 1:]].unflatten(0, (-1, last - first + 1))

    def states(self, batch: Batch, visual: Tensor, audio: Tensor) -> Tensor:
        """Final-norm states (B,L,D) of a right-padded batch."""
        return self.llm.encode(self.embed(batch, visual, audio))

    def text_loss(self, batch: Batch, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """(sum, count) of the cross-entropy over the answers' ids."""
        wanted = batch.loss_mask[:, 1:]
        targets = batch.ids[:, 1:][wanted]                                  # (N,)
        logits = self.llm.head(hidden[:, :-1][wanted]).float()              # (N,V)
        return F.cross_entropy(logits, targets, reduction="sum"), wanted.sum()

    def forward(self, batch: Batch) -> Output:
        """A right-padded batch of features -> losses of text, and bce and dice of its mask groups (paper, section 4)."""
        hidden = self.states(batch, *self.interface_tokens(batch))
        parts = {"text": self.text_loss(batch, hidden)}
        if batch.masks is not None:
            states = self.mask_states(hidden, batch.ids, batch.loss_mask)     # (G,6,D)
            parts |= mask_losses(self.mask_logits(states, batch.mask_features), batch.masks)
        return Output(parts, hidden)

    @torch.no_grad()
    def generate(self, batch: Batch, features: list[Tensor | None], limit: int = 200) -> Answers:
        """Greedy answers to a left-padded batch.

        features: per row (scales,P,Dv) of the frame that mask tokens refer to, or None where the task has no masks.
        """
        visual, audio = self.interface_tokens(batch)
        embeds = self.embed(batch, visual, audio)
        ids, hidden = self.llm.generate_states(embeds, batch.attention_mask, limit, self.ids.eos)     # (B,N), (B,N,D)
        first, last = self.ids.masks
        answers = Answers([], [])
        for row, states, feature in zip(ids, hidden, features):
            ended = (row == self.ids.eos).nonzero()
            length = int(ended[0]) if len(ended) else len(row)
            row, states = row[:length], states[:length]
            answers.ids.append(row.tolist())
            picked = states[(row >= first) & (row <= last)]
            whole, rest = divmod(len(picked), last - first + 1)
            if feature is None or not whole or rest:    # with strays nobody can say which six belong together
                answers.masks.append(states.new_zeros(0, self.cfg.vision.image, self.cfg.vision.image))
                continue
            picked = picked.unflatten(0, (whole, -1))
            answers.masks.append(self.mask_logits(picked, feature[None].expand(whole, *feature.shape)))
        return answers
