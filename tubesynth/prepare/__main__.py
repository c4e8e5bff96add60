"""The command prepare: turns ImageCAS, as distributed, into training and validation folders.

    tubesynth prepare --input-dir ImageCAS --heart-dir heart --output-dir data/imagecas

writes OUT/{training,validation}/images/N.img.nii.gz (hard links) and labels/N.label.nii.gz: heart
structures from TotalSegmentator's heartchambers_highres, with the coronary arteries on top. Without
--heart-dir the label maps hold the coronary arteries alone; a folder without any label map gives
images alone, on which stage 1 trains. OUT/manifest.json holds the SHA-256 of
every source and output; a second run makes only what is missing or has changed.

Models see a field of view of fixed size around the middle of the image's grid. --crop-to-heart
writes images and label maps that are cropped to the labels' bounding box and a margin, so that this
middle is the middle of the heart; every voxel keeps its place in the world.
"""

if __name__ == "__main__":
    from tubesynth.runtime.errors import run_module

    run_module("prepare")  # imports this file as tubesynth.prepare

import argparse
import hashlib
from pathlib import Path

from tubesynth.config.checks import check_seed, requirement
from tubesynth.config.labels import load_label_map, load_scheme
from tubesynth.config.strict import to_plain
from tubesynth.data import manifest
from tubesynth.data.pool import check_workers, each
from tubesynth.prepare.case_files import Options, is_finished, make_case, remove_outputs
from tubesynth.prepare.imagecas import MAX_LISTED_IDS, Source, find_sources, id_list
from tubesynth.runtime.atomic import check_apart
from tubesynth.runtime.errors import CommandParser, InputError
from tubesynth.runtime.reading import read_text
from tubesynth.runtime.stop_signal import interruptible, kept
from tubesynth.volume.cases import natural_order
from tubesynth.volume.classes import NINE_CLASSES

DEFAULT_FRACTION = 0.1
DEFAULT_MARGIN_MM = 40.0
MAX_MARGIN_MM = 1000.0
MAX_LISTED_FAILURES = 3


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    workers, scheme = check_workers(args.workers), load_scheme(args.config)
    inputs = {"input-dir": args.input_dir, "heart-dir": args.heart_dir}
    check_apart(args.output_dir, inputs, inside_too=True)
    label_map = load_label_map(args.config, scheme)
    sources = find_sources(args.input_dir, args.heart_dir, scheme)
    images_only = all(source.label is None for source in sources)
    if images_only and args.crop_to_heart:
        raise InputError(f"--crop-to-heart: {args.input_dir} has no label maps: leave it out")
    if len(sources) < 2:
        raise InputError(
            f"{args.input_dir}: holds one case; training and validation each need one, add cases"
        )
    validation_ids = read_ids(args.validation_ids, sources) if args.validation_ids else None
    margin_mm = args.margin_mm if args.crop_to_heart else None
    settings = {
        "seed": args.seed,
        "validation_fraction": None if validation_ids else args.validation_fraction,
        "validation_ids": validation_ids,
        "heart": args.heart_dir is not None,
        "crop_margin_mm": margin_mm,
        # Manifests of version 0.1.0 have no such setting: the nine classes were the only scheme.
        "labels": None if scheme == NINE_CLASSES else to_plain(scheme),
        "label_map": label_map and {str(value): label_map[value] for value in label_map},
        "images_only": images_only or None,  # None as in older manifests
    }
    options = Options(args.output_dir, scheme, label_map, margin_mm, args.link)
    with manifest.exclusive(args.output_dir):
        records, num_prepared = interruptible(
            lambda: prepare(options, sources, settings, workers, args.prune),
            kept("the cases that are prepared", args.output_dir),
        )
    print(summary(options, list(records.values()), num_prepared))
    others = [case for case in records if case not in {source.id for source in sources}]
    if others:
        print(
            f"a training also reads what the input has no more, {id_list(others)}: --prune removes"
            " the prepared files"
        )
    classes = set() if label_map is None else {*label_map.values()} - {0, scheme.vessel}
    if images_only:
        print(f"{args.input_dir} has no label maps: images alone are prepared")
    elif args.heart_dir is None and not classes:
        vessels = scheme.describe(scheme.vessel)
        print(f"label maps hold {vessels} alone: the other classes need --heart-dir")
    print(f"sources and outputs: {args.output_dir / manifest.NAME}")


def prepare(
    options: Options, sources: list[Source], settings: dict, workers: int, prune: bool = False
) -> tuple[dict[str, dict], int]:
    """Make the cases that are missing or changed: ({id: record}, number of prepared cases).

    prune: remove the cases that are no sources any more. InputError names the cases that failed,
    after all others are prepared.
    """
    root = options.root
    records = manifest.open_folder(root, settings)
    ids, fraction = [source.id for source in sources], settings["validation_fraction"]
    pruned = [case for case in records if prune and case not in ids]
    for case in pruned:
        remove_outputs(root, records.pop(case))
    if pruned:
        print(f"removed {id_list(pruned)}")
    splits = assign_splits(ids, settings["seed"], fraction, settings["validation_ids"], records)
    missing = [s for s in sources if not is_finished(root, s, splits[s.id], records.get(s.id))]
    for source in missing:
        if source.id in records and records[source.id]["part"] != splits[source.id]:
            remove_outputs(root, records[source.id])  # else it would be in both splits
    jobs = [(source, splits[source.id], options) for source in missing]
    results = each(make_case, jobs, workers, "prepare")
    failures = []
    for source, result in zip(missing, results, strict=True):
        if isinstance(result, str):
            failures.append(result)
        else:
            records[source.id] = result
    ordered = {case: records[case] for case in sorted(records, key=natural_order)}
    manifest.write(root, settings, ordered)
    if failures:
        listed = "; also ".join(failures[:MAX_LISTED_FAILURES])
        more = len(failures) - MAX_LISTED_FAILURES
        raise InputError(
            listed + (f"; and {more} more" if more > 0 else "") + f"; {root} is incomplete,"
            f" {len(ids) - len(failures)} of {len(ids)} cases: correct the input, and the same"
            " command prepares the rest"
        )
    return ordered, len(missing)


def assign_splits(
    ids: list[str],
    seed: int,
    fraction: float | None,
    validation_ids: list[str] | None,
    records: dict[str, dict],
) -> dict[str, str]:
    """{id: training | validation}, by a fraction or by the validation ids.

    By a fraction, a hash of seed and id gives each case a number in [0, 1), so that cases which are
    added later move no other. A prepared case keeps its split.
    """
    if validation_ids is not None:
        return {case: "validation" if case in validation_ids else "training" for case in ids}
    assert fraction is not None

    def number(case: str) -> float:
        return int(hashlib.sha256(f"{seed}/{case}".encode()).hexdigest()[:12], 16) / 16**12

    splits = {case: "validation" if number(case) < fraction else "training" for case in ids}
    splits.update({case: records[case]["part"] for case in ids if case in records})
    if len(set(splits.values())) == 1:  # a few cases: each split needs one
        if "validation" in splits.values():
            splits[max(splits, key=number)] = "training"
        else:
            splits[min(splits, key=number)] = "validation"
    return splits


def read_ids(path: Path, sources: list[Source]) -> list[str]:
    """The ids in a text file, separated by white space or commas; # begins a comment."""
    lines = read_text(path, "check --validation-ids").splitlines()
    ids = {word for line in lines for word in line.split("#")[0].replace(",", " ").split()}
    unknown = sorted(ids - {source.id for source in sources})
    if unknown:
        raise InputError(
            f"{path}: ids that are no cases: {', '.join(unknown[:MAX_LISTED_IDS])}; correct them"
        )
    if not 0 < len(ids) < len(sources):
        raise InputError(f"{path}: {len(ids)} of {len(sources)} cases; both splits need one")
    return sorted(ids)


def summary(options: Options, records: list[dict], num_prepared: int) -> str:
    """The number of cases, and of those that were copied, resampled or not cropped."""
    num_validation = sum(record["part"] == "validation" for record in records)
    lines = [
        f"{options.root}: {len(records) - num_validation} training and {num_validation} validation"
        f" cases ({num_prepared} prepared now, {len(records) - num_prepared} before)"
    ]
    copies = sum(record["made"] == "copy" for record in records)
    if copies and options.link == "hard":
        lines.append(f"{copies} images are copies: hard links do not cross file systems")
    for note, text in (
        ("resampled", "heart labels were resampled onto the image's grid"),
        ("kept whole", "no labels to crop to, kept whole"),
    ):
        count = sum(any(note in line for line in record["notes"]) for record in records)
        if count:
            lines.append(f"{count} cases: {text}")
    return "\n".join(lines)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = CommandParser(
        prog="tubesynth prepare",
        description="Turn ImageCAS, as it is distributed, into training and validation folders.",
        example="tubesynth prepare --input-dir ImageCAS --heart-dir heart"
        " --output-dir data/imagecas",
    )
    add = parser.add_argument
    add("--input-dir", type=Path, required=True, metavar="DIR", help="ImageCAS as distributed")
    add(
        "--heart-dir",
        type=Path,
        metavar="DIR",
        help="TotalSegmentator's ID.nii.gz, or ID/heart_myocardium.nii.gz and the other masks;"
        " default: no heart structures",
    )
    add("--output-dir", type=Path, required=True, metavar="DIR", help="the prepared folder")
    add(
        "--config",
        metavar="YAML",
        help="its section labels is the scheme of the label maps (default: the nine classes),"
        " data.label_map the classes of the files' values (default: 1 is the vessel class)",
    )
    add(
        "--validation-fraction",
        type=float,
        metavar="F",
        help=f"share of the validation cases; default: {DEFAULT_FRACTION}",
    )
    add(
        "--validation-ids",
        type=Path,
        metavar="FILE",
        help="ids of the validation cases, in place of a fraction",
    )
    add("--seed", type=int, default=0, help="seed of the split; default: 0")
    add(
        "--link",
        choices=["hard", "copy"],
        default="hard",
        help="place images as hard links or as copies; default: hard",
    )
    add("--crop-to-heart", action="store_true", help="crop to the labels and a margin")
    add(
        "--margin-mm",
        type=float,
        metavar="MM",
        help=f"margin of --crop-to-heart; default: {DEFAULT_MARGIN_MM:g}",
    )
    text = "remove the prepared cases that the input has no more; default: name them"
    add("--prune", action="store_true", help=text)
    add("--workers", type=int, metavar="N", help="processes; default: the number of cores")
    args = parser.parse_args(argv)
    check_seed(args.seed, "--seed", requirement("command line"))
    if args.validation_ids and args.validation_fraction is not None:
        raise InputError("--validation-ids and --validation-fraction: give only one of them")
    if args.validation_fraction is None:
        args.validation_fraction = DEFAULT_FRACTION
    if not 0 < args.validation_fraction < 1:
        raise InputError(
            f"--validation-fraction {args.validation_fraction}: give a number above 0 and below 1"
        )
    if args.margin_mm is not None and not args.crop_to_heart:
        raise InputError("--margin-mm: has no effect without --crop-to-heart; give both")
    args.margin_mm = DEFAULT_MARGIN_MM if args.margin_mm is None else args.margin_mm
    if not 0 <= args.margin_mm <= MAX_MARGIN_MM:
        raise InputError(f"--margin-mm {args.margin_mm}: give 0 to {MAX_MARGIN_MM:g}")
    return args
