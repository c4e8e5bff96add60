"""ImageCAS, as it is distributed, into the training and validation folders that training reads.

    tubesynth prepare --input-dir ImageCAS --heart-dir heart --output-dir data/imagecas

writes OUT/{training,validation}/images/N.img.nii.gz (hard links) and labels/N.label.nii.gz: heart
structures 1 to 7 from TotalSegmentator's heartchambers_highres, coronary arteries on top as 8.
Without --heart-dir the coronaries are all there is. OUT/manifest.json holds the SHA-256 of every
source and output; a second run makes only what is missing or has changed.

Models see a field of view of fixed size around the middle of the image's grid. --crop-to-heart
writes images and labels that are cropped to the labels' bounding box and a margin, both sides
alike, so that this middle is the heart's; every voxel stays where it was in the world.
"""

import argparse
import hashlib
from pathlib import Path

import numpy as np

from tubesynth.config.labels import load_scheme
from tubesynth.config.strict import to_plain
from tubesynth.data import manifest
from tubesynth.data.pool import check_workers, each
from tubesynth.prepare.imagecas import (
    Source,
    crop,
    find_sources,
    heart_box,
    label_map,
    place,
    with_axes_of,
)
from tubesynth.runtime.errors import CommandParser, InputError, run_command
from tubesynth.volume.cases import natural_order
from tubesynth.volume.classes import NINE_CLASSES, LabelScheme
from tubesynth.volume.files import SUFFIXES, source_files, write_volume

DEFAULT_FRACTION = 0.1


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    workers, scheme = check_workers(args.workers), load_scheme(args.config)
    sources = find_sources(args.input_dir, args.heart_dir, scheme)
    if len(sources) < 2:
        raise InputError(f"{args.input_dir}: one case; training and validation need one each")
    held = read_ids(args.validation_ids, sources) if args.validation_ids else None
    fraction = None if held is not None else args.validation_fraction
    settings = {
        "seed": args.seed,
        "validation_fraction": fraction,
        "validation_ids": held,
        "heart": args.heart_dir is not None,
        "crop_margin_mm": args.margin_mm if args.crop_to_heart else None,
        # None also stands in the manifests of version 0.1.0, which had no other scheme.
        "labels": None if scheme == NINE_CLASSES else to_plain(scheme),
    }
    with manifest.alone(args.output_dir):
        prepare(args, scheme, sources, settings, workers)


def prepare(
    args: argparse.Namespace,
    scheme: LabelScheme,
    sources: list[Source],
    settings: dict,
    workers: int,
) -> None:
    """Make what is missing, and say what there is."""
    root, fraction = args.output_dir, settings["validation_fraction"]
    records = manifest.claim(root, settings)
    ids = [source.id for source in sources]
    parts = split(ids, args.seed, fraction, settings["validation_ids"], records)
    todo = [s for s in sources if not is_finished(root, s, parts[s.id], records.get(s.id))]
    jobs = [(root, s, parts[s.id], args.link, settings["crop_margin_mm"], scheme) for s in todo]
    results = each(make_case, jobs, workers, "prepare")
    failures = [problem for _, problem in results if problem]
    for source, (record, _) in zip(todo, results, strict=True):
        if record:
            records[source.id] = record
    manifest.write(
        root, settings, {case: records[case] for case in sorted(records, key=natural_order)}
    )
    if failures:
        more = f" (and {len(failures) - 1} more like it)" if len(failures) > 1 else ""
        raise InputError(f"{failures[0]}{more}")
    print(summary(root, sources, records, len(todo), args, scheme))


def make_case(
    root: Path,
    source: Source,
    part: str,
    link: str,
    margin_mm: float | None,
    scheme: LabelScheme,
):
    """Write a case's files and, last, its record: (record, None), or (None, what is wrong)."""
    try:
        image, labels, notes = label_map(source, scheme)
    except InputError as error:
        return None, str(error)
    box = None if margin_mm is None else heart_box(labels, margin_mm)
    label_path = root / part / "labels" / f"{source.id}.label.nii.gz"
    in_parts = len(source_files(source.image)) > 1  # a header with its data: one file is written
    image_path = image_target(root, source, part, in_parts or margin_mm is not None)
    if margin_mm is not None and box is None:
        notes.append("no labels to crop to: kept whole")
    if box is not None:
        image, labels = crop(image, box), crop(labels, box)
    if in_parts or margin_mm is not None:
        write_volume(image_path, with_axes_of(image, source.image), np.int16)
        made = "converted" if margin_mm is None else "cropped"
    else:
        made = place(source.image, image_path, link)
    write_volume(label_path, with_axes_of(labels, source.image), np.uint8)
    values, counts = np.unique(labels.array, return_counts=True)
    record = {
        "part": part,
        "image": manifest.described(image_path, root),
        "label": manifest.described(label_path, root),
        "made": made,
        "box": None if box is None else [[side.start, side.stop] for side in box],
        "class_voxels": dict(zip(map(str, values.tolist()), counts.tolist(), strict=True)),
        "sources": [manifest.described(path) for path in source.files],
        "notes": notes,
    }
    manifest.add(root, source.id, record)
    return record, None


def image_target(root: Path, source: Source, part: str, written: bool) -> Path:
    name = source.image.name.lower()
    suffix = max((s for s in SUFFIXES if name.endswith(s)), key=len)
    return root / part / "images" / f"{source.id}.img{'.nii.gz' if written else suffix}"


def is_finished(root: Path, source: Source, part: str, record: dict | None) -> bool:
    """Whether sources and outputs are what the record says."""
    if record is None or record["part"] != part or len(record["sources"]) != len(source.files):
        return False
    outputs = [(root / record[kind]["path"], record[kind]) for kind in ("image", "label")]
    pairs = [*outputs, *zip(source.files, record["sources"], strict=True)]
    return all(manifest.is_as_described(path, described) for path, described in pairs)


def split(ids: list[str], seed: int, fraction, held, records: dict) -> dict[str, str]:
    """{id: training | validation}. By a number in [0, 1) that seed and id alone decide, so that
    cases which are added later move no other; and what is prepared already stays where it is.
    """
    if held is not None:
        return {case: "validation" if case in held else "training" for case in ids}

    def number(case):
        return int(hashlib.sha256(f"{seed}/{case}".encode()).hexdigest()[:12], 16) / 16**12

    parts = {case: "validation" if number(case) < fraction else "training" for case in ids}
    parts.update({case: records[case]["part"] for case in ids if case in records})
    if len(set(parts.values())) == 1:  # a few cases: both parts need one
        pick = min if "validation" not in parts.values() else max
        case = pick(parts, key=number)
        parts[case] = "validation" if pick is min else "training"
    return parts


def read_ids(path: Path, sources: list[Source]) -> list[str]:
    """The ids in a text file, apart by white space or commas; # begins a comment."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not readable as text; check --validation-ids") from error
    ids = {word for line in lines for word in line.split("#")[0].replace(",", " ").split()}
    unknown = sorted(ids - {source.id for source in sources})
    if unknown:
        raise InputError(f"{path}: ids that are no cases: {', '.join(unknown[:20])}; correct them")
    if not 0 < len(ids) < len(sources):
        raise InputError(f"{path}: {len(ids)} of {len(sources)} cases; both parts need one")
    return sorted(ids)


def summary(root: Path, sources, records: dict, made: int, args, scheme: LabelScheme) -> str:
    """What is there now, and what somebody should know about it."""
    mine = [records[source.id] for source in sources]
    held = sum(record["part"] == "validation" for record in mine)
    lines = [
        f"{root}: {len(mine) - held} training and {held} validation cases ({made} made,"
        f" {len(mine) - made} were there)"
    ]
    copied = sum(record["made"] == "copy" for record in mine)
    if args.link == "hard" and copied and not args.crop_to_heart:
        lines.append(f"{copied} images are copies: hard links do not cross file systems")
    for note in ("resampled", "kept whole"):
        count = sum(any(note in text for text in record["notes"]) for record in mine)
        if count:
            what = {"resampled": "heart labels were resampled onto the image's grid"}
            lines.append(f"{count} cases: {what.get(note, 'no labels to crop to, kept whole')}")
    if args.heart_dir is None:
        vessels = scheme.describe(scheme.vessel)
        lines.append(f"label maps hold {vessels} alone: the other classes need --heart-dir")
    lines.append(f"sources and outputs: {root / manifest.NAME}")
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
    add("--heart-dir", type=Path, metavar="DIR", help="ID.nii.gz or ID/heart_myocardium.nii.gz ...")
    add("--output-dir", type=Path, required=True, metavar="DIR", help="data set folder")
    add(
        "--config",
        metavar="YAML",
        help="write label maps in the scheme of its section labels; default: the nine classes",
    )
    add("--validation-fraction", type=float, metavar="F", help=f"default {DEFAULT_FRACTION}")
    add("--validation-ids", type=Path, metavar="FILE", help="ids of the validation cases instead")
    add("--seed", type=int, default=0, help="of the split")
    add("--link", choices=["hard", "copy"], default="hard", help="how images are put there")
    add("--crop-to-heart", action="store_true", help="crop to the labels, the heart in the middle")
    add("--margin-mm", type=float, help="around the labels, with --crop-to-heart; default 40")
    add("--workers", type=int, help="processes; default: one a core")
    args = parser.parse_args(argv)
    if args.validation_ids and args.validation_fraction is not None:
        raise InputError("--validation-ids and --validation-fraction: give one of them")
    if args.validation_fraction is None:
        args.validation_fraction = DEFAULT_FRACTION
    if not 0 < args.validation_fraction < 1:
        raise InputError(f"--validation-fraction {args.validation_fraction}: from 0 to 1")
    if args.margin_mm is not None and not args.crop_to_heart:
        raise InputError("--margin-mm: only --crop-to-heart has a margin")
    args.margin_mm = 40.0 if args.margin_mm is None else args.margin_mm
    if not 0 <= args.margin_mm <= 1000:
        raise InputError(f"--margin-mm {args.margin_mm}: from 0 to 1000")
    return args


if __name__ == "__main__":
    run_command(main)
