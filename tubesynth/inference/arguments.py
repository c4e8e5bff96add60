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


def require_volume(value: object, name: str, is_label_map: bool) -> None:
    """InputError for an argument that is a path or an array, in place of a volume."""
    if not isinstance(value, Volume):
        call = "Volume.from_file(path, labels=True)" if is_label_map else "Volume.from_file(path)"
        raise InputError(f"{name} is a {type(value).__name__}: give a Volume, as of {call}")


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
