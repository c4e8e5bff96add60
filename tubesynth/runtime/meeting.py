"""The meeting of the ranks of a run before they form a process group, which would wait in silence.

A rank that has not come within TUBESYNTH_RANK_TIMEOUT seconds is named by those that have.
"""

import os
import socket
import time
from datetime import timedelta

from torch.distributed import DistError, PrefixStore, Store, TCPStore  # pyright: ignore[reportPrivateImportUsage]

from tubesynth.runtime.errors import InputError, one_line
from tubesynth.runtime.rank_watch import TIMEOUT, rank_timeout

POLL_SECONDS = 0.1
STORE_TIMEOUT = timedelta(minutes=60)  # of the process group, which uses the store too


def meet() -> tuple[Store, int, int]:
    """(store, rank, world size) of the run, once all ranks have come; InputError names others."""
    rank, world_size, port = map(_number, ("RANK", "WORLD_SIZE", "MASTER_PORT"))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    seconds = rank_timeout()
    deadline = time.monotonic() + seconds
    remedy = (
        "look at its output and at its machine, and start the same command again"
        f" ({TIMEOUT}=SECONDS sets another limit)"
    )
    store = PrefixStore(f"meeting/{attempt}", _open_store(rank, port, deadline, remedy))
    try:
        store.set(f"{rank}", "")
        while missing := [str(r) for r in range(world_size) if not store.check([f"{r}"])]:
            if time.monotonic() > deadline:
                ranks = f"rank{'s' * (len(missing) > 1)} {', '.join(missing[:8])}"
                raise InputError(
                    f"{ranks} of {world_size} did not come within {seconds:g} s: {remedy}"
                )
            time.sleep(POLL_SECONDS)
    except DistError as error:
        raise InputError(f"rank 0 has ended before all ranks had come: {remedy}") from error
    return store, rank, world_size


def _number(name: str) -> int:
    text = os.environ.get(name, "")
    if not text.isdecimal():
        raise InputError(
            f"{name}={text}: a launcher sets RANK, so it must set a number: start with torchrun, or"
            " unset RANK"
        )
    return int(text)


def _open_store(rank: int, port: int, deadline: float, remedy: str) -> TCPStore:
    """The store of the launcher, or else of rank 0."""
    address = os.environ.get("MASTER_ADDR", "")
    place = f"MASTER_ADDR={address} MASTER_PORT={port}"
    is_holder = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    if not is_holder:
        # torch would connect in one call that no signal interrupts.
        while problem := _problem(address, port):
            if time.monotonic() > deadline:
                raise InputError(f"{place}: rank 0 does not answer there ({problem}): {remedy}")
            time.sleep(POLL_SECONDS)
    left = timedelta(seconds=max(1.0, deadline - time.monotonic()))
    try:
        store = TCPStore(address, port, None, is_holder, timeout=left, wait_for_workers=False)
    except DistError as error:
        raise InputError(f"{place}: {one_line(error)}: choose a free port of this host") from error
    store.set_timeout(STORE_TIMEOUT)
    return store


def _problem(address: str, port: int) -> str:
    """Why nothing can be reached there; empty if it can."""
    try:
        socket.create_connection((address, port), timeout=2).close()
    except OSError as error:
        return str(error)
    return ""
