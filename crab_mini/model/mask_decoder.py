"""Segment Anything's mask decoder, prompted by the LLM's <mask_i> states; the mask losses.

A mask is the dot product of one token's vector with every place of an upscaled image map. The
tokens (one for the predicted IoU, four for masks, the prompts) and the image exchange what they
know in a *two-way* transformer: tokens attend to the image, and the image attends to the tokens
(Kirillov et al. 2023, appendix A; Crab paper, section 3.1).
    head = SegmentationHead(MaskConfig(), vision_width=128)
    logits = head([early, late], prompts, (64, 64))

Unusual: the initial tokens are their own position code, which is added to queries and keys of every
layer and never to values; the self-attention of the first layer has neither code nor residual.
Parameters carry SAM's names; SAM's own prompts (points, boxes, masks) are in
pretrained/sam_prompts.py. In this file N are prompts, C is the width of tokens and image map.
Departs from official Crab: SAM's own decoder, one per scale, instead of the variant whose extra
query layers have no effect; the random position matrix is a saved buffer (there it is drawn anew at
every load); no hard-coded loss weights.
"""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ..config import MASK_SCALES, MASK_TOKENS, MaskConfig


class LayerNorm2d(nn.LayerNorm):
    """Normalises the channels at each place of a map (N,C,h,w)."""

    def __init__(self, channels: int):
        super().__init__(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """(N,C,h,w) -> (N,C,h,w)."""
        return super().forward(x.float().movedim(1, -1)).movedim(-1, 1)


class MLP(nn.Module):
    """`depth` linear layers with ReLU between: (...,inside) -> (...,out)."""

    def __init__(self, inside: int, hidden: int, out: int, depth: int):
        super().__init__()
        widths = [inside] + [hidden] * (depth - 1) + [out]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, widths[1:]))

    def forward(self, x: Tensor) -> Tensor:
        """(...,inside) -> (...,out)."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


class Attention(nn.Module):
    """Multi-head attention inside a width divided by `downsample`.

    Scores are divided by the root of d, the width of a head so reduced. Written out, as in SAM:
    with so few tokens it is twice as fast in bfloat16 on a CPU as torch's fused attention.
    """

    def __init__(self, width: int, heads: int, downsample: int = 1):
        super().__init__()
        inner = width // downsample
        if heads < 1 or inner % heads:
            raise ValueError(f"MaskDecoder: attention width {inner} cannot be divided into "
                             f"{heads} heads")
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, inner) for _ in range(3))
        self.out_proj = nn.Linear(inner, width)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q (N,L,C), k and v (N,L_kv,C) -> (N,L,C)."""
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
                   for x in (self.q_proj(q), self.k_proj(k), self.v_proj(v)))         # (N,n,.,d)
        scores = (q @ k.transpose(-1, -2)).float() / math.sqrt(q.shape[-1])           # (N,n,L,L_kv)
        y = scores.softmax(-1).to(v.dtype) @ v                                        # (N,n,L,d)
        return self.out_proj(y.transpose(1, 2).flatten(2))                            # (N,L,C)


class TokenMLP(nn.Module):
    """Linear, ReLU, linear, on the tokens alone."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.lin1, self.lin2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(N,L,C) -> (N,L,C)."""
        return self.lin2(F.relu(self.lin1(x)))


class TwoWayLayer(nn.Module):
    """Post-norm: tokens attend to tokens and image; MLP; the image attends to the tokens."""

    def __init__(self, width: int, heads: int, hidden: int, downsample: int, first: bool):
        super().__init__()
        self.first = first
        self.self_attn = Attention(width, heads)
        self.cross_attn_token_to_image = Attention(width, heads, downsample)
        self.cross_attn_image_to_token = Attention(width, heads, downsample)
        self.mlp = TokenMLP(width, hidden)
        self.norm1, self.norm2, self.norm3, self.norm4 = (nn.LayerNorm(width) for _ in range(4))

    def forward(self, tokens: Tensor, image: Tensor, token_code: Tensor,
                image_code: Tensor) -> tuple[Tensor, Tensor]:
        """tokens (N,L,C), image (N,P,C) and their position codes -> both, changed."""
        # Before the first layer the tokens *are* their code, which need not be added.
        if self.first:
            tokens = self.norm1(self.self_attn(tokens, tokens, tokens))
        else:
            q = tokens + token_code
            tokens = self.norm1(tokens + self.self_attn(q, q, tokens))

        keys = image + image_code
        read = self.cross_attn_token_to_image(tokens + token_code, keys, image)
        tokens = self.norm2(tokens + read)
        tokens = self.norm3(tokens + self.mlp(tokens))

        # The other direction: each place of the image attends to the tokens.
        asked = self.cross_attn_image_to_token(keys, tokens + token_code, tokens)
        return tokens, self.norm4(image + asked)


class TwoWayTransformer(nn.Module):
    """Two-way layers, then the tokens read the image once more."""

    def __init__(self, width: int, layers: int, heads: int, hidden: int, downsample: int):
        super().__init__()
        self.layers = nn.ModuleList(TwoWayLayer(width, heads, hidden, downsample, first=i == 0)
                                    for i in range(layers))
        self.final_attn_token_to_image = Attention(width, heads, downsample)
        self.norm_final_attn = nn.LayerNorm(width)

    def forward(self, image: Tensor, image_code: Tensor,
                tokens: Tensor) -> tuple[Tensor, Tensor]:
        """image (N,P,C), its code (1,P,C), tokens (N,L,C) -> tokens (N,L,C), image (N,P,C)."""
        # The prompts as they came in are the tokens' position code in every layer.
        code = tokens
        for layer in self.layers:
            tokens, image = layer(tokens, image, code, image_code)
        read = self.final_attn_token_to_image(tokens + code, image + image_code, image)
        return self.norm_final_attn(tokens + read), image


class PositionCode(nn.Module):
    """Random Fourier features of a place: sines and cosines of 2 pi (x,y) M.

    The matrix M is drawn once and saved with the weights.
    """

    def __init__(self, width: int):
        super().__init__()
        matrix = torch.randn(2, width // 2)
        self.register_buffer("positional_encoding_gaussian_matrix", matrix)

    def forward(self, xy: Tensor) -> Tensor:
        """xy (...,2) in [0,1], x first -> (...,C)."""
        # In fp32, because a phase needs all its digits. So it is no matrix product: autocast would
        # take one in bfloat16.
        across, down = self.positional_encoding_gaussian_matrix.float()               # (C/2,) each
        x, y = (2 * xy.float() - 1).split(1, -1)
        phase = 2 * math.pi * (x * across + y * down)                                 # (...,C/2)
        return torch.cat([phase.sin(), phase.cos()], -1)

    def grid(self, h: int, w: int) -> Tensor:
        """The centres of an h×w grid -> (1,h*w,C)."""
        device = self.positional_encoding_gaussian_matrix.device
        y = (torch.arange(h, device=device) + 0.5) / h
        x = (torch.arange(w, device=device) + 0.5) / w
        places = torch.stack([x.expand(h, w), y[:, None].expand(h, w)], -1)           # (h,w,2)
        return self(places).reshape(1, h * w, -1)


class MaskDecoder(nn.Module):
    """SAM's mask decoder: the first mask is the answer, the others serve ambiguous prompts.

    width C, layers, heads and hidden are those of the two-way transformer; the upscaled map has C/8
    channels.
    """

    def __init__(self, width: int, layers: int, heads: int, hidden: int, masks: int = 4,
                 downsample: int = 2, iou_hidden: int = 256, iou_depth: int = 3):
        super().__init__()
        self.transformer = TwoWayTransformer(width, layers, heads, hidden, downsample)
        self.iou_token, self.mask_tokens = nn.Embedding(1, width), nn.Embedding(masks, width)
        # Two transposed convolutions: each doubles the map's sides and makes it less wide.
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(width, width // 4, 2, stride=2), LayerNorm2d(width // 4), nn.GELU(),
            nn.ConvTranspose2d(width // 4, width // 8, 2, stride=2), nn.GELU())
        self.output_hypernetworks_mlps = nn.ModuleList(
            MLP(width, width, width // 8, 3) for _ in range(masks))
        self.iou_prediction_head = MLP(width, iou_hidden, masks, iou_depth)

    def decode(self, image: Tensor, code: Tensor, sparse: Tensor,
               dense: Tensor | None) -> tuple[Tensor, Tensor]:
        """Arguments as in `forward` -> all tokens (N,1+masks+L,C), upscaled map (N,C/8,4h,4w)."""
        if len(image) not in (1, len(sparse)):
            raise ValueError("image_embeddings: expected one image or one for each of the "
                             f"{len(sparse)} prompts, found {len(image)}")
        h, w = image.shape[-2:]
        image = image.expand(len(sparse), -1, -1, -1)                                 # (N,C,h,w)
        image = image if dense is None else image + dense

        # The decoder's own tokens stand before the prompts, and mask i is read at token 1 + i.
        own = torch.cat([self.iou_token.weight, self.mask_tokens.weight])             # (1+masks,C)
        tokens = torch.cat([own.expand(len(sparse), -1, -1), sparse.to(own.dtype)], 1)
        tokens, image = self.transformer(image.flatten(2).transpose(1, 2), code, tokens)
        return tokens, self.output_upscaling(image.transpose(1, 2).unflatten(2, (h, w)))

    def forward(self, image: Tensor, code: Tensor, sparse: Tensor,
                dense: Tensor | None) -> tuple[Tensor, Tensor]:
        """-> mask logits (N,masks,4h,4w), predicted IoU (N,masks).

        image (1 or N,C,h,w), its position code (1,h*w,C), prompts: sparse (N,L,C) tokens, dense
        (N,C,h,w) or None.
        """
        tokens, upscaled = self.decode(image, code, sparse, dense)
        # A mask is how much each place of the map agrees with its token's vector.
        vectors = torch.stack([mlp(tokens[:, 1 + i])
                               for i, mlp in enumerate(self.output_hypernetworks_mlps)], 1)
        masks = torch.einsum("nmc,nchw->nmhw", vectors, upscaled)                  # (N,masks,4h,4w)
        return masks, self.iou_prediction_head(tokens[:, 0])

    def first_mask(self, image: Tensor, code: Tensor, sparse: Tensor) -> Tensor:
        """Mask 0 of `forward` without a dense prompt, and without work for others: (N,4h,4w)."""
        tokens, upscaled = self.decode(image, code, sparse, None)
        vector = self.output_hypernetworks_mlps[0](tokens[:, 1])                      # (N,C/8)
        return torch.einsum("nc,nchw->nhw", vector, upscaled)


class SegmentationHead(nn.Module):
    """Crab's segmentation interface: a decoder for each scale, prompted by its <mask_i> states.

    A scale is one layer of the ViT, the earlier first; the scales' masks are averaged. Its neck is
    SAM's 1x1 convolution and LayerNorm2d, which on patch tokens are a linear layer and a LayerNorm.
    """

    def __init__(self, cfg: MaskConfig, vision_width: int):
        super().__init__()
        self.necks = nn.ModuleList(
            nn.Sequential(nn.Linear(vision_width, cfg.dim), nn.LayerNorm(cfg.dim, eps=1e-6))
            for _ in range(MASK_SCALES))
        self.decoders = nn.ModuleList(
            MaskDecoder(cfg.dim, cfg.layers, cfg.heads, cfg.ffn_dim) for _ in range(MASK_SCALES))
        self.position = PositionCode(cfg.dim)
        self.freeze_unused()

    def freeze_unused(self) -> None:
        """Freezes what no output depends on: the parts of SAM's decoder for ambiguous prompts.

        They are kept because published weights have them.
        """
        for decoder in self.decoders:
            decoder.output_hypernetworks_mlps[1:].requires_grad_(False)
            decoder.iou_prediction_head.requires_grad_(False)

    def forward(self, features: list[Tensor], prompts: Tensor, size: tuple[int, int]) -> Tensor:
        """features (N,P,Dv) for each scale, prompts (N,6,C) -> mask logits (N,H,W) at `size`.

        Features are without class token; the earlier scale comes first in both. ValueError for a
        patch grid that is not square or wrong counts.
        """
        side = math.isqrt(features[0].shape[1])
        if side * side != features[0].shape[1]:
            raise ValueError("features: expected a square grid of patches, "
                             f"found {features[0].shape[1]}")
        expected = (MASK_SCALES, MASK_SCALES * MASK_TOKENS)
        if (len(features), prompts.shape[1]) != expected:
            raise ValueError(f"features and prompts: expected {expected[0]} scales and "
                             f"{expected[1]} mask tokens, "
                             f"found {len(features)} and {prompts.shape[1]}")

        # Each scale has its own view of the frame, its own three prompts and its own decoder.
        code, total = self.position.grid(side, side), 0                               # (1,P,C)
        scales = zip(features, prompts.split(MASK_TOKENS, 1), self.necks, self.decoders)
        for x, own, neck, decoder in scales:
            image = neck(x).transpose(1, 2).unflatten(2, (side, side))                # (N,C,h,w)
            total = total + decoder.first_mask(image, code, own).float()              # (N,4h,4w)
        mean = total / MASK_SCALES
        return F.interpolate(mean[:, None], size, mode="bilinear", align_corners=False)[:, 0]


def bce_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy, mean over pixels: logits (N,H,W), target (N,H,W) of 0 and 1 -> (N,)."""
    loss = F.binary_cross_entropy_with_logits(logits.float(), target.float(), reduction="none")
    return loss.flatten(1).mean(1)


def dice_loss(logits: Tensor, target: Tensor, smooth: float = 1.0, scale: float = 1.0) -> Tensor:
    """1 - (2 |p t| + s) / (|p| + |t| + s): logits (N,H,W), target (N,H,W) -> (N,).

    s = `smooth` = 1 keeps an empty target's loss smooth: it falls with the predicted area
    (Milletari et al. 2016). Sums are divided by `scale`.
    """
    # Twice the overlap, divided by the sum of the areas: 1 where both are equal.
    p, t = logits.float().sigmoid().flatten(1), target.float().flatten(1)
    return 1 - (2 * (p * t).sum(1) / scale + smooth) / ((p.sum(1) + t.sum(1)) / scale + smooth)
