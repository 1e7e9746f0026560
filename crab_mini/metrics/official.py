"""Scores as official Crab's scripts compute them, oddities included. Only tests use them: they compare with published
numbers, and each docstring says what differs from the score of the same name without `official_`.

N masks of H×W pixels, C classes.
"""

import numpy as np
import torch

from .boxes import box_iou
from .masks import f_curve, foreground, mask_iou, mean_of_seen


def official_box_iou(a, b) -> np.ndarray:
    """Official Crab's intersection_over_union (ciou.py): boxes (N,4), (N,4) -> (N,).

    Oddity: 1e-6 in the denominator, so equal boxes fall short of 1. Two more functions of that file are left out: the
    value of c_iou changes under translation, and bbox_overlaps_ciou gives disjoint boxes up to 1.
    """
    return box_iou(a, b, eps=1e-6)


def official_mask_iou(pred, target) -> float:
    """Official Crab's mask_iou (avss_utils.py:34): (N,H,W), (N,H,W) -> mean over the masks.

    Oddity: a mask with an EMPTY target scores the share of pixels that are left empty. So half a frame of false alarms
    still scores 0.5; `mask_iou` scores it 0.
    """
    p, t = foreground(pred, target)                                              # (N,H*W)
    empty = ~t.any(1)
    return float(np.where(empty, (~p).double().mean(1), mask_iou(pred, target)).mean())


def official_f_measure(logits, target) -> float:
    """The F that official Crab's scripts report (avss_utils.py:86, called frame by frame): (N,H,W) twice -> float.

    Two oddities: each frame takes its own best threshold, and a frame with an empty target counts as 0. `f_measure` has
    one threshold for all frames and leaves those with an empty target out.
    """
    return float(np.nan_to_num(f_curve(logits, target)).max(1).mean())


def official_null_score(pred) -> float:
    """Official Crab's metric_s_for_null of a batch (N,H,W). Oddity: the root of the pooled share, not the mean root."""
    return float((torch.as_tensor(pred) > 0).double().mean().sqrt())


def official_class_mean(per_frame: np.ndarray, background: bool = True) -> float:
    """The mean that official Crab's inference_avss prints (inference_hyper_lora.py:1230): (N,C) -> float.

    Oddities: classes that never occur count as 0, and `noBg` drops the LAST class although background is the first.
    """
    classes = per_frame.shape[1] if background else per_frame.shape[1] - 1
    return float(np.sum(mean_of_seen(per_frame[:, :classes])) / classes)


def official_frame_mean(iou: np.ndarray) -> np.ndarray:
    """Official Crab's vid_miou_list (avss_utils.py:417): (N,C) -> (N,).

    Oddity: a class with IoU 0, wholly missed or invented, is left out of the mean, which flatters; NaN if all are 0.
    """
    counted = (iou > 0).sum(1)
    return np.nansum(iou, 1) / np.where(counted, counted, np.nan)
