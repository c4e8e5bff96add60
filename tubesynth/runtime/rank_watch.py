"""Watches the ranks of a run from a thread of each: signals, orphans and ranks that hang.

A signal to one rank becomes a signal to all of them within a second. A rank whose launcher has been
killed stops as after SIGTERM. A rank that does not respond is named on the terminal, and the others
end with code 1: they would wait in a collective for it. TUBESYNTH_RANK_TIMEOUT sets the seconds
after which a rank counts as hung (default: 300).
"""

import json
import os
import signal
import socket
import sys
import threading
import time
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType

from torch.distributed import DistError, TCPStore  # pyright: ignore[reportPrivateImportUsage]

from tubesynth.runtime import stop_signal
from tubesynth.runtime.errors import InputError

TIMEOUT = "TUBESYNTH_RANK_TIMEOUT"
DEFAULT_TIMEOUT_SECONDS = 300.0
SECONDS_BETWEEN_LOOKS = 1.0
STOP_KEY = "stop"
PACKAGE = Path(__file__).parent.parent
# A main thread whose innermost frame is in one of these waits for the other ranks.
COLLECTIVES = ("torch/distributed/", "torch/autograd/graph.py", "tubesynth/runtime/dist.py")


def rank_timeout() -> float:
    """The seconds after which a rank counts as hung."""
    text = os.environ.get(TIMEOUT, str(DEFAULT_TIMEOUT_SECONDS))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not seconds >= 1:
        raise InputError(f"{TIMEOUT}={text}: give a number of seconds, at least 1")
    return seconds


@dataclass
class RankStatus:
    """What a rank publishes about itself.

    beats: counts the looks of its thread, which goes on where the main thread waits.
    still_seconds: for how long the main thread has been at the same instruction, `place`.
    """

    process: str  # "process 123 on node n2"
    beats: int = 0
    still_seconds: float = 0.0
    place: str = "starting"
    in_collective: bool = False


def hung_ranks(
    statuses: dict[int, RankStatus], silent_seconds: dict[int, float], timeout: float
) -> dict[int, str]:
    """{rank: what is known of it} of the ranks that the others wait for in vain; {} if none.

    silent_seconds: for how long the status of each rank has not changed. A process that publishes
    nothing is stopped or cut off. Where all publish and no main thread moves, those outside of a
    collective are what the others wait for.
    """
    silent = {
        rank: f"{statuses[rank].process} has not responded for {seconds:.0f} s"
        for rank, seconds in silent_seconds.items()
        if seconds > timeout
    }
    if silent or min(status.still_seconds for status in statuses.values()) <= timeout:
        return silent
    outside = {r: s for r, s in statuses.items() if not s.in_collective} or statuses
    return {
        rank: f"{status.process} has been in {status.place} for {status.still_seconds:.0f} s"
        for rank, status in outside.items()
    }


class RankWatch:
    """The thread of one rank; it has its own connection to the store of the launcher or rank 0."""

    def __init__(self, rank: int, world_size: int):
        self.rank, self.world_size, self.timeout = rank, world_size, rank_timeout()
        self.parent = os.getppid()
        self.main_thread = threading.main_thread().ident
        self.status = RankStatus(f"process {os.getpid()} on {socket.gethostname()}")
        self.last_place: tuple = ()
        self.moved = self.reached = time.monotonic()
        # Of the other ranks: their last status, and when it changed.
        self.statuses: dict[int, RankStatus] = {}
        self.changed: dict[int, float] = {}
        self.store = self._connect() if world_size > 1 else None
        self._publish()
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._run, name="rank watch", daemon=True)
        self.thread.start()

    def stop(self) -> None:
        self.ended.set()
        self.thread.join()

    def _connect(self) -> TCPStore:
        seconds = min(10.0, self.timeout)
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        return TCPStore(address, port, is_master=False, timeout=timedelta(seconds=seconds))

    def _key(self, name: str | int) -> str:
        return f"rank_watch/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{name}"

    def _run(self) -> None:
        while not self.ended.wait(SECONDS_BETWEEN_LOOKS):
            if os.getppid() != self.parent:
                self._signal_main_thread()
            if self.store is None:
                continue
            try:
                self._publish()
                self._share_signal()
                self._read_others()
            except DistError:
                if self.ended.is_set():
                    return
                if time.monotonic() - self.reached > self.timeout:
                    holder = "rank 0, or the launcher, which holds the store of this run"
                    self._end({0: f"{holder}, has not responded for {self.timeout:.0f} s"})
                continue
            self.reached = time.monotonic()
            silent = {rank: self.reached - changed for rank, changed in self.changed.items()}
            hung = hung_ranks(self.statuses, silent, self.timeout)
            if hung:
                self._end(hung)

    def _publish(self) -> None:
        """Write the status of this rank to the store."""
        frame = sys._current_frames().get(self.main_thread or 0)
        instructions, place = _instructions(frame)
        if instructions != self.last_place:
            self.last_place, self.moved = instructions, time.monotonic()
        status = self.status
        status.beats += 1
        status.place = place
        status.still_seconds = time.monotonic() - self.moved
        file = frame.f_code.co_filename if frame else ""
        status.in_collective = any(part in file for part in COLLECTIVES)
        if self.store is not None:
            self.store.set(self._key(self.rank), json.dumps(asdict(status)))

    def _share_signal(self) -> None:
        assert self.store is not None
        name = stop_signal.received()
        if name:
            self.store.set(self._key(STOP_KEY), name)
        elif self.store.check([self._key(STOP_KEY)]):
            self._signal_main_thread()

    def _read_others(self) -> None:
        assert self.store is not None
        texts = self.store.multi_get([self._key(rank) for rank in range(self.world_size)])
        for rank, text in enumerate(texts):
            status = RankStatus(**json.loads(text))
            if rank not in self.statuses or status.beats != self.statuses[rank].beats:
                self.changed[rank] = time.monotonic()
            self.statuses[rank] = status

    def _signal_main_thread(self) -> None:
        """Let the main thread receive SIGTERM, once."""
        if stop_signal.received() is None and self.main_thread is not None:
            signal.pthread_kill(self.main_thread, signal.SIGTERM)

    def _end(self, hung: dict[int, str]) -> None:
        """Name the hung ranks, by one of the others, and end this process."""
        others = [rank for rank in range(self.world_size) if rank not in hung]
        if self.rank == (others or [0])[0]:
            listed = "; ".join(f"rank {rank}: {text}" for rank, text in hung.items())
            print(
                f"error: {listed}; the other ranks waited for it and are ended. Look at that"
                " machine, its GPU and its disks, then start the same command again: it resumes"
                f" from the last checkpoint ({TIMEOUT}=SECONDS sets another limit)",
                file=sys.stderr,
                flush=True,
            )
        else:
            time.sleep(2)  # a launcher ends all ranks with the first: let that one write first
        os._exit(1)


def _instructions(frame: FrameType | None) -> tuple[tuple, str]:
    """(what differs after any instruction of a thread, "file.py:12, function" in this package)."""
    stack, place = [], ""
    while frame is not None:
        stack.append((id(frame), frame.f_lasti))
        path = Path(frame.f_code.co_filename)
        if not place and PACKAGE in path.parents:
            place = f"{path.relative_to(PACKAGE.parent)}:{frame.f_lineno}, {frame.f_code.co_name}"
        frame = frame.f_back
    return tuple(stack), place or "code outside of tubesynth"
