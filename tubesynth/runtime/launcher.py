"""Starts one process per GPU of this machine, passes signals on, and exits with their exit code.

torch.distributed.run ends its processes 30 s after a signal, saved or not, and its own exit code is
1 whatever theirs is. This launcher waits until they have saved, and keeps the codes 2 and 75.
"""

import math
import os
import signal
import subprocess
import sys
import time
from types import FrameType

from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

from tubesynth.runtime.errors import EXIT_STOPPED
from tubesynth.runtime.stop_signal import SIGNALS

POLL_SECONDS = 0.1
FAILURE_GRACE_SECONDS = 15.0  # for the other processes after one has failed
STOP_GRACE_SECONDS = 3.0  # after one has stopped, until the others are told to


def launch(module: str, arguments: list[str], processes: int) -> None:
    """Run `python -m module arguments` as ranks 0 to processes - 1; raises SystemExit."""
    # The ranks meet in this process's store, on a port that the system chooses.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    environment = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
    }
    environment.setdefault("OMP_NUM_THREADS", "1")
    ranks: list[subprocess.Popen] = []
    received: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for process in ranks:
            process.send_signal(signal.SIGTERM)
        if received.count(signal.SIGINT) > 1:
            raise KeyboardInterrupt  # a second Ctrl-C ends at once

    previous = {number: signal.signal(number, pass_on) for number in SIGNALS}
    try:
        for rank in range(processes):
            variables = environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            ranks.append(
                subprocess.Popen([sys.executable, "-m", module, *arguments], env=variables)
            )
            if received:  # while it was started
                ranks[-1].send_signal(signal.SIGTERM)
        raise SystemExit(_exit_code(ranks, received))
    finally:
        for process in ranks:
            process.kill()  # those that have ended are left alone
            process.wait()
        for number, handler in previous.items():
            signal.signal(number, handler)


def _exit_code(ranks: list[subprocess.Popen], received: list[int]) -> int:
    """Wait for all processes, or for the grace after a failure: the first failure's code or 75.

    Ranks that have met stop together; before, one may be stopped alone, and the others then get its
    signal. received: the signals that were passed on to all.
    """
    failed, deadline, pass_on_at = None, math.inf, math.inf
    while None in [process.poll() for process in ranks]:
        now = time.monotonic()
        if not received and EXIT_STOPPED in [process.returncode for process in ranks]:
            pass_on_at = min(pass_on_at, now + STOP_GRACE_SECONDS)
            if now > pass_on_at:
                received.append(signal.SIGTERM)
                for process in ranks:
                    process.terminate()
        if failed is None and (failed := _failed(ranks, received)):
            deadline = now + FAILURE_GRACE_SECONDS
        if now > deadline:
            break
        time.sleep(POLL_SECONDS)
    failed = failed or _failed(ranks, received)
    if failed is None:
        return EXIT_STOPPED if any(process.returncode for process in ranks) else 0
    if failed.returncode > 0:
        return failed.returncode
    print(
        f"error: rank {ranks.index(failed)} (process {failed.pid}) was killed by"
        f" {signal.Signals(-failed.returncode).name}, by hand or by the system for lack of memory,"
        " and the other ranks were ended; the same command resumes from the last checkpoint",
        file=sys.stderr,
    )
    return 1


def _failed(ranks: list[subprocess.Popen], received: list[int]) -> subprocess.Popen | None:
    """The first process that has failed; one that a passed-on signal ended before it was ready, or
    in its last moments, has not."""
    expected = (None, 0, EXIT_STOPPED, *([-signal.SIGTERM] if received else []))
    return next((process for process in ranks if process.returncode not in expected), None)
