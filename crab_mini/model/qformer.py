"""Q-Former: learned queries attend to an encoder's features and become tokens for the LLM.

Paper, section 4. The layers are BERT's, as in BLIP-2: self-attention among queries, cross-attention
to the features, MLP, each followed by residual + LayerNorm. One class serves pictures (a frame's
patches) and sound (a second's patches).
    QFormer(QFormerConfig(), features=128, out=192)(torch.randn(2, 64, 128), 8, 8)    # (2,4,192)

Unusual: a free query forgets *where* it read (a probe finds 1 % of boxes in the output of four free
queries, 96 % with the two changes below). So features carry their place into the keys. And each
query may be anchored on a cell of a grid over the frame: it starts from that cell's mean feature,
and its attention is biased towards the cell by a learned amount. `QFormerConfig.grid = None` is the
published, free form.
"""

import math

import torch
import torch.nn as nn
from torch import Tensor

from ..config import QFormerConfig
from .attention import attend


def place_code(h: int, w: int, width: int) -> Tensor:
    """(h*w, width): sines and cosines of the row and the column, half of the width each."""
    # Rows and columns are measured from 0 to 1, at the middle of each place.
    quarter = width // 4
    frequency = math.pi * torch.arange(1, quarter + 1)
    rows, columns = (torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w
    angles = torch.cat([(rows[:, None] * frequency)[:, None].expand(h, w, quarter),
                        (columns[:, None] * frequency)[None].expand(h, w, quarter)], -1)
    return torch.cat([angles.sin(), angles.cos()], -1).reshape(h * w, 4 * quarter)


def cells(h: int, w: int, grid: tuple[int, int], queries: int) -> Tensor:
    """(Q, h*w) bool: which places belong to the cell that each query is anchored on.

    With more queries than cells, the cells repeat.
    """
    row = torch.arange(h) * grid[0] // h
    column = torch.arange(w) * grid[1] // w
    cell = (row[:, None] * grid[1] + column[None]).flatten()                          # (P,)
    return cell[None] == (torch.arange(queries) % (grid[0] * grid[1]))[:, None]       # (Q,P)


class Attention(nn.Module):
    """Multi-head attention of queries (N,Q,D) to a context, with an optional additive bias."""

    def __init__(self, width: int, context: int, heads: int):
        """width D of the queries and the result; context: width of what they attend to."""
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj = nn.Linear(width, width), nn.Linear(context, width)
        self.v_proj, self.o_proj = nn.Linear(context, width), nn.Linear(width, width)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor,
                bias: Tensor | None = None) -> Tensor:
        """x (N,Q,D), keys and values (N,P,context), bias (n,Q,P) or None -> (N,Q,D)."""
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
                   for part in (self.q_proj(x), self.k_proj(keys), self.v_proj(values)))
        y = attend(q, k, v, None if bias is None else bias[None])                     # (N,n,Q,d)
        return self.o_proj(y.transpose(1, 2).flatten(2))                              # (N,Q,D)


class Layer(nn.Module):
    """One BERT layer with cross-attention, post-norm as published."""

    def __init__(self, cfg: QFormerConfig, features: int):
        super().__init__()
        self.self_attention = Attention(cfg.dim, cfg.dim, cfg.heads)
        self.cross_attention = Attention(cfg.dim, features, cfg.heads)
        self.mlp = nn.Sequential(nn.Linear(cfg.dim, cfg.ffn_dim), nn.GELU(),
                                 nn.Linear(cfg.ffn_dim, cfg.dim))
        self.norms = nn.ModuleList(nn.LayerNorm(cfg.dim, eps=1e-12) for _ in range(3))

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        """Queries x (N,Q,D), features twice (N,P,features), bias (n,Q,P) or None -> (N,Q,D)."""
        # Queries attend to each other first, so that they can look for different things.
        x = self.norms[0](x + self.self_attention(x, x, x))
        x = self.norms[1](x + self.cross_attention(x, keys, values, bias))
        return self.norms[2](x + self.mlp(x))


class QFormer(nn.Module):
    """Features (N,P,features) on a grid of h×w places -> tokens (N,Q,out)."""

    def __init__(self, cfg: QFormerConfig, features: int, out: int):
        """features: width of the encoder; out: width of the LLM."""
        super().__init__()
        self.cfg = cfg
        self.queries = nn.Parameter(0.02 * torch.randn(cfg.queries, cfg.dim))
        # Encoders differ in scale. After this norm their keys start alike.
        self.normalise = nn.LayerNorm(features)
        self.norm = nn.LayerNorm(cfg.dim, eps=1e-12)
        self.layers = nn.ModuleList(Layer(cfg, features) for _ in range(cfg.layers))
        self.out = nn.Linear(cfg.dim, out)
        # Anchored queries: what they start from, and how strongly each head prefers their cell.
        if cfg.grid:
            self.start = nn.Linear(features, cfg.dim)
            self.pull = nn.Parameter(torch.full((cfg.heads,), 2.0))

    def forward(self, features: Tensor, h: int, w: int) -> Tensor:
        """features (N,P,features), P = h * w places in reading order -> tokens (N,Q,out)."""
        # Places go into the keys alone: they say where to look, and not what is seen there.
        values = self.normalise(features)                                           # (N,P,features)
        keys = values + place_code(h, w, features.shape[-1]).to(values)
        x, bias = self.queries.expand(len(features), -1, -1), None                    # (N,Q,D)

        # An anchored query starts from its cell's mean and prefers the cell in every layer.
        if self.cfg.grid:
            own = cells(h, w, self.cfg.grid, self.cfg.queries).to(values)             # (Q,P)
            x = x + self.start((own / own.sum(1, keepdim=True)) @ keys)
            bias = self.pull[:, None, None] * own                                     # (n,Q,P)

        x = self.norm(x)
        for layer in self.layers:
            x = layer(x, keys, values, bias)
        return self.out(x)                                                            # (N,Q,out)
