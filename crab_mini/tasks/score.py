"""An answered sample, and what a score is: a statistic of answers, its yardsticks, its interval.

`chance` is the best that one constant answer gets without seeing, hearing or learning anything (of
questions: without anything but the question). `baseline` is a trick that knows part of the truth,
such as the right event at all times. Both are computed on the same samples by the same statistic.
"""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from .. import metrics
from .base import TASKS


@dataclass
class Answer:
    """One answered sample. parsed: what the text means, None where it cannot be read."""
    sample: object                  # av_uie/samples.py
    text: str
    masks: Tensor                   # (G,H,W) logits, empty where the answer held no mask tokens
    parsed: object | None = None

    def __post_init__(self):
        task = TASKS[self.sample.task]
        self.parsed = task.parse(self.text)
        # Mask tokens outside whole groups: nobody can say which mask belongs to which group.
        if task.masks and self.parsed is not None and len(self.parsed) != len(self.masks):
            self.parsed = None


@dataclass
class Score:
    """One number of the table, over n samples."""
    name: str
    value: float
    interval: tuple[float, float]   # of 95 %
    n: int
    baseline: float | None = None
    baseline_name: str = ""
    chance: float | None = None
    chance_name: str = ""
    # What every answer got, NaN where the score does not concern it.
    each: np.ndarray | list = field(default_factory=list, repr=False)
    lower: bool = False             # lower is better


def measure(name: str, values, statistic=np.mean, baseline=None, baseline_name: str = "",
            chance=None, chance_name: str = "", each=None, lower: bool = False) -> Score:
    """A score from a value, or a row of values, for each answer; rows of NaN have no part in it.

    baseline, chance: the same of the yardsticks' answers, or None.
    each: a plain number for each answer (default: the values themselves, if they are that).
    """
    values = np.asarray(values, float)
    part = ~np.isnan(values.reshape(len(values), -1)).all(1)        # (N,) bool

    def of(table) -> float | None:
        if table is None or not part.any():
            return None
        return float(statistic(np.asarray(table, float)[part]))

    value = of(values)
    value = float("nan") if value is None else value
    # Where the value is NaN no draw of the samples would have a value either.
    interval = (float("nan"), float("nan"))
    if not np.isnan(value):
        interval = metrics.bootstrap_interval(values[part], statistic)
    if each is None:
        each = values if values.ndim == 1 else []
    return Score(name, value, interval, int(part.sum()), of(baseline), baseline_name, of(chance),
                 chance_name, each, lower)


def most_frequent(things: list):
    """The most frequent of some things (of several the one that comes first)."""
    return Counter(things).most_common(1)[0][0]


def same_name(name: str) -> str:
    """A name in the form in which names are compared: no capitals, underscores or double blanks."""
    return " ".join(name.lower().replace("_", " ").split())


def listed_names(value: str | list[str]) -> set[str]:
    """`Dog, bell` or a list of names -> the names, in small letters."""
    names = value.split(",") if isinstance(value, str) else value
    return {name.strip().lower() for name in names}
