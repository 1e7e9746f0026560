"""Dials: the numbers in which the eight variants of a category differ (proportions, colours, pitches, rates).

The six training variants sit on six even steps of every dial's range, each dial in its own order; the two test
variants sit between the steps. So no test variant was seen or heard in training, and none lies outside its range.
"""

from zlib import crc32

import numpy as np

from .scene import TEST_VARIANTS, TRAIN_VARIANTS


class Dials:
    """`dial(low, high)` gives a variant's value on the next dial; `dial.rng` its own fixed random numbers."""

    def __init__(self, name: str, variant: int):
        if variant not in TRAIN_VARIANTS + TEST_VARIANTS:
            raise ValueError(f"variant: expected 0..{TEST_VARIANTS[-1]}, found {variant}")
        self.name, self.variant, self.turned = crc32(name.encode()), variant, 0
        self.rng = np.random.default_rng([self.name, variant, 0])

    def __call__(self, low: float, high: float) -> float:
        self.turned += 1
        order = np.random.default_rng([self.name, self.turned])
        steps = len(TRAIN_VARIANTS) - 1
        train = order.permutation(len(TRAIN_VARIANTS)) / steps
        test = (order.permutation(steps) + 0.5) / steps
        where = train[self.variant] if self.variant in TRAIN_VARIANTS else test[self.variant - len(TRAIN_VARIANTS)]
        return low + (high - low) * float(where)
