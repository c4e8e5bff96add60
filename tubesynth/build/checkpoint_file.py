"""The two file formats of a checkpoint's contents, a nested dictionary of tensors and plain values.

.ckpt is PyTorch's: everything that a run resumes from, read with weights_only=True. .safetensors is
for weights alone, without pickle: a tensor is named by its keys, phases/unet/module/conv_in.weight,
and everything else is JSON in the metadata, with a SHA-256 of itself and of the tensors. float16
tensors, which tubesynth export writes to save space, are float32 when read.
"""

import hashlib
import json
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from tubesynth.runtime.atomic import replacing
from tubesynth.runtime.errors import InputError

SAFETENSORS = ".safetensors"
# All metadata is under one key: safetensors writes several in an order that changes by chance.
METADATA_KEY = "tubesynth"


def write_contents(path: Path, contents: dict[str, Any]) -> None:
    """Write a file whole or not at all; the suffix decides the format."""
    write = _write_safetensors if path.suffix == SAFETENSORS else _write_ckpt
    with replacing(path) as temporary, open(temporary, "wb") as file:
        write(file, contents)


def read_contents(path: Path) -> Any:
    """The contents of a file, on the CPU; InputError where it is damaged or no such file."""
    return _read_safetensors(path) if path.suffix == SAFETENSORS else _read_ckpt(path)


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
        torch.save(contents, file)
    except RuntimeError as error:
        # torch's message has the position of its writer, the system's has the reason.
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def _read_ckpt(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise _unreadable(path) from error


def _write_safetensors(file: BinaryIO, contents: dict[str, Any]) -> None:
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in _tensors(contents)}
    text = _json(_without_tensors(contents))
    metadata = {"contents": json.loads(text), "sha256": tensors_sha256(tensors, text)}
    file.write(safetensors.torch.save(tensors, {METADATA_KEY: _json(metadata)}))


def _read_safetensors(path: Path) -> Any:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(METADATA_KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise _unreadable(path) from error
    if text is None:
        raise InputError(
            f"{path}: not a tubesynth model (weights of another program): give a file of"
            " tubesynth export"
        )
    try:
        metadata = json.loads(text)
        contents, sha256 = metadata["contents"], metadata["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise _unreadable(path) from error
    if sha256 != tensors_sha256(tensors, _json(contents)):
        raise InputError(
            f"{path}: damaged: its contents do not have the SHA-256 in its metadata: copy or export"
            " it again"
        )
    for name, tensor in tensors.items():
        *keys, last_key = name.split("/")
        inner = contents
        for key in keys:
            inner = inner.setdefault(key, {})
        inner[last_key] = tensor.float() if tensor.dtype == torch.float16 else tensor
    return contents


def _tensors(contents: dict, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """(keys joined by /, tensor) of every tensor."""
    for key, value in contents.items():
        if isinstance(value, Tensor):
            yield f"{prefix}{key}", value
        elif isinstance(value, dict):
            yield from _tensors(value, f"{prefix}{key}/")


def _without_tensors(contents: dict) -> dict:
    plain = {key: value for key, value in contents.items() if not isinstance(value, Tensor)}
    return {k: _without_tensors(v) if isinstance(v, dict) else v for k, v in plain.items()}


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _unreadable(path: Path) -> InputError:
    return InputError(
        f"{path}: not a readable tubesynth checkpoint (damaged, or made by another program)"
    )
