"""Rows for training: which task is posed how often, and a stream of batches of similar length.

`Stream.at(step)` is a pure function of (seed, step), so a resumed run sees what an unbroken one would have seen.
Rows are drawn for POOL steps at once, sorted by length and cut into batches: little padding, and every batch of a pool
comes at a random place within it.
"""

import numpy as np

from ..batch import Batch, Item, collate
from ..tokenizer import Tokenizer

MASK_KINDS = dict(masked=1.0)       # of narration, for the mask decoders
POOL = 8


class Stream:
    """Batches from `draw(rng, count) -> list[Item]`; each data-parallel process takes its slice of every batch."""

    def __init__(self, draw, tokenizer: Tokenizer, batch: int, seed: int, rank: int = 0, world: int = 1):
        self.draw, self.tokenizer, self.batch, self.seed = draw, tokenizer, batch, seed
        self.rank, self.world = rank, world
        self.number, self.pool = None, []

    def items(self, step: int) -> list[Item]:
        """The whole batch of a step, over all processes."""
        number, place = divmod(step, POOL)
        if number != self.number:
            rng = np.random.default_rng([self.seed, number])
            items = sorted(self.draw(rng, self.batch * POOL), key=lambda item: len(item.ids))
            order = rng.permutation(POOL)
            self.number, self.pool = number, [items[k * self.batch:(k + 1) * self.batch] for k in order]
        return self.pool[place]

    def at(self, step: int) -> Batch:
        """This process's part of a step's batch."""
        return collate(self.items(step)[self.rank::self.world], self.tokenizer)

    def ids(self, step: int) -> list[str]:
        """Which samples a step uses, for messages."""
        return [item.uid for item in self.items(step)[self.rank::self.world]]
