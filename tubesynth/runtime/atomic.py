"""Atomic writes: a file is written under a temporary name beside its path, and then renamed.

A killed process leaves the old file or the new one, never half of a file. A full disk or a folder
that cannot be written is an InputError with the path.
"""

import errno
import os
from contextlib import contextmanager, suppress
from pathlib import Path

from tubesynth.runtime.errors import InputError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NOT_WRITABLE = (
    *FULL,
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO),
    *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOENT, errno.ENAMETOOLONG),
)


@contextmanager
def replacing(path):
    """A temporary name beside `path`: renamed onto it at the end, removed where the block fails."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}.tmp")
    with writing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            os.replace(temporary, path)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


@contextmanager
def writing(path):
    """Raise an InputError for an error of a write to `path` that a user can correct."""
    try:
        yield
    except OSError as error:
        if error.errno in NOT_WRITABLE:
            remedy = "free space or choose" if error.errno in FULL else "choose"
            # The missing file may be the source of a copy, not the path itself.
            missing = f": {error.filename}" if error.errno == errno.ENOENT else ""
            raise InputError(
                f"{path}: not written ({error.strerror}{missing}); {remedy} another folder"
            ) from error
        raise


def write_text(path: Path, text: str) -> None:
    """Write the text as UTF-8."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def save_png(path, array) -> None:
    """array: (H, W, 3) uint8."""
    from PIL import Image

    with replacing(path) as temporary:
        Image.fromarray(array).save(temporary, "png")
