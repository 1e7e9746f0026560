"""How certain a score is: percentile intervals of a statistic over resampled rows (the bootstrap).
"""

from collections.abc import Callable

import numpy as np


def bootstrap_interval(values, statistic: Callable[[np.ndarray], float] = np.mean,
                       level: float = 0.95, draws: int = 1000,
                       seed: int = 0) -> tuple[float, float]:
    """(low, high): the interval that holds the share `level` of the statistic's values over
    resampled rows.

    values: (N,...), one row an item; each of the `draws` samples takes N rows with replacement. The
    statistic may be `class_mean` or `max_f` of a table (N,C). The same seed gives the same
    interval. Raises ValueError if N is 0.
    """
    values = np.asarray(values)
    if not len(values):
        raise ValueError("bootstrap_interval: expected at least one value, found none")
    rng = np.random.default_rng(seed)
    statistics = []
    for _ in range(draws):
        rows = rng.integers(0, len(values), len(values))
        statistics.append(statistic(values[rows]))
    low, high = np.nanquantile(statistics, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
