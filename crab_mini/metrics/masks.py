"""Scores of the segmentation tasks: mask IoU, F-measure, the null score S, IoU and F over classes.

Functions named after an item return one number for each, so that a mean and its interval can be taken (see
`metrics.bootstrap_interval`); NaN marks an item for which the score has no meaning, and the means leave it out.
Where official Crab's script computes something else, its number is in official.py. Masks are numpy arrays or torch
tensors; *above zero* is foreground, for logits (sigmoid > 0.5) and for masks of 0 and 1 alike.
    metrics.mask_iou(logits, target).mean()
"""

import numpy as np
import torch
from torch import Tensor

BETA2 = 0.3                      # of the F-measure: precision counts more than recall (Achanta et al. 2009)
THRESHOLDS = 255


def _pair(pred, target) -> tuple[Tensor, Tensor]:
    """Both as tensors (N,H,W); ValueError when their shapes differ."""
    pred, target = torch.as_tensor(pred).detach().cpu(), torch.as_tensor(target).detach().cpu()
    if pred.shape != target.shape or pred.ndim != 3:
        raise ValueError(f"masks: expected two of one shape (N,H,W), found {tuple(pred.shape)} and "
                         f"{tuple(target.shape)}")
    return pred, target


def foreground(pred, target) -> tuple[Tensor, Tensor]:
    """Which pixels are above zero: (N,H,W) twice -> (N,H*W) bool twice."""
    pred, target = _pair(pred, target)
    return pred.flatten(1) > 0, target.flatten(1) > 0


def _f(precision, recall):
    """(1 + beta2) P R / (beta2 P + R); 0 where both are 0."""
    return (1 + BETA2) * precision * recall / (BETA2 * precision + recall + (precision + recall == 0))


def mask_iou(pred, target) -> np.ndarray:
    """Intersection over union of each item: (N,H,W), (N,H,W) -> (N,). Nothing predicted where nothing is: 1."""
    p, t = foreground(pred, target)
    union = (p | t).sum(1)
    return ((p & t).sum(1) / union.clamp(min=1) + (union == 0)).double().numpy()


def precision_recall(logits, target) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall of each item at 255 thresholds of the sigmoid, from 0 to 1: (N,H,W) twice -> (N,255) twice.

    Foreground is sigmoid >= threshold, as in the saliency literature. An empty target has recall 0.
    """
    logits, target = _pair(logits, target)
    thresholds = torch.linspace(0, 1 - 1e-10, THRESHOLDS)           # in fp32 the last is 1: only a sigmoid of 1 passes
    passed = torch.searchsorted(thresholds, logits.float().sigmoid().flatten(1), right=True)    # thresholds passed
    t = target.flatten(1) > 0
    precision, recall = np.zeros((2, len(t), THRESHOLDS))
    for i in range(len(t)):
        found, hits = (torch.bincount(x, minlength=THRESHOLDS + 1).flip(0).cumsum(0).flip(0)[1:]
                       for x in (passed[i], passed[i][t[i]]))
        precision[i], recall[i] = hits / found.clamp(min=1), hits / t[i].sum().clamp(min=1)
    return precision, recall


def f_curve(logits, target) -> np.ndarray:
    """F (beta2 = 0.3) of each item at 255 thresholds: (N,255); a row of NaN where the target is empty."""
    curve = _f(*precision_recall(logits, target))
    curve[~_pair(logits, target)[1].flatten(1).gt(0).any(1).numpy()] = np.nan
    return curve


def max_f(curves: np.ndarray) -> float:
    """The best value of the mean curve, that is with one threshold for all items; NaN if no target has foreground."""
    curves = curves[~np.isnan(curves[:, 0])]
    return float(curves.mean(0).max()) if len(curves) else float("nan")


def f_measure(logits, target) -> float:
    """F of a set: `max_f` of its items' curves (AVSBench's definition, the set taken as one batch)."""
    return max_f(f_curve(logits, target))


def f_measure_at_half(pred, target) -> np.ndarray:
    """F of each item at the threshold that `mask_iou` uses: (N,H,W) twice -> (N,); NaN where the target is empty."""
    p, t = foreground(pred, target)
    hits = (p & t).sum(1).double()
    f = _f(hits / p.sum(1).clamp(min=1), hits / t.sum(1).clamp(min=1))
    return torch.where(t.any(1), f, float("nan")).numpy()


def null_score(pred) -> np.ndarray:
    """Ref-AVS' S where the expression names nothing: square root of the predicted share of the frame, lower is better.

    (N,H,W) -> (N,)."""
    return (torch.as_tensor(pred).detach().cpu().flatten(1) > 0).double().mean(1).sqrt().numpy()


def class_iou_f(pred, target, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """IoU and F of every class in every frame, NaN where a class is in neither map: two (N,C).

    pred: labels (N,H,W), or class logits (N,C,H,W) whose argmax is taken; target: labels (N,H,W); 0 is background.
    ValueError for a label outside 0 .. classes-1.
    """
    pred = torch.as_tensor(pred)
    pred, target = _pair(pred.argmax(1) if pred.ndim == 4 else pred, target)
    for name, labels in (("pred", pred), ("target", target)):
        if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
            raise ValueError(f"{name}: expected labels from 0 to {classes - 1}, found {int(labels.min())} to "
                             f"{int(labels.max())}")
    cells = (target.long() * classes + pred.long()).flatten(1)
    table = np.stack([torch.bincount(c, minlength=classes ** 2).reshape(classes, classes).numpy() for c in cells])
    hits = table.diagonal(axis1=1, axis2=2).astype(float)                        # (N,C)
    found, there = table.sum(1), table.sum(2)                                    # (N,C): pixels predicted, annotated
    union = found + there - hits
    f = _f(hits / np.maximum(found, 1), hits / np.maximum(there, 1))
    return np.where(union, hits / np.maximum(union, 1), np.nan), np.where(union, f, np.nan)


def class_mean(per_frame: np.ndarray, background: bool = True) -> float:
    """AVSS' mIoU (or F): mean over frames for each class, then over the classes that were seen. (N,C) -> float.

    background=False leaves out class 0."""
    return float(np.mean(mean_of_seen(per_frame[:, 0 if background else 1:])))


def mean_of_seen(per_frame: np.ndarray) -> np.ndarray:
    """Mean over frames of each class that occurs in one."""
    return np.nanmean(per_frame[:, ~np.isnan(per_frame).all(0)], 0)


def frame_mean(iou: np.ndarray) -> np.ndarray:
    """mIoU of each frame over the classes in its prediction or annotation: (N,C) -> (N,)."""
    return np.nanmean(iou, 1)
