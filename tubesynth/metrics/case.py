"""The scores of one case: each of its images against the real CT and against the label map.

Images may lie on different grids of one world (a reconstruction on the model's grid, the real CT on
the scanner's): what is made is scored on its own grid, and the real CT and the label map are
resampled onto that.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tubesynth.errors import InputError
from tubesynth.metrics.image import image_scores
from tubesynth.metrics.vessel import centreline_scores
from tubesynth.volume.files import read_volume
from tubesynth.volume.grid import Volume, same_grid
from tubesynth.volume.resample import resample_image, resample_labels
from tubesynth.volume.vessels import extract_tokens


@dataclass(frozen=True)
class EvaluationCase:
    """The files of one case; `images` in the order of the panel: (source, sample, file)."""

    id: str
    label: Path | None
    images: list[tuple[str, int, Path]]


def read_case(case: EvaluationCase) -> list[Volume]:
    """The images of a case; refused where one lies elsewhere in the world than the first."""
    volumes = [read_volume(path) for *_, path in case.images]
    first = volumes[0]
    for (*_, path), volume in zip(case.images, volumes, strict=True):
        middle = first.to_index(volume.centre_mm)
        if (middle < -0.5).any() or (middle > np.array(first.shape) - 0.5).any():
            raise InputError(
                f"{path}: different grids: its centre lies outside {case.images[0][2]}; "
                "write it with the affine of the CT it was made from"
            )
    return volumes


def score_images(case, volumes, label, window) -> Iterator[tuple[dict, dict, set]]:
    """(row key, scores, what was resampled) of every image that has a real CT to stand against."""
    if case.images[0][0] != "real":
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    real = volumes[0]
    for (source, sample, _), volume in list(zip(case.images, volumes, strict=True))[1:]:
        where = set()
        reference, classes = real, label
        if not same_grid(real, volume):
            reference = resample_image(real, volume.shape, volume.affine)
            where.add(f"real CT onto the grid of its {source}")
        if label is not None and not same_grid(label, volume):
            classes = resample_labels(label, volume.shape, volume.affine)
            where.add(f"label map onto the grid of its {source}")
        arrays = [reference.array, volume.array, *([] if classes is None else [classes.array])]
        if volume.shape[2] == 1:
            arrays = [array[:, :, 0] for array in arrays]
        tensors = [torch.from_numpy(np.array(array)).to(device) for array in arrays]
        count = 0 if classes is None else int(classes.array.max()) + 1
        scores = image_scores(tensors[0], tensors[1], window, *tensors[2:], num_classes=count)
        yield {"case": case.id, "sample": sample, "source": source}, scores, where


def score_vessels(case, volumes, label, vessel_class, lumen_range) -> Iterator[tuple[dict, dict]]:
    """(row key, scores) of every image against the centreline of the case's label map.

    The real CT is read on the grid of the first image made from it: the ceiling at its resolution.
    """
    if label is None:
        return
    tokens = extract_tokens(label.array == vessel_class, label.affine)
    for (source, sample, _), volume in zip(case.images, volumes, strict=True):
        if source == "real" and len(volumes) > 1 and not same_grid(volume, volumes[1]):
            volume = resample_image(volume, volumes[1].shape, volumes[1].affine)
        scores = centreline_scores(volume, tokens, label, lumen_range)
        yield {"case": case.id, "sample": sample, "source": source}, scores
