"""Scores of events in time: AVE's accuracy of seconds, AVVP's F of segments and of events.

AVE follows AVE-ECCV18's evaluator, AVVP follows LLP's. Official Crab computes neither: its scripts write answers down.
"""

from collections.abc import Sequence

import numpy as np

BACKGROUND = "background"
Event = tuple[str, int, int]                          # name, first second, the second after the last


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


def runs(row: np.ndarray) -> list[tuple[int, int]]:
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
        said, true = runs(said), runs(true)
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
