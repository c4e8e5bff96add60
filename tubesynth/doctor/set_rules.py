"""Rules on the whole data set: an overview, folders, pairs, duplicates, absent classes, outliers.

Each rule takes the splits of the data folder, the facts of all measured cases, and what the config
expects of them (facts.py).
"""

from collections import Counter, defaultdict

import numpy as np

from tubesynth.data.duplicates import groups, shared_text
from tubesynth.data.layout import SPLITS, Split
from tubesynth.doctor.facts import Expected, Facts
from tubesynth.doctor.findings import Results, error, info, warning
from tubesynth.doctor.label_schemes import propose

OUTLIER_RATIO = 5.0  # to the median volume of a class, upwards or downwards
MIN_CASES = 8  # for a median
MAX_VALUES = 40  # of one class that are listed


def pairs(splits: list[Split], facts: list[Facts], expected: Expected) -> Results:
    """An image without a label map, or the reverse; two files of one id; no label maps at all."""
    for split in splits:
        for case, problem in split.problems:
            yield error(problem, case)
    if not any(split.cases for split in splits) or any(split.has_labels for split in splits):
        return
    if expected.label_remedy:
        yield error(f"images only, but this config needs label maps: {expected.label_remedy}")
    elif expected.for_training:
        yield info("images only: nothing that needs vessels is scored")
    else:
        yield warning("images only: all but stage 1 and an unconditional stage 2 needs label maps")


def folders(splits: list[Split], facts: list[Facts], expected: Expected) -> Results:
    """No training layout: make it with prepare, or set data.root to a folder that has it."""
    if expected.for_training and [split.name for split in splits] != list(SPLITS):
        yield error(
            "the folder has no training/ and validation/, each with images/ and labels/; make them"
            " with tubesynth prepare, or set data.root"
        )


def cases(splits: list[Split], facts: list[Facts], expected: Expected) -> Results:
    """The number of cases, and of those with a label map."""
    counts = [f"{len(split.cases)} {split.name}".strip() for split in splits]
    num_labeled = sum(case.label is not None for split in splits for case in split.cases)
    total = sum(len(split.cases) for split in splits)
    if total == 0:
        yield error("the folders hold no volumes; check data.root, or --data")
        return
    with_labels = (
        "all with label maps" if num_labeled == total else f"{num_labeled} with a label map"
    )
    note = "" if len(facts) == total else f"; {len(facts)} of them measured"
    yield info(f"{' and '.join(counts)} cases, {with_labels}{note}")


def geometry(splits: list[Split], facts: list[Facts], expected: Expected) -> Results:
    """Sizes of the images, and how much of them the field of view of the grid holds."""
    read = [case for case in facts if case.shape[0]]
    if not read:
        return
    grid = expected.preprocessing
    shapes = _span([case.shape for case in read], "{:.0f}")
    spacings = _span([case.spacing for case in read], "{:.3g}")
    axes = Counter(case.axes for case in read if case.axes)
    stored = ", ".join(f"{count} {name}" for name, count in axes.most_common())
    yield info(f"{shapes} voxels of {spacings} mm" + (f"; stored as {stored}" if stored else ""))
    resolution = grid.resolution[: grid.dim]  # two sides in two dimensions
    extent = ""
    if isinstance(grid.spacing, tuple):
        sides = [n * s for n, s in zip(resolution, grid.spacing, strict=True)]
        extent = f" = {' x '.join(f'{side:.0f}' for side in sides)} mm"
    yield info(
        f"{expected.owner} grid has {' x '.join(map(str, resolution))} voxels of"
        f" {grid.spacing_text}{extent}: cuts off"
        f" {100 * np.mean([case.cropped for case in read]):.0f} % of the images, and"
        f" {100 * np.mean([case.padded for case in read]):.0f} % of it is padding"
    )


def intensities(splits: list[Split], facts: list[Facts], expected: Expected) -> Results:
    """The range of HU, against the window."""
    read = [case.hu for case in facts if case.hu]
    if not read:
        return
    low, high = min(hu["min"] for hu in read), max(hu["max"] for hu in read)
    medians = [hu["p50"] for hu in read]
    window = expected.preprocessing.hu_window
    yield info(
        f"{low:.0f} to {high:.0f} HU, medians {min(medians):.0f} to {max(medians):.0f}; the window"
        f" is {window[0]:g} to {window[1]:g}"
    )


def vessels(splits: list[Split], facts: list[Facts], expected: Expected) -> Results:
    """Volume, pieces and HU of the vessel class."""
    with_vessels = [case for case in facts if case.pieces_ml and expected.includes(case.voxels)]
    if not with_vessels:
        return
    volumes = [sum(case.pieces_ml) for case in with_vessels]
    counts = [len(case.pieces_ml) for case in with_vessels]
    hu = [case.contrast[0] for case in with_vessels if case.contrast is not None]
    text = (
        f"{expected.labels.describe(expected.labels.vessel)} in {len(with_vessels)} of"
        f" {sum(case.label is not None for case in facts)} label maps: {_range(volumes, '.3g')} ml"
        f" in {_range(counts, 'd')} pieces"
    )
    yield info(text + (f", {_range(hu, '.0f')} HU" if hu else ""))


def duplicates(splits: list[Split], facts: list[Facts], expected: Expected) -> Results:
    """One image under two ids: keep one. If one is in validation, its scores are invalid."""
    for group in groups(facts, lambda case: case.digest):
        images = [case.image for case in group]
        if len({case.split for case in group}) > 1:
            yield error(shared_text(images), group[1].case)
        else:
            text = f"{' = '.join(images)}: one image under several ids; keep one"
            yield warning(text, group[1].case)


def duplicate_labels(splits: list[Split], facts: list[Facts], expected: Expected) -> Results:
    """One label map for different images: all but one have the map of another case."""
    for group in groups(facts, lambda case: case.label_digest):
        if len({case.digest for case in group}) > 1:
            names = " = ".join(str(case.label) for case in group)
            text = f"{names}: one label map for different images; replace the wrong ones"
            yield warning(text, group[1].case)


def same_id(splits: list[Split], facts: list[Facts], expected: Expected) -> Results:
    """One id in training and validation: if it is one patient, remove one of the two."""
    counts = Counter(case.id for split in splits for case in split.cases)
    for case, count in counts.items():
        if count > 1:
            text = f"case {case} is in training and in validation; if it is one patient, remove one"
            yield warning(text, case)


def absent_classes(splits: list[Split], facts: list[Facts], expected: Expected) -> Results:
    """Classes that no label map holds, or none for training: add cases with them."""
    labeled = [case for case in facts if expected.includes(case.voxels) and case.voxels]
    if not labeled:
        return
    classes = range(1, expected.labels.num_classes)
    absent = [value for value in classes if not any(value in case.voxels for case in labeled)]
    if len(classes) > 1 and absent == list(classes[1:]):
        yield warning(
            "label maps hold 0 and 1 alone; if this is ImageCAS as distributed, tubesynth"
            " prepare makes label maps of all classes from it"
        )
    elif absent:
        names = ", ".join(expected.labels.describe(value) for value in absent)
        yield warning(f"no label map holds {names}; the model cannot learn them without such cases")
    training_classes, validation_classes = (
        {value for case in labeled if case.split == split for value in case.voxels}
        for split in SPLITS
    )
    if training_classes and validation_classes - training_classes:
        values = sorted(validation_classes - training_classes)
        names = ", ".join(expected.labels.describe(value) for value in values)
        yield warning(f"only validation holds {names}; move a case with it to training")


def stored_values(splits: list[Split], facts: list[Facts], expected: Expected) -> Results:
    """Label maps of another scheme: values and median volumes, and the data.label_map to set."""
    labeled = [case.stored_ml for case in facts if case.stored_ml]
    label_map, values = expected.label_map, sorted(set().union(*labeled))
    proposal = propose(labeled, expected.labels) if labeled and label_map is None else None
    if proposal:
        name, classes = proposal
        pairs = ", ".join(f"{value}: {label}" for value, label in classes.items())
        yield warning(
            f"the label maps look like {name}, not like the classes of labels.names; set"
            f" data.label_map to {{{pairs}}}, in this config or in that of tubesynth prepare"
        )
    if label_map is None and proposal is None and expected.includes(values):
        return
    by_class = defaultdict(list)
    for value in values:
        volumes = [volumes_ml[value] for volumes_ml in labeled if value in volumes_ml]
        label = value if label_map is None else label_map.get(value, 0)
        name = expected.labels.describe(label) if expected.includes([label]) else "no class"
        unit = " label maps" if name not in by_class else ""
        by_class[name].append(f"{value} ({np.median(volumes):.3g} ml in {len(volumes)}{unit})")
    for name, texts in by_class.items():
        more = f", and {len(texts) - MAX_VALUES} more" if len(texts) > MAX_VALUES else ""
        yield info(f"{name}: values {', '.join(texts[:MAX_VALUES])}{more}")


def volume_outlier(splits: list[Split], facts: list[Facts], expected: Expected) -> Results:
    """A class much larger or smaller than in the other cases: check the labels of the case."""
    by_class = defaultdict(list)
    for case in facts:
        for value, volume_ml in case.volumes_ml.items():
            if expected.includes([value]):
                by_class[value].append((volume_ml, case))
    for value, volumes in sorted(by_class.items()):
        if len(volumes) < MIN_CASES:
            continue
        median = float(np.median([volume_ml for volume_ml, _ in volumes]))
        for volume_ml, case in volumes:
            if not median / OUTLIER_RATIO <= volume_ml <= median * OUTLIER_RATIO:
                name = f"{case.label}: {expected.labels.describe(value)}"
                text = f"{name} has {volume_ml:.3g} ml, the median case {median:.3g}"
                yield warning(text, case.case)


# The rules of the overview describe the set; the other rules find errors in it.
OVERVIEW = [cases, geometry, intensities, vessels]
SET_RULES = [
    *OVERVIEW,
    folders,
    pairs,
    duplicates,
    duplicate_labels,
    same_id,
    absent_classes,
    stored_values,
    volume_outlier,
]


def _span(rows, form: str) -> str:
    """'512 x 512 x 206-275' of several triples."""
    low, high = np.min(rows, axis=0), np.max(rows, axis=0)
    pairs = [(form.format(a), form.format(b)) for a, b in zip(low, high, strict=True)]
    return " x ".join(a if a == b else f"{a}-{b}" for a, b in pairs)


def _range(values, form: str) -> str:
    low, high = format(min(values), form), format(max(values), form)
    return low if low == high else f"{low} to {high}"
