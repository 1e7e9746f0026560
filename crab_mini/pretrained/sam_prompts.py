"""Segment Anything's prompts (points, boxes, coarse masks), and SAM as published: prompt encoder and mask decoder.

Crab prompts its decoders with <mask_i> states and needs none of this; it is here so that published SAM weights load
whole (official.py) and a decoder can be tried by hand.
    sparse, dense = sam.prompt(points, labels);  masks, iou = sam(image_embeddings, sparse, dense)
Unusual: a point's or box corner's code is the position code plus a learned vector for its kind. Unlike SAM's, labels
other than 1, 0 and -1 are an error instead of a prompt that says nothing.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ..model.mask_decoder import LayerNorm2d, MaskDecoder, PositionCode


class PromptEncoder(nn.Module):
    """Points, boxes and coarse masks -> sparse (N,K,C) and dense (N,C,h,w) prompts.

    grid (h,w) is the image embedding's, frame (H,W) the picture's in pixels; mask_channels those inside the mask path.
    """

    def __init__(self, width: int, grid: tuple[int, int], frame: tuple[int, int], mask_channels: int = 16):
        super().__init__()
        self.grid, self.frame = grid, frame
        self.pe_layer = PositionCode(width)
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, width) for _ in range(4))   # not it, it, two corners
        self.not_a_point_embed, self.no_mask_embed = nn.Embedding(1, width), nn.Embedding(1, width)
        few = mask_channels // 4
        self.mask_downscaling = nn.Sequential(
            nn.Conv2d(1, few, 2, stride=2), LayerNorm2d(few), nn.GELU(),
            nn.Conv2d(few, mask_channels, 2, stride=2), LayerNorm2d(mask_channels), nn.GELU(),
            nn.Conv2d(mask_channels, width, 1))

    def place(self, xy: Tensor) -> Tensor:
        """Pixels (...,2) -> codes (...,C) of their centres."""
        h, w = self.frame
        return self.pe_layer((xy + 0.5) / torch.tensor([w, h], device=xy.device))

    def points(self, xy: Tensor, labels: Tensor, pad: bool) -> Tensor:
        """xy (N,K,2), labels (N,K): 1 on the object, 0 off it, -1 no point -> (N,K or K+1,C)."""
        if not torch.isin(labels, torch.tensor([-1, 0, 1], device=labels.device)).all():
            raise ValueError(f"labels: expected 1, 0 or -1, found {sorted(set(labels.flatten().tolist()))}")
        code = self.place(xy)
        if pad:                                           # a lone point is told from a box by an empty second one
            code, labels = F.pad(code, (0, 0, 0, 1)), F.pad(labels, (0, 1), value=-1)
        kinds = torch.cat([self.not_a_point_embed.weight] + [e.weight for e in self.point_embeddings[:2]])
        return code * (labels >= 0)[..., None] + kinds[labels + 1]

    def boxes(self, boxes: Tensor) -> Tensor:
        """boxes (N,4) x0 y0 x1 y1 -> their two corners (N,2,C)."""
        return self.place(boxes.reshape(-1, 2, 2)) + torch.cat([e.weight for e in self.point_embeddings[2:]])

    def forward(self, points: Tensor | None = None, labels: Tensor | None = None, boxes: Tensor | None = None,
                masks: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """points (N,K,2) with labels (N,K), boxes (N,4), masks (N,1,4h,4w), each or None -> sparse, dense."""
        if (points is None) != (labels is None):
            raise ValueError("points and labels: expected both or neither, found one")
        counts = {name: len(x) for name, x in (("points", points), ("labels", labels), ("boxes", boxes),
                                               ("masks", masks)) if x is not None}
        if len(set(counts.values())) > 1:
            raise ValueError(f"prompts: expected as many of each, found {counts}")
        n = next(iter(counts.values()), 1)
        sparse = [self.no_mask_embed.weight.new_zeros(n, 0, self.no_mask_embed.embedding_dim)]
        if points is not None:
            sparse.append(self.points(points, labels, pad=boxes is None))
        if boxes is not None:
            sparse.append(self.boxes(boxes))
        dense = (self.no_mask_embed.weight[..., None, None].expand(n, -1, *self.grid) if masks is None
                 else self.mask_downscaling(masks))                                              # (N,C,h,w)
        return torch.cat(sparse, 1), dense


class PromptedDecoder(nn.Module):
    """Prompt encoder and mask decoder together, as SAM is published (without its image encoder)."""

    def __init__(self, prompt_encoder: PromptEncoder, mask_decoder: MaskDecoder):
        super().__init__()
        self.prompt_encoder, self.mask_decoder = prompt_encoder, mask_decoder

    def prompt(self, points=None, labels=None, boxes=None, masks=None) -> tuple[Tensor, Tensor]:
        """See `PromptEncoder.forward`."""
        return self.prompt_encoder(points, labels, boxes, masks)

    def forward(self, image_embeddings: Tensor, sparse: Tensor, dense: Tensor) -> tuple[Tensor, Tensor]:
        """image_embeddings (1 or N,C,h,w), sparse (N,K,C), dense (N,C,h,w) -> masks (N,4,4h,4w), iou (N,4)."""
        code = self.prompt_encoder.pe_layer.grid(*image_embeddings.shape[-2:])
        return self.mask_decoder(image_embeddings, code, sparse, dense)
