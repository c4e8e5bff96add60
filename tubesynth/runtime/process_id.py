"""The identity of a process, by which another process tells whether it still runs.

A process number alone is used again, by another process, another container or another machine.
"""

import hashlib
import os
import re
import socket
from functools import cache
from pathlib import Path
from typing import NamedTuple


class ProcessId(NamedTuple):
    """machine: 8 hex digits of one boot of one machine and its container; start: clock ticks."""

    machine: str
    pid: int
    start: int

    @classmethod
    def own(cls) -> "ProcessId":
        return cls(_machine(), os.getpid(), _start(os.getpid()) or 0)

    @classmethod
    def parse(cls, text: str) -> "ProcessId | None":
        """From the text of an identity; None for another text."""
        match = re.fullmatch(r"([0-9a-f]{8})-([1-9]\d{0,8})-(\d{1,18})", text)
        return cls(match[1], int(match[2]), int(match[3])) if match else None

    def __str__(self) -> str:
        return f"{self.machine}-{self.pid}-{self.start}"

    @property
    def runs(self) -> bool | None:
        """Whether the process runs; None if it is one of another machine or container."""
        if self.machine != _machine():
            return None
        start = _start(self.pid)
        return start is not None and start in (self.start, 0)


@cache
def _machine() -> str:
    try:
        # The host name is no identity: containers of one host may share it, with other processes.
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
        name = boot + os.readlink("/proc/self/ns/pid")
    except OSError:  # no Linux
        name = socket.gethostname()
    return hashlib.sha256(name.encode()).hexdigest()[:8]


def _start(pid: int) -> int | None:
    """Clock ticks from the boot to the start of a process; 0 if unknown; None if it has ended."""
    try:
        os.kill(pid, 0)
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except ProcessLookupError:
        return None
    except OSError:  # a process of another user, or no Linux
        return 0
    state, *others = stat.rpartition(")")[2].split()  # after the name, which may contain spaces
    return None if state in "ZX" else int(others[18])
