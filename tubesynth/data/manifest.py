"""What a prepared folder holds and what it was made from, so that a rerun goes on where it stopped.

OUTPUT/manifest.json: {"format", "tubesynth", "settings", "cases": {id: record}}. While cases are
made, each leaves its record in OUTPUT/.records/ID.json, written last: a case without a record was
not finished. Files are known by size and time, and by SHA-256 where these differ.
"""

import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

from tubesynth.data.digest import file_digest, read_json
from tubesynth.runtime.atomic import write_text, writing
from tubesynth.runtime.errors import InputError

FORMAT = 1
NAME, RECORDS = "manifest.json", ".records"


@contextmanager
def alone(root: Path):
    """For one process at a time; the kernel ends the claim with its process, however that ends."""
    import fcntl

    with writing(root):
        root.mkdir(parents=True, exist_ok=True)
        stream = (root / ".lock").open("a")
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{root}: another prepare is at work there; wait for it") from None
        except OSError:  # a file system without locks
            pass
        try:
            yield
        finally:
            (root / ".lock").unlink(missing_ok=True)


def claim(root: Path, settings: dict) -> dict[str, dict]:
    """The records in a folder that was made with these settings; a new folder is marked as such."""
    path = root / NAME
    known = read_json(path)
    if known is None:
        if path.exists():
            raise InputError(f"{path}: damaged; delete it, or choose another --output-dir")
        held = sorted(root.glob("*/images/*"))
        if held:
            raise InputError(
                f"{root}: holds images ({held[0].name}) but no {NAME}; choose another --output-dir"
            )
        write(root, settings, {})
        return {}
    if known.get("format") != FORMAT:
        raise InputError(f"{path}: of another version; choose another --output-dir")
    for key, value in settings.items():
        there = known.get("settings", {}).get(key)
        if there != value:
            raise InputError(
                f"{path}: {key} is {_short(there)} there, {_short(value)} was asked for; choose"
                " another --output-dir or delete this one"
            )
    records = dict(known["cases"])
    for file in sorted((root / RECORDS).glob("*.json")):
        record = read_json(file)
        if record:
            records[file.name[: -len(".json")]] = record
    return records


def write(root: Path, settings: dict, records: dict[str, dict]) -> None:
    """The whole manifest, atomically; single records and what killed runs left half-made go."""
    import tubesynth

    content = {
        "format": FORMAT,
        "tubesynth": tubesynth.__version__,
        "settings": settings,
        "cases": records,
    }
    _write_json(root / NAME, content)
    shutil.rmtree(root / RECORDS, ignore_errors=True)
    for pattern in (".*.tmp", "*/*/.*.tmp"):
        for path in root.glob(pattern):
            path.unlink(missing_ok=True)


def add(root: Path, case: str, record: dict) -> None:
    """A case is finished."""
    _write_json(root / RECORDS / f"{case}.json", record)


def described(path: Path, root: Path | None = None) -> dict:
    """A file's name (from root, else absolute), size, time and SHA-256."""
    stat = os.stat(path)
    name = str(path.relative_to(root)) if root else str(path.absolute())
    digest = file_digest(path)
    return {"path": name, "bytes": stat.st_size, "time_ns": stat.st_mtime_ns, "sha256": digest}


def is_as_described(path: Path, record: dict) -> bool:
    """Whether a file has the bytes of a record; read only where its size is right, its time not."""
    try:
        stat = os.stat(path)
    except OSError:
        return False
    if stat.st_size != record["bytes"]:
        return False
    return stat.st_mtime_ns == record["time_ns"] or file_digest(path) == record["sha256"]


def _write_json(path: Path, content: dict) -> None:
    write_text(path, json.dumps(content, indent=1) + "\n")


def _short(value) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:56]} ..."
