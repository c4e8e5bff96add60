"""The logger "tubesynth", which writes dated lines to the terminal and to the log file of a run.

A command sets it up once; only rank 0 writes. Lines appear above a progress bar and never break it.
Without a terminal, `Progress` still reports a long loop once a minute.
"""

import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from tubesynth.runtime.atomic import writing
from tubesynth.runtime.errors import InputError, Stopped
from tubesynth.runtime.stop_signal import ask

Item = TypeVar("Item")

SECONDS_BETWEEN_LINES = 60.0
ABOVE_ALL_LEVELS = logging.CRITICAL + 1

logger = logging.getLogger("tubesynth")
# Lines that are logged before a run's folder exists; log_file writes them to the run's file.
early_lines = MemoryHandler(capacity=10_000, flushLevel=ABOVE_ALL_LEVELS)
_warned: set[str] = set()


class LineFormatter(logging.Formatter):
    """`2026-01-31 09:30:00 message`, and `... warning: message` from the level of warnings on."""

    def __init__(self):
        super().__init__("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:
        level = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        return f"{record.asctime} {level}{record.message}"


class TerminalHandler(logging.Handler):
    """Writes to standard error, above the progress bar where one is shown."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            tqdm.write(self.format(record), file=sys.stderr)
        except (OSError, ValueError):  # a closed terminal must not end a run
            self.handleError(record)


def set_up() -> None:
    """Let the logger of a command write to the terminal on rank 0, and nowhere on other ranks."""
    for handler in logger.handlers[:]:
        logger.removeHandler(handler)
    early_lines.buffer.clear()
    _warned.clear()
    terminal = TerminalHandler()
    terminal.setFormatter(LineFormatter())
    logger.addHandler(terminal)
    logger.addHandler(early_lines)
    logger.propagate = False
    set_level()


def set_level() -> None:
    """Silence the ranks above 0, once the rank of this process is known."""
    logger.setLevel(logging.INFO if is_main_process() else ABOVE_ALL_LEVELS)


def is_main_process() -> bool:
    """Whether this is rank 0 or the only process; torch is not needed to know it."""
    return int(os.environ.get("RANK", "0")) == 0


@contextmanager
def log_file(path: Path) -> Iterator[None]:
    """Append the early lines and those of this block to a file; rank 0 only."""
    if not logger.isEnabledFor(logging.INFO):
        yield
        return
    if path.exists() and not path.is_file():  # opening a pipe would wait for ever
        raise InputError(f"{path}: a folder, a pipe or a device, no file: remove it")
    with writing(path):
        handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(LineFormatter())
    for record in early_lines.buffer:
        handler.handle(record)
    early_lines.buffer.clear()
    logger.removeHandler(early_lines)
    logger.addHandler(handler)
    try:
        yield
    except Exception as error:
        # The command prints the error on the terminal; the file needs the reason too.
        stopped = isinstance(error, Stopped)
        level = logging.INFO if stopped else logging.ERROR
        message = f"{'stopped' if stopped else type(error).__name__}: {error}"
        record = logging.LogRecord(logger.name, level, __file__, 0, message, None, None)
        handler.handle(record)
        raise
    finally:
        logger.removeHandler(handler)
        logger.addHandler(early_lines)
        handler.close()


def warn_once(message: str, key: str | None = None) -> None:
    """Log a warning, unless this process has logged it: a file may be read many times.

    key: of messages that are the same to a reader, as of many files; None: the message.
    """
    key = key or message
    if key not in _warned:
        _warned.add(key)
        logger.warning(message, extra={"key": key})


def relay(record: logging.LogRecord) -> None:
    """Log a line of a worker process, as if this process had logged it."""
    key = getattr(record, "key", None)  # of warn_once
    if key in _warned or not logger.isEnabledFor(record.levelno):
        return
    if key:
        _warned.add(key)
    logger.handle(record)


@contextmanager
def collected_lines() -> Iterator[list[logging.LogRecord]]:
    """The lines that are logged in this block, which are not written: the caller passes them on.

    They are collected on every rank, and whether or not they have been logged before.
    """
    records: list[logging.LogRecord] = []

    def collect(record: logging.LogRecord) -> bool:
        records.append(record)
        return False

    warned, level = _warned.copy(), logger.level
    _warned.clear()
    logger.setLevel(logging.INFO)
    logger.filters.insert(0, collect)  # before those of the blocks around this one
    try:
        yield records
    finally:
        logger.removeFilter(collect)
        logger.setLevel(level)
        _warned.clear()
        _warned.update(warned)


def duration(seconds: float) -> str:
    """Seconds as `0:12:34`, or `2 days, 1:00:00`."""
    return str(timedelta(seconds=round(seconds)))


class Progress:
    """Reports a loop of `total` items: a bar on a terminal, and a dated line once a minute.

        with Progress("encode training", len(cases), unit="volume") as progress:
            for case in cases:
                encode(case)
                progress.update()

    A short loop logs no line. bar=False shows no bar, for a loop inside one that has a bar.
    Nothing is shown on ranks above 0 or outside of commands, where the logger is off.
    """

    def __init__(self, title: str, total: int, unit: str = "case", bar: bool = True):
        self.title, self.total, self.unit = title, total, unit
        self.done = 0
        self.started = self.last_line = time.monotonic()
        self.has_logged = False
        # disable=None shows the bar on a terminal only.
        hidden = not bar or total == 0 or not logger.isEnabledFor(logging.INFO)
        self.bar = tqdm(total=total, desc=title, unit=unit, disable=True if hidden else None)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, error_type, error, trace) -> None:
        self.bar.close()
        if self.has_logged and error is None:
            logger.info(f"{self.title}: {self._count()} in {duration(self._seconds())}")

    def update(self, number: int = 1) -> None:
        """Count items as done; log a line where the next item would end after the minute.

        Every long loop counts its items, and so asks for signals (runtime/stop_signal.py).
        """
        ask()
        self.done += number
        self.bar.update(number)
        seconds_per_item = self._seconds() / self.done
        since_last_line = time.monotonic() - self.last_line
        if self.done < self.total and line_is_due(since_last_line, seconds_per_item):
            left = duration((self.total - self.done) * seconds_per_item)
            logger.info(
                f"{self.title}: {self._count()}, {seconds_per_item:.3g} s each, {left} left"
            )
            self.last_line, self.has_logged = time.monotonic(), True

    def _seconds(self) -> float:
        return time.monotonic() - self.started

    def _count(self) -> str:
        return f"{self.done} of {self.total} {self.unit}s"


def line_is_due(since_last_line: float, seconds_per_item: float) -> bool:
    """Whether waiting for one more item would make the gap between two lines longer than a minute.

    A loop can log only between two items. Both arguments are in seconds.
    """
    return since_last_line + seconds_per_item > SECONDS_BETWEEN_LINES


def progress(
    items: Iterable[Item], title: str, total: int, unit: str = "case", bar: bool = True
) -> Iterator[Item]:
    """Iterate over items; a `Progress` counts an item when the loop body has finished with it."""
    with Progress(title, total, unit, bar) as counter:
        for item in items:
            yield item
            counter.update()
