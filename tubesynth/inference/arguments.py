"""Errors of the Python API: suggestions for wrong argument names, and flags for commands."""

import difflib
import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

import numpy as np
import torch

from tubesynth.runtime.errors import InputError
from tubesynth.volume.grid import Volume
from tubesynth.volume.hounsfield import check_hu
from tubesynth.volume.nifti import to_ras

LEAST_TILE = 8  # voxels; of smaller ones nearly all that is computed is margin

P = ParamSpec("P")
R = TypeVar("R")


def suggests_names(function: Callable[P, R]) -> Callable[P, R]:
    """Decorator: the TypeError of an unknown keyword argument names the nearest valid one.

    Python does the same from version 3.13 on.
    """
    names = list(inspect.signature(function).parameters)

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        for name in kwargs:
            if name not in names:
                near = difflib.get_close_matches(name, names, n=1)
                options = ", ".join(name for name in names if name not in ("self", "cls"))
                remedy = f"did you mean {near[0]!r}?" if near else f"it takes {options}"
                raise TypeError(f"{function.__name__}() has no argument {name!r}: {remedy}")
        return function(*args, **kwargs)

    return call


def checked_ct(value: object, name: str, window: tuple[float, float]) -> Volume:
    """A CT with its axes in RAS+ order; InputError for what is no volume in HU.

    window: HU, that of the model.
    """
    volume = _volume(value, name, "Volume.from_file(path)")
    if volume.array.dtype.kind not in "fiu":
        raise InputError(f"{name} holds {volume.array.dtype} values: give a CT in HU")
    if not np.isfinite(volume.array).all():
        raise InputError(f"{name} holds values that are not finite: give a CT in HU")
    check_hu(volume, name, window)
    return to_ras(volume.array, volume.affine)


def checked_labels(value: object, name: str) -> Volume:
    """A label map, uint8 and its axes in RAS+ order; InputError for what holds no classes."""
    volume = _volume(value, name, "Volume.from_file(path, labels=True)")
    if volume.array.dtype.kind not in "bfiu":
        raise InputError(f"{name} holds {volume.array.dtype} values: give whole numbers from 0 on")
    with np.errstate(invalid="ignore"):
        classes = volume.array.astype(np.uint8)
    if not np.array_equal(classes, volume.array):
        raise InputError(f"{name} holds values that are no classes: give whole numbers from 0 on")
    return to_ras(classes, volume.affine)


def _volume(value: object, name: str, call: str) -> Volume:
    """The argument itself; InputError for a path or an array, in place of a volume."""
    if not isinstance(value, Volume):
        raise InputError(f"{name} is a {type(value).__name__}: give a Volume, as of {call}")
    return value


def require_tile(tile: object) -> None:
    """InputError for a tile that the command line refuses too."""
    is_number = isinstance(tile, int | np.integer) and tile >= LEAST_TILE
    if tile is not None and tile != "auto" and not is_number:
        raise InputError(
            f"tile is {tile!r}: give auto, None, or a whole number of voxels from {LEAST_TILE} on"
        )


def require_numbers(**arguments: object) -> None:
    """InputError for arguments that are no numbers."""
    for name, value in arguments.items():
        if not isinstance(value, int | float | np.number) or isinstance(value, bool):
            raise InputError(f"{name} is {value!r}: give a number")


def require_seed(seed: object) -> None:
    """InputError for a seed that the command line refuses too."""
    if not isinstance(seed, int | np.integer) or not 0 <= seed < 2**63:
        raise InputError(f"seed is {seed!r}: give a whole number from 0 to below 2^63")


def usable_device(device: str | torch.device | None) -> torch.device:
    """The device, by default the GPU if there is one; InputError where torch finds none of it."""
    try:
        found = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise InputError(f"device is {device!r}: give cpu or cuda") from error
    if found.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device is {device!r}: torch finds no GPU: give cpu")
    return found


@contextmanager
def arguments_as_flags() -> Iterator[None]:
    """Raise the errors of the API with its arguments written as flags of the command line.

    guidance_label -> --guidance-label, and a leading `resolution 4 4 4` -> `--resolution 4 4 4`.
    """
    try:
        yield
    except InputError as error:
        text = re.sub(
            r"\b(guidance_label|guidance_vessel|control_scale|latent_tile)\b",
            lambda match: "--" + match[1].replace("_", "-"),
            str(error),
        )
        text = re.sub(r"^(resolution|spacing) ", r"--\1 ", text)
        text = text.replace('precision="32"', "--precision 32")
        raise InputError(text) from error
