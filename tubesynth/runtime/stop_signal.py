"""Signals after which a run saves and ends: SIGTERM, SIGUSR1 and SIGINT (Ctrl-C)."""

import signal

from tubesynth.runtime import dist
from tubesynth.runtime.errors import Stopped


class StopSignal:
    """Stores the name of a received signal, so that the run can end after it has saved."""

    def __init__(self):
        self.name: str | None = None
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, self._remember)

    def _remember(self, number: int, frame) -> None:
        if self.name and number == signal.SIGINT:
            raise KeyboardInterrupt  # a second Ctrl-C ends at once
        self.name = signal.Signals(number).name

    def on_any_rank(self) -> bool:
        """Whether any rank has received a signal; every rank must call it."""
        return dist.any_rank(self.name is not None)

    def raise_if_set(self, message: str) -> None:
        """Raise Stopped on every rank if any rank has received a signal."""
        if self.on_any_rank():
            raise Stopped(f"{message}; the same command resumes from there")
