"""Batches of a data set, loaded by threads ahead of the training step.

A cached case needs one copy from a memory-mapped file, and NumPy copies without holding Python's
lock, so threads are fast enough. Processes would spend most of their time on passing 25 MB per
sample, and would need shared memory and a fork beside a CUDA context.
"""

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from tubesynth.data.dataset import collate
from tubesynth.data.sampler import RankBatchSampler

THREADS = "loader"
BATCHES_AHEAD = 2  # per worker: enough during one slow read


class SampleSource(Protocol):
    """A data set whose samples are views of stored arrays, by their global sample index."""

    def view(self, sample_index: int) -> dict: ...


class Loader:
    """Iterates over the batches of a sampler's indices.

    num_workers: threads that load ahead; 0 loads each batch when it is needed. The batches do not
    depend on it. pin_memory: use pinned host memory, from which a GPU copies directly.
    """

    def __init__(
        self,
        dataset: SampleSource,
        sampler: RankBatchSampler,
        num_workers: int = 0,
        pin_memory: bool = False,
    ):
        self.dataset, self.sampler = dataset, sampler
        self.num_workers, self.pin_memory = num_workers, pin_memory

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[dict]:
        if self.num_workers == 0:
            yield from map(self.load, self.sampler)
            return
        pool = ThreadPoolExecutor(self.num_workers, thread_name_prefix=THREADS)
        try:
            pending: deque[Future[dict]] = deque()
            for sample_indices in self.sampler:
                pending.append(pool.submit(self.load, sample_indices))
                if len(pending) > BATCHES_AHEAD * self.num_workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:  # also where the caller leaves the loop early, or a batch raises
            # A generator that an error abandons may be collected by a thread of the pool, which
            # cannot wait for itself.
            is_of_pool = threading.current_thread().name.startswith(THREADS)
            pool.shutdown(wait=not is_of_pool, cancel_futures=True)

    def load(self, sample_indices: Iterable[int]) -> dict:
        return collate([self.dataset.view(i) for i in sample_indices], self.pin_memory)
