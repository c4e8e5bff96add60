"""The two file formats of a checkpoint's contents, a nested dictionary of tensors and plain values.

.ckpt is PyTorch's: everything that a run resumes from, read with weights_only=True. It is a zip
archive with a CRC-32 of each tensor and of the other values. .safetensors is for weights alone,
without pickle: a tensor is named by its keys, phases/unet/module/conv_in.weight, and everything
else is JSON in the metadata, with a SHA-256 of itself and of the tensors. float16 tensors, which
tubesynth export writes to save space, are float32 when read.

The checksums are compared whenever a file is read, and tensors with NaN or infinite values are
neither written nor read.
"""

import hashlib
import json
import pickle
import re
import struct
import sys
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from tubesynth.runtime.atomic import replacing
from tubesynth.runtime.errors import InputError, is_out_of_memory

SAFETENSORS = ".safetensors"
# All metadata is under one key: safetensors writes several in an order that changes by chance.
METADATA_KEY = "tubesynth"
# What zipfile, torch and json raise for bytes of another program or of an attacker. weights_only
# runs a small machine on the bytes, whose operations fail in all these ways.
UNREADABLE = (
    *(zipfile.BadZipFile, zlib.error, struct.error, pickle.UnpicklingError, SafetensorError),
    *(EOFError, RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError),
    *(OverflowError, MemoryError),
)
TENSOR_RECORD = re.compile(r".*/data/\d+")  # of a .ckpt archive
MAX_DEPTH = 8  # of the dictionaries; phases/unet/optimizer/state/0/exp_avg is 6
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)


def write_contents(path: Path, contents: dict[str, Any]) -> None:
    """Write a file whole or not at all; the suffix decides the format."""
    name = _not_finite(contents)
    if name:
        raise InputError(
            f"{path}: not written: {name} has values that are not finite (NaN or Inf): resume from"
            " the last checkpoint, with a lower train.learning_rate or --precision 32"
        )
    write = _write_safetensors if path.suffix == SAFETENSORS else _write_ckpt
    with replacing(path) as temporary, open(temporary, "wb") as file:
        write(file, contents)


def read_contents(path: Path) -> Any:
    """The contents of a file, on the CPU; InputError where it is damaged or no such file."""
    with _reading(path):
        contents = _read_safetensors(path) if path.suffix == SAFETENSORS else _read_ckpt(path)
        if isinstance(contents, dict):
            for name, tensor in _tensors(contents):
                if tensor.layout != torch.strided or tensor.dtype not in FLOATS + INTEGERS:
                    raise _damaged(path, f"{name} is no dense array of numbers")
            if name := _not_finite(contents):
                raise _damaged(path, f"{name} has values that are not finite (NaN or Inf)")
    return contents


def read_value(path: Path, key: str) -> Any:
    """One plain value of a .ckpt file. Its tensors are not read, so their damage is not noticed."""
    with _reading(path):
        with zipfile.ZipFile(path) as archive:
            for each in archive.infolist():
                if not TENSOR_RECORD.fullmatch(each.filename):
                    archive.read(each)  # compares its checksum
        return _unpickle(path)[key]


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Raise an InputError for a file that is damaged, of another program, or not readable."""
    if path.exists() and not path.is_file():  # opening a pipe would wait for ever
        raise InputError(f"{path}: a folder, a pipe or a device, no checkpoint: use another file")
    try:
        yield
    except InputError:  # is a ValueError
        raise
    except OSError as error:
        raise InputError(f"{path}: not readable ({error.strerror}): check the path") from error
    except UNREADABLE as error:
        if is_out_of_memory(error):  # the file may be good
            raise
        raise InputError(
            f"{path}: not a readable tubesynth checkpoint (damaged, or made by another program):"
            " copy it again, or use another file"
        ) from error


def tensors_sha256(tensors: dict[str, Tensor], text: str = "") -> str:
    """The SHA-256 of a text and of tensors: names, types, shapes and bytes."""
    sha = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def _write_ckpt(file: BinaryIO, contents: dict[str, Any]) -> None:
    try:
        torch.save(_canonical(contents), file)
    except RuntimeError as error:
        # torch's message has the position of its writer, the system's has the reason.
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def _canonical(value: Any) -> Any:
    """A copy whose bytes depend on the contents alone: pickle writes a text or tuple that is there
    twice, as the same object, as a reference, and the objects of a resumed run are others.
    """
    if isinstance(value, str):
        return sys.intern(value)
    if isinstance(value, list | tuple):
        return type(value)(map(_canonical, value))
    if not isinstance(value, dict):
        return value
    copy: Any = type(value)((_canonical(key), _canonical(item)) for key, item in value.items())
    if hasattr(value, "_metadata"):  # of a state dict
        copy._metadata = _canonical(value._metadata)  # pyright: ignore[reportAttributeAccessIssue]
    return copy


def _read_ckpt(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()  # compares all checksums
        if damaged and not TENSOR_RECORD.fullmatch(damaged):
            raise _damaged(path, "its values differ from their checksum")
        contents = _unpickle(path)
        if damaged:
            name = _tensor_of(damaged, archive, contents)
            raise _damaged(path, f"{name} differs from its checksum")
    return contents


def _unpickle(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def _tensor_of(record: str, archive: zipfile.ZipFile, contents: dict[str, Any]) -> str:
    """The name of the tensor in a record: memory-mapped tensors lie in the order of records."""
    records = [each for each in archive.infolist() if TENSOR_RECORD.fullmatch(each.filename)]
    records = sorted((each for each in records if each.file_size), key=lambda e: e.header_offset)
    names = {each.untyped_storage().data_ptr(): name for name, each in _tensors(contents)}
    order = [each.filename for each in records].index(record)
    return names[sorted(names)[order]]


def _write_safetensors(file: BinaryIO, contents: dict[str, Any]) -> None:
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in _tensors(contents)}
    text = _json(_without_tensors(contents))
    metadata = {"contents": json.loads(text), "sha256": tensors_sha256(tensors, text)}
    file.write(safetensors.torch.save(tensors, {METADATA_KEY: _json(metadata)}))


def _read_safetensors(path: Path) -> Any:
    with safetensors.safe_open(path, framework="pt") as file:
        text = (file.metadata() or {}).get(METADATA_KEY)
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    if text is None:
        raise InputError(
            f"{path}: not a tubesynth model (weights of another program): give a file of"
            " tubesynth export"
        )
    metadata = json.loads(text)
    contents, sha256 = metadata["contents"], metadata["sha256"]
    if sha256 != tensors_sha256(tensors, _json(contents)):
        raise _damaged(path, "its contents do not have the SHA-256 in its metadata")
    for name, tensor in tensors.items():
        *keys, last_key = name.split("/")
        inner = contents
        for key in keys:
            inner = inner.setdefault(key, {})
        inner[last_key] = tensor.float() if tensor.dtype == torch.float16 else tensor
    return contents


def _tensors(contents: dict, prefix: str = "", depth: int = 1) -> Iterator[tuple[str, Tensor]]:
    """(keys joined by /, tensor) of every tensor."""
    if depth > MAX_DEPTH:
        raise ValueError(f"{prefix}: nested more than {MAX_DEPTH} deep")
    for key, value in contents.items():
        if isinstance(value, Tensor):
            yield f"{prefix}{key}", value
        elif isinstance(value, dict):
            yield from _tensors(value, f"{prefix}{key}/", depth + 1)


def _without_tensors(contents: dict) -> dict:
    plain = {key: value for key, value in contents.items() if not isinstance(value, Tensor)}
    return {k: _without_tensors(v) if isinstance(v, dict) else v for k, v in plain.items()}


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _not_finite(contents: dict[str, Any]) -> str | None:
    """The name of the first tensor with NaN or infinite values."""
    for name, tensor in _tensors(contents):
        if tensor.dtype in FLOATS and tensor.numel():
            # Both propagate NaN. One pass, ten times faster than torch.isfinite(tensor).all().
            if not all(torch.isfinite(each) for each in torch.aminmax(tensor)):
                return name
    return None


def _damaged(path: Path, problem: str) -> InputError:
    return InputError(f"{path}: damaged: {problem}: copy it again, or use another file")
