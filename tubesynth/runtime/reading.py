"""Text and JSON from files that a user names or a killed run has left: refused, or read whole.

Only regular files are opened, and only as much as the kind of file can sensibly hold is read: a
pipe has no end, and a file of gigabytes takes all memory.
"""

import json
import os
import stat
from pathlib import Path
from typing import Any

from tubesynth.runtime.errors import InputError

MOST_BYTES = 2**26  # of a JSON file: a manifest of 10,000 cases has 2**24


def read_text(path: str | Path, remedy: str, most_bytes: int = MOST_BYTES) -> str:
    """The UTF-8 text of a regular file, without a byte order mark.

    InputError with the reason and the remedy where the file cannot be read, is larger, or is none.
    """

    def refusal(reason: object) -> InputError:
        return InputError(f"{path}: not readable ({reason}); {remedy}")

    try:
        with open(path, "rb", opener=_open_without_waiting) as stream:
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise refusal("a pipe or a device, no file")
            raw = stream.read(most_bytes + 1)
    except OSError as error:
        raise refusal(error.strerror) from error
    if len(raw) > most_bytes:
        raise refusal(f"over {most_bytes:,} bytes")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise refusal(f"byte {error.start} is no UTF-8 text") from error


def read_json(path: str | Path, remedy: str) -> Any:
    """The value in a JSON file; InputError as `read_text`, and where the text is no JSON."""
    text = read_text(path, remedy)
    try:
        return json.loads(text)
    except ValueError as error:
        raise InputError(f"{path}: no readable JSON ({error}); {remedy}") from error
    except RecursionError as error:
        raise InputError(f"{path}: no readable JSON (nested too deep); {remedy}") from error


def _open_without_waiting(path: str, flags: int) -> int:
    """Opening a pipe otherwise waits for its writer."""
    return os.open(path, flags | os.O_NONBLOCK)
