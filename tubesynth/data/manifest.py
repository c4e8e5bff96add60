"""The manifest of a prepared folder: its files and their sources, so that a rerun resumes.

OUTPUT/manifest.json: {"format", "tubesynth", "settings", "cases": {id: record}}. While cases are
prepared, each leaves its record in OUTPUT/.records/ID.json, written last: a case without a record
is not finished. A file is unchanged if its size and time are, or its size and SHA-256.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tubesynth.data.layout import SPLITS
from tubesynth.runtime.atomic import sweep, write_text, writing
from tubesynth.runtime.errors import InputError, short
from tubesynth.runtime.file_lock import file_lock
from tubesynth.runtime.reading import fits, read_json, stored_json
from tubesynth.volume.digest import file_digest

FORMAT = 1
OPTIONS = {"crop_margin_mm": "--crop-to-heart", "heart": "--heart-dir"}  # may be left out
NAME, RECORDS = "manifest.json", ".records"
FILE_FORM = {"path": str, "bytes": int, "time_ns": int, "sha256": str}
# A record of a labeled case has a file "label" too.
_RECORD = {"part": str, "image": FILE_FORM, "made": str, "sources": [FILE_FORM], "notes": [str]}


@contextmanager
def exclusive(root: Path) -> Iterator[None]:
    """Lock a folder for this process; InputError if another process has it."""
    with writing(root):
        root.mkdir(parents=True, exist_ok=True)
    with file_lock(root / ".lock", wait=False) as locked:
        if locked is False:
            raise InputError(f"{root}: another prepare is writing to it; wait for its end")
        yield


def open_folder(root: Path, settings: dict) -> dict[str, dict]:
    """The records of a folder that was prepared with these settings; {} for a new folder.

    InputError if it was prepared with other settings, or holds images but no manifest.
    """
    path = root / NAME
    if not os.path.lexists(path):
        images = sorted(root.glob("*/images/*"))
        if images:
            raise InputError(
                f"{root}: holds images ({images[0].name}) but no {NAME}; choose another"
                " --output-dir"
            )
        write(root, settings, {})
        return {}
    stored = read_json(path, "delete it, or choose another --output-dir")
    if not fits(stored, {"format": int, "settings": dict, "cases": dict}):
        raise InputError(f"{path}: no manifest; delete it, or choose another --output-dir")
    if stored["format"] != FORMAT:
        raise InputError(f"{path}: of another version; choose another --output-dir")
    for key, value in settings.items():
        stored_value = stored["settings"].get(key)
        if stored_value != value:
            raise InputError(
                f"{path}: was prepared {_described(key, stored_value)}, this command is"
                f" {_described(key, value)}; choose another --output-dir, or delete the folder"
                f" {root}"
            )
    records = dict(stored["cases"])
    for file in sorted((root / RECORDS).glob("*.json")):
        records[file.name[: -len(".json")]] = stored_json(file)
    # a case whose record is damaged is prepared again
    return {case: r for case, r in records.items() if fits(r, _RECORD) and r["part"] in SPLITS}


def _described(key: str, value: Any) -> str:
    """'with --crop-to-heart 40.0', 'without --heart-dir' or 'with seed 3'."""
    if key in OPTIONS and not value:
        return f"without {OPTIONS[key]}"
    return f"with {OPTIONS.get(key, key)}" + ("" if value is True else f" {short(value)}")


def write(root: Path, settings: dict, records: dict[str, dict]) -> None:
    """Write the whole manifest; delete the records of single cases and the files of killed runs."""
    import tubesynth

    content = {
        "format": FORMAT,
        "tubesynth": tubesynth.__version__,
        "settings": settings,
        "cases": records,
    }
    _write_json(root / NAME, content)
    shutil.rmtree(root / RECORDS, ignore_errors=True)
    for folder in root.glob("*/*/"):
        sweep(folder)


def add(root: Path, case: str, record: dict) -> None:
    """Write the record of a finished case."""
    _write_json(root / RECORDS / f"{case}.json", record)


def file_record(path: Path, root: Path | None = None) -> dict:
    """A file's path (relative to root, else absolute), size, time and SHA-256."""
    stat = os.stat(path)
    name = str(path.relative_to(root)) if root else str(path.absolute())
    digest = file_digest(path)
    return {"path": name, "bytes": stat.st_size, "time_ns": stat.st_mtime_ns, "sha256": digest}


def is_unchanged(path: Path, record: dict) -> bool:
    """Whether a file has the bytes of its record; the file is read only if its time differs."""
    try:
        stat = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    if stat.st_size != record["bytes"]:
        return False
    return stat.st_mtime_ns == record["time_ns"] or file_digest(path) == record["sha256"]


def _write_json(path: Path, content: dict) -> None:
    write_text(path, json.dumps(content, indent=1) + "\n")
