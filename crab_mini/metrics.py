"""The scores of the nine tasks. Pure functions on numpy arrays, lists and (for masks) tensors; nothing is drawn or read.

A function of one item returns that item's number, a function of a set one number or a dict; an answer that could not
be read is None and scores zero. Where official Crab has an oddity its number is under `official_...`. Official Crab
computes no score at all for AVE, ARIG and AVVP (its scripts only write the answers down); those follow the benchmarks'
own evaluators. The segmentation scores live in mask_metrics.py and are offered here too.
    ave_accuracy · avvp_scores · box_iou, ciou, success_auc · mask_iou, f_measure, null_score, class_iou_f, class_mean ·
    exact_match · event_mentions, cider · bootstrap_interval
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

import numpy as np

from .mask_metrics import (class_iou_f, class_mean, f_curve, f_measure, f_measure_at_half, frame_mean, mask_iou, max_f,
                           null_score, official_class_mean, official_f_measure, official_frame_mean, official_mask_iou,
                           official_null_score, precision_recall)

__all__ = ["ave_accuracy", "avvp_scores", "avvp_video", "bootstrap_interval", "box_iou", "cider", "ciou", "class_iou_f",
           "class_mean", "event_mentions", "exact_match", "f_curve", "f_measure", "f_measure_at_half", "frame_mean",
           "mask_iou", "max_f", "mention_scores", "null_score", "official_box_iou", "official_class_mean",
           "official_f_measure", "official_frame_mean", "official_mask_iou", "official_null_score", "precision_recall",
           "second_labels", "success_auc", "success_curve", "video_f"]

BACKGROUND = "background"
Event = tuple[str, int, int]                          # name, first second, the second after the last


# ---- AVE: what happens in each second

def second_labels(event: Event | None, seconds: int = 10) -> list[str]:
    """(name, start, end) -> the label of each second; background outside start .. end-1 and for None."""
    name, start, end = event or (BACKGROUND, 0, 0)
    return [name if start <= t < end else BACKGROUND for t in range(seconds)]


def ave_accuracy(pred, target) -> np.ndarray:
    """Share of seconds with the right label, background being one: labels (N,T) twice -> (N,) (AVE-ECCV18's rule)."""
    pred, target = np.asarray(pred), np.asarray(target)
    if pred.shape != target.shape or pred.ndim != 2:
        raise ValueError(f"labels: expected two tables of one shape (N,T), found {pred.shape} and {target.shape}")
    return (pred == target).mean(1)


# ---- AVVP: everything heard and seen, and when (LLP's evaluator, as in AVVP-ECCV20)

def _runs(row: np.ndarray) -> list[tuple[int, int]]:
    """Maximal runs of ones in (T,) -> [(start, end)]."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], row, [0]]).astype(int)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist()))


def _overlap(a: tuple[int, int], b: tuple[int, int]) -> float:
    shared = max(0, min(a[1], b[1]) - max(a[0], b[0]))
    return shared / (a[1] - a[0] + b[1] - b[0] - shared)


def _counts(pred: np.ndarray, target: np.ndarray, events: bool) -> np.ndarray:
    """(C,T) twice -> per class hits, false alarms, misses: (C,3), in segments or in events.

    An event is a run; it is hit when a run of the other side overlaps it with IoU >= 0.5. Runs of one side have a gap
    between them, so two of them can never hit the same run, and counting from either side agrees.
    """
    if not events:
        return np.stack([(pred & target).sum(1), (pred & ~target).sum(1), (~pred & target).sum(1)], 1)
    rows = []
    for said, true in zip(pred, target):
        said, true = _runs(said), _runs(true)
        hits = sum(any(_overlap(a, b) >= 0.5 for b in true) for a in said)
        rows.append((hits, len(said) - hits, len(true) - hits))
    return np.array(rows).reshape(-1, 3)


def _macro_f(counts: np.ndarray) -> float:
    """F1 averaged over the classes that occur in prediction or truth; 1 where none does."""
    hits, wrong = counts[:, 0], counts[:, 1:].sum(1)
    there = hits + wrong > 0
    return float((2 * hits / (2 * hits + wrong).clip(1))[there].mean()) if there.any() else 1.0


def video_f(pred_a, pred_v, target_a, target_v, events: bool) -> np.ndarray:
    """One video's F of audio, visual, audio-visual and Event@AV: label tables (C,T) -> (4,).

    Audio-visual is what is heard and seen in the same second; Event@AV pools audio and visual counts of a class.
    """
    pred_a, pred_v, target_a, target_v = (np.asarray(x).astype(bool) for x in (pred_a, pred_v, target_a, target_v))
    audio, visual = _counts(pred_a, target_a, events), _counts(pred_v, target_v, events)
    both = _counts(pred_a & pred_v, target_a & target_v, events)
    return np.array([_macro_f(audio), _macro_f(visual), _macro_f(both), _macro_f(audio + visual)])


def _table(events: Sequence[Event], names: dict[str, int], seconds: int) -> np.ndarray:
    table = np.zeros((len(names), seconds), bool)
    for name, start, end in events:
        table[names[name], max(start, 0):max(end, 0)] = True
    return table


def avvp_video(pred: dict[str, list[Event]] | None, target: dict[str, list[Event]], seconds: int = 10) -> np.ndarray:
    """One video's F: {"audio": [(name, start, end)], "visual": [..]} twice -> (2,4): segments and events by `video_f`.

    Any number of names; None, an answer that could not be read, scores 0 throughout.
    """
    if pred is None:
        return np.zeros((2, 4))
    found = {name for said in (pred, target) for kind in ("audio", "visual") for name, *_ in said[kind]}
    names = {name: i for i, name in enumerate(sorted(found))}
    tables = [_table(said[kind], names, seconds) for said in (pred, target) for kind in ("audio", "visual")]
    return np.stack([video_f(*tables, events=False), video_f(*tables, events=True)])


def avvp_scores(pred: Sequence[dict | None], target: Sequence[dict], seconds: int = 10) -> dict[str, dict[str, float]]:
    """LLP's table: {"segment": {"A", "V", "AV", "Type@AV", "Event@AV"}, "event": {..}}, means over videos.

    Type@AV is the mean of A, V and AV. The numbers are the official evaluator's, without its fixed 25 classes.
    """
    means = np.mean([avvp_video(p, t, seconds) for p, t in zip(pred, target, strict=True)], 0)      # (2,4)
    return {level: {"A": a, "V": v, "AV": av, "Type@AV": (a + v + av) / 3, "Event@AV": pooled}
            for level, (a, v, av, pooled) in zip(("segment", "event"), means.tolist())}


# ---- ARIG: the box of what sounds

def box_iou(a, b, eps: float = 0.0) -> np.ndarray:
    """IoU of boxes x0 y0 x1 y1: (N,4), (N,4) -> (N,); a box without area has IoU 0. eps is added to the union."""
    a, b = np.asarray(a, float).reshape(-1, 4), np.asarray(b, float).reshape(-1, 4)
    shared = (np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])).clip(0).prod(1)
    union = sum((x[:, 2:] - x[:, :2]).clip(0).prod(1) for x in (a, b)) - shared
    return shared / np.where(union > 0, union + eps, 1)


def official_box_iou(a, b) -> np.ndarray:
    """Official Crab's intersection_over_union (ciou.py). Oddity: 1e-6 in the denominator, so equal boxes fall short of
    1. Its c_iou and bbox_overlaps_ciou are left out: the first changes under translation, the second gives disjoint
    boxes up to 1."""
    return box_iou(a, b, eps=1e-6)


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


# ---- AVQA: the answer's word

def exact_match(pred: Sequence[str | None], target: Sequence[str],
                types: Sequence[str]) -> dict[str, tuple[float, int]]:
    """{type: (accuracy, n)}, sorted, and "all". Case and surrounding blanks do not count; None is wrong."""
    groups = defaultdict(list)
    for said, true, kind in zip(pred, target, types, strict=True):
        right = said is not None and said.strip().lower() == true.strip().lower()
        groups[kind].append(right)
        groups["all"].append(right)
    return {kind: (sum(right) / len(right), len(right)) for kind, right in sorted(groups.items())}


# ---- AVCap: what the caption mentions, and its n-grams

def event_mentions(caption: str, vocabulary: Sequence[str]) -> set[str]:
    """The names in `vocabulary` that a caption mentions as whole words, a plural s allowed; the longest name wins."""
    names = sorted((name.lower() for name in vocabulary), key=len, reverse=True)
    pattern = r"\b(" + "|".join(map(re.escape, names)) + r")(?:e?s)?\b"
    return set(re.findall(pattern, caption.lower())) if names else set()


def mention_scores(captions: Sequence[str | None], events: Sequence[set[str]],
                   vocabulary: Sequence[str]) -> dict[str, float]:
    """{"recall", "precision"} of mentioned events, pooled over captions. Precision is 0 when nothing is mentioned."""
    hits = said = there = 0
    for caption, true in zip(captions, events, strict=True):
        mentioned, true = event_mentions(caption or "", vocabulary), {name.lower() for name in true}
        hits, said, there = hits + len(mentioned & true), said + len(mentioned), there + len(true)
    return {"recall": hits / max(there, 1), "precision": hits / max(said, 1)}


def _ngrams(text: str, n: int) -> Counter:
    words = re.findall(r"\w+", text.lower())
    return Counter(zip(*(words[i:] for i in range(n))))


def cider(captions: Sequence[str | None], references: Sequence[Sequence[str]]) -> np.ndarray:
    """CIDEr of each caption against its own references (Vedantam et al. 2015): (N,), from 0 to 10.

    For n = 1..4: cosine of tf-idf vectors, idf = log(N / clips whose references hold the n-gram), mean over references;
    then the mean over n, times 10 as the COCO evaluator prints it. Unlike that one's CIDEr-D no stemming, clipping or
    length penalty. A corpus of one clip has idf 0 throughout and scores 0.
    """
    total = np.zeros(len(captions))
    for n in range(1, 5):
        held = Counter(gram for refs in references for gram in {g for ref in refs for g in _ngrams(ref, n)})

        def vector(text: str) -> dict[tuple, float]:
            return {g: k * math.log(len(references) / max(held[g], 1)) for g, k in _ngrams(text, n).items()}

        for i, (caption, refs) in enumerate(zip(captions, references, strict=True)):
            a = vector(caption or "")
            total[i] += np.mean([_cosine(a, vector(ref)) for ref in refs])
    return 10 * total / 4


def _cosine(a: dict[tuple, float], b: dict[tuple, float]) -> float:
    size = math.hypot(*a.values()) * math.hypot(*b.values())
    return sum(v * b.get(g, 0.0) for g, v in a.items()) / size if size else 0.0


# ---- How sure a mean is

def bootstrap_interval(values, statistic: Callable[[np.ndarray], float] = np.mean, level: float = 0.95,
                       draws: int = 1000, seed: int = 0) -> tuple[float, float]:
    """Percentile interval of `statistic` over rows drawn with replacement: values (N,...) -> (low, high).

    The statistic may be `class_mean` or `max_f` on (N,C) tables. The same seed gives the same interval.
    """
    values = np.asarray(values)
    if not len(values):
        raise ValueError("bootstrap_interval: expected at least one value, found none")
    rng = np.random.default_rng(seed)
    found = [statistic(values[rng.integers(0, len(values), len(values))]) for _ in range(draws)]
    low, high = np.nanquantile(found, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
