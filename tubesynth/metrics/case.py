"""The scores of one case: each of its images against the real CT and against the label map.

Images may lie on different grids of one world: a reconstruction on the model's grid, the real CT on
the scanner's. A reconstruction or synthesis is scored on its own grid; the real CT and the label
map are resampled onto it, once for all images of the case on that grid.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from tubesynth.metrics.condition import (
    Condition,
    condition_of,
    mask_scores,
    region_of,
    vessel_scores,
)
from tubesynth.metrics.image import image_scores
from tubesynth.metrics.published import Distance, lpips_scores, similarity_as_published
from tubesynth.metrics.segmentation import find_vessels
from tubesynth.metrics.vessel import LUMEN_RANGE_HU, centreline_scores
from tubesynth.metrics.vessel_match import vessel_match
from tubesynth.runtime.errors import InputError
from tubesynth.volume.classes import NINE_CLASSES, LabelScheme
from tubesynth.volume.files import read_volume
from tubesynth.volume.grid import Volume, same_grid, uncovered
from tubesynth.volume.intensity import hu_to_unit
from tubesynth.volume.resample import (
    image_on_grid,
    labels_on_grid,
    resample_image,
    right_angled,
    target_grid,
)
from tubesynth.volume.vessels import VesselTokens

# CT in HU -> mask of its vessels on the same grid, for example by a trained segmenter.
Segment = Callable[[Volume], Volume]
MAX_OUTSIDE = 0.02  # share of an image outside of its real CT that is not named


@dataclass(frozen=True)
class EvaluationCase:
    """The files of one case; `images` in the order of the panel: (source, sample, file).

    label_map: the class of each stored value of a label map of another scheme.
    """

    id: str
    label: Path | None
    images: list[tuple[str, int, Path]]
    control: Path | None = None  # the real CT of another patient: the negative control
    centreline: Path | None = None  # user centrelines that replace the label map's vessels
    label_map: Mapping[int, int] | None = None


@dataclass(frozen=True)
class ScoreSettings:
    """HU ranges and classes that the scores depend on."""

    hu_window: tuple[float, float] = (-1000.0, 1000.0)
    lumen_range: tuple[float, float] = LUMEN_RANGE_HU
    classes: LabelScheme = NINE_CLASSES
    as_published: bool = False  # also the scores of metrics/published.py
    are_pictures: bool = False  # of gray values, whose vessels are not scored by HU


@dataclass
class CaseScores:
    """Rows as in summary.py, notes on resampled volumes and missing scores, slice features."""

    images: list[dict] = field(default_factory=list)
    vessels: list[dict] = field(default_factory=list)
    notes: set[str] = field(default_factory=set)
    sets: dict = field(default_factory=dict)  # {source: VolumeFeatures}, see set_scores.py
    diversity: float | None = None


def read_case(case: EvaluationCase) -> list[Volume]:
    """The images of a case; InputError where one has its center outside the first one's grid."""
    volumes = [read_volume(path) for *_, path in case.images]
    first = volumes[0]
    for (*_, path), volume in zip(case.images, volumes, strict=True):
        center = first.to_index(volume.center_mm)
        if (center < -0.5).any() or (center > np.array(first.shape) - 0.5).any():
            raise InputError(
                f"{path}: different grids: its center lies outside {case.images[0][2]}; "
                "write it with the affine of the CT it was made from"
            )
    return volumes


@dataclass
class SharedGrid:
    """The real CT, label map and condition of a case, resampled onto one grid."""

    grid: Volume
    real: Volume | None
    label: Volume | None
    condition: Condition | None


def score_case(
    case: EvaluationCase,
    volumes: Sequence[Volume],
    label: Volume | None,
    tokens: VesselTokens | None,
    settings: ScoreSettings,
    segment: Segment | None = None,
    distance: Distance | None = None,
    stored_label: Volume | None = None,
) -> CaseScores:
    """All scores of one case.

    volumes: the result of read_case. label, tokens: both or neither, on a right-angled grid;
    stored_label: as in its file, so that another grid takes one interpolation alone. segment: a
    segmenter of vessels, for the scores named segmenter_*; distance: LPIPS, for those named lpips*.
    The vessels of the real CT are scored on the grid of the first image made from it: the ceiling
    at that resolution. The negative control is scored as if it were a synthesis of this case.
    """
    result = CaseScores()
    grids: list[SharedGrid] = []
    stored, window = volumes, settings.hu_window
    volumes = [right_angled(volume, window) for volume in volumes]  # a gantry may be tilted
    if any(volume is not each for volume, each in zip(volumes, stored, strict=True)):
        result.notes.add("resampled for scoring: grids of a tilted gantry onto right-angled ones")
    real = volumes[0] if case.images[0][0] == "real" else None
    stored_label = stored_label or label

    def shared(grid: Volume, source: str) -> SharedGrid:
        for shared_grid in grids:
            if same_grid(shared_grid.grid, grid):
                return shared_grid
        real_on_grid, label_on_grid = real, label
        if real is not None and not same_grid(real, grid):
            real_on_grid = image_on_grid(stored[0], grid, window)
        if label is not None and stored_label is not None and not same_grid(label, grid):
            label_on_grid = labels_on_grid(stored_label, grid)
        if real_on_grid is not real:
            result.notes.add(f"resampled for scoring: real CT onto the grid of its {source}")
            if real is not None and uncovered(real, grid.shape, grid.affine)[0] > MAX_OUTSIDE:
                result.notes.add(
                    f"more than {100 * MAX_OUTSIDE:.0f} % of a {source} lie outside of its real CT"
                    " and are compared with air: synthesize on the field of view of the CT"
                )
        if label_on_grid is not label:
            result.notes.add(f"resampled for scoring: label map onto the grid of its {source}")
        condition = None
        if label_on_grid is not None:
            # Tokens are relative to the label map's grid: on another grid they are extracted again.
            label_tokens = tokens if label_on_grid is label else None
            condition = condition_of(label_on_grid, settings.classes, label_tokens)
        grids.append(SharedGrid(grid, real_on_grid, label_on_grid, condition))
        return grids[-1]

    for i, ((source, sample, _), volume) in enumerate(zip(case.images, volumes, strict=True)):
        key = {"case": case.id, "sample": sample, "source": source}
        is_real = real is not None and i == 0
        reference = 1 if is_real and len(volumes) > 1 else i  # the image that decides the grid
        common = shared(volumes[reference], case.images[reference][0])
        image = common.real if is_real and common.real is not None else volume
        if common.real is not None and not is_real:
            scores = pair_scores(common.real, image, common.label, settings, distance)
            result.images.append({**key, **scores})
        elif label is None:
            result.images.append(key)  # without scores: a line of metrics.csv
        if label is not None and tokens is not None:
            scores = score_vessels(image, common, tokens, label, settings, segment)
            result.vessels.append({**key, **scores})
            if common.condition is not None and common.condition.region is None:
                result.notes.add(
                    "no dice, clDice, Betti numbers and radii where a label map has no heart or no "
                    "aorta: vessels are detected from these"
                )
    if case.control is not None and (real_on_grid := grids[0].real) is not None:
        key = {"case": case.id, "sample": 0, "source": "floor"}
        control = aligned_to_grid(read_volume(case.control), grids[0].grid, settings.hu_window)
        scores = pair_scores(real_on_grid, control, None, settings, distance)
        result.images.append({**key, **scores})
        if label is not None and tokens is not None:
            scores = vessel_match(control, real_on_grid, tokens, label)
            scores |= centreline_scores(control, tokens, label, settings.lumen_range)
            result.vessels.append({**key, **scores})
    return result


def pair_scores(
    real: Volume,
    other: Volume,
    label: Volume | None,
    settings: ScoreSettings,
    distance: Distance | None = None,
) -> dict[str, float]:
    """Image scores of two volumes (and a label map) on one grid."""
    arrays = [real.array, other.array, *([] if label is None else [label.array])]
    if other.shape[2] == 1:  # a picture: (X, Y, 1) -> (X, Y)
        arrays = [array[:, :, 0] for array in arrays]
    tensors = [torch.from_numpy(np.array(array)) for array in arrays]
    count = 0 if label is None else int(label.array.max()) + 1
    window = settings.hu_window
    scores = image_scores(tensors[0], tensors[1], window, *tensors[2:], num_classes=count)
    if settings.as_published or distance is not None:
        real_unit, other_unit = (torch.as_tensor(hu_to_unit(x, window)) for x in tensors[:2])
        if settings.as_published:
            scores |= similarity_as_published(real_unit, other_unit)
        if distance is not None:
            scores |= lpips_scores(real_unit, other_unit, distance, settings.as_published)
    return scores


def score_vessels(
    ct: Volume,
    common: SharedGrid,
    tokens: VesselTokens,
    label: Volume,
    settings: ScoreSettings,
    segment: Segment | None = None,
) -> dict[str, float]:
    """Scores along the centreline of the label map, and of the vessels detected in the CT alone.

    common: of the grid of the CT; without a real CT there is no vessel_match. label: of the tokens.
    """
    real, condition = common.real, common.condition
    scores = {} if real is None else vessel_match(ct, real, tokens, label)
    scores |= centreline_scores(ct, tokens, label, settings.lumen_range)
    if condition is None:
        assert common.label is not None
        return scores | false_vessels(ct, common.label, settings.classes, segment)
    scores |= vessel_scores(ct.array, condition)
    if segment is not None:
        segmented = mask_scores(segment(ct).array[condition.box] > 0, condition)
        scores |= {f"segmenter_{name}": value for name, value in segmented.items()}
    return scores


def false_vessels(
    ct: Volume, label: Volume, classes: LabelScheme, segment: Segment | None
) -> dict[str, float]:
    """The volume of the vessels in a CT whose label map, on the same grid, has none."""
    region = region_of(label, classes)
    if region is None:
        return {}
    masks = {"false_vessel_ml": find_vessels(ct.array[region.box], region)[0]}
    if segment is not None:
        masks["segmenter_false_vessel_ml"] = segment(ct).array[region.box] > 0
    return {name: np.count_nonzero(mask) * ct.voxel_ml for name, mask in masks.items()}


def aligned_to_grid(other: Volume, grid: Volume, window: tuple[float, float]) -> Volume:
    """Another patient's CT, resampled and shifted so that its center lies on the grid's center."""
    shape, affine = target_grid(other, grid.spacing, grid.shape)
    if not same_grid(other, Volume(grid.array, affine)):
        other = resample_image(other, shape, affine, window=window)
    return Volume(other.array, grid.affine)
