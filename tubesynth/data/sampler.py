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


def case_of_draw(draw: int, num_cases: int, seed: int, shuffle: bool = True) -> int:
    """The index of the case that a draw takes; without shuffling, the cases in their order."""
    epoch, place = divmod(draw, num_cases)
    return int(_permutation(num_cases, seed, epoch)[place]) if shuffle else place


class DrawSampler:
    """A batch sampler: this rank's lists of draws from start_draw up to end_draw (not included).

    Every rank gets the same number of batches of the same size, as collectives need; draws
    that do not fill a step of all ranks are left out, unless `keep_tail` (validation without
    collectives inside the loop) hands them out in shorter batches.
    """

    def __init__(
        self,
        start_draw: int,
        end_draw: int,
        batch_size: int,
        rank: int = 0,
        world: int = 1,
        keep_tail: bool = False,
    ):
        assert 0 <= rank < world and batch_size > 0 and 0 <= start_draw <= end_draw
        self.start_draw, self.end_draw, self.batch_size = start_draw, end_draw, batch_size
        self.rank, self.world, self.keep_tail = rank, world, keep_tail

    def __iter__(self) -> Iterator[list[int]]:
        step = self.world * self.batch_size
        for first in range(self.start_draw, self.end_draw, step):
            if first + step > self.end_draw and not self.keep_tail:
                return
            start = first + self.rank * self.batch_size
            draws = list(range(start, min(start + self.batch_size, self.end_draw)))
            if draws:
                yield draws

    def __len__(self) -> int:
        step = self.world * self.batch_size
        whole, rest = divmod(self.end_draw - self.start_draw, step)
        return whole + bool(self.keep_tail and rest > self.rank * self.batch_size)
