"""Runs a function on many jobs in processes of one thread each; results are in the jobs' order.

One worker is the calling process. The results do not depend on the number of workers. Signals are
for the calling process alone, also where SLURM sends them to all processes: workers block them.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import (
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    as_completed,
    wait,
)
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from logging import LogRecord
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from typing import TypeVar

from tubesynth.runtime.errors import InputError
from tubesynth.runtime.log import Progress, collected_lines, relay
from tubesynth.runtime.stop_signal import SIGNALS, Interrupted, deferred

Item = TypeVar("Item")
Result = TypeVar("Result")
GRACE_SECONDS = 4.0  # after a signal, for the cases that are being worked on
THREADS, PROBED = 8, 64  # of each_in_threads: threads, and items that decide whether they help
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def cores() -> int:
    """The number of cores that this process may use on its node or in its container."""
    sched_getaffinity = getattr(os, "sched_getaffinity", None)
    return len(sched_getaffinity(0)) if sched_getaffinity else os.cpu_count() or 1


def check_workers(workers: int | None) -> int:
    """The number of worker processes; None is one per core."""
    if workers is not None and workers < 1:
        raise InputError(f"--workers {workers}: must be at least 1")
    return workers or cores()


def each(
    function: Callable[..., Result], jobs: list[tuple], workers: int, title: str, unit: str = "case"
) -> list[Result]:
    """[function(*job) for job in jobs], by several processes; raises the first exception.

    function: of a module that workers can import, not of a package's `__main__`.
    """
    with Progress(title, len(jobs), unit) as progress:
        if workers == 1 or len(jobs) < 2:
            results = []
            for job in jobs:
                results.append(function(*job))
                progress.update()
            return results
        with _one_thread_each():  # BLAS reads the variables when a worker loads it
            _start_fork_server()
            return _run_in_pool(function, jobs, workers, progress)


def each_in_threads(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """[function(item) for item in items], of short work that may wait for a file system.

    Threads overlap its waits. Where the first items take a core's time instead, Python's lock would
    make several threads three times slower than one.
    """
    first, start, cpu = items[:PROBED], time.perf_counter(), time.thread_time()
    results = [function(item) for item in first]
    waits = time.thread_time() - cpu < 0.5 * (time.perf_counter() - start)
    if not waits:
        return results + [function(item) for item in items[PROBED:]]
    with ThreadPoolExecutor(THREADS) as pool:
        return results + list(pool.map(function, items[PROBED:]))


class _RecordingContext(ForkServerContext):  # a fork would break the caller's threads
    """Keeps the processes that it starts: one that ends at once is no active child any more."""

    def __init__(self):
        super().__init__()
        self.processes: list[BaseProcess] = []

    def Process(self, *arguments, **options) -> BaseProcess:  # pyright: ignore
        process = super().Process(*arguments, **options)
        self.processes.append(process)
        return process


def _run_in_pool(
    function: Callable[..., Result], jobs: list[tuple], workers: int, progress: Progress
) -> list[Result]:
    context = _RecordingContext()
    pool = ProcessPoolExecutor(min(workers, len(jobs)), context, _start_worker)
    futures: list[Future[tuple[Result, list[LogRecord]]]] = []
    try:
        with deferred():  # a worker that gets no preparation data prints a traceback
            futures += [pool.submit(_with_lines, function, *job) for job in jobs]
        for future in as_completed(futures):
            _, lines = future.result()
            for line in lines:
                relay(line)
            progress.update()
        return [future.result()[0] for future in futures]
    except BaseException as error:
        if isinstance(error, Interrupted):
            for future in futures:
                future.cancel()
            wait(futures, GRACE_SECONDS)  # cases that end meanwhile are kept
        # The pool would end its workers by SIGTERM, which they block.
        for process in context.processes:
            if process.pid is not None:
                with suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)
        pool.shutdown(wait=True, cancel_futures=True)  # its thread reads the exit codes
        if isinstance(error, BrokenProcessPool):
            raise InputError(f"{progress.title}: {_cause(context.processes)}") from error
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _with_lines(function: Callable[..., Result], *job) -> tuple[Result, list[LogRecord]]:
    """(the function's result, what it has logged): a worker has no log of its own."""
    with collected_lines() as lines:
        return function(*job), lines


def _start_fork_server() -> None:
    """Start the process that forks the workers, with all signals blocked, as its workers have.

    A mask is inherited, so there is no moment at which a signal could end a worker.
    """
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        resource_tracker.ensure_running()  # unblocks some signals where it starts its process
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def _start_worker() -> None:
    """Block the signals, which a fork server of another caller may not, and end with the parent."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)  # killed: a worker would wait for its next job for ever


def _cause(processes: Iterable[BaseProcess]) -> str:
    """What ended a worker, and the remedy."""
    codes = [process.exitcode for process in processes]
    # SIGKILL also ends the workers beside the one that died.
    numbers = [-code for code in codes if code and code < 0 and code != -signal.SIGKILL]
    number = numbers[0] if numbers else None
    if number is None:
        return (
            "a worker process was killed, by hand or by the system for lack of memory; start again,"
            " with fewer workers (--workers, if the command has it) or on a machine with more"
            " memory if that is the cause; the results of finished cases are stored"
        )
    return (
        f"a worker process was ended by {signal.Signals(number).name}; start again, with"
        " --workers 1 (if the command has it) to see the case; the results of finished cases are"
        " stored"
    )


@contextmanager
def _one_thread_each() -> Iterator[None]:
    saved = {name: os.environ.get(name) for name in _ONE_THREAD}
    os.environ.update(dict.fromkeys(_ONE_THREAD, "1"))
    try:
        yield
    finally:
        for name, value in saved.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value
