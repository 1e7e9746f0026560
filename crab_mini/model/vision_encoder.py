"""The vision encoder: CLIP's ViT (arXiv 2103.00020), which returns the states of every layer.

    pixels (B,3,H,W) -> patch convolution, class token in front, positions, norm -> layers
    -> states (B,1+P,D) after that norm and after each layer

Unusual: Crab reads layers inside the encoder and not its output. At paper size it takes
hidden_states[23] of 24 for the LLM, and 14 and 22 for the mask decoder, as the official
configuration has it. Index 0 is the state after the norm in front of the layers, index i the state
after layer i. None of them has passed the final norm, which only `pooled` applies.
    ViT(VisionConfig()).hidden_states(torch.rand(1, 3, 64, 64), last=2)
As in CLIP there is a norm before the first layer, and x * sigmoid(1.702 x) stands for a GELU.
"""

import torch
import torch.nn as nn
from torch import Tensor

from ..config import VisionConfig
from .attention import attend


def quick_gelu(x: Tensor) -> Tensor:
    """CLIP's approximation of the GELU, x * sigmoid(1.702 x).

    It differs from the GELU by up to 0.02, so published weights need this one.
    """
    return x * torch.sigmoid(1.702 * x)


class Attention(nn.Module):
    """Multi-head self-attention without a mask: every token attends to every token."""

    def __init__(self, cfg: VisionConfig):
        super().__init__()
        self.heads = cfg.heads
        self.q_proj, self.k_proj = nn.Linear(cfg.dim, cfg.dim), nn.Linear(cfg.dim, cfg.dim)
        self.v_proj, self.o_proj = nn.Linear(cfg.dim, cfg.dim), nn.Linear(cfg.dim, cfg.dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B,1+P,D) -> (B,1+P,D)."""
        q, k, v = (proj(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
                   for proj in (self.q_proj, self.k_proj, self.v_proj))               # (B,n,1+P,d)
        return self.o_proj(attend(q, k, v).transpose(1, 2).flatten(2))                # (B,1+P,D)


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
            raise ValueError("VisionConfig: dim must be a multiple of heads, "
                             f"found {cfg.dim} and {cfg.heads}")
        self.cfg = cfg
        self.patches = nn.Conv2d(3, cfg.dim, cfg.patch, cfg.patch, bias=False)
        self.class_token = nn.Parameter(torch.empty(cfg.dim))
        self.positions = nn.Embedding(1 + cfg.grid ** 2, cfg.dim)
        self.input_norm = nn.LayerNorm(cfg.dim, cfg.norm_eps)
        self.layers = nn.ModuleList(Layer(cfg) for _ in range(cfg.layers))
        self.pooled_norm = nn.LayerNorm(cfg.dim, cfg.norm_eps)
        self.initialise()

    def initialise(self) -> None:
        """CLIP's initial weights, with standard deviations around D^-0.5."""
        base = self.cfg.dim ** -0.5
        # What a layer adds to the residual starts smaller the more layers there are.
        depth = (2 * self.cfg.layers) ** -0.5
        for weight in (self.patches.weight, self.positions.weight):
            nn.init.normal_(weight, std=0.02)
        nn.init.normal_(self.class_token, std=base)
        for layer in self.layers:
            attention, mlp = layer.attention, layer.mlp
            for linear, std in ((attention.q_proj, base * depth), (attention.k_proj, base * depth),
                                (attention.v_proj, base * depth), (attention.o_proj, base),
                                (mlp.up, (2 * self.cfg.dim) ** -0.5), (mlp.down, base * depth)):
                nn.init.normal_(linear.weight, std=std)
                nn.init.zeros_(linear.bias)

    def hidden_states(self, pixels: Tensor, last: int | None = None) -> list[Tensor]:
        """pixels (B,3,H,W), CLIP-normalised -> [(B,1+P,D)]: after the first norm and each layer.

        last: the highest index wanted; layers above it are not computed. None: all. Raises
        ValueError for pictures of another size than the configuration's, because the learned
        positions fit that one only.
        """
        side = self.cfg.image
        if pixels.ndim != 4 or pixels.shape[1:] != (3, side, side):
            raise ValueError(f"pixels: expected shape (B, 3, {side}, {side}), "
                             f"found {tuple(pixels.shape)}")
        # Patches in reading order, and in front of them a token that belongs to no place.
        x = self.patches(pixels).flatten(2).transpose(1, 2)                           # (B,P,D)
        first = self.class_token.to(x.dtype).expand(len(x), 1, -1)                    # (B,1,D)
        x = torch.cat((first, x), 1)                                                  # (B,1+P,D)

        # Index 0 is kept too: the layers are counted as in the published hidden_states.
        states = [self.input_norm(x + self.positions.weight)]
        for layer in self.layers[:last]:
            states.append(layer(states[-1]))
        return states

    def pooled(self, pixels: Tensor) -> Tensor:
        """(B,3,H,W) -> (B,D): the class token after the last layer, normed."""
        return self.pooled_norm(self.hidden_states(pixels)[-1][:, 0])
