"""Runs a function on many jobs in processes of one thread each; results are in the jobs' order.

One worker is the calling process. The results do not depend on the number of workers.
"""

import os
import signal
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import TypeVar

from tubesynth.runtime.errors import InputError
from tubesynth.runtime.log import Progress

Result = TypeVar("Result")
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
        # BLAS reads these variables when a worker loads it.
        saved = {name: os.environ.get(name) for name in _ONE_THREAD}
        os.environ.update(dict.fromkeys(_ONE_THREAD, "1"))
        pool = ProcessPoolExecutor(
            min(workers, len(jobs)),
            get_context("forkserver"),  # the caller may have threads, which a fork would break
            signal.signal,
            (signal.SIGINT, signal.SIG_IGN),  # Ctrl-C is for the calling process
        )
        try:
            futures = [pool.submit(function, *job) for job in jobs]
            for future in as_completed(futures):
                future.result()
                progress.update()
            return [future.result() for future in futures]
        except BrokenProcessPool as error:
            raise InputError(
                f"{title}: a worker process was killed, most likely for lack of memory; start again"
                " with fewer workers (--workers, if the command has it) or on a machine with more"
                " memory; the results of finished cases are stored"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            for name, value in saved.items():
                if value is None:
                    os.environ.pop(name)
                else:
                    os.environ[name] = value
