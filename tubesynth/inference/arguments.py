"""Errors of the Python API: suggestions for wrong argument names, and flags for commands."""

import difflib
import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

from tubesynth.runtime.errors import InputError

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


@contextmanager
def arguments_as_flags() -> Iterator[None]:
    """Raise the errors of the API with its arguments written as flags of the command line.

    guidance_label -> --guidance-label, and a leading `resolution 4 4 4` -> `--resolution 4 4 4`.
    """
    try:
        yield
    except InputError as error:
        text = re.sub(
            r"\b(guidance_label|guidance_vessel|control_scale)\b",
            lambda match: "--" + match[1].replace("_", "-"),
            str(error),
        )
        text = re.sub(r"^(resolution|spacing) ", r"--\1 ", text)
        text = text.replace('precision="32"', "--precision 32")
        raise InputError(text) from error
