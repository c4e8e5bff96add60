"""Train a vessel segmenter on real and synthetic CTs, or apply one to a folder of CTs.

    tubesynth segment train --config C.yml --run-dir runs/real --seeds 0 1 2
    tubesynth segment train --config C.yml --run-dir runs/both --seeds 0 1 2 --synthetic OUT
    tubesynth segment apply --model runs/both/seed_0/checkpoints/last.ckpt \\
        --input-dir CTS --output-dir MASKS

OUT is an output folder of synthesize: its volumes, and their label maps in OUT/labels. The scores
are those of the real validation cases in data.root, with 95 % intervals over cases and over seeds;
syntheses of their label maps are refused. A mask is a label map of the vessel class alone, on the
grid of its CT.
"""

if __name__ == "__main__":
    from tubesynth.runtime.errors import run_module

    run_module("segment")  # imports this file as tubesynth.segment

import argparse
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from tubesynth.config.checks import check_seed, requirement
from tubesynth.config.loading import load_config
from tubesynth.config.packaged import run_name
from tubesynth.config.schema import SegmenterConfig
from tubesynth.data.duplicates import refuse_sources
from tubesynth.inference.job import Job
from tubesynth.inference.run_jobs import Result, run_jobs
from tubesynth.inference.segmenter import VesselSegmenter, mask_on_ct
from tubesynth.metrics.summary import statistics, write_csv, write_json
from tubesynth.runtime import dist
from tubesynth.runtime.environment import environment
from tubesynth.runtime.errors import CommandParser, InputError, add_overrides
from tubesynth.runtime.loggers import LOGGERS
from tubesynth.runtime.run_lock import RunLock, locked
from tubesynth.runtime.stop_signal import RESUMES, listening
from tubesynth.training.head import warn_of_cpu
from tubesynth.training.inputs import Volumes, find_splits, synthetic_cases
from tubesynth.training.resume import find_checkpoint
from tubesynth.training.run import require_tools, run_training
from tubesynth.training.segmentation import SegmentationStage
from tubesynth.volume.cases import find_cases
from tubesynth.volume.grid import Volume
from tubesynth.volume.hounsfield import read_ct
from tubesynth.volume.nifti import with_axes_of


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = CommandParser(
        prog="tubesynth segment",
        description="Train a vessel segmenter on real and synthetic data, or apply it.",
        example="tubesynth segment train --config segment_vessels --synthetic OUT --seeds 0 1 2\n"
        "tubesynth segment apply --help",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    train = commands.add_parser(
        "train",
        help="train on real and synthetic cases, score on held-out real ones",
        example="tubesynth segment train --config segment_vessels --synthetic OUT --seeds 0 1 2",
    )
    add = train.add_argument
    add("--config", required=True, help="YAML file or packaged config: tubesynth configs")
    add("--run-dir", type=Path, metavar="DIR", help="default: runs/<name of the config>")
    add(
        "--synthetic",
        type=Path,
        nargs="+",
        default=[],
        metavar="DIR",
        help="output folders of synthesize, with their labels/",
    )
    add("--without-real", action="store_true", help="train on synthetic data alone")
    add("--seeds", type=int, nargs="+", help="one training per seed; default: the config's seed")
    add("--device", choices=dist.DEVICES, default="auto", help="cpu or cuda; auto: a GPU if any")
    add("--logger", default="tensorboard", choices=LOGGERS, help="writer of the curves")
    add_overrides(train)
    add("--set", action="store_true", help=argparse.SUPPRESS)
    apply = commands.add_parser(
        "apply",
        help="write a vessel mask for each CT of a folder: the vessel class, else 0",
        example="tubesynth segment apply --input-dir CTS --output-dir MASKS"
        " --model runs/segment_vessels/seed_0/checkpoints/last.ckpt",
    )
    add = apply.add_argument
    add(
        "--model",
        type=Path,
        required=True,
        metavar="CKPT|NAME",
        help="checkpoint of segment train, or the name of a packaged model",
    )
    add("--input-dir", type=Path, required=True, metavar="DIR", help="folder of CT volumes")
    add("--output-dir", type=Path, required=True, metavar="DIR", help="folder of the masks")
    return parser.parse_with_overrides(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    if args.command == "train":
        with listening():
            train_seeds(args)
    else:
        apply_model(args)


def train_seeds(args: argparse.Namespace) -> None:
    config = load_config(args.config, args.overrides)
    if not isinstance(config, SegmenterConfig):
        raise InputError(f"{args.config}: a config of stage {config.stage}, not segmenter")
    if args.synthetic:
        config = replace(config, synthetic=[str(folder) for folder in args.synthetic])
    config = replace(config, without_real=args.without_real or config.without_real)
    if config.without_real and not config.synthetic:
        raise InputError("--without-real: there is nothing to train on: give --synthetic")
    for seed in args.seeds or []:
        check_seed(seed, "--seeds", requirement(args.config))
        if args.seeds.count(seed) > 1:
            raise InputError(f"--seeds: {seed} is there twice: give each seed once")
    run_dir = args.run_dir or Path("runs") / run_name(args.config)
    require_tools(config, args.logger, args.device)
    device = dist.start(args.device)
    try:
        rows = []
        warn_of_cpu(config, device, args.device, gpus=None)
        seeds = args.seeds or [config.seed]
        runs = {run_dir / f"seed_{seed}": replace(config, seed=seed) for seed in seeds}
        # InputError if a synthetic case was made of a validation case
        refuse_sources(synthetic_cases(config), find_splits(config)[1])
        for folder, seed_config in runs.items():  # refused now, not after the seeds before it
            find_checkpoint(None, folder, seed_config)
        for folder, seed_config in runs.items():
            with locked(folder) as lock:
                rows += train_one(seed_config, lock, device, args.logger)
        if dist.is_main():
            report(rows, run_dir)
    finally:
        dist.stop()


def train_one(
    config: SegmenterConfig, lock: RunLock, device: torch.device, logger: str
) -> list[dict]:
    """Train with one seed; returns a row of scores per validation case, the same on every rank."""
    run_dir = lock.run_dir
    volumes = Volumes.find(config)
    checkpoint = find_checkpoint(None, run_dir, config)
    stage = run_training(
        config,
        volumes,
        lambda config, _: SegmentationStage(config, volumes, device),
        lock,
        checkpoint,
        logger,
        device,
    )
    scores = dist.interruptible(
        stage.case_scores, f"{run_dir}: trained, but not all cases are scored; {RESUMES}"
    )
    rows = dist.gather_rows(scores)
    return [{"seed": config.seed, **row} for row in rows]


def report(rows: list[dict], run_dir: Path) -> None:
    """Write metrics.json and metrics.csv, and print a table.

    over_cases: of the cases' means over seeds; over_seeds: of the seeds' means over cases.
    """
    result: dict = {"provenance": environment()}
    for key in ("case", "seed"):
        groups: dict[str, list[dict]] = {}
        for row in rows:
            groups.setdefault(row[key], []).append(row)
        result[f"over_{key}s"] = {
            metric: statistics(group_means(groups.values(), metric), (0.0, 1.0))
            for metric in ("dice", "cldice")
        }
    write_json(run_dir / "metrics.json", result)
    write_csv(run_dir / "metrics.csv", rows)
    for key in ("over_cases", "over_seeds"):
        for metric, stat in result[key].items():
            if stat["mean"] is not None:
                low, high = (f"{x:.3f}" if x is not None else "-" for x in stat["ci95"])
                name = f"{metric} {key.replace('_', ' ')}"
                print(f"{name:22}{stat['mean']:.3f} [{low}, {high}]  n {stat['n']}")
    print(f"{run_dir / 'metrics.json'}")


def group_means(groups: Iterable[list[dict]], metric: str) -> list[float]:
    """The mean of a metric in each group: of its defined scores (not NaN), if it has any."""
    scores = [[row[metric] for row in group if not math.isnan(row[metric])] for group in groups]
    return [sum(each) / len(each) for each in scores if each]


def apply_model(args: argparse.Namespace) -> None:
    cases = find_cases(args.input_dir)
    for folder in (args.input_dir, args.input_dir.parent / "labels"):
        if args.output_dir.resolve() == folder.resolve():
            raise InputError(
                f"--output-dir {args.output_dir}: is the folder of the CTs or of their label maps:"
                " choose another"
            )
    device = dist.start()
    try:
        segmenter = VesselSegmenter.load(args.model, device)
        settings = {"model_digest": segmenter.digest}
        jobs = [
            Job(args.output_dir, case, path, settings, (), (".nii.gz", "uint8"), "label")
            for case, path in cases.items()
        ]
        run_jobs(jobs, args.output_dir, MaskSteps(segmenter), device, "segment")
    finally:
        dist.stop()


@dataclass(frozen=True)
class MaskSteps:
    """The steps of run_jobs, with batches of one."""

    segmenter: VesselSegmenter

    def read(self, job: Job) -> Volume:
        config, (low, high) = self.segmenter.grid.config, self.segmenter.grid.config.data.hu_window
        return read_ct(job.source_file, config.dim, (low, high))

    def place(self, batch: list[Job], files: list[Volume]) -> tuple[Volume, Volume]:
        return files[0], self.segmenter.grid.image(files[0])

    def compute(self, batch: list[Job], inputs: tuple[Volume, Volume]) -> list[Result]:
        ct, image = inputs
        logits, source = self.segmenter.logits(image), batch[0].source_file

        def finish() -> Volume:
            mask = mask_on_ct(logits, ct)
            vessel = np.uint8(self.segmenter.grid.config.labels.vessel)
            return with_axes_of(Volume(mask.array * vessel, mask.affine), source)

        return [Result(finish, {})]
