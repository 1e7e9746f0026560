"""Scores of events in time: AVE's accuracy over seconds, AVVP's F over segments and over events.

AVE follows the evaluator of AVE-ECCV18, AVVP that of LLP. Official Crab computes neither: its
scripts only write the answers to a file.
"""

from collections.abc import Sequence

import numpy as np

BACKGROUND = "background"
Event = tuple[str, int, int]                            # name, first second, second after the last
EVENT_IOU = 0.5                                         # from which overlap on an event is found


def second_labels(event: Event | None, seconds: int = 10) -> list[str]:
    """The label of each second: the event's name from its start to its end, otherwise "background".
    None: no event.
    """
    name, start, end = event or (BACKGROUND, 0, 0)
    return [name if start <= t < end else BACKGROUND for t in range(seconds)]


def ave_accuracy(pred, target) -> np.ndarray:
    """The share of seconds with the right label, background included: labels (N,T), (N,T) -> (N,).
    """
    pred, target = np.asarray(pred), np.asarray(target)
    if pred.shape != target.shape or pred.ndim != 2:
        raise ValueError("labels: expected two tables of one shape (N,T), "
                         f"found {pred.shape} and {target.shape}")
    return (pred == target).mean(1)


def runs(row) -> list[tuple[int, int]]:
    """The longest possible runs of True in (T,) bool, as (first second, second after the last)."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], row, [0]]).astype(int)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def run_iou(a: tuple[int, int], b: tuple[int, int]) -> float:
    """Intersection over union of two runs."""
    shared = max(0, min(a[1], b[1]) - max(a[0], b[0]))
    return shared / (a[1] - a[0] + b[1] - b[0] - shared)


def segment_counts(pred: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Hits, false alarms and misses of each class, in segments of a second: (C,T), (C,T) -> (C,3).
    """
    return np.stack([(pred & target).sum(1), (pred & ~target).sum(1), (~pred & target).sum(1)], 1)


def event_counts(pred: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Hits, false alarms and misses of each class, in events: (C,T), (C,T) -> (C,3).

    An event is a run. A predicted run is a hit if a true run overlaps it with an IoU of EVENT_IOU
    or more. Two runs of one side are separate, so they cannot both hit the same run of the other
    side: hits are the same from either side.
    """
    rows = []
    for predicted, true in zip(map(runs, pred), map(runs, target), strict=True):
        hits = sum(any(run_iou(a, b) >= EVENT_IOU for b in true) for a in predicted)
        rows.append((hits, len(predicted) - hits, len(true) - hits))
    return np.array(rows).reshape(-1, 3)


def macro_f(counts: np.ndarray) -> float:
    """F1 averaged over the classes that occur in prediction or truth: (C,3) -> one number; 1 if no
    class occurs.
    """
    hits, errors = counts[:, 0], counts[:, 1:].sum(1)
    occurs = hits + errors > 0
    f = 2 * hits / (2 * hits + errors).clip(1)
    return float(f[occurs].mean()) if occurs.any() else 1.0


def video_f(pred_a, pred_v, target_a, target_v, events: bool) -> np.ndarray:
    """One video's F of audio, visual, audio-visual and Event@AV: four tables (C,T) bool -> (4,).

    Audio-visual is what is heard and seen in the same second. Event@AV adds the counts of audio and
    visual for each class. events: counts events instead of segments.
    """
    pred_a, pred_v, target_a, target_v = (np.asarray(table).astype(bool)
                                          for table in (pred_a, pred_v, target_a, target_v))
    counts = event_counts if events else segment_counts
    audio, visual = counts(pred_a, target_a), counts(pred_v, target_v)
    both = counts(pred_a & pred_v, target_a & target_v)
    return np.array([macro_f(audio), macro_f(visual), macro_f(both), macro_f(audio + visual)])


def event_table(events: Sequence[Event], names: dict[str, int], seconds: int) -> np.ndarray:
    """(C,T) bool: in which seconds each class happens. names: the class number of each name."""
    table = np.zeros((len(names), seconds), bool)
    for name, start, end in events:
        table[names[name], max(start, 0):max(end, 0)] = True
    return table


def avvp_video(pred: dict[str, list[Event]] | None, target: dict[str, list[Event]],
               seconds: int = 10) -> np.ndarray:
    """One video's F: (2,4), `video_f` over segments and over events.

    pred, target: {"audio": [(name, start, end)], "visual": [...]}, with any names. A prediction of
    None, an answer that could not be read, scores 0 throughout.
    """
    if pred is None:
        return np.zeros((2, 4))
    lists = [events[kind] for events in (pred, target) for kind in ("audio", "visual")]
    names = sorted({name for events in lists for name, *_ in events})
    numbers = {name: i for i, name in enumerate(names)}
    tables = [event_table(events, numbers, seconds) for events in lists]
    return np.stack([video_f(*tables, events=False), video_f(*tables, events=True)])


def avvp_scores(pred: Sequence[dict | None], target: Sequence[dict],
                seconds: int = 10) -> dict[str, dict[str, float]]:
    """The table of LLP: {"segment": {"A", "V", "AV", "Type@AV", "Event@AV"}, "event": {...}}, means
    over videos.

    Type@AV is the mean of A, V and AV. The numbers are those of the official evaluator; the classes
    are not fixed to its 25.
    """
    videos = [avvp_video(p, t, seconds) for p, t in zip(pred, target, strict=True)]
    means = np.mean(videos, 0)                                              # (2,4)
    table = {}
    for level, (a, v, av, pooled) in zip(("segment", "event"), means.tolist(), strict=True):
        table[level] = {"A": a, "V": v, "AV": av, "Type@AV": (a + v + av) / 3, "Event@AV": pooled}
    return table
