"""Text and JSON from files that a user names or a killed run has left: read whole, or refused.

Only regular files are read, and only to a size that the kind of file can sensibly have: a pipe has
no end, and a file of gigabytes takes all memory.
"""

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tubesynth.runtime.errors import InputError

MOST_BYTES = 2**28  # of a JSON file: a manifest of 10,000 cases has 2**24


def no_such(path: str | Path, wanted: str) -> str:
    """What is in the place of a file or folder that is wanted: "no such file", or another kind."""
    path = Path(path)
    if not path.exists():
        return f"a link to nowhere, no {wanted}" if path.is_symlink() else f"no such {wanted}"
    kind = "a folder" if path.is_dir() else "a file" if path.is_file() else "a pipe or a device"
    return f"{kind}, no {wanted}"


def require_folder(path: str | Path, remedy: str) -> None:
    """InputError with the remedy if the path is no folder."""
    if not Path(path).is_dir():
        raise InputError(f"{path}: {no_such(path, 'folder')}; {remedy}")


def read_bytes(path: str | Path, remedy: str, most_bytes: int) -> bytes:
    """The bytes of a regular file; InputError with reason and remedy if it is none, or too long."""

    def refusal(reason: object) -> InputError:
        return InputError(f"{path}: not readable ({reason}); {remedy}")

    try:
        # Opening a pipe otherwise waits for its writer.
        with open(path, "rb", opener=lambda p, flags: os.open(p, flags | os.O_NONBLOCK)) as stream:
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise refusal("a pipe or a device, no file")
            if status.st_size > most_bytes:
                raise refusal(f"over {most_bytes:,} bytes")
            return stream.read()
    except FileNotFoundError as error:
        raise InputError(f"{path}: {no_such(path, 'file')}; {remedy}") from error
    except OSError as error:
        raise refusal(error.strerror) from error


def read_text(path: str | Path, remedy: str, most_bytes: int = MOST_BYTES) -> str:
    """The UTF-8 text of a file, without a byte order mark; InputError as `read_bytes`."""
    try:
        return read_bytes(path, remedy, most_bytes).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        reason = f"byte {error.start} is no UTF-8 text"
        raise InputError(f"{path}: not readable ({reason}); {remedy}") from error


def read_json(path: str | Path, remedy: str) -> Any:
    """The value in a JSON file; InputError as `read_text`, and where the text is no JSON."""
    text = read_text(path, remedy)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else error
        raise InputError(f"{path}: no readable JSON ({reason}); {remedy}") from error


def stored_json(path: Path) -> dict:
    """The dictionary in a JSON file of an earlier run; {} where it is missing or damaged."""
    try:
        value = read_json(path, "delete it")
    except InputError:
        return {}
    return value if isinstance(value, dict) else {}


def json_lines(path: Path, remedy: str) -> Iterator[tuple[str, dict]]:
    """(line, dictionary) of the lines of a log that hold one; a killed process leaves half a line.

    InputError if it is no file.
    """
    text = read_bytes(path, remedy, most_bytes=2**32).decode("utf-8", errors="replace")
    for line in text.split("\n"):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            yield line, row


def fits(value: Any, form: Any) -> bool:
    """Whether a value of JSON has a form: a type, [FORM of each item], or {key: FORM of its value}.

    A dictionary may have further keys.
    """
    if isinstance(form, dict):
        keys = isinstance(value, dict) and form.keys() <= value.keys()
        return keys and all(fits(value[key], inner) for key, inner in form.items())
    if isinstance(form, list):
        return isinstance(value, list) and all(fits(item, form[0]) for item in value)
    return isinstance(value, form) and not isinstance(value, bool)
