"""The identity of source files: SHA-256 of their bytes, remembered so that a warm start reads none.

A digest is remembered under the file's size, times and inode. Whatever changes a file's bytes
changes one of these, except within one tick of the clock: what is that fresh is not remembered.
"""

import hashlib
import json
import os
import time
from pathlib import Path

from tubesynth.runtime.atomic import replacing
from tubesynth.runtime.errors import InputError
from tubesynth.volume.files import source_files

_SETTLED_SECONDS = 2


def file_digest(file: Path) -> str:
    """SHA-256 of one file's bytes, as sha256sum prints it."""
    digest = hashlib.sha256()
    with open(file, "rb", buffering=0) as stream:
        while chunk := stream.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


def source_digest(path, memory: Path | None = None, read: bool = True) -> str | None:
    """SHA-256 of a volume's file, or of all files of a DICOM folder or of a header with its data.

    memory: the folder of remembered digests; without one, or where it cannot be written, nothing is
    remembered.
    read=False: None instead of reading a file whose digest is not remembered.
    """
    path = Path(path).absolute()
    try:
        files = source_files(path)
        signature = [_signature(file) for file in files]
    except OSError as error:
        raise InputError(f"{path}: not readable ({error.strerror}); check the path") from error
    memo = memory and memory / f"{_text_digest(str(path))[:32]}.json"
    known = memo and read_json(memo)
    if known and known.get("signature") == signature:
        return known["sha256"]
    if not read:
        return None
    start = time.time()
    digests = [file_digest(file) for file in files]
    names = [file.name for file in files]
    digest = digests[0] if len(files) == 1 else _text_digest(json.dumps([names, digests]))
    newest = max(max(one[1], one[3]) for one in signature) / 1e9
    settled = newest < start - _SETTLED_SECONDS
    if memo and settled and signature == [_signature(file) for file in files]:
        try:
            with replacing(memo) as temporary:
                record = {"path": str(path), "signature": signature, "sha256": digest}
                temporary.write_text(json.dumps(record))
        except (OSError, InputError):
            pass
    return digest


def read_json(path: Path) -> dict | None:
    """The dict in a file; None where there is no file, or not a whole one."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _signature(file: Path) -> list[int]:
    stat = os.stat(file)
    return [stat.st_size, stat.st_mtime_ns, stat.st_ino, stat.st_ctime_ns]


def _text_digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
