"""Batches ahead of the step that takes them, made by threads.

What there is to do for a cached case is one copy out of a memory-mapped file, and NumPy copies
without holding Python's lock. So threads keep up where processes would spend most of their time on
handing 25 MB from one to another, and need neither shared memory nor a fork beside a CUDA context.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from tubesynth.data.dataset import collate

BATCHES_AHEAD = 2  # per worker: enough to bridge one slow read


class Loader:
    """Iterates over the batches of a sampler's draws; `dataset.view(draw)` gives a sample.

    num_workers threads work ahead; 0 loads each batch when it is asked for. The batches do not
    depend on their number. pin_memory puts them where a GPU fetches them without another copy.
    """

    def __init__(self, dataset, sampler, num_workers: int = 0, pin_memory: bool = False):
        self.dataset, self.sampler = dataset, sampler
        self.num_workers, self.pin_memory = num_workers, pin_memory

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[dict]:
        if self.num_workers == 0:
            yield from map(self.load, self.sampler)
            return
        pool = ThreadPoolExecutor(self.num_workers, thread_name_prefix="loader")
        try:
            waiting = deque()
            for draws in self.sampler:
                waiting.append(pool.submit(self.load, draws))
                if len(waiting) > BATCHES_AHEAD * self.num_workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:  # also where the loop is left early, or a batch raised
            pool.shutdown(wait=True, cancel_futures=True)

    def load(self, draws: list[int]) -> dict:
        """The batch of some draws."""
        return collate([self.dataset.view(draw) for draw in draws], self.pin_memory)
