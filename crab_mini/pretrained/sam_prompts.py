"""Segment Anything's prompts (points, boxes, coarse masks), and SAM's decoder as it is published.

Crab prompts its decoders with <mask_i> states and needs none of this. It is here so that published
SAM weights load whole (weights.py) and a decoder can be tried by hand.
    sparse, dense = sam.prompt(points, labels)
    masks, iou = sam(image_embeddings, sparse, dense)
Unusual: the code of a point or of a box corner is the position code plus a learned vector for its
kind. Unlike SAM's, labels other than 1, 0 and -1 are an error instead of a prompt without effect.
N prompts of C channels on a picture of H×W pixels with a grid of h×w.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ..model.mask_decoder import LayerNorm2d, MaskDecoder, PositionCode


class PromptEncoder(nn.Module):
    """Points, boxes and coarse masks -> sparse (N,L,C) and dense (N,C,h,w) prompts.

    grid (h,w) is the image embedding's, frame (H,W) the picture's in pixels; mask_channels those
    inside the mask path.
    """

    def __init__(self, width: int, grid: tuple[int, int], frame: tuple[int, int],
                 mask_channels: int = 16):
        super().__init__()
        self.grid, self.frame = grid, frame
        self.pe_layer = PositionCode(width)
        # The kinds, in this order: a point off the object, one on it, the two corners of a box.
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, width) for _ in range(4))
        self.not_a_point_embed = nn.Embedding(1, width)
        self.no_mask_embed = nn.Embedding(1, width)
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
        """xy (N,L,2), labels (N,L): 1 on the object, 0 off it, -1 no point -> (N,L,C).

        pad: adds an empty point, so that L + 1 come back. ValueError for another label.
        """
        if not torch.isin(labels, torch.tensor([-1, 0, 1], device=labels.device)).all():
            found = sorted(set(labels.flatten().tolist()))
            raise ValueError(f"labels: expected 1, 0 or -1, found {found}")
        code = self.place(xy)                                                         # (N,L,C)
        if pad:
            code, labels = F.pad(code, (0, 0, 0, 1)), F.pad(labels, (0, 1), value=-1)
        kinds = torch.cat([self.not_a_point_embed.weight]
                          + [e.weight for e in self.point_embeddings[:2]])            # (3,C)
        # An empty point has no place: its code is the vector of its kind alone.
        return code * (labels >= 0)[..., None] + kinds[labels + 1]

    def boxes(self, boxes: Tensor) -> Tensor:
        """boxes (N,4) x0 y0 x1 y1 -> their two corners (N,2,C)."""
        corners = torch.cat([e.weight for e in self.point_embeddings[2:]])            # (2,C)
        return self.place(boxes.reshape(-1, 2, 2)) + corners

    def forward(self, points: Tensor | None = None, labels: Tensor | None = None,
                boxes: Tensor | None = None,
                masks: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """points (N,L,2) with labels (N,L), boxes (N,4), masks (N,1,4h,4w), each or None.

        -> sparse (N,L,C), dense (N,C,h,w). ValueError for points without labels, or prompts of
        different number N.
        """
        if (points is None) != (labels is None):
            raise ValueError("points and labels: expected both or neither, found one")
        given = {"points": points, "labels": labels, "boxes": boxes, "masks": masks}
        counts = {name: len(x) for name, x in given.items() if x is not None}
        if len(set(counts.values())) > 1:
            raise ValueError(f"prompts: expected as many of each, found {counts}")
        n = next(iter(counts.values()), 1)

        # SAM marks points that come without a box by an empty point after them.
        width = self.no_mask_embed.embedding_dim
        sparse = [self.no_mask_embed.weight.new_zeros(n, 0, width)]
        if points is not None:
            sparse.append(self.points(points, labels, pad=boxes is None))
        if boxes is not None:
            sparse.append(self.boxes(boxes))

        if masks is None:
            dense = self.no_mask_embed.weight[..., None, None].expand(n, -1, *self.grid)
        else:
            dense = self.mask_downscaling(masks)                                      # (N,C,h,w)
        return torch.cat(sparse, 1), dense


class PromptedDecoder(nn.Module):
    """Prompt encoder and mask decoder together, as SAM is published (without its image encoder)."""

    def __init__(self, prompt_encoder: PromptEncoder, mask_decoder: MaskDecoder):
        super().__init__()
        self.prompt_encoder, self.mask_decoder = prompt_encoder, mask_decoder

    def prompt(self, points=None, labels=None, boxes=None, masks=None) -> tuple[Tensor, Tensor]:
        """See `PromptEncoder.forward`."""
        return self.prompt_encoder(points, labels, boxes, masks)

    def forward(self, image_embeddings: Tensor, sparse: Tensor,
                dense: Tensor) -> tuple[Tensor, Tensor]:
        """-> masks (N,4,4h,4w), iou (N,4).

        image_embeddings (1 or N,C,h,w), sparse (N,L,C), dense (N,C,h,w).
        """
        code = self.prompt_encoder.pe_layer.grid(*image_embeddings.shape[-2:])        # (1,h*w,C)
        return self.mask_decoder(image_embeddings, code, sparse, dense)
