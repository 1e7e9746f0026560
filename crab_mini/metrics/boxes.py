"""Scores of boxes (ARIG): intersection over union, cIoU and the area under the success curve.

Official Crab computes neither of the last two; they follow the evaluator of the benchmark (VGG-SS).
A box is x0 y0 x1 y1; its unit does not matter.
"""

import numpy as np


def box_iou(a, b, eps: float = 0.0) -> np.ndarray:
    """IoU of pairs of boxes: (N,4), (N,4) -> (N,). A box without area has IoU 0. eps is added to
    the union.
    """
    a, b = np.asarray(a, float).reshape(-1, 4), np.asarray(b, float).reshape(-1, 4)
    low, high = np.maximum(a[:, :2], b[:, :2]), np.minimum(a[:, 2:], b[:, 2:])
    intersection = (high - low).clip(0).prod(1)
    areas = [(box[:, 2:] - box[:, :2]).clip(0).prod(1) for box in (a, b)]
    union = sum(areas) - intersection
    return intersection / np.where(union > 0, union + eps, 1)


def ciou(iou) -> float:
    """cIoU of the literature on grounding (not Complete-IoU): the share of boxes with IoU >= 0.5.
    """
    return float((np.asarray(iou) >= 0.5).mean())


def success_curve(iou) -> np.ndarray:
    """The share of boxes with IoU >= 0, 0.05, ..., 1: (N,) -> (21,)."""
    thresholds = 0.05 * np.arange(21)
    return (np.asarray(iou)[:, None] >= thresholds).mean(0)


def success_auc(iou) -> float:
    """The area under `success_curve` by the trapezoidal rule, as VGG-SS' evaluator has it.

    If all boxes have IoU 0 it is 0.025, since every box reaches the threshold 0.
    """
    curve = success_curve(iou)
    return float((curve[1:] + curve[:-1]).sum() * 0.05 / 2)
