"""The errors and exit codes of the commands: 0 done, 2 wrong input, 75 stopped after saving.

An error that the user can correct (a file, a key, a value) is an InputError, whose message is one
line with the file or key and the remedy. Any other error is a bug and keeps its traceback.
"""

import argparse
import errno
import importlib
import os
import re
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

EXIT_INPUT = 2
OUT_OF_MEMORY = (
    "out of memory: lower --batch-size or --resolution, or give --latent-tile; for training"
    " data.batch_size or data.crop, or set train.checkpointing=true"
)
LOST_RANK = (
    "another rank has ended, and this one has lost its connection: the message of that rank says"
    " why; start the same command again"
)
# Names a file that rank 0 makes after a signal, when all ranks have saved. A batch script needs it:
# srun and torchrun do not pass the exit code of their processes on.
STOP_FILE = "TUBESYNTH_STOP_FILE"
EXIT_STOPPED = 75  # EX_TEMPFAIL: the same command, started again, resumes the run


class InputError(ValueError):
    """Wrong input or set-up; its one-line message has the file or key and the remedy."""


class SettingError(InputError):
    """An input that a setting of the command does not fit, which then is wrong for all cases."""


class SharedError(InputError):
    """One that every rank raises, of which the first prints it."""


class Stopped(Exception):
    """A signal has ended the run; its state is saved."""


# The errors of a named file or folder that its user can correct.
OF_A_PATH = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR),
    *(errno.ELOOP, errno.ENAMETOOLONG, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE),
)
MOST_CHARACTERS = 2000  # of an error's line


def is_utf_8(name: str) -> bool:
    """Whether UTF-8 can hold a name: Python has other bytes of a name as lone surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def short(value: object, most: int = 60) -> str:
    """The repr of a value, its middle left out where it is longer than `most` characters."""
    text = repr(value)
    return text if len(text) <= most else f"{text[: most - 12]} ... {text[-7:]}"


def one_line(error: Exception) -> str:
    """The message of an error in one line that a terminal shows as it is."""
    text = " ".join(str(error).split())
    text = text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]} ..."
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


# A setting of the config on the command line: section.key=value.
OVERRIDE = re.compile(r"[a-z_]\w*(\.[a-z_]\w*)*=")


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Adds the default of an option to its help text, unless the text already states it."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=32)

    def _get_help_string(self, action: argparse.Action) -> str:
        text, default = action.help or "", action.default
        if isinstance(default, list | tuple):
            default = " ".join(map(str, default))
        if default is None or default is False or default in ("", argparse.SUPPRESS):
            return text
        if "default" in text:
            return text
        return f"{text} (default: {default})".strip()


class CommandParser(argparse.ArgumentParser):
    """The parser of every command: one-line errors, defaults and an example in --help."""

    def __init__(self, *, example: str | None = None, **options: Any):
        options.setdefault("formatter_class", HelpFormatter)
        if example:
            options["epilog"] = "example:\n" + textwrap.indent(example, "  ")
        super().__init__(**options)

        for action in (None, "store"):
            self.register("action", action, _StoreLast)
        self.stored: set[str] = set()

    def parse_known_args(self, args=None, namespace=None):  # also of parse_args and subcommands
        self.stored.clear()
        items = sys.argv[1:] if args is None else list(args)
        return super().parse_known_args(_checked(items), namespace)

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see {self.prog} --help)")

    def parse_with_overrides(self, argv: list[str] | None = None) -> argparse.Namespace:
        """The options, and in `overrides` the key=value items, which may stand anywhere."""
        items = _checked(sys.argv[1:] if argv is None else argv)
        overrides = [item for item in items if OVERRIDE.match(item)]
        args, extra = self.parse_known_args([item for item in items if not OVERRIDE.match(item)])
        takes_overrides = "overrides" in args
        overrides = [*vars(args).get("overrides", []), *extra, *overrides]
        unknown = [item for item in overrides if item.startswith("-") or not takes_overrides]
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        args.overrides = overrides
        return args


def _checked(items: list[str]) -> list[str]:
    """The items; InputError for an empty one, which as a path would be the current folder, and for
    a name with bytes that are no UTF-8, which no text file could name.
    """
    for previous, item in zip(["the command line", *items], items, strict=False):
        if not is_utf_8(item):
            raise InputError(f"{item}: the name is no UTF-8: rename the file or folder")
        if not item or item.startswith("--") and item.endswith("="):
            raise InputError(
                f"{item or previous}: followed by an empty text, as of a variable of the shell that"
                " is not set: give a value, or leave it out"
            )
    return items


class _StoreLast(argparse.Action):
    """Stores the value of an option, the last where it is there twice (after "$@"), and says so."""

    def __call__(self, parser, namespace, values, option_string=None):
        assert isinstance(parser, CommandParser)
        if option_string and self.dest in parser.stored:
            print(f"note: {option_string} is there twice: {values} counts", file=sys.stderr)
        parser.stored.add(self.dest)
        setattr(namespace, self.dest, values)


def add_overrides(parser: argparse.ArgumentParser, example: str = "train.epochs=10") -> None:
    """Add the positional key=value items of a command that reads a config."""
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help=f"change a setting, e.g. {example}"
    )


def is_out_of_memory(error: Exception) -> bool:
    """Whether NumPy or torch, on a GPU or CPU, ran out of memory; does not import torch."""
    by_type = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return by_type or "can't allocate memory" in str(error)


def _is_of_lost_rank(error: Exception) -> bool:
    """Whether gloo, NCCL or the store of a run has lost the connection to another rank."""
    by_type = type(error).__name__ in ("DistBackendError", "DistNetworkError")
    is_lost = by_type or re.search(r"Connection (closed by|reset by) peer|Broken pipe", str(error))
    return "RANK" in os.environ and bool(is_lost)


def make_stop_file() -> None:
    """Make the file of STOP_FILE, if the variable is set."""
    if STOP_FILE in os.environ:
        Path(os.environ[STOP_FILE]).touch()


def run_command(main: Callable[[], None]) -> NoReturn:
    """Run a command's `main` and exit with its code; sets up the log and torch's memory pages."""
    # torch puts large CPU tensors on huge pages, as NumPy does: fresh memory is filled up to four
    # times faster. torch reads the variable at its first allocation, and importing allocates none.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    from tubesynth.runtime import log, stop_signal  # import this file

    log.set_up()
    try:
        with stop_signal.at_once():
            main()
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of the output, such as `head`, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except InputError as error:
        if isinstance(error, SharedError) and not log.is_main_process():
            sys.exit(EXIT_INPUT)
        _exit(f"error: {one_line(error)}", EXIT_INPUT)
    except OSError as error:
        if error.filename is None or error.errno not in OF_A_PATH:
            raise
        path = os.fsdecode(error.filename)
        reason = f"{path}: {error.strerror}; check the path, its permissions and its disk"
        _exit(f"error: {one_line(InputError(reason))}", EXIT_INPUT)
    except Stopped as stopped:
        if log.is_main_process():
            print(f"stopped: {stopped}", file=sys.stderr)
            make_stop_file()
        sys.exit(EXIT_STOPPED)
    except (MemoryError, RuntimeError) as error:
        if _is_of_lost_rank(error):
            _exit(f"error: {LOST_RANK} ({one_line(error)})", 1)
        if is_out_of_memory(error):
            _exit(f"error: {OUT_OF_MEMORY} ({one_line(error)})", EXIT_INPUT)
        raise
    except KeyboardInterrupt:
        _exit("interrupted", 130)
    sys.exit(0)


def _exit(message: str, code: int) -> NoReturn:
    print(message, file=sys.stderr)
    sys.exit(code)


def load_command(name: str) -> ModuleType:
    """The module of a command: tubesynth.NAME, or the __main__ of the package of that name.

    A signal waits until it is imported: many modules cannot be imported by halves.
    """
    from tubesynth.runtime.stop_signal import deferred  # imports this file

    with deferred():
        module = importlib.import_module(f"tubesynth.{name}")
        is_package = hasattr(module, "__path__")
        return importlib.import_module(f"tubesynth.{name}.__main__") if is_package else module


def run_module(name: str) -> NoReturn:
    """The program of `python -m tubesynth.NAME`, which listens to signals while it is imported."""
    run_command(lambda: load_command(name).main())
