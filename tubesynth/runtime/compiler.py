"""Checks, before a run starts, that torch.compile finds its compiler on this machine."""

import importlib.util
import os
import shutil
import sys

from tubesynth.runtime.errors import InputError


def require_compiler(for_gpu: bool) -> None:
    """InputError where torch.compile cannot build its kernels: C++ for a CPU, Triton for a GPU."""
    if for_gpu:
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
            " installed: install it, name another compiler in CC (GPU) or CXX (CPU), or set"
            " train.compile=false"
        )
