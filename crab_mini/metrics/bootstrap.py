"""How sure a score is: percentile intervals of a statistic over resampled rows."""

from collections.abc import Callable

import numpy as np


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
