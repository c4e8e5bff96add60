"""An entry of the disk cache: the arrays of one case and their metadata in one .safetensors file.

The metadata, under METADATA_KEY, is a line with the SHA-256 of the JSON that follows it: what the
entry depends on, and type, shape and SHA-256 of each array. Arrays are memory-mapped when they are
read: the disk reads only the pages that are used. Any reader of safetensors can open the file.
"""

import hashlib
import json
import math
import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.numpy

METADATA_KEY = "tubesynth"
_LENGTH_BYTES = 8  # a file begins with the length of its header


@dataclass(frozen=True)
class Entry:
    """A finished entry; starts: the first byte of each array in its file."""

    kind: str
    key: str
    path: Path
    meta: dict
    starts: dict[str, int]

    @property
    def size(self) -> int:
        """Bytes of all arrays."""
        return sum(map(_size, self.meta["arrays"].values()))

    def arrays(self) -> dict[str, np.ndarray]:
        """All arrays, read-only and memory-mapped."""
        with open(self.path, "rb") as stream:
            mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        return {
            name: np.ndarray(header["shape"], header["dtype"], mapped, self.starts[name])
            for name, header in self.meta["arrays"].items()
        }

    def damage(self) -> str | None:
        """A message on the first array that differs from its checksum, or None."""
        for name, array in self.arrays().items():
            if _sha256(_bytes(array)) != self.meta["arrays"][name]["sha256"]:
                return f"{name} differs from its checksum"
        return None


def entry_bytes(arrays: dict[str, np.ndarray], meta: dict) -> bytes:
    """The contents of an entry's file."""
    # safetensors.numpy.save writes the numbers of an array with other strides in the wrong order.
    arrays = {
        name: np.asarray(array, array.dtype.newbyteorder("<"), order="C")
        for name, array in arrays.items()
    }
    headers = {
        name: {"dtype": array.dtype.str, "shape": array.shape, "sha256": _sha256(_bytes(array))}
        for name, array in arrays.items()
    }
    text = json.dumps({**meta, "arrays": headers}, default=plain)
    return safetensors.numpy.save(arrays, {METADATA_KEY: f"{_sha256(text.encode())}\n{text}"})


def read_entry(kind: str, key: str, path: Path) -> Entry | None:
    """The entry in a file, or None if the file is missing, not readable or damaged.

    The arrays are not compared with their checksums.
    """
    try:
        with open(path, "rb") as stream:
            file_size = os.fstat(stream.fileno()).st_size
            header_size = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
            header = json.loads(stream.read(min(header_size, file_size)))
        sha256, text = header["__metadata__"][METADATA_KEY].split("\n")
        meta = json.loads(text)
        offsets = {name: header[name]["data_offsets"] for name in meta["arrays"]}
        sizes = {name: stop - start for name, (start, stop) in offsets.items()}
        first = _LENGTH_BYTES + header_size
        is_whole = (
            sha256 == _sha256(text.encode())
            and sizes == {name: _size(array) for name, array in meta["arrays"].items()}
            and first + sum(sizes.values()) == file_size
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    starts = {name: first + start for name, (start, _) in offsets.items()}
    return Entry(kind, key, path, meta, starts) if is_whole else None


def will_need(array: np.ndarray, start: Sequence[int], size: Sequence[int]) -> None:
    """Advise the kernel to load a box of a memory-mapped array (X, Y, Z).

    Without this advice, read-ahead at every access loads the whole file for any crop.
    """
    mapped = array.base
    if not isinstance(mapped, mmap.mmap) or not hasattr(mapped, "madvise"):
        return
    offset = array.ctypes.data - np.frombuffer(mapped, np.uint8).ctypes.data
    _, rows, depth = array.shape
    length = ((size[1] - 1) * depth + size[2]) * array.itemsize
    # One slab of the box at a time: its bytes from row start[1] to the end of its last row.
    for x in range(start[0], start[0] + size[0]):
        first = offset + ((x * rows + start[1]) * depth + start[2]) * array.itemsize
        page = first - first % mmap.PAGESIZE
        mapped.madvise(mmap.MADV_WILLNEED, page, first + length - page)


def plain(value):
    """A NumPy number or array, or a path, as a value of JSON."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _sha256(content: bytes | memoryview) -> str:
    return hashlib.sha256(content).hexdigest()


def _bytes(array: np.ndarray) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _size(header: dict) -> int:
    return math.prod(header["shape"]) * np.dtype(header["dtype"]).itemsize
