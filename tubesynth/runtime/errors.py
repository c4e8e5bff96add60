"""How a command ends: 0 done, 2 the input is wrong (one line), 75 stopped by a signal after saving.

Everything that a user can put right (a file, a key, a value) is raised as InputError with one line
that names the file or key and the remedy. Anything else is a bug of ours and keeps its traceback.
"""

import argparse
import os
import sys
from collections.abc import Callable
from typing import NoReturn

EXIT_INPUT = 2
OUT_OF_MEMORY = (
    "out of memory: lower --batch-size or --resolution; for training data.batch_size or data.crop,"
    " or set train.checkpointing=true"
)
EXIT_STOPPED = 75  # EX_TEMPFAIL: start the same command again and it goes on


class InputError(ValueError):
    """The user's input or set-up is wrong; the message is one line: what, where, and the remedy."""


class Stopped(Exception):
    """A signal asked the run to end; its state is saved."""


class CommandParser(argparse.ArgumentParser):
    """Refuses wrong options in one line, as all other input that is wrong."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see {self.prog} --help)")


def _is_out_of_memory(error: Exception) -> bool:
    """NumPy's, a GPU's and torch's on a CPU; without torch, which not every command needs."""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or "can't allocate memory" in str(error)


def run_command(main: Callable[[], None]) -> NoReturn:
    """Run a command's `main` and leave with its exit code; sets up the log and torch's memory."""
    # torch puts large CPU tensors on huge pages, as NumPy does: fresh memory is filled up to four
    # times faster. torch reads the variable at its first allocation, and importing allocates none.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    from tubesynth.runtime import log  # imports this file

    log.set_up()
    try:
        main()
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except InputError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(EXIT_INPUT)
    except Stopped as stopped:
        print(f"stopped: {stopped}", file=sys.stderr)
        sys.exit(EXIT_STOPPED)
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        print(f"error: {OUT_OF_MEMORY} ({' '.join(str(error).split())})", file=sys.stderr)
        sys.exit(EXIT_INPUT)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)
