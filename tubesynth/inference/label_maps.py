"""The label maps that commands read: their folder, their classes and their centrelines."""

import argparse
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from tubesynth.config.labels import check_label_map, load_scheme
from tubesynth.config.schema import Config
from tubesynth.runtime.errors import InputError
from tubesynth.runtime.reading import require_folder
from tubesynth.volume.cases import find_cases
from tubesynth.volume.centreline_file import SUFFIX
from tubesynth.volume.classes import LabelScheme, numbered_classes

TRANSLATE_REMEDY = "translate them with --label-map"  # of values that are no classes


def label_map_of(config: Config, pairs: list[str] | None) -> dict[int, int] | None:
    """{value: class} of --label-map, or data.label_map without it; None: values are classes."""
    if not pairs:
        return config.data.label_map if pairs is None else None
    label_map: dict[int, int] = {}
    for pair in pairs:
        value, equals, label = pair.partition("=")
        if not (equals and value.isdecimal() and label.isdecimal()):
            raise InputError(f"--label-map {pair}: expected VALUE=CLASS with whole numbers, as 1=3")
        if int(value) in label_map:
            raise InputError(f"--label-map {pair}: {value} has two classes: give it one")
        label_map[int(value)] = int(label)
    check_label_map(label_map, config.labels.num_classes, "--label-map")
    return label_map


def find_label_maps(input_dir: Path, output_dir: Path) -> dict[str, Path]:
    """{case: label map} of a folder, which must not be one that is written to."""
    for folder in (output_dir, output_dir / "labels"):
        if folder.resolve() == input_dir.resolve():
            raise InputError(
                f"--output-dir {output_dir}: {folder} is the folder of the label maps:"
                " choose another"
            )
    return find_cases(input_dir)


def find_centrelines(folder: Path | None, cases: Iterable[str]) -> dict[str, Path]:
    """The centreline file of every case in a folder; empty without a folder."""
    if folder is None:
        return {}
    require_folder(folder, "check --centrelines")
    centrelines = {case: folder / f"{case}{SUFFIX}" for case in cases}
    missing = [case for case, path in centrelines.items() if not path.exists()]
    check_none_missing(f"--centrelines {folder}", "centreline", missing)
    return centrelines


def check_none_missing(folder: str, kind: str, cases: list[str]) -> None:
    """InputError that names the cases without a file in a folder."""
    if cases:
        listed = ", ".join(cases[:10]) + (", ..." if len(cases) > 10 else "")
        raise InputError(f"{folder}: no {kind} of case {listed}: add it")


def evaluated_classes(args: argparse.Namespace) -> LabelScheme:
    """The scheme of --config, or the nine classes, with the roles that the flags name."""
    scheme = load_scheme(args.config)
    vessel = scheme.vessel if args.vessel_class is None else args.vessel_class
    heart = scheme.heart if args.heart_classes is None else tuple(args.heart_classes)
    aorta = scheme.aorta if args.aorta_class is None else args.aorta_class
    for option, values in (
        ("--vessel-class", (vessel,)),
        ("--heart-classes", heart),
        ("--aorta-class", () if aorta is None else (aorta,)),
    ):
        if not all(0 < value < 256 for value in values):
            raise InputError(f"{option} {' '.join(map(str, values))}: give classes from 1 to 255")
    if (vessel, heart, aorta) == (scheme.vessel, scheme.heart, scheme.aorta):
        return scheme
    if max(vessel, *heart, aorta or 0) < scheme.num_classes:
        return replace(scheme, vessel=vessel, heart=heart, aorta=aorta)
    return numbered_classes(max(vessel, *heart, aorta or 0) + 1, vessel, heart, aorta)
