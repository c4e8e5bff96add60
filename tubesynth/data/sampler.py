"""The order of training: one global counter of draws decides everything.

Draw d belongs to epoch d // n and takes case permutation(seed, epoch)[d % n]. At step s, rank r of
W with a local batch of b takes the draws s W b + r b + [0, b). So the cases that a step sees do
not depend on how many ranks share them, and resuming is starting at another draw.
"""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np


@lru_cache(maxsize=8)
def _permutation(num_cases: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(num_cases)


def case_of_draw(draw: int, num_cases: int, seed: int) -> int:
    """The index of the case that a draw takes."""
    epoch, place = divmod(draw, num_cases)
    return int(_permutation(num_cases, seed, epoch)[place])


class DrawSampler:
    """A batch sampler: this rank's lists of draws from start_draw up to end_draw (not included).

    Every rank gets the same number of batches of the same size, as collectives need; draws
    that do not fill a step of all ranks are left out.
    """

    def __init__(
        self, start_draw: int, end_draw: int, batch_size: int, rank: int = 0, world: int = 1
    ):
        assert 0 <= rank < world and batch_size > 0 and 0 <= start_draw <= end_draw
        self.start_draw, self.end_draw, self.batch_size = start_draw, end_draw, batch_size
        self.rank, self.world = rank, world

    def __iter__(self) -> Iterator[list[int]]:
        step = self.world * self.batch_size
        for first in range(self.start_draw, self.end_draw - step + 1, step):
            start = first + self.rank * self.batch_size
            yield list(range(start, start + self.batch_size))

    def __len__(self) -> int:
        return (self.end_draw - self.start_draw) // (self.world * self.batch_size)
