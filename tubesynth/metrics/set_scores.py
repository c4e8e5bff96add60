"""The distribution scores of an evaluation, from slice features that are computed case by case.

Volumes are resampled onto the grid of the first image that was made from the real CT. `options` are
keyword arguments of `volume_features`.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tubesynth.metrics.case import EvaluationCase, aligned_to_grid
from tubesynth.metrics.damage import validity_check
from tubesynth.metrics.distribution import distribution_notes, distribution_scores
from tubesynth.metrics.summary import Stat
from tubesynth.metrics.volume_features import VolumeFeatures, check_comparable, volume_features
from tubesynth.runtime.errors import InputError
from tubesynth.volume.files import read_labels, read_volume
from tubesynth.volume.grid import Volume
from tubesynth.volume.hounsfield import check_hu
from tubesynth.volume.resample import image_on_grid, labels_on_grid

CHECKED_CASES = 2  # of the validity check: each costs as much as eight others

Sets = dict[str, list[VolumeFeatures]]  # by source


def case_features(case: EvaluationCase, volumes: Sequence[Volume], **options) -> Sets:
    """The features of all images of a case; volumes: the result of read_case."""
    sets: Sets = {}
    for (source, sample, _), volume in zip(case.images, volumes, strict=True):
        if source == "real" and len(volumes) > 1:
            volume = image_on_grid(volume, volumes[1], options["window"])
        features = volume_features(case.id, volume.array, volume.spacing, sample, **options)
        sets.setdefault(source, []).append(features)
    return sets


def training_features(
    case_id: str, path: Path, shape: tuple[int, ...], affine: np.ndarray, options: dict[str, Any]
) -> VolumeFeatures:
    """The features of a training CT on a grid (shape, affine) of the size of the synthetic CTs."""
    grid = Volume(np.zeros(shape, dtype=np.uint8), affine)
    image = read_volume(path)
    check_hu(image, path, options["window"])
    volume = aligned_to_grid(image, grid, options["window"])
    return volume_features(case_id, volume.array, volume.spacing, sampled_only=True, **options)


def joined(sets_of_cases: Iterable[Sets]) -> tuple[Sets, list[str]]:
    """The sets of all cases by source, and notes on sources that have no scores, since their
    volumes cannot be compared."""
    result: Sets = {}
    notes = []
    for sets in sets_of_cases:
        for source, volumes in sets.items():
            result.setdefault(source, []).extend(volumes)
    for source, volumes in list(result.items()):
        try:
            check_comparable(volumes)
        except InputError as error:
            del result[source]
            notes.append(f"no distribution scores of the {source}: {error}")
    return result, notes


def source_scores(
    source: str, real, synthetic, training=(), standardize: bool = True
) -> tuple[dict[str, Stat], list[str]]:
    """({METRIC: Stat}, notes) of the set of one source against the real CTs."""
    try:
        scores = distribution_scores(real, synthetic, training, standardize)
        return scores, distribution_notes(real, synthetic)
    except InputError as error:  # other grids: the scores of the other sources still hold
        return {}, [f"no distribution scores of the {source}: {error}"]


def run_job(function: Callable, *arguments) -> Any:
    """function(*arguments); lets one pool of processes run jobs of several functions."""
    return function(*arguments)


def validity(cases: Iterable[EvaluationCase], vessel_class: int, options: dict[str, Any]) -> dict:
    """`validity_check` of the first real cases, on the grid of the image made from each."""

    def volumes(case):
        real, grid = (read_volume(path) for *_, path in case.images[:2])
        image = image_on_grid(real, grid, options["window"]).array
        if case.label is None:
            return case.id, image, None
        return case.id, image, labels_on_grid(read_labels(case.label, case.label_map), grid).array

    paired = [case for case in cases if case.images[0][0] == "real" and len(case.images) > 1]
    checked = paired[:CHECKED_CASES]
    return validity_check(map(volumes, checked), vessel_class=vessel_class, **options)
