"""The scores of one case: each of its images against the real CT and against the label map.

Images may lie on different grids of one world (a reconstruction on the model's grid, the real CT on
the scanner's): what is made is scored on its own grid, and the real CT and the label map are
resampled onto that. What the images of a case share on one grid is worked out once.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from tubesynth.metrics.condition import (
    Condition,
    condition_of,
    mask_scores,
    tokens_of,
    vessel_scores,
)
from tubesynth.metrics.image import image_scores
from tubesynth.metrics.vessel import LUMEN_RANGE_HU, centreline_scores
from tubesynth.runtime.errors import InputError
from tubesynth.volume.classes import NINE_CLASSES, LabelScheme
from tubesynth.volume.files import read_volume
from tubesynth.volume.grid import Volume, same_grid
from tubesynth.volume.resample import resample_image, resample_labels, target_grid
from tubesynth.volume.vessels import VesselTokens

# CT in HU -> mask of its vessels on the same grid: a trained segmenter, for one.
Segment = Callable[[Volume], Volume]


@dataclass(frozen=True)
class EvaluationCase:
    """The files of one case; `images` in the order of the panel: (source, sample, file)."""

    id: str
    label: Path | None
    images: list[tuple[str, int, Path]]
    stranger: Path | None = None  # the real CT of another patient, for the floor
    centreline: Path | None = None  # drawn vessels, in place of those in the label map


@dataclass(frozen=True)
class Settings:
    """What decides the scores besides the voxels."""

    hu_window: tuple[float, float] = (-1000.0, 1000.0)
    lumen_range: tuple[float, float] = LUMEN_RANGE_HU
    classes: LabelScheme = NINE_CLASSES


@dataclass
class CaseScores:
    """Rows as summary.py wants them, what was resampled, and what could not be scored."""

    images: list[dict] = field(default_factory=list)
    vessels: list[dict] = field(default_factory=list)
    notes: set[str] = field(default_factory=set)
    sets: dict = field(default_factory=dict)  # see set_scores.py
    diversity: float | None = None


def read_case(case: EvaluationCase) -> list[Volume]:
    """The images of a case; refused where one lies elsewhere in the world than the first."""
    volumes = [read_volume(path) for *_, path in case.images]
    first = volumes[0]
    for (*_, path), volume in zip(case.images, volumes, strict=True):
        middle = first.to_index(volume.center_mm)
        if (middle < -0.5).any() or (middle > np.array(first.shape) - 0.5).any():
            raise InputError(
                f"{path}: different grids: its centre lies outside {case.images[0][2]}; "
                "write it with the affine of the CT it was made from"
            )
    return volumes


@dataclass
class SharedGrid:
    """What the images of one case on one grid have in common."""

    grid: Volume
    real: Volume | None
    label: Volume | None
    condition: Condition | None


def score_case(
    case: EvaluationCase, volumes, label, tokens, settings: Settings, segment: Segment | None = None
) -> CaseScores:
    """All scores of one case; volumes as read_case gives them, label its map and tokens, or None.

    segment: finds the vessels of a CT a second time, for the scores named segmenter_*.
    The real CT's vessels are read on the grid of the first image made from it: the ceiling at its
    resolution. A stranger is scored as if it had been made from this case: the floor.
    """
    result, grids = CaseScores(), []
    real = volumes[0] if case.images[0][0] == "real" else None

    def shared(grid: Volume, source: str) -> SharedGrid:
        for known in grids:
            if same_grid(known.grid, grid):
                return known
        here, classes = real, label
        if real is not None and not same_grid(real, grid):
            here = resample_image(real, grid.shape, grid.affine)
            result.notes.add(f"resampled for scoring: real CT onto the grid of its {source}")
        if label is not None and not same_grid(label, grid):
            classes = resample_labels(label, grid.shape, grid.affine)
            result.notes.add(f"resampled for scoring: label map onto the grid of its {source}")
        known = tokens if classes is label else None
        condition = None if classes is None else condition_of(classes, settings.classes, known)
        grids.append(SharedGrid(grid, here, classes, condition))
        return grids[-1]

    for i, ((source, sample, _), volume) in enumerate(zip(case.images, volumes, strict=True)):
        key = {"case": case.id, "sample": sample, "source": source}
        is_real = real is not None and i == 0
        model = case.images[1][0] if is_real and len(volumes) > 1 else source
        common = shared(volumes[1] if is_real and len(volumes) > 1 else volume, model)
        image = common.real if is_real else volume
        if real is not None and not is_real:
            scores = pair_scores(common.real, image, common.label, settings.hu_window)
            result.images.append({**key, **scores})
        if label is not None:
            scores = score_vessels(image, tokens, label, common.condition, settings, segment)
            result.vessels.append({**key, **scores})
            if common.condition is not None and common.condition.region is None:
                result.notes.add(
                    "vessels could not be looked for in the CTs (dice, clDice, Betti numbers, "
                    "radii), since a label map has no heart or no aorta"
                )
    if case.stranger is not None and real is not None:
        key = {"case": case.id, "sample": 0, "source": "floor"}
        common = grids[0]
        other = as_if_here(read_volume(case.stranger), common.grid)
        result.images.append({**key, **pair_scores(common.real, other, None, settings.hu_window)})
        if label is not None:
            scores = centreline_scores(other, tokens, label, settings.lumen_range)
            result.vessels.append({**key, **scores})
    return result


def pair_scores(real: Volume, made: Volume, label: Volume | None, hu_window) -> dict[str, float]:
    """Image scores of two volumes (and a label map) on one grid; on a GPU where there is one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    arrays = [real.array, made.array, *([] if label is None else [label.array])]
    if made.shape[2] == 1:
        arrays = [array[:, :, 0] for array in arrays]
    tensors = [torch.from_numpy(np.array(array)).to(device) for array in arrays]
    count = 0 if label is None else int(label.array.max()) + 1
    return image_scores(tensors[0], tensors[1], hu_window, *tensors[2:], num_classes=count)


def score_vessels(
    ct: Volume,
    tokens: VesselTokens,
    label: Volume,
    condition: Condition | None,
    settings: Settings,
    segment: Segment | None = None,
) -> dict[str, float]:
    """Along the centreline of the label map, and of the vessels found in the CT alone.

    condition: of the label map on the grid of the CT, None where it has no vessels.
    """
    scores = centreline_scores(ct, tokens, label, settings.lumen_range)
    if condition is None:
        return scores
    scores |= vessel_scores(ct.array, condition)
    if segment is not None:
        found = mask_scores(segment(ct).array[condition.box] > 0, condition)
        scores |= {f"segmenter_{name}": value for name, value in found.items()}
    return scores


def as_if_here(other: Volume, grid: Volume) -> Volume:
    """Another patient's CT on a grid of this one's world, with the two middles laid together."""
    shape, affine = target_grid(other, grid.spacing, grid.shape)
    same = same_grid(other, Volume(grid.array, affine))
    moved = other if same else resample_image(other, shape, affine)
    return Volume(moved.array, grid.affine)


def evaluate_pair(
    real: Volume, made: Volume, label: Volume, settings: Settings = Settings()
) -> dict[str, dict[str, float]]:
    """All image and vessel scores of one pair: {"image", "real", "made"}, each {METRIC: value}."""
    case = EvaluationCase("pair", None, [("real", 0, Path()), ("made", 0, Path())])
    tokens = tokens_of(label, settings.classes)
    scores = score_case(case, [real, made], label, tokens, settings)
    rows = [scores.images[0], *scores.vessels]
    return {
        name: {k: v for k, v in row.items() if k not in ("case", "sample", "source")}
        for name, row in zip(("image", "real", "made"), rows, strict=True)
    }
