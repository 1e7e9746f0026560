"""What a score is: an answered row, a statistic over all of them with its yardsticks, and how sure it is."""

from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from .. import metrics
from ..features.rows import Prepared
from ..tasks.base import TASKS


@dataclass
class Answer:
    """One answered row. masks: (groups,H,W) logits, empty where the answer held none; parsed: None if unreadable."""
    row: Prepared
    text: str
    masks: Tensor
    parsed: object | None = None

    def __post_init__(self):
        self.parsed = TASKS[self.row.task].parse(self.text)
        if TASKS[self.row.task].masks and self.parsed is not None and len(self.parsed) != len(self.masks):
            self.parsed = None      # mask tokens outside whole groups: nobody can say which mask is whose


@dataclass
class Score:
    """One number of the table, over n samples. each: what every answer got, NaN where the score does not concern it."""
    name: str
    value: float
    interval: tuple[float, float]
    n: int
    baseline: float | None = None
    baseline_name: str = ""
    chance: float | None = None
    chance_name: str = ""
    each: np.ndarray | list = field(default_factory=list, repr=False)
    lower: bool = False             # is better


def measure(name: str, values, statistic=np.mean, baseline=None, baseline_name: str = "", chance=None,
            chance_name: str = "", each=None, lower: bool = False) -> Score:
    """A score from a value, or a row of values, for each answer; rows of NaN alone have no part in it.

    baseline, chance: the same of the yardsticks' answers, or None. each: a plain number for each answer (default: the
    values themselves, if they are that).
    """
    values = np.asarray(values, float)
    part = ~np.isnan(values.reshape(len(values), -1)).all(1)

    def of(table) -> float | None:
        return None if table is None or not part.any() else float(statistic(np.asarray(table, float)[part]))
    value, interval = of(values), (float("nan"),) * 2
    if value is None:
        value = float("nan")
    if value == value:              # else not a single draw of the samples would have a value
        interval = metrics.bootstrap_interval(values[part], statistic)
    if each is None:
        each = values if values.ndim == 1 else []
    return Score(name, value, interval, int(part.sum()), of(baseline), baseline_name, of(chance), chance_name, each,
                 lower)
