"""Losses as official Crab computes them, oddities included.

Only tests use them: they compare with published numbers. Training uses `bce_loss` and `dice_loss`
of model/mask_decoder.py, which these are built on. N masks of H×W pixels.
"""

import torch.nn.functional as F
from torch import Tensor

from ..model.mask_decoder import bce_loss, dice_loss


def official_bce_loss(logits: Tensor, target: Tensor, num_masks: float) -> Tensor:
    """Official Crab's sigmoid_ce_loss: logits and target (N,H,W) -> scalar.

    It is `bce_loss` summed over the masks and divided by num_masks + 1e-8.
    """
    return bce_loss(logits, target).sum() / (num_masks + 1e-8)


def official_dice_loss(logits: Tensor, target: Tensor, num_masks: float) -> Tensor:
    """Official Crab's dice_loss: logits and target (N,H,W) -> scalar.

    Oddity: sums are divided by 1000 before 1e-6 is added. So the 1e-6 weighs as much as 0.001
    pixels, and the loss of an empty target is 1 however small the prediction is.
    """
    return dice_loss(logits, target, smooth=1e-6, scale=1000).sum() / (num_masks + 1e-8)


def official_class_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Official Crab's F10_IoU_BCELoss: logits (N,C,H,W) of C classes, labels (N,1,H,W) -> scalar.

    Oddity: the mean cross-entropy of each picture is summed over the batch, whatever the flag
    size_average says. `F.cross_entropy` alone would be the mean.
    """
    return F.cross_entropy(logits.float(), target[:, 0], reduction="none").mean((1, 2)).sum()
