"""Atomic writes: a file is written under a temporary name beside its path, and then renamed.

A killed process, or a machine that loses its power, leaves the old file or the new one, never half
of a file. The temporary file of a killed process is removed by the next process that writes to the
folder. A full disk or a folder that cannot be written is an InputError with the path.
"""

import errno
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from tubesynth.runtime.errors import InputError, SettingError
from tubesynth.runtime.process_id import ProcessId

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NOT_WRITABLE = (
    *FULL,
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO),
    *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOENT, errno.ENAMETOOLONG),
)


# .NAME.WRITER.8 hex digits.tmp; the writer is a ProcessId, or in version 0.2.0 a process number.
TEMPORARY = re.compile(r"\..*\.([0-9a-f-]+)\.[0-9a-f]{8}\.tmp")
# A temporary file of another machine that has not grown for this time is of a killed process.
ABANDONED_SECONDS = 3600
_swept: set[Path] = set()  # the folders that this process has swept


@contextmanager
def replacing(path, remedy: str = "choose another folder", durable: bool = True):
    """A temporary name beside `path`: renamed onto it at the end, removed where the block fails.

    The bytes are on the disk before the rename, and the rename is at the end. durable=False does
    not wait for the disk: a machine that loses its power may leave an empty file, which the reader
    must take for a missing one. remedy: of an error.
    """
    path = Path(path)
    temporary = temporary_name(path)
    with writing(path, remedy):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            sweep(path.parent)
            yield temporary
            if durable:
                sync(temporary)
            os.replace(temporary, path)
            if durable:
                sync(path.parent)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def temporary_name(path: Path) -> Path:
    """A new hidden name beside `path`, which names the process that writes it."""
    name = os.fsencode(path.name)[:100].decode(errors="ignore")  # file systems count bytes
    return path.with_name(f".{name}.{ProcessId.own()}.{os.urandom(4).hex()}.tmp")


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sweep(folder: Path) -> None:
    """Remove the temporary files of killed processes, once in the life of this process."""
    if folder in _swept or not folder.is_dir():
        return
    _swept.add(folder)
    for file in abandoned_files(folder):
        file.unlink(missing_ok=True)  # another process may have swept it


def abandoned_files(folder: Path) -> Iterator[Path]:
    """The temporary files of killed processes."""
    for entry in os.scandir(folder):
        match = TEMPORARY.fullmatch(entry.name)
        if match and entry.is_file(follow_symlinks=False) and _is_abandoned(entry, match[1]):
            yield Path(entry.path)


def _is_abandoned(entry: os.DirEntry, writer: str) -> bool:
    process = ProcessId.parse(writer)
    runs = process.runs if process else None
    if runs is not None:
        return not runs
    with suppress(FileNotFoundError):
        return time.time() - entry.stat().st_mtime > ABANDONED_SECONDS
    return False


@contextmanager
def writing(path, remedy: str = "choose another folder"):
    """Raise a SettingError for an error of a write to `path` that a user can correct."""
    try:
        yield
    except OSError as error:
        if error.errno not in NOT_WRITABLE:
            raise
        remedy = f"free space or {remedy}" if error.errno in FULL else remedy
        # The missing file may be the source of a copy, not the path itself.
        missing = f": {error.filename}" if error.errno == errno.ENOENT else ""
        reason = f"{error.strerror}{missing}"
        raise SettingError(f"{path}: not written ({reason}); {remedy}") from error


def check_writable(folder: Path) -> None:
    """InputError where --output-dir, or the folder that it would be made in, takes no files.

    It makes nothing, so that a command which is refused later leaves no empty folder.
    """
    folder = folder.absolute()
    parent = next(path for path in (folder, *folder.parents) if path.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise InputError(
            f"--output-dir {folder}: {parent} is no folder to write to: choose another"
        )


def check_apart(
    output_dir: Path, inputs: Mapping[str, Path | None], inside_too: bool = False
) -> None:
    """InputError where --output-dir is an input folder; inside_too: or lies in one.

    inputs: {name of the option: folder}; its files and those that are written would be mixed.
    """
    target = output_dir.resolve()
    for name, folder in inputs.items():
        if folder is None:
            continue
        if target == folder.resolve():
            raise InputError(
                f"--output-dir {output_dir}: is the folder of --{name}: choose another"
            )
        if inside_too and folder.resolve() in target.parents:
            raise InputError(
                f"--output-dir {output_dir}: lies in the folder of --{name}, {folder}: choose"
                " another"
            )


def write_text(path: Path, text: str, durable: bool = True) -> None:
    """Write the text as UTF-8; durable: see replacing."""
    with replacing(path, durable=durable) as temporary:
        temporary.write_text(text, encoding="utf-8")


def copy_file(source: Path, path: Path) -> None:
    """A copy, which is nothing to do onto itself. A hard link would share its damage."""
    if source != path:
        with replacing(path) as temporary:
            shutil.copyfile(source, temporary)


def save_png(path, array) -> None:
    """array: (H, W, 3) uint8."""
    from PIL import Image

    with replacing(path) as temporary:
        Image.fromarray(array).save(temporary, "png")
