"""Signals that end a command: SIGTERM, SIGUSR1 (SLURM's warning before a time limit) and Ctrl-C.

In work that may be abandoned, within `interruptible`, a signal raises Interrupted at once, as
Ctrl-C raises KeyboardInterrupt: what is finished is on the disk, and every file is written
atomically. Elsewhere, as in a training step, the signal is stored until the next such work begins.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from tubesynth.runtime.errors import Stopped

Result = TypeVar("Result")
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
RESUMES = "the same command resumes from there"


class Interrupted(BaseException):
    """A signal has arrived in interruptible work. Like KeyboardInterrupt it is no Exception."""


class _State:
    """The signals of this process."""

    listening = False
    name: str | None = None  # of the first signal that was received
    interruptible = False  # whether a signal raises Interrupted


def received() -> str | None:
    """The name of the first signal that this process has received, or None."""
    return _State.name


@contextmanager
def listening() -> Iterator[None]:
    """Store signals until the end of the block; an outer block goes on listening."""
    if _State.listening or threading.current_thread() is not threading.main_thread():
        yield
        return
    _State.listening, _State.name = True, None
    previous = {number: signal.signal(number, _receive) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        _State.listening, _State.name = False, None


def _receive(number: int, frame) -> None:
    if _State.name:
        if number == signal.SIGINT:
            raise KeyboardInterrupt  # a second Ctrl-C ends at once
        return
    _State.name = signal.Signals(number).name
    ask()


def ask() -> None:
    """Raise Interrupted in interruptible work if a signal has been received; long loops ask too.

    Python drops an exception that a signal raises within a destructor.
    """
    if _State.interruptible and _State.name:
        raise Interrupted


def interruptible(
    work: Callable[[], Result], message: str, agreed: Callable[[bool], bool] = bool
) -> Result:
    """work(); Stopped, with the signal and the text `message`, if a signal has been received.

    agreed: whether any rank has been interrupted, on every rank (runtime/dist.py).
    """
    with listening():
        outer = _State.interruptible
        try:
            try:
                _State.interruptible = True
                ask()
                result = [work()]
            finally:
                _State.interruptible = outer
        except Interrupted:  # the other ranks learn of it in `agreed`
            _State.interruptible, result = outer, []
        if agreed(_State.name is not None):
            raise Stopped(f"{_State.name or 'a signal to another process'}: {message}")
        return result[0]
