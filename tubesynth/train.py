"""Train stage 1 (autoencoder), 2 (generator) or 3 (ControlNet).

    tubesynth train --config stage_1_3d_f4 --gpus 1 train.epochs=100
    torchrun --nproc-per-node 4 -m tubesynth.train --config stage_2_3d_f4_lfm_base

The run folder is runs/<name of the config> or --run-dir. It holds config.yml, metrics.jsonl, events
of TensorBoard (or W&B, --logger wandb), train.log, panels/ and checkpoints/ with last.ckpt,
best.ckpt (by train.best_score) and epoch_*.ckpt. After SIGTERM, SIGUSR1 or Ctrl-C a run saves and
ends with code 75.
"""

if __name__ == "__main__":
    from tubesynth.runtime.errors import run_module

    run_module("train")  # imports this file as tubesynth.train

import argparse
import os
import sys
from pathlib import Path

import torch

from tubesynth.build.base_models import (
    BaseModels,
    require_base_models,
    require_same_autoencoder,
    require_same_base,
)
from tubesynth.build.checkpoint import Checkpoint, Position
from tubesynth.config.loading import load_config
from tubesynth.config.overrides import FlagItem
from tubesynth.config.packaged import run_name
from tubesynth.config.schema import Config, Stage1Config, Stage2Config, Stage3Config
from tubesynth.runtime import dist
from tubesynth.runtime.atomic import writing
from tubesynth.runtime.errors import CommandParser, InputError, add_overrides
from tubesynth.runtime.launcher import launch
from tubesynth.runtime.log import logger
from tubesynth.runtime.loggers import LOGGERS
from tubesynth.runtime.run_lock import RunLock, locked
from tubesynth.runtime.stop_signal import listening
from tubesynth.training.head import warn_of_cpu
from tubesynth.training.inputs import Volumes
from tubesynth.training.plan import describe_plan
from tubesynth.training.resume import find_checkpoint
from tubesynth.training.run import CheckpointedStage, require_tools, run_training


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = CommandParser(
        prog="tubesynth train",
        description="Train a stage of tubesynth.",
        example="tubesynth train --config stage_1_3d_f4 --gpus 1 data.root=/data/imagecas\n"
        "torchrun --nproc-per-node 4 -m tubesynth.train --config stage_2_3d_f4_lfm_base",
    )
    parser.add_argument(
        "--config", required=True, help="YAML file or packaged config: tubesynth configs"
    )
    parser.add_argument("--stage", type=int, help="1, 2 or 3; must agree with the config")
    parser.add_argument("--dim", type=int, help="2 or 3; must agree with the config")
    parser.add_argument("--seed", type=int, help="default: the config's")
    parser.add_argument("--epochs", type=int, help="total epochs, including those before a resume")
    parser.add_argument(
        "--gpus",
        type=int,
        help="number of processes on this machine, one for each GPU (default: 1)",
    )
    parser.add_argument(
        "--device",
        choices=dist.DEVICES,
        default="auto",
        help="auto: a GPU if there is one; cpu: train on the CPU; cuda: an error without a GPU",
    )
    parser.add_argument(
        "--precision", help="auto, 32, bf16-mixed or 16-mixed (default: the config's)"
    )
    parser.add_argument(
        "--logger", default="tensorboard", choices=LOGGERS, help="writer of the curves"
    )
    parser.add_argument(
        "--resume",
        metavar="CKPT|NAME|auto",
        help="start from this checkpoint or packaged model; auto: resume the run's own last"
        " checkpoint, if any",
    )
    parser.add_argument("--latent-mode", help="flow or diffusion")
    parser.add_argument(
        "--gradient-clip",
        type=float,
        nargs="?",
        const=1.0,
        help="norm to clip gradients to, 1.0 if none is given (default: the config's)",
    )
    parser.add_argument(
        "--preprocess",
        action="store_true",
        help="build the disk cache before the first step, which every run does;"
        " tubesynth cache build stops after it",
    )
    parser.add_argument(
        "--profiler",
        choices=["simple"],
        help="write where the time of a step goes to profile.txt and to the log",
    )
    parser.add_argument("--run-dir", type=Path, help="default: runs/<name of the config>")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check what the run needs, print its plan, write no file",
    )
    add_overrides(parser)
    return parser.parse_with_overrides(argv)


def config_of(args: argparse.Namespace) -> Config:
    """The config, changed by the flags and by the key=value items."""
    options = (
        ("seed", "--seed", args.seed),
        ("train.epochs", "--epochs", args.epochs),
        ("train.precision", "--precision", args.precision),
        ("train.gradient_clip", "--gradient-clip", args.gradient_clip),
        ("latent_mode", "--latent-mode", args.latent_mode),
    )
    flags = [FlagItem(*option) for option in options if option[2] is not None]
    config = load_config(args.config, [*args.overrides, *flags])
    if config.stage == "segmenter":
        raise InputError(f"{args.config}: a segmenter config: use tubesynth segment train")
    if args.gpus is not None and args.gpus < 1:
        raise InputError(f"--gpus {args.gpus}: must be at least 1")
    for name in ("stage", "dim"):
        option = getattr(args, name)
        if option is not None and option != getattr(config, name):
            raise InputError(
                f"--{name} {option}: {args.config} is for {name} {getattr(config, name)}:"
                " choose the config that fits"
            )
    return config


def make_stage(
    config: Config,
    volumes: Volumes,
    models: BaseModels,
    position: Position,
    checkpoint: Checkpoint | None,
    device: torch.device,
) -> CheckpointedStage:
    """The stage of a config; for stages 2 and 3, missing latents are encoded first.

    models: the checkpoints that the config names; checkpoint: the one that the run resumes.
    """
    if isinstance(config, Stage1Config):
        from tubesynth.training.autoencoder import AutoencoderStage

        return AutoencoderStage(config, volumes, position, device)
    from tubesynth.training.latents import encode_data_set

    assert isinstance(config, Stage2Config) and models.autoencoder
    scaled = checkpoint or models.base  # its network was trained on latents of its scale
    scale = scaled.latent_scale if scaled else None
    conditions = checkpoint.conditions if checkpoint else None
    latents = encode_data_set(config, volumes, models.autoencoder, device, scale, conditions)
    if isinstance(config, Stage3Config):
        from tubesynth.training.control import ControlStage

        assert models.base
        return ControlStage(config, volumes, latents, models.base)
    from tubesynth.training.latent import LatentStage

    return LatentStage(config, volumes, latents)


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    config = config_of(args)
    run_dir = args.run_dir or Path("runs") / run_name(args.config)
    processes = (args.gpus or 1) if "RANK" not in os.environ else 1  # to be started
    # Wrong input is an error before other processes start and before cases are encoded.
    require_tools(config, args.logger, args.device, processes)
    models = require_base_models(config, may_be_missing=args.dry_run)
    if args.dry_run or processes > 1:
        with writing(run_dir):
            RunLock(run_dir).require_free()
        checkpoint_to_resume(args.resume, run_dir, config, models)
    if args.dry_run:
        print(describe_plan(config, models, run_dir))
        return
    volumes = Volumes.find(config)
    if processes > 1:
        launch("tubesynth.train", sys.argv[1:] if argv is None else argv, args.gpus)

    with listening():
        device = dist.start(args.device)
        try:
            with locked(run_dir) as lock:
                checkpoint = checkpoint_to_resume(args.resume, run_dir, config, models)
                train(config, volumes, models, lock, checkpoint, device, args)
        finally:
            dist.stop()


def checkpoint_to_resume(
    requested: str | None, run_dir: Path, config: Config, models: BaseModels
) -> Checkpoint | None:
    """The checkpoint that the run resumes, checked to fit its config and base models."""
    checkpoint = find_checkpoint(requested, run_dir, config)
    if config.train.frozen_encoder and checkpoint is None:
        raise InputError("train.frozen_encoder: needs a trained encoder: give --resume")
    if checkpoint and models.autoencoder:
        require_same_autoencoder(models.autoencoder, checkpoint)
    if checkpoint and models.base:
        require_same_base(models.base, checkpoint)
    return checkpoint


def train(
    config: Config,
    volumes: Volumes,
    models: BaseModels,
    lock: RunLock,
    checkpoint: Checkpoint | None,
    device: torch.device,
    args: argparse.Namespace,
) -> None:
    """Build the cache, make the stage and train it, on every rank."""
    warn_of_cpu(config, device, args.device, args.gpus)
    if args.preprocess and config.data.dataset_type != "persistent" and config.stage == 1:
        logger.warning(
            f"--preprocess: data.dataset_type {config.data.dataset_type} stores nothing on the disk"
        )
    run_training(
        config,
        volumes,
        lambda config, position: make_stage(config, volumes, models, position, checkpoint, device),
        lock,
        checkpoint,
        args.logger,
        device,
        args.profiler is not None,
    )
