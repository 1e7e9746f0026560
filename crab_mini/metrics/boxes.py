"""Scores of boxes (ARIG): intersection over union, cIoU and the area under the success curve.

Official Crab computes none of them. These follow the benchmark's own evaluator.
"""

import numpy as np


def box_iou(a, b, eps: float = 0.0) -> np.ndarray:
    """IoU of boxes x0 y0 x1 y1: (N,4), (N,4) -> (N,); a box without area has IoU 0. eps is added to the union."""
    a, b = np.asarray(a, float).reshape(-1, 4), np.asarray(b, float).reshape(-1, 4)
    shared = (np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])).clip(0).prod(1)
    union = sum((x[:, 2:] - x[:, :2]).clip(0).prod(1) for x in (a, b)) - shared
    return shared / np.where(union > 0, union + eps, 1)


def ciou(iou) -> float:
    """cIoU of the grounding literature (not Complete-IoU): the share of boxes with IoU >= 0.5."""
    return float((np.asarray(iou) >= 0.5).mean())


def success_curve(iou) -> np.ndarray:
    """Share of boxes with IoU >= 0, 0.05, .., 1: (N,) -> (21,)."""
    return (np.asarray(iou)[:, None] >= 0.05 * np.arange(21)).mean(0)


def success_auc(iou) -> float:
    """Area under `success_curve` by trapezoids (the VGG-SS evaluator's rule); 0.025 for boxes that all miss."""
    curve = success_curve(iou)
    return float((curve[1:] + curve[:-1]).sum() * 0.05 / 2)
