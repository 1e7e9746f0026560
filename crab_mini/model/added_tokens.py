"""Rows for tokens that a published vocabulary lacks: Crab's tags, placeholders and <mask_i>.

The rows of the published weights stay as they are and stay frozen. New rows stand beside them, in
parameters of their own, so that they can be trained alone.
    llm.resize_token_embeddings(tokenizer.size);  optimizer over llm.added()
"""

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor


def mean_rows(weight: Tensor, rows: int) -> nn.Parameter:
    """(rows,D), each the mean of the rows of `weight`: a new token begins as the average one."""
    return nn.Parameter(weight.detach().mean(0).repeat(rows, 1))


class GrownEmbedding(nn.Module):
    """An embedding with rows for added tokens: `base` (V,D), for ids from V on `added` (rows,D)."""

    def __init__(self, base: nn.Embedding, rows: int):
        super().__init__()
        self.base, self.added = base, mean_rows(base.weight, rows)

    def forward(self, ids: Tensor) -> Tensor:
        """ids (B,L) -> (B,L,D)."""
        known = len(self.base.weight)
        # Both tables are asked about every id, with ids they lack replaced by one that they have.
        new = F.embedding((ids - known).clamp(min=0), self.added)                     # (B,L,D)
        return torch.where((ids < known)[..., None], self.base(ids.clamp(max=known - 1)), new)


class GrownHead(nn.Module):
    """An output head with rows for added tokens, `added` (rows,D), behind those of `base` (V,D)."""

    def __init__(self, base: nn.Linear, rows: int):
        super().__init__()
        self.base, self.added = base, mean_rows(base.weight, rows)

    def forward(self, states: Tensor) -> Tensor:
        """(...,D) -> logits (...,V + rows)."""
        return torch.cat((self.base(states), F.linear(states, self.added)), -1)
