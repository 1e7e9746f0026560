"""The contract between data and model: sequences of ids, features for their placeholders, targets.

Sequences are padded on the right for training (causal attention then never sees the padding) and on
the left for generation. Features and mask targets are listed in the order in which the sequences'
placeholders and mask groups appear. So the model writes them with one masked write, and never needs
to know which task a sequence belongs to.
"""

from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

# Lengths are rounded up to a multiple: for each new shape the CPU's matrix library compiles code.
LENGTH_STEP = 16


@dataclass
class Sequence:
    """One sample as the LLM reads it: its ids, and what its placeholders stand for."""
    task: str
    uid: str
    ids: list[int]
    loss_mask: list[bool]                   # True on the answer's ids
    visual: Tensor                          # (T,P,Dv) features, or (T,Q,words) of a script
    audio: Tensor                           # (T,P,Da) features, or (T,Q,words) of a script
    mask_features: Tensor | None = None     # (2,P,Dv) of the frame that is to be segmented
    masks: Tensor | None = None             # (G,H,W) bool, one for each mask group of the answer
    named: Tensor | None = None             # (G,C) bool: categories each mask is of, if known


@dataclass
class Batch:
    """Sequences of one length, N seconds in all, G mask groups in all, each of six mask ids."""
    ids: Tensor                             # (B,L)
    loss_mask: Tensor                       # (B,L) bool
    attention_mask: Tensor                  # (B,L) bool, False on padding
    visual: Tensor                          # (N,P,Dv)
    audio: Tensor                           # (N,P,Da)
    mask_features: Tensor | None            # (G,2,P,Dv) of two ViT layers
    masks: Tensor | None                    # (G,H,W) float
    named: Tensor | None                    # (G,C) float
    uids: list[str] = field(default_factory=list)

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device (from pinned memory without waiting)."""
        moved = {f.name: getattr(self, f.name).to(device, non_blocking=True)
                 for f in fields(self) if isinstance(getattr(self, f.name), Tensor)}
        return replace(self, **moved)


def collate(sequences: list[Sequence], pad: int, left: bool = False,
            step: int = LENGTH_STEP) -> Batch:
    """Sequences -> batch. pad: the id of padding; left: pad on the left (for generation).

    step: the length is rounded up to a multiple of it.
    """
    longest = max(len(s.ids) for s in sequences)
    length = -(-longest // step) * step
    ids = torch.full((len(sequences), length), pad)                                   # (B,L)
    loss_mask = torch.zeros(len(sequences), length, dtype=torch.bool)
    attention_mask = torch.zeros(len(sequences), length, dtype=torch.bool)
    for b, sequence in enumerate(sequences):
        count = len(sequence.ids)
        columns = slice(length - count, length) if left else slice(0, count)
        ids[b, columns] = torch.tensor(sequence.ids)
        loss_mask[b, columns] = torch.tensor(sequence.loss_mask)
        attention_mask[b, columns] = True

    # Only sequences with mask groups have mask targets. Their frame serves each of its groups.
    masked = [s for s in sequences if s.masks is not None and len(s.masks)]
    masks = [s.masks.float() for s in masked]
    named = [s.named.float() for s in masked if s.named is not None]
    mask_features = [s.mask_features.expand(len(s.masks), *s.mask_features.shape) for s in masked
                     if s.mask_features is not None]
    return Batch(ids, loss_mask, attention_mask,
                 visual=torch.cat([s.visual for s in sequences]),
                 audio=torch.cat([s.audio for s in sequences]),
                 mask_features=joined(mask_features), masks=joined(masks), named=joined(named),
                 uids=[s.uid for s in sequences])


def joined(parts: list[Tensor]) -> Tensor | None:
    """The parts one after another; None where there are none."""
    return torch.cat(parts) if parts else None
