"""Scores of the segmentation tasks: mask IoU, F-measure, the null score S, IoU and F over classes.

A function of items returns one number for each item, so that a mean and its interval can be taken
(see `bootstrap_interval`). NaN marks an item for which the score is not defined; the means leave it
out. Masks are numpy arrays or torch tensors. A value above zero is foreground, in logits (sigmoid >
0.5) and in masks of 0 and 1 alike. Where official Crab's scripts compute something else, that
number is in official.py.

    metrics.mask_iou(logits, target).mean()
"""

import numpy as np
import torch
from torch import Tensor

BETA2 = 0.3  # of the F-measure: precision counts more than recall (Achanta et al. 2009)
THRESHOLDS = 255


def mask_pair(pred, target) -> tuple[Tensor, Tensor]:
    """Prediction and target as tensors (N,H,W) on the CPU. Raises ValueError if their shapes
    differ.
    """
    pred, target = torch.as_tensor(pred).detach().cpu(), torch.as_tensor(target).detach().cpu()
    if pred.shape != target.shape or pred.ndim != 3:
        raise ValueError(f"masks: expected two of one shape (N,H,W), found {tuple(pred.shape)} and "
                         f"{tuple(target.shape)}")
    return pred, target


def f_score(precision, recall):
    """(1 + beta²) P R / (beta² P + R), elementwise; 0 where both are 0."""
    both_zero = precision + recall == 0
    return (1 + BETA2) * precision * recall / (BETA2 * precision + recall + both_zero)


def mask_iou(pred, target) -> np.ndarray:
    """Intersection over union of each item: (N,H,W), (N,H,W) -> (N,). It is 1 if both masks are
    empty.
    """
    predicted, true = (mask.flatten(1) > 0 for mask in mask_pair(pred, target))            # (N,H*W)
    intersection, union = (predicted & true).sum(1), (predicted | true).sum(1)
    return (intersection / union.clamp(min=1) + (union == 0)).double().numpy()


def precision_recall(logits, target) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall of each item at 255 thresholds from 0 to 1: (N,H,W), (N,H,W) -> (N,255),
    (N,255).

    Foreground is sigmoid >= threshold, as in the literature on saliency. With an empty target
    recall is 0.
    """
    logits, target = mask_pair(logits, target)
    # In fp32 the last threshold is exactly 1: only a sigmoid of 1 reaches it.
    thresholds = torch.linspace(0, 1 - 1e-10, THRESHOLDS)
    # For each pixel, how many of the thresholds it reaches: 0 to 255.
    reached = torch.searchsorted(thresholds, logits.float().sigmoid().flatten(1), right=True)
    true = target.flatten(1) > 0
    precision, recall = np.zeros((2, len(true), THRESHOLDS))
    for i in range(len(true)):
        predicted = pixels_above(reached[i])
        hits = pixels_above(reached[i][true[i]])
        precision[i] = hits / predicted.clamp(min=1)
        recall[i] = hits / true[i].sum().clamp(min=1)
    return precision, recall


def pixels_above(reached: Tensor) -> Tensor:
    """How many pixels reach each threshold: (255,). reached: the number of thresholds that each
    pixel reaches.
    """
    counts = torch.bincount(reached, minlength=THRESHOLDS + 1)
    # A pixel that reaches k thresholds reaches the first k: the sum from the right.
    return counts.flip(0).cumsum(0).flip(0)[1:]


def f_curve(logits, target) -> np.ndarray:
    """F of each item at 255 thresholds: (N,H,W), (N,H,W) -> (N,255); a row of NaN where the target
    is empty.
    """
    curve = f_score(*precision_recall(logits, target))
    true = mask_pair(logits, target)[1].flatten(1) > 0
    curve[~true.any(1).numpy()] = np.nan
    return curve


def max_f(curves: np.ndarray) -> float:
    """The largest value of the mean curve: one threshold for all items. (N,255) -> one number.

    NaN if all targets are empty.
    """
    curves = curves[~np.isnan(curves[:, 0])]
    return float(curves.mean(0).max()) if len(curves) else float("nan")


def f_measure(logits, target) -> float:
    """F of a set of items: `max_f` of their curves. AVSBench's definition, with the whole set as
    one batch.
    """
    return max_f(f_curve(logits, target))


def f_measure_at_half(pred, target) -> np.ndarray:
    """F of each item at the threshold of `mask_iou`: (N,H,W), (N,H,W) -> (N,); NaN where the target
    is empty.
    """
    predicted, true = (mask.flatten(1) > 0 for mask in mask_pair(pred, target))            # (N,H*W)
    hits = (predicted & true).sum(1).double()
    precision, recall = hits / predicted.sum(1).clamp(min=1), hits / true.sum(1).clamp(min=1)
    return torch.where(true.any(1), f_score(precision, recall), float("nan")).numpy()


def null_score(pred) -> np.ndarray:
    """Ref-AVS' S where the expression names nothing: the root of the predicted share of the frame.
    Lower is better.

    (N,H,W) -> (N,).
    """
    return (torch.as_tensor(pred).detach().cpu().flatten(1) > 0).double().mean(1).sqrt().numpy()


def class_iou_f(pred, target, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """IoU and F of each class in each frame: two (N,C). NaN where a class is in neither map.

    pred: labels (N,H,W), or class logits (N,C,H,W), of which the largest counts. target: labels
    (N,H,W). Label 0 is the background. Raises ValueError for a label outside 0 to classes - 1.
    """
    pred = torch.as_tensor(pred)
    pred, target = mask_pair(pred.argmax(1) if pred.ndim == 4 else pred, target)
    for name, labels in (("pred", pred), ("target", target)):
        if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
            raise ValueError(f"{name}: expected labels from 0 to {classes - 1}, "
                             f"found {int(labels.min())} to {int(labels.max())}")
    # The confusion matrix of each frame: rows are the true classes, columns the predicted ones.
    pairs = (target.long() * classes + pred.long()).flatten(1)                             # (N,H*W)
    counts = [torch.bincount(frame, minlength=classes ** 2).numpy() for frame in pairs]
    confusion = np.stack([count.reshape(classes, classes) for count in counts])            # (N,C,C)
    hits = confusion.diagonal(axis1=1, axis2=2).astype(float)                              # (N,C)
    predicted, true = confusion.sum(1), confusion.sum(2)  # (N,C) pixels
    union = predicted + true - hits
    iou = hits / np.maximum(union, 1)
    f = f_score(hits / np.maximum(predicted, 1), hits / np.maximum(true, 1))
    return np.where(union, iou, np.nan), np.where(union, f, np.nan)


def means_of_classes(per_frame: np.ndarray) -> np.ndarray:
    """The mean over frames of each class that occurs in one: (N,C) -> (C',), without the classes
    that never occur.
    """
    occurs = ~np.isnan(per_frame).all(0)
    return np.nanmean(per_frame[:, occurs], 0)


def class_mean(per_frame: np.ndarray, background: bool = True) -> float:
    """AVSS' mIoU (or F): the mean over frames of each class, then the mean over the classes that
    occur.

    (N,C) -> one number. background=False leaves out class 0.
    """
    return float(np.mean(means_of_classes(per_frame[:, 0 if background else 1:])))


def frame_mean(iou: np.ndarray) -> np.ndarray:
    """mIoU of each frame over the classes in its prediction or its annotation: (N,C) -> (N,)."""
    return np.nanmean(iou, 1)
