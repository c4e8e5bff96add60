"""The order of training: a global sample index determines the case, the step and the rank.

Sample index i belongs to epoch i // n and takes case permutation(seed, epoch)[i % n]. At step s,
rank r of W with a local batch of b takes the indices s W b + r b + [0, b). So the cases of a step
do not depend on the number of ranks, and resuming means starting at another index.
"""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np


@lru_cache(maxsize=8)
def _permutation(num_cases: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(num_cases)


def case_of_sample(sample_index: int, num_cases: int, seed: int) -> int:
    """The case that a sample index takes, in [0, num_cases)."""
    epoch, position = divmod(sample_index, num_cases)
    return int(_permutation(num_cases, seed, epoch)[position])


class RankBatchSampler:
    """One rank's batches, as lists of global sample indices in [start, stop).

    Every rank gets the same number of batches of the same size, as collectives need; indices that
    do not fill a step of all ranks are left out.
    """

    def __init__(self, start: int, stop: int, batch_size: int, rank: int = 0, world: int = 1):
        assert 0 <= rank < world and batch_size > 0 and 0 <= start <= stop
        self.start, self.stop, self.batch_size = start, stop, batch_size
        self.rank, self.world = rank, world

    def __iter__(self) -> Iterator[list[int]]:
        global_batch = self.world * self.batch_size
        for step_start in range(self.start, self.stop - global_batch + 1, global_batch):
            first = step_start + self.rank * self.batch_size
            yield list(range(first, first + self.batch_size))

    def __len__(self) -> int:
        return (self.stop - self.start) // (self.world * self.batch_size)
