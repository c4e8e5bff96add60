"""The disk cache: arrays stored under the hash of everything that decides their values.

<root>/<kind>/<key>/ holds one .npy file per array and meta.json. The key contains the digests of
the source files and every setting that decides the arrays, so a stale entry is never read and never
has to be deleted by hand. An entry is written under a temporary name, synced, checksummed and
renamed, so a reader never sees an incomplete entry; each process compares an entry with its
checksums once. A file lock per key makes concurrent builders wait, so an entry is written once.
Arrays are memory-mapped when they are read.
"""

import hashlib
import json
import math
import mmap
import os
import re
import shutil
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from tubesynth.runtime.atomic import sync, writing
from tubesynth.runtime.file_lock import file_lock
from tubesynth.runtime.log import logger
from tubesynth.runtime.reading import fits, stored_json
from tubesynth.volume.digest import file_digest, source_digest, stored_digest

_TEMPORARY = ".tmp-"
_KEY = re.compile("[0-9a-f]{32}")  # the format of entry_key
_DTYPE = re.compile("[<>|][biuf][1248]")  # of numbers, as in dtype.str
# The arrays of an entry by name, and further values for its meta.json.
Build = Callable[[], tuple[dict[str, np.ndarray], dict]]


@dataclass(frozen=True)
class Entry:
    """A finished entry of the cache; meta: the content of its meta.json."""

    kind: str
    key: str
    path: Path
    meta: dict

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(array["bytes"] for array in self.meta["arrays"].values())

    def arrays(self) -> dict[str, np.ndarray]:
        """All arrays, read-only and memory-mapped: the disk reads only the pages that are used."""
        return {name: self.array(name) for name in self.meta["arrays"]}

    def array(self, name: str) -> np.ndarray:
        """One array, read-only and memory-mapped."""
        header = self.meta["arrays"][name]
        shape, dtype = tuple(header["shape"]), np.dtype(header["dtype"])
        # np.load would parse the header of the file, which takes longer than reading a crop.
        with open(self.path / f"{name}.npy", "rb") as stream:
            mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        offset = header["bytes"] - math.prod(shape) * dtype.itemsize
        return np.ndarray(shape, dtype, mapped, offset)

    def damage(self) -> str | None:
        """A message on the first array that differs from its checksum in meta.json, or None."""
        for name, expected in self.meta["arrays"].items():
            file = self.path / f"{name}.npy"
            if not file.is_file() or file_digest(file) != expected["sha256"]:
                return f"{file.name} differs from its checksum"
        return None


def entry_key(**settings) -> str:
    """The key of everything an entry depends on: plain values, tuples, dictionaries, arrays."""
    text = json.dumps(settings, sort_keys=True, default=_plain)
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

    def open(self, kind: str, key: str) -> Entry | None:
        """The entry, or None if it is missing or one of its files has the wrong size."""
        path = self.root / kind / key
        meta = stored_json(path / "meta.json")
        if not _is_complete(meta):
            return None
        try:
            for name, expected in meta["arrays"].items():
                if os.stat(path / f"{name}.npy").st_size != expected["bytes"]:
                    return None
        except FileNotFoundError:
            return None
        return Entry(kind, key, path, meta)

    def checked(self, kind: str, key: str) -> Entry | None:
        """The entry, compared with its checksums when this store reads it for the first time.

        None if it is missing or damaged; a damaged one is removed, so that it is built again.
        """
        entry = self.open(kind, key)
        if entry is None or (kind, key) in self._checked:
            return entry
        if damage := entry.damage():
            logger.warning(f"{entry.path}: {damage}: the entry is removed and built again")
            self.remove(entry.path)
            return None
        self._checked.add((kind, key))
        return entry

    def ensure(self, kind: str, key: str, build: Build, meta: dict) -> tuple[Entry, bool]:
        """(entry, whether this call built it); meta describes it in meta.json."""
        entry = self.checked(kind, key)
        if entry:
            return entry, False
        with self._writing():
            (self.root / kind).mkdir(parents=True, exist_ok=True)
        with self._lock(kind, key):
            entry = self.open(kind, key)  # another builder may have finished while this one waited
            if entry:
                return entry, False
            arrays, extra = build()
            with self._writing():
                self._write(kind, key, arrays, {**meta, **extra})
        entry = self.open(kind, key)
        if entry is None:
            raise RuntimeError(
                f"{self.root / kind / key}: written but not readable; check the disk"
            )
        return entry, True

    def entries(self, kind: str | None = None) -> Iterator[Entry]:
        """All undamaged entries, sorted by kind and key."""
        for folder in self.folders(kind):
            entry = self.open(folder.parent.name, folder.name)
            if entry:
                yield entry

    def problem(self, folder: Path) -> str | None:
        """A message on the damage of the entry in a folder, by its checksums, or None."""
        entry = self.open(folder.parent.name, folder.name)
        return entry.damage() if entry else "a file is missing or has the wrong size"

    def folders(self, kind: str | None = None) -> Iterator[Path]:
        """The folders of all entries, also damaged ones, sorted by kind and key.

        A folder with another name than a key is not part of the cache and is never changed.
        """
        for folder in sorted(self.root.glob(f"{kind or '*'}/*/")):
            if _KEY.fullmatch(folder.name):
                yield folder

    def remove(self, folder: Path) -> None:
        """Remove an entry in one step (a rename), then free its bytes."""
        temporary = folder.with_name(_temporary_name(folder.name))
        try:
            folder.rename(temporary)
        except FileNotFoundError:  # another process has removed it
            return
        shutil.rmtree(temporary, ignore_errors=True)

    def leftovers(self) -> list[Path]:
        """The unfinished folders of processes that no longer run."""
        folders = []
        for path in self.root.glob(f"*/{_TEMPORARY}*"):
            key = path.name[len(_TEMPORARY) :].split("-")[0]
            with self._lock(path.parent.name, key, wait=False) as locked:
                if locked and path.exists():
                    folders.append(path)
        return folders

    def sweep(self) -> int:
        """Remove the leftovers; returns their number."""
        folders = self.leftovers()
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
        if folders:
            logger.info(f"{self.root}: removed {len(folders)} unfinished entries of stopped builds")
        return len(folders)

    def _write(self, kind: str, key: str, arrays: dict[str, np.ndarray], meta: dict) -> None:
        final = self.root / kind / key
        temporary = final.with_name(_temporary_name(key))
        temporary.mkdir()
        try:
            array_meta = {}
            for name, array in arrays.items():
                file = temporary / f"{name}.npy"
                with file.open("wb") as stream:
                    _write_array(stream, np.ascontiguousarray(array))
                    _sync(stream)
                array_meta[name] = {
                    "dtype": array.dtype.str,
                    "shape": list(array.shape),
                    "bytes": file.stat().st_size,
                    "sha256": file_digest(file),
                }
            content = json.loads(json.dumps({**meta, "arrays": array_meta}, default=_plain))
            content["sha256"] = _meta_sha256(content)
            with (temporary / "meta.json").open("w") as stream:
                json.dump(content, stream, indent=1)
                _sync(stream)
            sync(temporary)
            if final.exists():
                if self.open(kind, key):  # without file locks: another process has built it
                    return
                self.remove(final)  # damaged
            try:
                temporary.rename(final)
            except OSError:
                if self.open(kind, key) is None:
                    raise
            sync(final.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    @contextmanager
    def _lock(self, kind: str, key: str, wait: bool = True) -> Iterator[bool]:
        """An exclusive lock on a key; yields whether this process has it (always, if wait).

        On a file system without locks an entry is still complete, but may be built twice.
        """
        path = self.root / "locks" / f"{kind}-{key}"
        with self._writing():
            path.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(path, wait) as locked:
            yield wait if locked is None else locked

    def _writing(self):
        return writing(self.root, "set data.cache_dir")


def will_need(array: np.ndarray, start: Sequence[int], size: Sequence[int]) -> None:
    """Advise the kernel to load a box of a memory-mapped array (X, Y, Z).

    Without this advice, read-ahead at every access loads the whole file for any crop.
    """
    mapped = array.base
    if not isinstance(mapped, mmap.mmap) or not hasattr(mapped, "madvise"):
        return
    header = len(mapped) - array.nbytes
    _, rows, depth = array.shape
    length = ((size[1] - 1) * depth + size[2]) * array.itemsize
    # One slab of the box at a time: its bytes from row start[1] to the end of its last row.
    for x in range(start[0], start[0] + size[0]):
        first = header + ((x * rows + start[1]) * depth + start[2]) * array.itemsize
        page = first - first % mmap.PAGESIZE
        mapped.madvise(mmap.MADV_WILLNEED, page, first + length - page)


def _temporary_name(key: str) -> str:
    return f"{_TEMPORARY}{key}-{socket.gethostname()}-{os.getpid()}-{os.urandom(3).hex()}"


def _plain(value):
    """A NumPy number or array, or a path, as a value of JSON."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _meta_sha256(meta: dict) -> str:
    """Of everything in meta.json but this checksum itself."""
    plain = {key: value for key, value in meta.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _is_complete(meta: dict) -> bool:
    """Whether meta.json is undamaged and describes arrays that its entry can hold."""
    form = {"dtype": str, "shape": [int], "bytes": int, "sha256": str}
    # Entries of version 0.2.0 have no checksum of their meta.json.
    if not fits(meta, {"arrays": dict}) or meta.get("sha256", "") not in ("", _meta_sha256(meta)):
        return False
    for name, header in meta["arrays"].items():
        if not (name.isidentifier() and fits(header, form) and _DTYPE.fullmatch(header["dtype"])):
            return False
        size = math.prod(header["shape"]) * np.dtype(header["dtype"]).itemsize
        if min(header["shape"], default=0) < 0 or header["bytes"] < size:
            return False
    return True


def _write_array(stream: BinaryIO, array: np.ndarray) -> None:
    """The bytes of np.save, which loses the reason where the disk is full (errno is None)."""
    header = np.lib.format.header_data_from_array_1_0(array)
    np.lib.format.write_array_header_1_0(stream, header)
    stream.write(array.reshape(-1).view(np.uint8).data)


def _sync(stream) -> None:
    stream.flush()
    os.fsync(stream.fileno())
