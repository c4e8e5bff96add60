"""One job a case, in processes of one thread each, with a progress bar; results in the order given.

With one worker the jobs run in the calling process. What comes out does not depend on the number.
"""

import os
import signal
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context

from tubesynth.runtime.errors import InputError

_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def cores() -> int:
    """The cores that this process may use, which a batch system or a container limits."""
    limited = getattr(os, "sched_getaffinity", None)
    return len(limited(0)) if limited else os.cpu_count() or 1


def check_workers(workers: int | None) -> int:
    """The number asked for, or one a core."""
    if workers is not None and workers < 1:
        raise InputError(f"--workers {workers}: must be at least 1")
    return workers or cores()


def each(function: Callable, jobs: list[tuple], workers: int, title: str, unit="case") -> list:
    """[function(*job) for job in jobs], by several processes; the first exception goes up."""
    from tqdm import tqdm

    bar = tqdm(total=len(jobs), desc=title, unit=unit, disable=None if jobs else True)
    with bar:
        if workers == 1 or len(jobs) < 2:
            results = []
            for job in jobs:
                results.append(function(*job))
                bar.update()
            return results
        # Not forked from here: the caller may hold threads. BLAS reads the variables as it loads.
        saved = {name: os.environ.get(name) for name in _ONE_THREAD}
        os.environ.update(dict.fromkeys(_ONE_THREAD, "1"))
        ignore = signal.signal, (signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the caller's
        context = get_context("forkserver")
        pool = ProcessPoolExecutor(min(workers, len(jobs)), context, *ignore)
        try:
            futures = [pool.submit(function, *job) for job in jobs]
            for future in as_completed(futures):
                future.result()
                bar.update()
            return [future.result() for future in futures]
        except BrokenProcessPool as error:
            raise InputError(
                f"{title}: a process was killed, most likely for want of memory; start again with"
                " fewer workers (--workers, where the command has it) or on a machine with more"
                " memory; what is done stays"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            for name, value in saved.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})
