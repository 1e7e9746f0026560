"""The scores of the segmentation tasks: S4, MS3 and Ref-AVS by mask, AVSS by class.

The baseline is *all visible objects*: what one gets by seeing perfectly and not listening at all. Only the miniature
knows it. Unusual: an answer without readable mask tokens gets what the worst possible mask would get, also where the
right mask is empty (S = 1) and in AVSS, where an empty map would be right about the background.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from .. import metrics
from ..tasks.class_names import class_meant
from .score import Answer, Score, measure

NOTHING, SURE = -10.0, 10.0                  # logits of pixels that are surely outside and inside a mask
CHUNK = 64                                   # masks compared at a time: thresholds take memory


def _in_chunks(metric: Callable, *masks: list[Tensor]) -> np.ndarray:
    """metric((N,H,W), ...) -> (N,...), a few masks at a time."""
    return np.concatenate([metric(*(torch.stack(m[k:k + CHUNK]) for m in masks))
                           for k in range(0, len(masks[0]), CHUNK)])


def _union(answer: Answer) -> Tensor:
    """All masks of an answer as one, logits (H,W); nothing where it cannot be read."""
    return torch.full(answer.row.masks.shape[-2:], NOTHING) if answer.parsed is None else answer.masks.amax(0)


def _visible(answers: list[Answer]) -> list[Tensor] | None:
    """Class maps (H,W) of all that is visible, where the data set knows it for every row."""
    maps = [a.row.visible for a in answers]
    return None if any(m is None for m in maps) else maps


def _certain(mask: Tensor) -> Tensor:
    return torch.where(mask > 0, SURE, NOTHING)


def score_masks(answers: list[Answer]) -> list[Score]:
    """mIoU and F over masks that are not empty; the null score S over those that are (lower is better)."""
    read = np.array([a.parsed is not None for a in answers])
    target = [a.row.masks.amax(0) for a in answers]
    null = np.array([not t.any() for t in target])
    ours, all_of_it = list(map(_union, answers)), [torch.full(t.shape, SURE) for t in target]
    visible = _visible(answers)
    seen = visible and list(map(_certain, visible))

    def iou(masks):
        return masks and np.where(null, np.nan, _in_chunks(metrics.mask_iou, masks, target))

    def f(masks):
        return masks and _in_chunks(metrics.f_curve, masks, target)

    def s(masks):
        return masks and np.where(null, _in_chunks(metrics.null_score, masks), np.nan)
    yardsticks = dict(baseline_name="all visible objects", chance_name="the whole frame")
    at_half = _in_chunks(metrics.f_measure_at_half, ours, target)
    scores = [measure("mIoU", iou(ours) * np.where(read, 1, 0), np.mean, iou(seen), chance=iou(all_of_it), **yardsticks),
              measure("F", f(ours) * np.where(read, 1, 0)[:, None], metrics.max_f, f(seen), chance=f(all_of_it),
                      each=at_half * read, **yardsticks)]
    if null.any():
        scores.append(measure("S (empty masks)", np.where(null & ~read, 1.0, s(ours)), np.mean, s(seen),
                              chance=s(all_of_it), lower=True, **yardsticks))
    return scores if not null.all() else scores[2:]


def class_map(answer: Answer) -> Tensor:
    """(H,W): the classes an AVSS answer names, painted with their masks; the larger logit wins where they overlap."""
    size = answer.row.masks.shape[-2:]
    said, best = torch.zeros(size, dtype=torch.long), torch.zeros(size)
    for words, logits in zip(answer.parsed or [], answer.masks):
        number = class_meant(words, answer.row.classes)
        if number is not None:
            wins = logits > best
            said[wins], best = number, torch.where(wins, logits, best)
    return said


def score_avss(answers: list[Answer]) -> list[Score]:
    """mIoU and F over classes, background included (class 0)."""
    classes = len(answers[0].row.classes)
    target = [a.row.labels for a in answers]
    unread = np.array([a.parsed is None for a in answers])

    def table(maps: list[Tensor] | None) -> np.ndarray | None:
        """IoU and F of every class in every frame: (n,2,C)."""
        return maps and _in_chunks(lambda *pair: np.stack(metrics.class_iou_f(*pair, classes), 1), maps, target)
    ours, base = table([class_map(a) for a in answers]), table(_visible(answers))
    blind = table([torch.zeros_like(t) for t in target])
    ours[unread] = np.where(np.isnan(ours[unread]), np.nan, 0.0)
    return [measure(name, ours[:, k], metrics.class_mean, None if base is None else base[:, k],
                    "all visible, true labels", blind[:, k], "background alone", metrics.frame_mean(ours[:, k]))
            for k, name in enumerate(("mIoU", "F"))]
