"""The one contract between data and model: a batch of rendered sequences, features for their placeholders, targets.

Sequences are padded on the right for training (causal attention then never sees the padding) and on the left for
generation. Features and mask targets are listed in the order in which the sequences' placeholders and mask groups
appear, so the model writes them with one masked write and never needs to know which task a row belongs to.
"""

from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

from .tokenizer import Tokenizer

LENGTH_STEP = 16            # lengths are rounded up: for each new shape the CPU's matrix library compiles new code


@dataclass
class Item:
    """One sequence with what its placeholders stand for."""
    task: str
    uid: str
    row: dict
    ids: list[int]
    loss_mask: list[bool]                     # the answer's ids
    visual: Tensor                          # (T,P,Dv) features, or (T,Q,words) of a script
    audio: Tensor                           # (T,P,Da) features, or (T,Q,words)
    mask_features: Tensor | None = None     # (scales,P,Dv) of the frame that is to be segmented
    masks: Tensor | None = None             # (groups,H,W) bool, one for each mask group of the answer
    named: Tensor | None = None             # (groups,categories) bool: who is meant (the world knows)


@dataclass
class Batch:
    """See the module docstring; G mask groups in all, each of `scales * tokens` mask ids."""
    ids: Tensor                             # (B,L)
    loss_mask: Tensor                         # (B,L) bool
    attention_mask: Tensor                           # (B,L) bool, False on padding
    visual: Tensor                          # (sum T,P,Dv)
    audio: Tensor                           # (sum T,P,Da)
    mask_features: Tensor | None            # (G,scales,P,Dv)
    masks: Tensor | None                    # (G,H,W) float
    named: Tensor | None                    # (G,categories) float
    uids: list[str] = field(default_factory=list)

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device (from pinned memory without waiting)."""
        moved = {f.name: getattr(self, f.name).to(device, non_blocking=True)
                 for f in fields(self) if isinstance(getattr(self, f.name), Tensor)}
        return replace(self, **moved)


def _stack(items: list[Item], name: str, repeat: bool = False) -> Tensor | None:
    """Concatenates an optional field over the items that have mask groups; repeat: once for each of its groups."""
    parts = [getattr(i, name) for i in items if i.masks is not None and len(i.masks)]
    if not parts or parts[0] is None:
        return None
    if repeat:
        groups = [len(i.masks) for i in items if i.masks is not None and len(i.masks)]
        parts = [p[None].expand(n, *p.shape) for p, n in zip(parts, groups)]
    return torch.cat(parts)


def collate(items: list[Item], tokenizer: Tokenizer, left: bool = False) -> Batch:
    """Items -> batch; left: pad on the left (for generation)."""
    length = -(-max(len(i.ids) for i in items) // LENGTH_STEP) * LENGTH_STEP
    ids = torch.full((len(items), length), tokenizer.pad)
    loss_mask = torch.zeros(len(items), length, dtype=torch.bool)
    attention_mask = torch.zeros(len(items), length, dtype=torch.bool)
    for b, item in enumerate(items):
        place = slice(length - len(item.ids), length) if left else slice(0, len(item.ids))
        ids[b, place] = torch.tensor(item.ids)
        loss_mask[b, place] = torch.tensor(item.loss_mask)
        attention_mask[b, place] = True
    masks, named = _stack(items, "masks"), _stack(items, "named")
    return Batch(ids, loss_mask, attention_mask, torch.cat([i.visual for i in items]), torch.cat([i.audio for i in items]),
                 _stack(items, "mask_features", repeat=True), None if masks is None else masks.float(),
                 None if named is None else named.float(), [i.uid for i in items])
