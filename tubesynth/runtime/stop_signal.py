"""Signals that ask a run to end after saving: SIGTERM, SIGUSR1 and SIGINT (Ctrl-C)."""

import signal

from tubesynth.runtime import dist
from tubesynth.runtime.errors import Stopped


class StopSignal:
    """Remembers a signal, so that the run can end at a point where nothing is lost."""

    def __init__(self):
        self.name: str | None = None
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, self._remember)

    def _remember(self, number: int, frame) -> None:
        if self.name and number == signal.SIGINT:
            raise KeyboardInterrupt  # a second Ctrl-C ends at once
        self.name = signal.Signals(number).name

    def on_any_rank(self) -> bool:
        """Whether a signal has come to one of the ranks; every rank must ask."""
        return dist.any_rank(self.name is not None)

    def raise_if_set(self, message: str) -> None:
        """Stopped on every rank where a signal has come to one; the message says what is saved."""
        if self.on_any_rank():
            raise Stopped(f"{message}; the same command resumes from there")
