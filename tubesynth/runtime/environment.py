"""The versions, commit and device of this process, which results depend on besides the config."""

import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

import tubesynth
from tubesynth.runtime import dist

THIS_FOLDER = Path(__file__).resolve().parent


def git_commit(folder: Path = THIS_FOLDER) -> str | None:
    """The commit of this checkout, with + where files differ from it; None outside a checkout.

    A package that is installed inside another repository, as in its .venv, is not a checkout.
    """

    def git(*arguments: str) -> str | None:
        result = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True)
        return None if result.returncode else result.stdout.strip()

    try:
        if git("ls-files", "--error-unmatch", Path(__file__).name) is None:
            return None
        commit, changes = git("rev-parse", "--short=12", "HEAD"), git("status", "-s", "-uno")
    except FileNotFoundError:
        return None
    return commit and commit + ("+" if changes else "")


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return platform.processor() or platform.machine()


def environment(device: torch.device | None = None) -> dict:
    """Plain values for a JSON file. device: by default the first GPU where there is one."""
    if device is None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return {
        "tubesynth": tubesynth.__version__,
        "git_commit": git_commit(),
        "command": sys.argv,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "world_size": dist.world_size(),
    }
