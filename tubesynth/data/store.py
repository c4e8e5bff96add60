"""The disk cache: arrays under the hash of everything that they were made from.

<root>/<kind>/<key>/ holds one .npy file per array and meta.json. The key contains the digest of
the source's bytes and every setting that matters, so a stale entry cannot be found and nothing
needs deleting by hand. An entry is written beside, synced, checksummed and renamed: a reader sees
all of it or nothing. Builders of one key wait for each other on a file lock, so it is written
once. Arrays are memory-mapped when read.
"""

import hashlib
import json
import math
import mmap
import os
import re
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tubesynth.data.digest import file_digest, read_json, source_digest
from tubesynth.runtime.atomic import FULL, NOT_WRITABLE
from tubesynth.runtime.errors import InputError

_TEMPORARY = ".tmp-"
_KEY = re.compile("[0-9a-f]{32}")  # as entry_key makes them


@dataclass(frozen=True)
class Entry:
    """One finished entry: `meta` is what meta.json says, `size` its bytes on disk."""

    kind: str
    key: str
    path: Path
    meta: dict

    @property
    def size(self) -> int:
        return sum(array["bytes"] for array in self.meta["arrays"].values())

    def arrays(self) -> dict[str, np.ndarray]:
        """Its arrays, read-only and memory-mapped: only the pages that are touched are read."""
        return {name: self.array(name) for name in self.meta["arrays"]}

    def array(self, name: str) -> np.ndarray:
        about = self.meta["arrays"][name]
        shape, dtype = tuple(about["shape"]), np.dtype(about["dtype"])
        # np.load would parse the header, which takes longer than to read a crop
        with open(self.path / f"{name}.npy", "rb") as stream:
            mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        offset = about["bytes"] - math.prod(shape) * dtype.itemsize
        return np.ndarray(shape, dtype, mapped, offset)

    def damage(self) -> str | None:
        """What differs from the checksums of meta.json; None where nothing does."""
        for name, expected in self.meta["arrays"].items():
            file = self.path / f"{name}.npy"
            if not file.is_file() or file_digest(file) != expected["sha256"]:
                return f"{file.name} is not what was written"
        return None


def entry_key(**parts) -> str:
    """A key from everything an entry depends on: plain values, tuples, dicts, arrays' lists."""
    text = json.dumps(parts, sort_keys=True, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class Store:
    """A cache folder; safe for any number of processes at once. Cheap to make and to pickle."""

    def __init__(self, root):
        self.root = Path(root)

    def digest(self, path, read: bool = True) -> str | None:
        """SHA-256 of a source's bytes: a file or a DICOM folder; read once, then remembered.

        read=False gives None where it is not remembered.
        """
        return source_digest(path, self.root / "digests", read)

    def open(self, kind: str, key: str) -> Entry | None:
        """The entry, or None where it is missing or a file of it has the wrong size."""
        path = self.root / kind / key
        meta = read_json(path / "meta.json")
        if not meta or "arrays" not in meta:
            return None
        try:
            for name, expected in meta["arrays"].items():
                if os.stat(path / f"{name}.npy").st_size != expected["bytes"]:
                    return None
        except OSError:
            return None
        return Entry(kind, key, path, meta)

    def ensure(
        self,
        kind: str,
        key: str,
        build: Callable[[], dict[str, np.ndarray] | tuple[dict[str, np.ndarray], dict]],
        meta: dict,
    ) -> tuple[Entry, bool]:
        """(entry, whether it was built here); `meta` says what it is, for `list`."""
        entry = self.open(kind, key)
        if entry:
            return entry, False
        with self._writing():
            (self.root / kind).mkdir(parents=True, exist_ok=True)
        with self._lock(kind, key):
            entry = self.open(kind, key)  # another builder may have finished while this one waited
            if entry:
                return entry, False
            result = build()
            arrays, extra = result if isinstance(result, tuple) else (result, {})
            with self._writing():
                self._write(kind, key, arrays, {**meta, **extra})
        entry = self.open(kind, key)
        if entry is None:
            raise RuntimeError(f"{self.root / kind / key}: written, but not readable")
        return entry, True

    def entries(self, kind: str | None = None) -> Iterator[Entry]:
        """All whole entries, by kind and key."""
        for folder in self.folders(kind):
            entry = self.open(folder.parent.name, folder.name)
            if entry:
                yield entry

    def problem(self, folder: Path) -> str | None:
        """What is wrong with the entry in a folder, by its checksums; None where nothing is."""
        entry = self.open(folder.parent.name, folder.name)
        return entry.damage() if entry else "a file is missing or has the wrong size"

    def folders(self, kind: str | None = None) -> Iterator[Path]:
        """The folders of all entries, whole or damaged, by kind and key; what has no key for a name
        is not ours, and never touched.
        """
        for folder in sorted(self.root.glob(f"{kind or '*'}/*/")):
            if _KEY.fullmatch(folder.name):
                yield folder

    def remove(self, folder: Path) -> None:
        """Takes an entry away in one step (a rename), then frees its bytes."""
        doomed = folder.with_name(_temporary_name(folder.name))
        try:
            folder.rename(doomed)
        except FileNotFoundError:  # another process was faster
            return
        shutil.rmtree(doomed, ignore_errors=True)

    def leftovers(self) -> list[Path]:
        """Unfinished folders and files of builders that are no longer alive."""
        found = []
        for path in self.root.glob(f"*/{_TEMPORARY}*"):
            key = path.name[len(_TEMPORARY) :].split("-")[0]
            with self._lock(path.parent.name, key, wait=False) as free:
                if free and path.exists():
                    found.append(path)
        return found

    def sweep(self) -> int:
        """Removes the leftovers; their number."""
        found = self.leftovers()
        for path in found:
            shutil.rmtree(path, ignore_errors=True)
        return len(found)

    def _write(self, kind, key, arrays, meta) -> None:
        final = self.root / kind / key
        temporary = final.with_name(_temporary_name(key))
        temporary.mkdir()
        try:
            described = {}
            for name, array in arrays.items():
                file = temporary / f"{name}.npy"
                with file.open("wb") as stream:
                    np.save(stream, np.ascontiguousarray(array), allow_pickle=False)
                    _sync(stream)
                described[name] = {
                    "dtype": array.dtype.str,
                    "shape": list(array.shape),
                    "bytes": file.stat().st_size,
                    "sha256": file_digest(file),
                }
            with (temporary / "meta.json").open("w") as stream:
                json.dump({**meta, "arrays": described}, stream, indent=1, default=_plain)
                _sync(stream)
            _sync_folder(temporary)
            if final.exists():
                if self.open(kind, key):  # without file locks, another builder may have been first
                    return
                self.remove(final)  # damaged
            try:
                temporary.rename(final)
            except OSError:
                if self.open(kind, key) is None:
                    raise
            _sync_folder(final.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    @contextmanager
    def _lock(self, kind: str, key: str, wait: bool = True):
        """An exclusive lock on a key; yields whether it is held (always, where `wait`).

        The kernel frees it with its process, however that ends. File systems without locks go on
        without: the rename still keeps entries whole, they may only be built twice.
        """
        import fcntl

        with self._writing():
            (self.root / "locks").mkdir(parents=True, exist_ok=True)
            file = self.root / "locks" / f"{kind}-{key}"
            stream = file.open("a")
        with stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
                held = True
            except BlockingIOError:
                held = False
            except OSError:
                held = wait
            try:
                yield held
            finally:
                if held:  # waiters hold the unlinked file and look for the entry first
                    file.unlink(missing_ok=True)

    @contextmanager
    def _writing(self):
        """A full disk or a folder that cannot be written is the user's to put right."""
        try:
            yield
        except OSError as error:
            if error.errno in NOT_WRITABLE:
                remedy = "free space or " if error.errno in FULL else ""
                raise InputError(
                    f"{self.root}: not written ({error.strerror}); {remedy}set data.cache_dir"
                ) from error
            raise


def will_need(array: np.ndarray, start, size) -> None:
    """Tells the kernel which part of a memory-mapped array (X, Y, Z) is read next: a box.

    Left alone, it reads ahead of every access and so fetches the whole file for any crop.
    """
    mapped = array.base
    if not isinstance(mapped, mmap.mmap) or not hasattr(mapped, "madvise"):
        return
    header = len(mapped) - array.nbytes
    _, rows, depth = array.shape
    length = ((size[1] - 1) * depth + size[2]) * array.itemsize
    for x in range(start[0], start[0] + size[0]):
        first = header + ((x * rows + start[1]) * depth + start[2]) * array.itemsize
        page = first - first % mmap.PAGESIZE
        mapped.madvise(mmap.MADV_WILLNEED, page, first + length - page)


def _temporary_name(key: str) -> str:
    return f"{_TEMPORARY}{key}-{socket.gethostname()}-{os.getpid()}-{os.urandom(3).hex()}"


def _plain(value):
    """NumPy numbers and arrays, and paths, as JSON has them."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _sync(stream) -> None:
    stream.flush()
    os.fsync(stream.fileno())


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
