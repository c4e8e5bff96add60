"""The distribution scores of an evaluation, from slice features that are computed case by case.

The real CT of a case is resampled onto the grid of the first image that was made from it; CTs that
are compared as a set alone, onto the grid of the first synthesis. `options` are keyword arguments
of `volume_features`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tubesynth.metrics.case import EvaluationCase, ScoreSettings, aligned_to_grid, read_case
from tubesynth.metrics.damage import validity_check
from tubesynth.metrics.distribution import (
    distribution_notes,
    distribution_scores,
    negative_control,
)
from tubesynth.metrics.features import load_features
from tubesynth.metrics.published import frechet_as_published
from tubesynth.metrics.summary import Stat
from tubesynth.metrics.volume_features import VolumeFeatures, check_comparable, volume_features
from tubesynth.runtime.errors import InputError
from tubesynth.runtime.log import progress
from tubesynth.volume.files import read_labels, read_volume
from tubesynth.volume.grid import Volume
from tubesynth.volume.hounsfield import check_hu
from tubesynth.volume.resample import image_on_grid, labels_on_grid

CHECKED_CASES = 2  # of the validity check: each costs as much as eight others

Sets = dict[str, list[VolumeFeatures]]  # by source
Each = Callable[..., list]  # of a function, a list of tuples of arguments, a title and a unit


def case_features(case: EvaluationCase, volumes: Sequence[Volume], **options) -> Sets:
    """The features of all images of a case; volumes: the result of read_case."""
    sets: Sets = {}
    for (source, sample, _), volume in zip(case.images, volumes, strict=True):
        if source == "real" and len(volumes) > 1:
            volume = image_on_grid(volume, volumes[1], options["window"])
        features = volume_features(case.id, volume.array, volume.spacing, sample, **options)
        sets.setdefault(source, []).append(features)
    return sets


def aligned_features(
    case_id: str, path: Path, shape: tuple[int, ...], affine: np.ndarray, options: dict[str, Any]
) -> VolumeFeatures:
    """The features of another patient's CT on the grid (shape, affine) of the synthetic CTs."""
    grid = Volume(np.zeros(shape, dtype=np.uint8), affine)
    image = read_volume(path)
    check_hu(image, path, options["window"])
    volume = aligned_to_grid(image, grid, options["window"])
    return volume_features(case_id, volume.array, volume.spacing, **options)


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


@dataclass
class SetResults:
    """Scores of each source against the real CTs, the negative control, the check of the features.

    validity: of metrics/damage.py; None where nothing was compared.
    """

    by_source: dict[str, dict[str, Stat]] = field(default_factory=dict)
    control: dict[str, Stat] = field(default_factory=dict)
    validity: dict | None = None
    notes: list[str] = field(default_factory=list)


def score_sets(
    cases: Sequence[EvaluationCase],
    sets_of_cases: list[Sets],
    settings: ScoreSettings,
    each: Each,
    features: Path | None,
    real_files: Mapping[str, Path],
    training_files: Mapping[str, Path],
) -> SetResults:
    """Score the images of each source as a set.

    sets_of_cases: `case_features` of the cases; with features, the file of a network, they are
    computed here. real_files, training_files: by case id; the real ones are read where no case has
    a real CT. each: runs a function on many arguments, in several processes.
    """
    options: dict[str, Any] = {"window": settings.hu_window}
    raw, raw_sets = {}, []  # options and sets of the scores as published
    made = [case for case in cases if case.images[-1][0] != "real"]
    if features is not None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        options |= {"feature_fn": load_features(features), "device": device}
        if settings.as_published:
            raw = {**options, "feature_fn": load_features(features, raw=True)}
        sets_of_cases = []
        for case in progress(made, "features", len(made), "case"):
            volumes = read_case(case)
            sets_of_cases.append(case_features(case, volumes, **options))
            raw_sets += [case_features(case, volumes, **raw)] if raw else []
    sets, notes = joined(sets_of_cases)
    published, _ = joined(raw_sets)
    synthesized = [case for case in made if case.images[-1][0].startswith("synthesis")]

    def aligned(files: Mapping[str, Path], title: str, **options: Any) -> list[VolumeFeatures]:
        grid = read_case(synthesized[0])[-1]
        jobs = [(case, path, grid.shape, grid.affine, options) for case, path in files.items()]
        return each(aligned_features, jobs, title)

    training: list[VolumeFeatures] = []
    if training_files and synthesized:
        training = aligned(training_files, "training", **options, sampled_only=True)
    elif training_files:
        notes.append("no copies of --training were searched for: no case has a synthesis")
    to_grid = image_on_grid
    if real_files and synthesized and not any(case.images[0][0] == "real" for case in cases):
        sets["real"] = aligned(real_files, "real", **options)
        if raw:
            published["real"] = aligned(real_files, "real", **raw)
        image, to_grid = synthesized[0].images[-1], aligned_to_grid
        cases = [EvaluationCase(c, None, [("real", 0, p), image]) for c, p in real_files.items()]
    if "real" not in sets or len(sets) == 1:
        return SetResults(notes=notes)
    real, standardize = sets.pop("real"), features is None
    jobs = [(validity, cases, settings.classes.vessel, options, to_grid)]
    jobs += [(negative_control, real, standardize)]
    jobs += [(source_scores, s, real, sets[s], training, standardize) for s in sets]
    check, control, *source_results = each(run_job, jobs, "sets of images", "job")
    by_source = {s: metrics for s, (metrics, _) in zip(sets, source_results, strict=True)}
    for source in published.keys() & by_source.keys():
        by_source[source] |= frechet_as_published(published["real"], published[source])
    notes += dict.fromkeys(note for _, texts in source_results for note in texts)
    return SetResults(by_source, control, check, [*notes, *check.get("messages", [])])


def run_job(function: Callable, *arguments) -> Any:
    """function(*arguments); lets one pool of processes run jobs of several functions."""
    return function(*arguments)


def validity(
    cases: Iterable[EvaluationCase],
    vessel_class: int,
    options: dict[str, Any],
    to_grid: Callable[[Volume, Volume, tuple[float, float]], Volume] = image_on_grid,
) -> dict:
    """`validity_check` of the first real cases, on the grid of the image beside each."""

    def volumes(case):
        real, grid = (read_volume(path) for *_, path in case.images[:2])
        image = to_grid(real, grid, options["window"]).array
        if case.label is None:
            return case.id, image, None
        return case.id, image, labels_on_grid(read_labels(case.label, case.label_map), grid).array

    paired = [case for case in cases if case.images[0][0] == "real" and len(case.images) > 1]
    checked = paired[:CHECKED_CASES]
    return validity_check(map(volumes, checked), vessel_class=vessel_class, **options)
