"""The audio encoder: BEATs (arXiv 2212.09058), every number as in the published one.

    log-mel (B,F,128) -> patches of 16x16, frequency fastest -> + position code -> layers -> (B,P,D)

Unusual: three position codes at once. A convolution over the tokens says where a token is. A table
of relative distances is added to the attention scores. And each query scales its row of that table
by a gate. Layers are post-norm with deep-norm: the residual, not the branch, is multiplied by (2 *
layers)^(1/4).
    features, _ = BEATs(AudioConfig())(fbank(torch.rand(1, 16000)))          # (1,48,D)
`fbank`, Kaldi's log-mel, is in av_uie/log_mel.py. One table of relative distances, held once,
serves all layers; published files repeat it under each. Left out, because they act in training
only: layer drop and the layer-wise decay of gradients.
"""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ..config import MEL_BINS, AudioConfig
from .attention import attend


def fold_mask(mask: Tensor, count: int) -> Tensor:
    """A padding mask (B,length) on `count` equal chunks: (B,count), True where all is padding.

    What does not fill a chunk is cut off at the END. So token i of P stands for the frames around
    i*F/P, and not for those of its patch. This is BEATs' rule.
    """
    chunk = mask.shape[1] // count
    return mask[:, :chunk * count].unflatten(1, (count, chunk)).all(-1)


def distance_buckets(length: int, buckets: int, max_distance: int, device: torch.device) -> Tensor:
    """Which row of the table serves each query and key: (L,L), by the distance key - query.

    Half of the rows are for keys ahead of the query. A row serves one distance when that is short,
    and a range that grows with the distance when it is long; the last one all from max_distance on.
    """
    place = torch.arange(length, device=device)
    relative = place - place[:, None]                                                 # (L,L)
    half, exact = buckets // 2, buckets // 4

    # Short distances are their own row. Long ones get rows evenly spaced in the logarithm; the
    # clamp only keeps log(0) from being taken where the short rule applies.
    far = relative.abs().clamp(min=exact).float()
    spaced = (far / exact).log() / math.log(max_distance / exact) * (half - exact)
    far_bucket = (exact + spaced.long()).clamp(max=half - 1)
    return torch.where(relative.abs() < exact, relative.abs(), far_bucket) + half * (relative > 0)


class PositionConv(nn.Module):
    """gelu(grouped convolution over the tokens).

    Its weight is a direction times a gain; the direction is normed over both channel axes, for each
    place of the kernel alone.
    """

    def __init__(self, cfg: AudioConfig):
        super().__init__()
        self.kernel, self.groups = cfg.conv_pos, cfg.conv_pos_groups
        shape = (cfg.dim, cfg.dim // cfg.conv_pos_groups, cfg.conv_pos)
        self.direction = nn.Parameter(torch.empty(shape))
        nn.init.normal_(self.direction, std=2 / math.sqrt(cfg.conv_pos * cfg.dim))
        gain = self.direction.detach().norm(dim=(0, 1), keepdim=True)                 # (1,1,kernel)
        self.gain = nn.Parameter(gain)
        self.bias = nn.Parameter(torch.zeros(cfg.dim))

    def forward(self, x: Tensor) -> Tensor:
        """(B,P,D) -> (B,P,D)."""
        weight = self.direction * (self.gain / self.direction.norm(dim=(0, 1), keepdim=True))
        y = F.conv1d(x.transpose(1, 2), weight, self.bias, padding=self.kernel // 2,
                     groups=self.groups)                                            # (B,D,P or P+1)
        # An even kernel yields one place too many: the last one is dropped.
        return F.gelu(y[..., :x.shape[1]]).transpose(1, 2)                            # (B,P,D)


class Attention(nn.Module):
    """Self-attention with a bias of relative distances, scaled by one number a head and query."""

    def __init__(self, cfg: AudioConfig):
        super().__init__()
        self.heads = cfg.heads
        self.q_proj, self.k_proj = nn.Linear(cfg.dim, cfg.dim), nn.Linear(cfg.dim, cfg.dim)
        self.v_proj, self.o_proj = nn.Linear(cfg.dim, cfg.dim), nn.Linear(cfg.dim, cfg.dim)
        self.gate = nn.Linear(cfg.dim // cfg.heads, 8)               # the same for all heads
        self.gate_scale = nn.Parameter(torch.ones(1, cfg.heads, 1, 1))

    def forward(self, x: Tensor, bias: Tensor, padded: Tensor | None) -> Tensor:
        """x (B,P,D), bias (n,P,P), padded (B,P) bool or None -> (B,P,D)."""
        q, k, v = (proj(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
                   for proj in (self.q_proj, self.k_proj, self.v_proj))               # (B,n,P,d)

        # Two gates for each query, as in a GRU, each the sum of four outputs; they scale its bias.
        gates = self.gate(q).unflatten(-1, (2, 4)).sum(-1, dtype=torch.float32)       # (B,n,P,2)
        update, reset = gates.sigmoid().split(1, -1)                                # (B,n,P,1) each
        scores = (update * (reset * self.gate_scale - 1) + 2) * bias                  # (B,n,P,P)
        if padded is not None:
            scores = scores.masked_fill(padded[:, None, None], -torch.inf)

        y = attend(q, k, v, scores)                                                   # (B,n,P,d)
        return self.o_proj(y.transpose(1, 2).flatten(2))                              # (B,P,D)


class Layer(nn.Module):
    """Deep-norm: norm(alpha x + branch(x)), for the attention and for the two linear layers.

    alpha = (2 * layers)^(1/4).
    """

    def __init__(self, cfg: AudioConfig):
        super().__init__()
        self.alpha = (2 * cfg.layers) ** 0.25
        self.attention, self.attention_norm = Attention(cfg), nn.LayerNorm(cfg.dim)
        self.up, self.down = nn.Linear(cfg.dim, cfg.ffn_dim), nn.Linear(cfg.ffn_dim, cfg.dim)
        self.mlp_norm = nn.LayerNorm(cfg.dim)

    def forward(self, x: Tensor, bias: Tensor, padded: Tensor | None) -> Tensor:
        """x (B,P,D); bias and padded as in `Attention.forward` -> (B,P,D)."""
        x = self.attention_norm(x * self.alpha + self.attention(x, bias, padded))
        return self.mlp_norm(x * self.alpha + self.down(F.gelu(self.up(x))))


class BEATs(nn.Module):
    """The encoder. Raises ValueError where head counts, groups or buckets do not fit."""

    def __init__(self, cfg: AudioConfig):
        super().__init__()
        # Checked here, so that the error can name the fields of the configuration.
        if cfg.dim % cfg.heads or cfg.dim % cfg.conv_pos_groups or MEL_BINS % cfg.patch:
            raise ValueError("AudioConfig: dim must be a multiple of heads and of conv_pos_groups, "
                             f"and 128 of patch, found {cfg}")
        if cfg.buckets < 4 or cfg.max_distance <= cfg.buckets // 4:
            raise ValueError("AudioConfig: expected buckets >= 4 and max_distance > buckets / 4, "
                             f"found {cfg.buckets} and {cfg.max_distance}")
        self.cfg = cfg
        self.patches = nn.Conv2d(1, cfg.embed, cfg.patch, cfg.patch, bias=False)
        self.patch_norm = nn.LayerNorm(cfg.embed)
        self.project = nn.Linear(cfg.embed, cfg.dim)
        self.position = PositionConv(cfg)
        self.input_norm = nn.LayerNorm(cfg.dim)
        # One table for all layers: a number for each distance and head.
        self.distance_bias = nn.Embedding(cfg.buckets, cfg.heads)
        self.layers = nn.ModuleList(Layer(cfg) for _ in range(cfg.layers))
        self.initialise()

    def initialise(self) -> None:
        """Deep-norm's initial weights: Xavier's, some of them smaller by (8 * layers)^(1/4)."""
        nn.init.xavier_normal_(self.distance_bias.weight)
        # What adds to the residual starts smaller. Queries and keys do not add: they choose.
        small = (8 * self.cfg.layers) ** -0.25
        for layer in self.layers:
            attention = layer.attention
            for linear, gain in ((attention.q_proj, 1.0), (attention.k_proj, 1.0),
                                 (attention.v_proj, small), (attention.o_proj, small),
                                 (layer.up, small), (layer.down, small)):
                nn.init.xavier_normal_(linear.weight, gain)
                nn.init.zeros_(linear.bias)

    def embed(self, fbank: Tensor) -> Tensor:
        """fbank (B,F,128) -> patch tokens (B,P,D).

        The patch of time t and frequency f is token t * (128 / patch) + f. Frames that do not fill
        a patch are dropped. ValueError for another shape, or fewer frames than one patch has.
        """
        if fbank.ndim != 3 or fbank.shape[2] != MEL_BINS or fbank.shape[1] < self.cfg.patch:
            raise ValueError(f"fbank: expected shape (B, F, {MEL_BINS}) with F at least "
                             f"{self.cfg.patch}, found {tuple(fbank.shape)}")
        patches = self.patches(fbank[:, None]).flatten(2).transpose(1, 2)             # (B,P,embed)
        return self.project(self.patch_norm(patches))                                 # (B,P,D)

    def encode(self, tokens: Tensor, padded: Tensor | None = None) -> Tensor:
        """Patch tokens (B,P,D), padded (B,P) bool or None -> features (B,P,D).

        No norm follows the last layer: layers are post-norm.
        """
        # Padding is zero for the convolution, which reads neighbours.
        if padded is not None:
            tokens = tokens.masked_fill(padded[..., None], 0)
        x = self.input_norm(tokens + self.position(tokens))                           # (B,P,D)

        # The distances are the same for every layer and sample, so they are looked up once.
        buckets = distance_buckets(x.shape[1], self.cfg.buckets, self.cfg.max_distance, x.device)
        bias = self.distance_bias(buckets).permute(2, 0, 1)                           # (n,P,P)
        for layer in self.layers:
            x = layer(x, bias, padded)
        return x

    def forward(self, fbank: Tensor,
                padding_mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """fbank (B,F,128) -> features (B,P,D), and which tokens are padding (B,P), None for none.

        padding_mask (B,F) bool, True = padding. ValueError for a mask of another shape or one that
        leaves a row without tokens.
        """
        tokens = self.embed(fbank)                                                    # (B,P,D)
        if padding_mask is None:
            return self.encode(tokens), None
        if padding_mask.shape != fbank.shape[:2]:
            raise ValueError(f"padding_mask: expected shape {tuple(fbank.shape[:2])}, "
                             f"found {tuple(padding_mask.shape)}")
        padded = fold_mask(padding_mask.bool(), tokens.shape[1])                      # (B,P)
        if bool(padded.all(1).any()):
            raise ValueError("padding_mask: expected at least one token a row that is not padding, "
                             "found a row without")
        return self.encode(tokens, padded), padded
