"""Signals that end a command: SIGTERM, SIGUSR1 (SLURM's warning before a time limit) and Ctrl-C.

In work that may be abandoned, within `interruptible`, a signal raises Interrupted at once, as
Ctrl-C raises KeyboardInterrupt: what is finished is on the disk, and every file is written
atomically. Elsewhere, as in a training step, the signal is stored until the next such work begins.
A command begins in `at_once`, so that a signal while it imports its modules is answered too.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from tubesynth.runtime.errors import Stopped

Result = TypeVar("Result")
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
RESUMES = "the same command resumes from there"
STARTS_AGAIN = "give the same command again"


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


@contextmanager
def at_once() -> Iterator[None]:
    """Raise Stopped at a signal in the block, or until `defer` is called in it."""
    with listening():
        try:
            _State.interruptible = _State.listening
            yield
        except Interrupted:
            raise Stopped(f"{_State.name}: {STARTS_AGAIN}") from None
        finally:
            _State.interruptible = False


def defer() -> None:
    """Store signals from now on, outside of `interruptible`: a run saves, and ranks agree first."""
    ask()
    _State.interruptible = False


@contextmanager
def deferred() -> Iterator[None]:
    """Store a signal until the end of the block, which must not be left half-way."""
    outer, _State.interruptible = _State.interruptible, False
    try:
        yield
    finally:
        _State.interruptible = outer
    ask()


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
    work: Callable[[], Result],
    message: str | Callable[[], str],
    agreed: Callable[[bool], bool] = bool,
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
            raise stopped(message if isinstance(message, str) else message())
        return result[0]


def stopped(text: str) -> Stopped:
    """The error that ends a command, with the signal and a text."""
    return Stopped(f"{_State.name or 'a signal to another process'}: {text}")


def kept(results: str, folder: Path, then: str = RESUMES) -> Callable[[], str]:
    """A message of `interruptible`: the results stay in a folder, if it has been made."""

    def message() -> str:
        return f"{results} stay in {folder}; {then}" if folder.is_dir() else STARTS_AGAIN

    return message
