"""What torch.compile needs of a machine, looked for before a run starts."""

import importlib.util
import os
import shutil
import sys

import torch

from tubesynth.runtime.errors import InputError


def require_compiler() -> None:
    """InputError where torch.compile cannot build its kernels: C++ for a CPU, Triton for a GPU."""
    if torch.cuda.is_available():
        if importlib.util.find_spec("triton") is None:
            raise InputError(
                "train.compile: on a GPU torch.compile needs the package triton, which is not"
                " installed: pip install triton, or set train.compile=false"
            )
        candidates = [os.environ["CC"]] if "CC" in os.environ else ["gcc", "clang"]
    else:
        default = "clang++" if sys.platform == "darwin" else "g++"
        candidates = [os.environ.get("CXX", default)]
    if not any(map(shutil.which, candidates)):
        raise InputError(
            f"train.compile: torch.compile needs a compiler, and {' or '.join(candidates)} is not"
            " there: install it, name another one in CC (GPU) or CXX (CPU), or set"
            " train.compile=false"
        )
