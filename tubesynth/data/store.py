"""The disk cache: arrays stored under the hash of everything that decides their values.

<root>/<kind>/<first two digits of key>/<key>.safetensors is one entry. The key contains the digests
of the source files and every setting that decides the arrays, so a stale entry is never read and
never has to be deleted by hand. An entry is written under a temporary name, synced and renamed, so
a reader never sees an incomplete entry; each process compares an entry with its checksums once. A
file lock per key makes concurrent builders wait, so an entry is written once.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from tubesynth.data.entry import Entry, entry_bytes, plain, read_entry
from tubesynth.runtime.atomic import abandoned_files, replacing, writing
from tubesynth.runtime.file_lock import file_lock
from tubesynth.runtime.log import logger
from tubesynth.volume.digest import source_digest, stored_digest

SUFFIX = ".safetensors"
REMEDY = "set data.cache_dir"
_NAME = re.compile(r"[0-9a-f]{32}\.safetensors")  # the format of entry_key
_OUTDATED_NAME = re.compile(r"[0-9a-f]{32}(\.json)?")
# The arrays of an entry by name, and further values for its metadata.
Build = Callable[[], tuple[dict[str, np.ndarray], dict]]


def entry_key(**settings) -> str:
    """The key of everything an entry depends on: plain values, tuples, dictionaries, arrays."""
    text = json.dumps(settings, sort_keys=True, default=plain)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class Store:
    """A cache folder, safe for any number of processes at once; cheap to create and to pickle."""

    def __init__(self, root: str | Path):
        self.root = Path(root)
        self._checked: set[tuple[str, str]] = set()  # kind and key

    def digest(self, path: str | Path) -> str:
        """SHA-256 of a source (a file or a DICOM folder), stored after the first read."""
        return source_digest(path, self.root / "digests")

    def stored_digest(self, path: str | Path) -> str | None:
        """The digest of a source if it is stored; reads no source."""
        return stored_digest(path, self.root / "digests")

    def path(self, kind: str, key: str) -> Path:
        """The file of an entry. A folder per two digits: one of 100,000 files is slow to use."""
        return self.root / kind / key[:2] / f"{key}{SUFFIX}"

    def open(self, kind: str, key: str) -> Entry | None:
        """The entry, or None if it is missing or its file has the wrong size."""
        return read_entry(kind, key, self.path(kind, key))

    def checked(self, kind: str, key: str) -> Entry | None:
        """The entry, compared with its checksums when this store reads it for the first time.

        None if it is missing or damaged; a damaged one is removed, so that it is built again.
        """
        path = self.path(kind, key)
        existed = path.exists()  # asked first: another process may rename the file into place
        entry = self.open(kind, key)
        if entry is None and not existed:
            return None
        if entry and (kind, key) in self._checked:
            return entry
        if damage := _damage(entry):
            logger.warning(f"{path}: {damage}: the entry is removed and built again")
            self.remove(path)
            return None
        self._checked.add((kind, key))
        return entry

    def ensure(self, kind: str, key: str, build: Build, meta: dict) -> tuple[Entry, bool]:
        """(entry, whether this call built it); meta: further metadata."""
        entry = self.checked(kind, key)
        if entry:
            return entry, False
        path = self.path(kind, key)
        with self._lock(kind, key):
            entry = self.open(kind, key)  # another builder may have finished while this one waited
            if entry:
                return entry, False
            arrays, extra = build()
            with replacing(path, REMEDY) as temporary:
                temporary.write_bytes(entry_bytes(arrays, {**meta, **extra}))
        entry = self.open(kind, key)
        if entry is None:
            raise RuntimeError(f"{path}: written but not readable; check the disk")
        return entry, True

    def entries(self, kind: str | None = None) -> Iterator[Entry]:
        """All undamaged entries, sorted by kind and key."""
        for file in self.files(kind):
            if entry := self._entry(file):
                yield entry

    def problem(self, file: Path) -> str | None:
        """A message on the damage of the entry in a file, by its checksums, or None."""
        return _damage(self._entry(file))

    def files(self, kind: str | None = None) -> list[Path]:
        """The files of all entries, also damaged ones, sorted by kind and key.

        A file with another name than a key is not part of the cache and is never changed.
        """
        files = self.root.glob(f"{kind or '*'}/??/*{SUFFIX}")
        return sorted(file for file in files if _NAME.fullmatch(file.name))

    def leftovers(self) -> list[Path]:
        """The unfinished files of processes that no longer run."""
        folders = [path for path in self.root.glob("*/??") if path.is_dir()]
        return [file for folder in folders for file in abandoned_files(folder)]

    def outdated(self) -> list[Path]:
        """The entries and digests of version 0.2.0: folders and files named by a key alone."""
        return [path for path in self.root.glob("*/*") if _OUTDATED_NAME.fullmatch(path.name)]

    def remove(self, path: Path) -> None:
        """Remove a file, or the folder of an outdated entry; others may do so at the same time."""
        with writing(self.root, REMEDY):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def sweep(self) -> int:
        """Remove the leftovers; returns their number."""
        files = self.leftovers()
        for file in files:
            self.remove(file)
        if files:
            logger.info(f"{self.root}: removed {len(files)} unfinished entries of stopped builds")
        return len(files)

    def _entry(self, file: Path) -> Entry | None:
        return read_entry(file.parent.parent.name, file.stem, file)

    @contextmanager
    def _lock(self, kind: str, key: str) -> Iterator[None]:
        """An exclusive lock on a key.

        On a file system without locks an entry is still complete, but may be built twice.
        """
        path = self.root / "locks" / f"{kind}-{key}"
        with writing(self.root, REMEDY):
            path.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(path):
            yield


def _damage(entry: Entry | None) -> str | None:
    """A message on the damage of an entry by its checksums, or None; entry: None if unreadable."""
    return entry.damage() if entry else "its header is damaged, or its size is wrong"
