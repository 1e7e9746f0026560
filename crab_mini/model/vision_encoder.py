"""The vision encoder: CLIP's ViT (arXiv 2103.00020), returning the states of every layer.

    pixels (B,3,H,W) -> patch convolution, class token in front, positions, norm -> layers -> B x (1 + P) x D each

Unusual: nobody reads the end. Crab takes patch states from inside (at paper size hidden_states[23] of 24 for the LLM,
14 and 22 for the mask decoder, as the official configuration has it), so index 0 is the state after the norm in front
of the layers, index n the state after layer n, and none has seen the final norm, which only `pooled` applies.
    ViT(VisionConfig()).hidden_states(torch.rand(1, 3, 64, 64), last=2)
Like CLIP: a norm before the first layer, and x * sigmoid(1.702 x) for a GELU.
"""

import torch
import torch.nn as nn
from torch import Tensor

from ..config import VisionConfig
from .attention import attend


def quick_gelu(x: Tensor) -> Tensor:
    """CLIP's approximation of the GELU, x * sigmoid(1.702 x); off by up to 0.02, so it cannot be replaced."""
    return x * torch.sigmoid(1.702 * x)


class Attention(nn.Module):
    """Every token looks at every token."""

    def __init__(self, cfg: VisionConfig):
        super().__init__()
        self.heads = cfg.heads
        self.q_proj, self.k_proj = nn.Linear(cfg.dim, cfg.dim), nn.Linear(cfg.dim, cfg.dim)
        self.v_proj, self.o_proj = nn.Linear(cfg.dim, cfg.dim), nn.Linear(cfg.dim, cfg.dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B,1+P,D) -> (B,1+P,D)."""
        q, k, v = (proj(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)       # (B,H,1+P,d)
                   for proj in (self.q_proj, self.k_proj, self.v_proj))
        return self.o_proj(attend(q, k, v).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Two linear layers around the quick GELU."""

    def __init__(self, cfg: VisionConfig):
        super().__init__()
        self.up, self.down = nn.Linear(cfg.dim, cfg.ffn_dim), nn.Linear(cfg.ffn_dim, cfg.dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B,1+P,D) -> (B,1+P,D)."""
        return self.down(quick_gelu(self.up(x)))


class Layer(nn.Module):
    """One pre-norm layer: x + attention(norm x), then x + mlp(norm x)."""

    def __init__(self, cfg: VisionConfig):
        super().__init__()
        self.attention_norm, self.attention = nn.LayerNorm(cfg.dim, cfg.norm_eps), Attention(cfg)
        self.mlp_norm, self.mlp = nn.LayerNorm(cfg.dim, cfg.norm_eps), MLP(cfg)

    def forward(self, x: Tensor) -> Tensor:
        """(B,1+P,D) -> (B,1+P,D)."""
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class ViT(nn.Module):
    """The encoder. Raises ValueError where the heads do not divide the width."""

    def __init__(self, cfg: VisionConfig):
        super().__init__()
        if cfg.dim % cfg.heads:
            raise ValueError(f"VisionConfig: dim must be a multiple of heads, found {cfg.dim} and {cfg.heads}")
        self.cfg = cfg
        self.patches = nn.Conv2d(3, cfg.dim, cfg.patch, cfg.patch, bias=False)
        self.class_token = nn.Parameter(torch.empty(cfg.dim))
        self.positions = nn.Embedding(1 + cfg.grid ** 2, cfg.dim)
        self.input_norm = nn.LayerNorm(cfg.dim, cfg.norm_eps)
        self.layers = nn.ModuleList(Layer(cfg) for _ in range(cfg.layers))
        self.pooled_norm = nn.LayerNorm(cfg.dim, cfg.norm_eps)
        self._initialise()

    def _initialise(self) -> None:
        """CLIP's own: width^-0.5, what a layer adds to the residual smaller the more layers there are."""
        near, depth = self.cfg.dim ** -0.5, (2 * self.cfg.layers) ** -0.5
        for weight in (self.patches.weight, self.positions.weight):
            nn.init.normal_(weight, std=0.02)
        nn.init.normal_(self.class_token, std=near)
        for layer in self.layers:
            attention = layer.attention
            for linear, std in ((attention.q_proj, near * depth), (attention.k_proj, near * depth),
                                (attention.v_proj, near * depth), (attention.o_proj, near),
                                (layer.mlp.up, (2 * self.cfg.dim) ** -0.5), (layer.mlp.down, near * depth)):
                nn.init.normal_(linear.weight, std=std)
                nn.init.zeros_(linear.bias)

    def hidden_states(self, pixels: Tensor, last: int | None = None) -> list[Tensor]:
        """pixels (B,3,H,W), CLIP-normalised -> [(B,1+P,D)]: after the first norm, then after each layer.

        last: the highest index wanted; layers above it are not computed. None: all. Raises ValueError for pictures of
        another size than the configuration's, because the learned positions fit that one only.
        """
        side = self.cfg.image
        if pixels.ndim != 4 or pixels.shape[1:] != (3, side, side):
            raise ValueError(f"pixels: expected shape (B, 3, {side}, {side}), found {tuple(pixels.shape)}")
        x = self.patches(pixels).flatten(2).transpose(1, 2)                      # (B,P,D), row by row
        x = torch.cat((self.class_token.to(x.dtype).expand(len(x), 1, -1), x), 1)    # (B,1+P,D)
        states = [self.input_norm(x + self.positions.weight)]
        for layer in self.layers[:last]:
            states.append(layer(states[-1]))
        return states

    def pooled(self, pixels: Tensor) -> Tensor:
        """(B,3,H,W) -> (B,D): the class token after the last layer, normed."""
        return self.pooled_norm(self.hidden_states(pixels)[-1][:, 0])
