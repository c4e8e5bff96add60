"""Reads the next batches and writes the last ones while the device computes this one.

Reading and writing have two threads each: NumPy, gzip and file systems release Python's lock. The
device's work stays in the calling thread, which receives signals. In memory are at most two batches
that are read or wait for the device, the one that it computes, and two that are written.
"""

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Batch = TypeVar("Batch")
Inputs = TypeVar("Inputs")
Results = TypeVar("Results")
Report = TypeVar("Report")

THREADS = 2  # and batches on either side of the device


def overlapped(
    batches: Iterable[Batch],
    read: Callable[[Batch], Inputs],
    compute: Callable[[Batch, Inputs], Results],
    write: Callable[[Batch, Results], Report],
    report: Callable[[Batch, Report], None],
) -> None:
    """report(batch, write(batch, compute(batch, read(batch)))) for each batch, in their order.

    compute and report are called in this thread. An error is raised when all batches before its own
    are written; of several errors, that of the first batch. A batch that is being written when a
    signal arrives is finished.
    """
    upcoming = iter(batches)
    reading: deque[tuple[Batch, Future[Inputs]]] = deque()
    writing: deque[tuple[Batch, Future[Report]]] = deque()

    def read_ahead() -> None:
        for batch in islice(upcoming, THREADS - len(reading)):
            reading.append((batch, reader.submit(read, batch)))

    def finish_first() -> None:
        batch, future = writing.popleft()
        try:
            written = future.result()
        except BaseException:
            writing.clear()  # no later error may take the place of this one
            raise
        report(batch, written)

    with ThreadPoolExecutor(THREADS) as reader, ThreadPoolExecutor(THREADS) as writer:
        try:
            read_ahead()
            while reading:
                batch, future = reading.popleft()
                inputs = future.result()
                read_ahead()
                results = compute(batch, inputs)
                if len(writing) == THREADS:
                    finish_first()
                writing.append((batch, writer.submit(write, batch, results)))
        finally:
            while writing:
                finish_first()
