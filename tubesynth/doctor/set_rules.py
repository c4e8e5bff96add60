"""Rules on the whole set: what pairs, what stands twice, what is missing everywhere, what is odd.

Each rule takes (parts, facts of all cases, expected); see findings.py.
"""

from collections import Counter, defaultdict

import numpy as np

from tubesynth.data.layout import PARTS, Part
from tubesynth.doctor.facts import Expected, Facts
from tubesynth.doctor.findings import error, info, warning

OUTLIER = 5.0  # times the median volume of a class, or a fifth of it
ENOUGH_CASES = 8  # for a median


def pairs(parts: list[Part], facts: list[Facts], expected: Expected):
    for part in parts:
        for case, problem in part.problems:
            yield error(case, problem)
        if part.cases and not part.labelled and not part.name:
            yield warning(None, "images only: training needs a label map of each")


def folders(parts: list[Part], facts: list[Facts], expected: Expected):
    if expected.for_training and [part.name for part in parts] != list(PARTS):
        yield error(
            None,
            "the folder has no training/ and validation/, each with images/ and labels/; make them"
            " with tubesynth prepare, or set data.root",
        )


def cases(parts: list[Part], facts: list[Facts], expected: Expected):
    counts = [f"{len(part.cases)} {part.name}".strip() for part in parts]
    labelled = sum(case.label is not None for part in parts for case in part.cases)
    total = sum(len(part.cases) for part in parts)
    with_labels = "all with label maps" if labelled == total else f"{labelled} with a label map"
    looked = "" if len(facts) == total else f"; {len(facts)} of them looked at"
    yield info(None, f"{' and '.join(counts)} cases, {with_labels}{looked}")


def geometry(parts: list[Part], facts: list[Facts], expected: Expected):
    read = [one for one in facts if one.shape[0]]
    if not read:
        return
    wanted = expected.preprocessing
    shapes = _span([one.shape for one in read], "{:.0f}")
    spacings = _span([one.spacing for one in read], "{:.3g}")
    axes = Counter(one.axes for one in read if one.axes)
    stored = ", ".join(f"{count} {name}" for name, count in axes.most_common())
    yield info(
        None, f"{shapes} voxels of {spacings} mm" + (f"; stored as {stored}" if stored else "")
    )
    resolution = wanted.resolution[: len(wanted.spacing)]  # of a picture without its one slice
    extent = [n * s for n, s in zip(resolution, wanted.spacing, strict=True)]
    yield info(
        None,
        f"the model sees {' x '.join(map(str, resolution))} voxels of"
        f" {' x '.join(f'{s:g}' for s in wanted.spacing)} mm ="
        f" {' x '.join(f'{e:.0f}' for e in extent)} mm: cuts off"
        f" {100 * np.mean([one.cropped for one in read]):.0f} % of the images, and"
        f" {100 * np.mean([one.padded for one in read]):.0f} % of it is padding",
    )


def intensities(parts: list[Part], facts: list[Facts], expected: Expected):
    read = [one.hu for one in facts if one.hu]
    if not read:
        return
    low, high = min(hu["min"] for hu in read), max(hu["max"] for hu in read)
    middle = [hu["p50"] for hu in read]
    window = expected.preprocessing.hu_window
    yield info(
        None,
        f"{low:.0f} to {high:.0f} HU, medians {min(middle):.0f} to {max(middle):.0f}; the window"
        f" is {window[0]:g} to {window[1]:g}",
    )


def vessels(parts: list[Part], facts: list[Facts], expected: Expected):
    found = [one for one in facts if one.pieces_ml and expected.knows(one.voxels)]
    if not found:
        return
    volumes = [sum(one.pieces_ml) for one in found]
    counts = [len(one.pieces_ml) for one in found]
    hu = [one.vessel_hu for one in found if one.vessel_hu is not None]
    text = (
        f"{expected.labels.describe(expected.labels.vessel)} in {len(found)} of"
        f" {sum(one.label is not None for one in facts)} label maps: {_range(volumes, '.3g')} ml"
        f" in {_range(counts, 'd')} pieces"
    )
    yield info(None, text + (f", {_range(hu, '.0f')} HU" if hu else ""))


def duplicates(parts: list[Part], facts: list[Facts], expected: Expected):
    """One image under two ids; in training and validation both, the scores mean nothing."""
    for same in _alike(facts, "digest"):
        names = " = ".join(one.image for one in same)
        if len({one.part for one in same}) > 1:
            yield error(
                same[1].case,
                f"{names}: one image in training and validation; remove it from one of them",
            )
        else:
            yield warning(same[1].case, f"{names}: one image under several ids; keep one")


def duplicate_labels(parts: list[Part], facts: list[Facts], expected: Expected):
    for same in _alike(facts, "label_digest"):
        if len({one.digest for one in same}) > 1:
            names = " = ".join(one.label for one in same)
            yield warning(same[1].case, f"{names}: one label map for different images")


def same_id(parts: list[Part], facts: list[Facts], expected: Expected):
    known = Counter(case.id for part in parts for case in part.cases)
    for case, count in known.items():
        if count > 1:
            yield warning(case, f"case {case} is in training and in validation; is it one patient?")


def absent_classes(parts: list[Part], facts: list[Facts], expected: Expected):
    labelled = [one for one in facts if expected.knows(one.voxels) and one.voxels]
    if not labelled:
        return
    classes = range(1, expected.labels.num_classes)
    absent = [value for value in classes if not any(value in one.voxels for one in labelled)]
    if len(classes) > 1 and absent == list(classes[1:]):
        yield warning(
            None,
            "label maps hold 0 and 1 alone; if this is ImageCAS as distributed, python -m"
            " tubesynth.prepare makes the nine classes of it",
        )
    elif absent:
        names = ", ".join(expected.labels.describe(value) for value in absent)
        yield warning(
            None, f"no label map holds {names}; the model cannot learn what it never sees"
        )
    in_training = {value for one in labelled if one.part == "training" for value in one.voxels}
    only = {value for one in labelled if one.part == "validation" for value in one.voxels}
    only = sorted(only - in_training) if in_training else []
    if only:
        names = ", ".join(expected.labels.describe(v) for v in only if v in classes)
        yield warning(None, f"only validation holds {names}; move a case with it to training")


def volume_outlier(parts: list[Part], facts: list[Facts], expected: Expected):
    """A class much larger or smaller than in the other cases."""
    by_class = defaultdict(list)
    for one in facts:
        for value, volume_ml in one.volumes_ml.items():
            if expected.knows([value]):
                by_class[value].append((volume_ml, one))
    for value, found in sorted(by_class.items()):
        if len(found) < ENOUGH_CASES:
            continue
        median = float(np.median([volume_ml for volume_ml, _ in found]))
        for volume_ml, one in found:
            if not median / OUTLIER <= volume_ml <= median * OUTLIER:
                yield warning(
                    one.case,
                    f"{one.label}: {expected.labels.describe(value)} has {volume_ml:.3g} ml, the"
                    f" median case {median:.3g}",
                )


# What the set is, in a few lines; then what is wrong with it.
OVERVIEW = [cases, geometry, intensities, vessels]
SET_RULES = [
    *OVERVIEW,
    folders,
    pairs,
    duplicates,
    duplicate_labels,
    same_id,
    absent_classes,
    volume_outlier,
]


def _alike(facts: list[Facts], name: str) -> list[list[Facts]]:
    groups = defaultdict(list)
    for one in facts:
        if getattr(one, name):
            groups[getattr(one, name)].append(one)
    return [group for group in groups.values() if len(group) > 1]


def _span(rows, form: str) -> str:
    """'512 x 512 x 206-275' of several triples."""
    low, high = np.min(rows, axis=0), np.max(rows, axis=0)
    pairs = [(form.format(a), form.format(b)) for a, b in zip(low, high, strict=True)]
    return " x ".join(a if a == b else f"{a}-{b}" for a, b in pairs)


def _range(values, form: str) -> str:
    low, high = format(min(values), form), format(max(values), form)
    return low if low == high else f"{low} to {high}"
