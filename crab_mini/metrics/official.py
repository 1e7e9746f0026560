"""Numbers that official Crab's scripts report where they compute something else than the score's
definition.

The tests hold them to the published implementation, so that both definitions can be compared. The
program does not use them. Each docstring names the script and the difference. Official Crab's
`c_iou` and `bbox_overlaps_ciou` are left out: the first changes under translation, the second gives
disjoint boxes a score of up to 1.
"""

import numpy as np
import torch

from . import boxes, masks


def mask_iou(pred, target) -> float:
    """Mean over items (avss_utils.py:34): (N,H,W), (N,H,W) -> one number.

    Difference: an item with an empty target scores the share of pixels that are left empty. So a
    prediction that wrongly fills half of the frame still scores 0.5; `masks.mask_iou` scores it 0.
    """
    predicted, true = (mask.flatten(1) > 0 for mask in masks.mask_pair(pred, target))      # (N,H*W)
    empty = ~true.any(1)
    left_empty = (~predicted).double().mean(1)
    return float(np.where(empty, left_empty, masks.mask_iou(pred, target)).mean())


def f_measure(logits, target) -> float:
    """Mean over items (avss_utils.py:86, called frame by frame): (N,H,W), (N,H,W) -> one number.

    Two differences: each frame takes its own best threshold, and a frame with an empty target
    counts as 0. `masks.f_measure` has one threshold for all frames and leaves those with an empty
    target out.
    """
    return float(np.nan_to_num(masks.f_curve(logits, target)).max(1).mean())


def null_score(pred) -> float:
    """`metric_s_for_null` of a batch: (N,H,W) -> one number. Difference: the root of the mean
    share, not the mean of roots.
    """
    return float((torch.as_tensor(pred) > 0).double().mean().sqrt())


def class_mean(per_frame: np.ndarray, background: bool = True) -> float:
    """The mean that inference_avss prints (inference_hyper_lora.py:1230): (N,C) -> one number.

    Two differences: a class that never occurs counts as 0, and `background=False` leaves out the
    last class although the first one is the background.
    """
    classes = per_frame.shape[1] if background else per_frame.shape[1] - 1
    return float(np.sum(masks.means_of_classes(per_frame[:, :classes])) / classes)


def frame_mean(iou: np.ndarray) -> np.ndarray:
    """`vid_miou_list` (avss_utils.py:417): (N,C) -> (N,); NaN if all classes of a frame have IoU 0.

    Difference: a class with IoU 0, wholly missed or wholly invented, is left out of the mean, which
    raises it.
    """
    counted = (iou > 0).sum(1)
    return np.nansum(iou, 1) / np.where(counted, counted, np.nan)


def box_iou(a, b) -> np.ndarray:
    """`intersection_over_union` (ciou.py): (N,4), (N,4) -> (N,).

    Difference: 1e-6 is added to the union, so that equal boxes have an IoU slightly below 1.
    """
    return boxes.box_iou(a, b, eps=1e-6)
