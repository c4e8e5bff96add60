"""Distribution scores of an evaluation: features are taken case by case (in any process), then put
together and compared (distribution.py says how).

A case gives {source: DistributionSet of that case alone}, of a few hundred kB; `combined` joins
them, and the order changes nothing. Volumes are brought onto the grid of what was made.
"""

import numpy as np

from tubesynth.metrics.case import as_if_here
from tubesynth.metrics.damage import ValidityCheck
from tubesynth.metrics.distribution import (
    distribution_notes,
    distribution_scores,
    diversity_statistics,
    sample_diversity,
)
from tubesynth.metrics.distribution_set import (
    MIN_GROUPS,
    MIN_PIXELS,
    MOMENTS_MIB,
    PLANES,
    SAMPLED_CASES,
    DistributionSet,
    grouped,
    sampling_order,
)
from tubesynth.metrics.features import radiomic_features
from tubesynth.runtime.errors import InputError
from tubesynth.volume.files import read_labels, read_volume
from tubesynth.volume.grid import Volume, same_grid
from tubesynth.volume.resample import resample_image, resample_labels

CHECKED_CASES = 2  # of the validity check: each costs as much as eight others


def planes_of(shape) -> tuple[str, ...]:
    """The planes whose slices are large enough for features; of a 2D image the axial one."""
    sides = {plane: [n for i, n in enumerate(shape) if i != axis] for plane, axis in PLANES.items()}
    return tuple(plane for plane, pixels in sides.items() if min(pixels) >= MIN_PIXELS)


def case_sets(case, volumes, window, sets=None, **options) -> dict[str, DistributionSet]:
    """Each source's features of one case, of volumes as read_case gives them.

    The real CT is taken on the grid of the first image made from it. sets: to be added to;
    options: of DistributionSet.
    """
    sets = {} if sets is None else sets
    for (source, sample, _), volume in zip(case.images, volumes, strict=True):
        if source == "real" and len(volumes) > 1 and not same_grid(volume, volumes[1]):
            volume = resample_image(volume, volumes[1].shape, volumes[1].affine)
        if source not in sets:
            planes = planes_of(volume.shape)
            sets[source] = DistributionSet(planes=planes, window=window, **options)
        sets[source].add(case.id, volume.array, volume.spacing, sample)
    return sets


def training_set(case_id: str, path, grid, window, **options) -> DistributionSet:
    """One training CT on a grid (shape, affine) of the size of what was made."""
    here = as_if_here(read_volume(path), Volume(np.zeros(grid[0], dtype=np.uint8), grid[1]))
    planes = planes_of(grid[0])
    result = DistributionSet(planes=planes, window=window, sampled_only=True, **options)
    result.add(case_id, here.array, here.spacing)
    return result


def combined_by_source(parts: list[dict]) -> tuple[dict[str, DistributionSet], list[str]]:
    """The cases' sets joined, and notes on sources that cannot be."""
    sets, notes = {}, []
    for source in dict.fromkeys(source for part in parts for source in part):
        try:
            sets[source] = combined([part[source] for part in parts if source in part])
        except InputError as error:
            notes.append(f"no distribution scores of the {source}: {error}")
    return sets, notes


def case_diversity(case, volumes, source: str, window) -> float | None:
    """MS-SSIM between the samples of one label map; None below two."""
    images = zip(case.images, volumes, strict=True)
    return sample_diversity([np.array(v.array) for (s, *_), v in images if s == source], window, 3)


def combined(parts: list[DistributionSet]) -> DistributionSet | None:
    """One set of sets that hold different cases; bounded as a set that took them in one by one."""
    if not parts:
        return None
    first = parts[0]
    result = DistributionSet(
        first.feature_fn, first.planes, window=first.window, sampled_only=first.sampled_only
    )
    result.spacing = first.spacing
    for part in parts:
        if part.planes != first.planes or not np.allclose(part.spacing, first.spacing, rtol=0.01):
            raise InputError("cases lie on grids of different spacing; resample them to one")
        result.cases |= part.cases
        result.thumbnails |= part.thumbnails
        result.mean_features |= part.mean_features
        for plane in first.planes:
            result.moments[plane] |= part.moments[plane]
            result.slices[plane] |= part.slices[plane]
    for plane, slices in result.slices.items():
        chosen = sorted(slices, key=sampling_order)[:SAMPLED_CASES]
        result.slices[plane] = {case: slices[case] for case in chosen}
    sizes = [m.scatter.nbytes for m in result.moments[first.planes[0]].values()]
    most = max(MIN_GROUPS, int(MOMENTS_MIB * 2**20 / (max(sizes, default=1) * len(first.planes))))
    if len(sizes) > most:
        result.groups = most
        result.moments = {plane: grouped(m, most) for plane, m in result.moments.items()}
    return result


def source_scores(source: str, real, made, training=None) -> tuple[dict, list[str]]:
    """({METRIC: STAT}, notes) of one source against the real CTs."""
    try:
        return distribution_scores(real, made, training), distribution_notes(real, made)
    except InputError as error:  # other grids, other features: the other scores still hold
        return {}, [f"no distribution scores of the {source}: {error}"]


def run_job(function, *arguments):
    """Independent pieces of work of several kinds, for a pool of processes of one thread each.

    Small matrices gain nothing from BLAS threads, and lose tenfold on a busy machine.
    """
    return function(*arguments)


def diversity(by_case: dict[str, float | None]) -> dict[str, dict]:
    """{"diversity_ms_ssim": STAT}, or {} where no label map has two samples."""
    known = {case: v for case, v in by_case.items() if v is not None}
    return {"diversity_ms_ssim": diversity_statistics(known)} if known else {}


def validity(cases, vessel_class, window, feature_fn=radiomic_features, device="cpu") -> dict:
    """ValidityCheck of the first real cases, on the grid of what was made from them."""
    cases = [case for case in cases if case.images[0][0] == "real" and len(case.images) > 1]
    check = None
    for case in cases[:CHECKED_CASES]:
        real, grid = (read_volume(path) for *_, path in case.images[:2])
        label = None if case.label is None else read_labels(case.label)
        if not same_grid(real, grid):
            real = resample_image(real, grid.shape, grid.affine)
        if label is not None and not same_grid(label, grid):
            label = resample_labels(label, grid.shape, grid.affine)
        if check is None:
            check = ValidityCheck(
                feature_fn,
                planes_of(grid.shape),
                window=window,
                vessel_class=vessel_class,
                device=device,
            )
        check.add(case.id, real.array, None if label is None else label.array)
    return {} if check is None else check.result()
