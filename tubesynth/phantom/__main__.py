"""The command phantom: makes procedural coronary CT angiograms with ground truth, without a GPU.

    tubesynth phantom --output-dir data/phantoms --cases 40 --workers 4

writes phantom.json (the settings) and, in training/ and validation/, images/N.img.nii.gz,
labels/N.label.nii.gz and centrelines/N.centreline.json. A second run makes only the missing cases;
the bytes do not depend on the number of workers.
"""

if __name__ == "__main__":
    from tubesynth.runtime.errors import run_module

    run_module("phantom")  # imports this file as tubesynth.phantom

import argparse
import json
import math
from dataclasses import asdict
from pathlib import Path

from tubesynth.config.checks import check_seed, requirement
from tubesynth.config.labels import load_scheme
from tubesynth.data.pool import each
from tubesynth.phantom.data_set import PhantomSettings, case_files, split_cases, write_case
from tubesynth.runtime.atomic import write_text
from tubesynth.runtime.errors import CommandParser, InputError, short
from tubesynth.runtime.reading import stored_json
from tubesynth.runtime.stop_signal import interruptible, kept
from tubesynth.volume.classes import NINE_CLASSES

SETTINGS_FILE = "phantom.json"
VERSION = 1  # of the anatomy; it changes with the bytes of the data set
MAX_VOXELS = 2**28


def main(argv=None) -> None:
    args = _parse(argv)
    settings = PhantomSettings(
        args.seed, tuple(args.resolution), tuple(args.spacing), load_scheme(args.config)
    )
    _check(args, settings)
    root = Path(args.output_dir)
    _claim(root, settings, args.validation_fraction)
    split = split_cases(args.cases, args.validation_fraction)
    missing = [
        case for case in split if not all(p.is_file() for p in case_files(root, split, case))
    ]
    jobs = [(settings, case, case_files(root, split, case)) for case in missing]
    interruptible(
        lambda: each(write_case, jobs, args.workers, "phantoms"),
        kept("the cases that are complete", root),
    )
    num_validation = list(split.values()).count("validation")
    print(
        f"{root}: {len(split) - num_validation} training and {num_validation} validation cases "
        f"({len(missing)} written, {len(split) - len(missing)} complete before)"
    )
    images = {case_files(root, split, case)[0] for case in split}
    others = [path for path in root.glob("*/images/*") if path not in images]
    if others:
        names = ", ".join(sorted(path.name for path in others)[:3])
        print(
            f"a training also reads the images of an earlier command: {len(others)} ({names}, ...);"
            " delete them with their label maps for fewer cases"
        )
    if num_validation == 0:
        print("a training needs a validation case: --cases 2 or more adds one")


def _claim(root: Path, settings: PhantomSettings, validation_fraction: float) -> None:
    """Write the settings file, or refuse a folder whose data set has other settings."""
    content = {"version": VERSION, "validation_fraction": validation_fraction}
    config = json.loads(json.dumps({**asdict(settings), **content}))  # as it is read again
    if settings.labels == NINE_CLASSES:  # older data sets have no such key
        config["labels"] = None
    path = root / SETTINGS_FILE
    if path.is_file():
        stored_config = stored_json(path)
        if not stored_config:
            raise InputError(f"{path}: no readable settings; give another --output-dir")
        for key, value in config.items():
            if stored_config.get(key) != value:
                raise InputError(
                    f"{path}: {key} is {short(stored_config.get(key))}, but this command has"
                    f" {short(value)}; give another --output-dir, or delete the folder {root}"
                )
        return
    try:
        root.mkdir(parents=True, exist_ok=True)
        others = [
            p.name for split in ("training", "validation") for p in (root / split).glob("images/*")
        ]
    except OSError as error:
        raise InputError(
            f"--output-dir {root}: {error.strerror}; give a folder that can be written"
        ) from None
    if others:
        raise InputError(
            f"{root}: has images ({others[0]}) but no {SETTINGS_FILE}; give another --output-dir"
        )
    write_text(path, json.dumps(config, indent=1) + "\n")


def _check(args, settings: PhantomSettings) -> None:
    if args.cases < 1:
        raise InputError(f"--cases {args.cases}: give at least 1")
    if args.workers < 1:
        raise InputError(f"--workers {args.workers}: give at least 1")
    check_seed(args.seed, "--seed", requirement("command line"))
    if not 0 < args.validation_fraction < 1:
        raise InputError(
            f"--validation-fraction {args.validation_fraction}: give a number above 0 and below 1"
        )
    if min(settings.resolution) < 16 or math.prod(settings.resolution) > MAX_VOXELS:
        raise InputError(
            f"--resolution {settings.resolution}: give at least 16 voxels per axis, and at most"
            f" {MAX_VOXELS} in all"
        )
    if not all(0.2 <= s <= 10 for s in settings.spacing):
        raise InputError(f"--spacing {settings.spacing}: give 0.2 to 10 mm per axis")
    extent = [n * s for n, s in zip(settings.resolution, settings.spacing, strict=True)]
    if max(extent) > 500:
        raise InputError(
            f"--resolution times --spacing: {max(extent):.0f} mm is over 500 mm; give fewer voxels"
        )
    if Path(args.output_dir).is_file():
        raise InputError(f"--output-dir {args.output_dir}: is a file; give a folder")


def _parse(argv) -> argparse.Namespace:
    parser = CommandParser(
        prog="tubesynth phantom",
        description="Make a data set of procedural coronary CT angiograms with ground truth.",
        example="tubesynth phantom --output-dir data/phantoms --cases 40 --workers 4",
    )
    add = parser.add_argument
    add("--output-dir", required=True, help="folder of the data set")
    add("--cases", type=int, required=True, metavar="N", help="cases 1 to N")
    add(
        "--resolution",
        type=int,
        nargs=3,
        default=(256, 256, 128),
        metavar=("X", "Y", "Z"),
        help="voxels",
    )
    add(
        "--spacing",
        type=float,
        nargs=3,
        default=(0.7, 0.7, 1.05),
        metavar=("SX", "SY", "SZ"),
        help="mm",
    )
    add(
        "--config",
        metavar="YAML",
        help="write label maps in the scheme of its section labels; default: the nine classes",
    )
    add("--seed", type=int, default=0, help="seed of the data set")
    add("--workers", type=int, default=1, help="processes; the files do not depend on it")
    add("--validation-fraction", type=float, default=0.2, help="share of validation cases")
    return parser.parse_args(argv)
