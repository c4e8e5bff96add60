"""The cases of a folder whose files a command cannot use: it does all others, and then refuses."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tubesynth.runtime.errors import InputError, SettingError
from tubesynth.runtime.log import logger

MOST_LINES = 20


class LeftOut:
    """The messages of the cases that are left out; threads may share it."""

    def __init__(self, messages: Iterable[str] = ()):
        self.messages = set(messages)  # samples of one case have the same

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Notes an InputError in place of raising it, unless a setting is wrong for all cases."""
        try:
            yield
        except SettingError:
            raise
        except InputError as error:
            self.messages.add(str(error))

    def refuse(self, output_dir: Path, count: int) -> None:
        """InputError if a case of `count` was left out; of several, each has a line in the log."""
        first, *more = sorted(self.messages) or [None]
        if first is None:
            return
        if not more:
            raise InputError(first + ("; all other cases are done" if count > 1 else ""))
        for message in (first, *more)[:MOST_LINES]:
            logger.warning(message)
        if len(more) >= MOST_LINES:
            logger.warning(f"and {1 + len(more) - MOST_LINES} more")
        raise InputError(
            f"{output_dir}: {1 + len(more)} cases are left out, for the"
            " reasons above: correct their files, and give the same command again"
        )
