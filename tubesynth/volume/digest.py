"""SHA-256 digests of source files, stored in a folder so that a second run reads no source file.

A digest is stored with the size, times and inode of its file, one of which changes with the bytes
of the file. Two changes within one tick of the clock could give equal times, so digests of files
that are younger than _SETTLED_SECONDS are not stored.
"""

import hashlib
import json
import os
import time
from contextlib import suppress
from pathlib import Path

from tubesynth.runtime.atomic import write_text
from tubesynth.runtime.errors import InputError
from tubesynth.runtime.reading import stored_json
from tubesynth.volume.files import source_files

_SETTLED_SECONDS = 2
_MOST_REMEMBERED = 10_000
_remembered: dict[Path, tuple[list[list[int]], str]] = {}  # {source: (signature, digest)}


def file_digest(file: Path) -> str:
    """SHA-256 of one file's bytes, as sha256sum prints it."""
    digest = hashlib.sha256()
    with open(file, "rb", buffering=0) as stream:
        while chunk := stream.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


def source_digest(path: str | Path, folder: Path | None = None) -> str:
    """SHA-256 of a volume's file, or of all files of a DICOM folder or of a header with its data.

    folder: holds the stored digests; without it this process remembers them.
    """
    path = Path(path).absolute()
    files, signature = _signature(path)
    if folder is None:
        remembered, digest = _remembered.get(path, (None, ""))
        if remembered == signature:
            return digest
    elif stored := _stored(folder, path, signature):
        return stored
    start = time.time()
    digests = [file_digest(file) for file in files]
    joined = json.dumps([[file.name for file in files], digests])
    digest = digests[0] if len(files) == 1 else hashlib.sha256(joined.encode()).hexdigest()
    newest = max(max(mtime_ns, ctime_ns) for _, mtime_ns, _, ctime_ns in signature) / 1e9
    is_settled = newest < start - _SETTLED_SECONDS
    if not is_settled or signature != _signature(path)[1]:
        return digest
    if folder is None:
        if len(_remembered) >= _MOST_REMEMBERED:
            _remembered.clear()
        _remembered[path] = signature, digest
        return digest
    record = {"path": str(path), "signature": signature, "sha256": digest}
    with suppress(InputError):  # a cache that cannot be written: the digest is computed again
        write_text(_record_path(folder, path), json.dumps(record), durable=False)
    return digest


def stored_digest(path: str | Path, folder: Path) -> str | None:
    """The digest of a source if it is stored and the source is unchanged, else None."""
    path = Path(path).absolute()
    return _stored(folder, path, _signature(path)[1])


def _signature(path: Path) -> tuple[list[Path], list[list[int]]]:
    """The files of a source, and for each file [size, mtime_ns, inode, ctime_ns]."""
    try:
        files = source_files(path)
        stats = [os.stat(file) for file in files]
    except OSError as error:
        raise InputError(f"{path}: not readable ({error.strerror}); check the path") from error
    return files, [[s.st_size, s.st_mtime_ns, s.st_ino, s.st_ctime_ns] for s in stats]


def _stored(folder: Path, path: Path, signature: list[list[int]]) -> str | None:
    record = stored_json(_record_path(folder, path))
    return record.get("sha256") if record.get("signature") == signature else None


def _record_path(folder: Path, path: Path) -> Path:
    name = hashlib.sha256(os.fsencode(path)).hexdigest()[:32]
    return folder / name[:2] / f"{name}.json"
