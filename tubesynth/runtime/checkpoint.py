"""Checkpoints: tensors and plain values only, written beside and renamed, loaded with
weights_only=True.
"""

import hashlib
import os
import pickle
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from tubesynth.runtime.atomic import replacing
from tubesynth.runtime.errors import InputError

# By stage: what changes in one leaves the weights of the others as they are. 2: several averages
# and a best score; 3: vessel fields as closeness; 4: fsq with its scale, vessel tokens traced in
# the label file's own voxels; 5: a slower time embedding.
FORMATS = {1: 4, 2: 5, 3: 5, "segmenter": 4}


def save(state: dict, path: Path) -> None:
    """Write atomically, and onto the disk before the old file goes."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        try:
            torch.save({"format": FORMATS[state["config"]["stage"]], **state}, file)
        except RuntimeError as error:
            # torch says where its writer stood, and not why the file took no more
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
        file.flush()
        os.fsync(file.fileno())


def load(path: str | Path, stage: int | str | None = None) -> dict:
    """The state in a checkpoint, on the CPU; InputError where it is none or of another stage."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint: give the path of a .ckpt file")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{path}: not a readable tubesynth checkpoint (damaged, or made by another program)"
        ) from error
    config = state.get("config") if isinstance(state, dict) else None
    if not isinstance(config, dict) or "stage" not in config or "format" not in state:
        raise InputError(f"{path}: not a tubesynth checkpoint (no format or config in it)")
    found = config["stage"]
    if state["format"] != FORMATS.get(found):
        raise InputError(
            f"{path}: format {state['format']} of stage {found}, this version reads"
            f" {FORMATS.get(found)}: use the version of tubesynth that wrote it"
        )
    if stage is not None and found != stage:
        raise InputError(
            f"{path}: a stage-{found} checkpoint, where one of stage {stage} is needed"
        )
    return state


def digest(state_dict: dict[str, Tensor]) -> str:
    """Fingerprint of a module's tensors: names, types, shapes and every byte."""
    sha = hashlib.sha256()
    for name in sorted(state_dict):
        tensor = state_dict[name].detach().cpu().contiguous()
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()[:16]


def prune(folder: Path, pattern: str, keep: int) -> None:
    """Remove all but the last `keep` written of the pattern."""
    files = sorted(folder.glob(pattern), key=lambda path: path.stat().st_mtime_ns)
    for path in files[: max(0, len(files) - keep)]:
        path.unlink(missing_ok=True)
