"""Dials: the numbers in which the eight variants of a category differ (proportions, colours,
pitches, rates).

Each dial has a range. The six training variants take six evenly spaced values of it, from one end
to the other, each dial in its own random order. The two test variants take values in the middle
between two neighbouring ones. So no test variant occurs in training, and none lies outside the
range that training covers.
"""

from zlib import crc32

import numpy as np

from .scene import TEST_VARIANTS, TRAIN_VARIANTS


class Dials:
    """The dials of one variant. Each call `dial(low, high)` reads the next dial, so the order of
    calls matters.

    name: of the category, with what is varied (`look dog`). `dial.rng` holds random numbers of the
    variant alone. Raises ValueError for a variant outside TRAIN_VARIANTS and TEST_VARIANTS.
    """

    def __init__(self, name: str, variant: int):
        if variant not in TRAIN_VARIANTS + TEST_VARIANTS:
            raise ValueError(f"variant: expected 0..{TEST_VARIANTS[-1]}, found {variant}")
        self.seed = crc32(name.encode())
        self.variant = variant
        self.count = 0                                      # dials that were read
        self.rng = np.random.default_rng([self.seed, variant, 0])

    def __call__(self, low: float, high: float) -> float:
        """The variant's value on the next dial, from low to high."""
        self.count += 1
        # The order depends on the dial and not on the variant: all variants share out the same
        # values.
        rng = np.random.default_rng([self.seed, self.count])
        steps = len(TRAIN_VARIANTS) - 1
        train = rng.permutation(len(TRAIN_VARIANTS)) / steps                # 0 to 1
        test = (rng.permutation(steps) + 0.5) / steps
        if self.variant in TRAIN_VARIANTS:
            share = train[self.variant]
        else:
            share = test[self.variant - len(TRAIN_VARIANTS)]
        return low + (high - low) * float(share)
