"""One run of any stage: resume, log, fit and save, in the run's folder."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Protocol, TypeVar

import torch

from tubesynth.build.checkpoint import Best, Checkpoint, Position
from tubesynth.config.length import samples_per_step
from tubesynth.config.schema import Config, Stage1Config
from tubesynth.config.strict import dump
from tubesynth.runtime import dist
from tubesynth.runtime.atomic import copy_file, sweep, write_text
from tubesynth.runtime.compiler import require_compiler
from tubesynth.runtime.errors import InputError
from tubesynth.runtime.kernels import choose_kernels
from tubesynth.runtime.log import log_file, logger
from tubesynth.runtime.loggers import require_logger
from tubesynth.runtime.profiler import INACTIVE, Profiler
from tubesynth.runtime.run_lock import RunLock
from tubesynth.runtime.run_log import RunLog
from tubesynth.runtime.stop_signal import RESUMES
from tubesynth.training.checkpoint_files import remove_older
from tubesynth.training.head import log_head
from tubesynth.training.inputs import Volumes
from tubesynth.training.latents import EncodedSplits
from tubesynth.training.loop import VALIDATION, Run, Stage, fit
from tubesynth.training.means import Interval
from tubesynth.training.perceptual import require_perceptual
from tubesynth.training.resume import (
    AnyConfig,
    is_in_run,
    restore,
    starting_position,
    with_precision,
)
from tubesynth.training.sources import note_sources

LOG_FILE, PROFILE_FILE = "train.log", "profile.txt"


class CheckpointedStage(Stage, Protocol):
    """A stage with the latents that its checkpoints hold."""

    @property
    def latents(self) -> EncodedSplits | None:
        """The encoded data set of stages 2 and 3; None for the others."""


AnyStage = TypeVar("AnyStage", bound=CheckpointedStage)


def require_tools(config: Config, logger_name: str, device: str, processes: int = 1) -> None:
    """InputError where this machine lacks GPUs, logger, compiler or weights that the run needs.

    device: auto, cpu or cuda; processes: those of this machine.
    """
    on_gpu = dist.uses_gpu(device, processes)
    require_logger(logger_name)
    if config.train.compile:
        require_compiler(on_gpu)
    if isinstance(config, Stage1Config):
        require_perceptual(config.losses)


def run_training(
    config: AnyConfig,
    volumes: Volumes,
    make_stage: Callable[[AnyConfig, Position], AnyStage],
    lock: RunLock,
    checkpoint: Checkpoint | None,
    logger_name: str,
    device: torch.device,
    profile: bool = False,
) -> AnyStage:
    """Build the cache, make the stage and train it, on every rank; returns the stage.

    Arguments: those of `run_stage`. make_stage gets the config with its precision resolved.
    """
    config = with_precision(config, checkpoint, lock.run_dir, device)
    position = starting_position(checkpoint, config, lock.run_dir)
    kernels = choose_kernels(device, config.train.deterministic)
    log_head(config, volumes, device, kernels, position)
    if config.data.dataset_type == "persistent":
        volumes.build_cache()
    torch.manual_seed(config.seed)  # the same initial weights on every rank
    stage = make_stage(config, position)
    dist.interruptible(lambda: None, f"no step was made; {RESUMES}")
    run_stage(config, stage, volumes, position, lock, checkpoint, logger_name, device, profile)
    return stage


def run_stage(
    config: Config,
    stage: CheckpointedStage,
    volumes: Volumes,
    position: Position,
    lock: RunLock,
    checkpoint: Checkpoint | None,
    logger_name: str,
    device: torch.device,
    profile: bool = False,
) -> dict[str, float]:
    """Train a stage on every rank; returns the last validation scores. Rank 0 writes and reports.

    checkpoint: that of a resumed run, else None; position: the one at which the run starts.
    profile: write where the time of rank 0 goes to profile.txt and to the log.
    """
    run_dir = lock.run_dir
    score = config.train.best_score
    best, interval = Best(score, config.BEST_SCORES[score]), Interval()
    logged_step = -1  # the lines of a run are those up to the checkpoint that it resumes
    if checkpoint:
        best = restore(checkpoint, stage, best, config, run_dir)
        if is_in_run(checkpoint, run_dir):
            logged_step = position.step
            if checkpoint.interval:
                interval.load(checkpoint.interval, stage.phases, device)
    checkpoints = run_dir / "checkpoints"
    last = checkpoints / "last.ckpt"
    samples, epoch = position.sample_index, len(volumes.training)
    if checkpoint and not is_in_run(checkpoint, run_dir) and samples >= config.train.epochs * epoch:
        raise InputError(
            f"--resume {checkpoint.path}: has had {samples / epoch:.4g} epochs of this data,"
            f" and train.epochs is {config.train.epochs}: raise it, or add"
            " train.restart=[schedule,epochs,optimizers]"
        )
    if dist.is_main():
        sweep(checkpoints)
    is_over = checkpoint is not None and samples >= config.train.epochs * epoch and not position.due
    repeats_validation = best.step is None or VALIDATION in position.due.split()
    repeats_validation = repeats_validation and not is_over
    config_file = run_dir / "config.yml"
    is_kept = is_over and config_file.is_file()  # other settings have no effect on a finished run
    text = config_file.read_text(encoding="utf-8") if is_kept else dump(config)
    log = RunLog(run_dir, text, logger_name, logged_step, device, repeats_validation)
    profiler = Profiler(device) if profile and dist.is_main() else INACTIVE

    written: tuple[tuple, Path] | None = None  # the state in the last file that was written

    @profiler("checkpoints")
    def save(name: str) -> None:
        nonlocal written
        interval_state = interval.state(stage.phases)
        if not dist.is_main():
            return
        lock.require_own()
        latents, path = stage.latents, checkpoints / f"{name}.ckpt"
        state = (replace(position), replace(best), interval.steps)
        if written and written[0] == state and written[1].is_file():
            copy_file(written[1], path)  # best, last and a periodic one after the same step
        else:
            Checkpoint(
                config,
                position,
                best,
                {phase.name: phase.state() for phase in stage.phases},
                latents.scale if latents else None,
                latents.autoencoder_state if latents else None,
                interval_state,
                latents.conditions if latents else None,
            ).save(path)
        is_new = not (written and written[1] == path and written[0][0].step == position.step)
        written = state, path
        if config.train.keep is not None:
            remove_older(checkpoints, "epoch_*.ckpt", config.train.keep)
        if is_new:  # not once more, with what is due after it
            logger.info(f"step {position.step}: saved {name}.ckpt")

    run = Run(
        stage,
        config.train,
        config.seed,
        device,
        epoch_length=len(volumes.training),
        global_batch=samples_per_step(config, dist.world_size()),
        position=position,
        best=best,
        log=log,
        save=save,
        interval=interval,
        profiler=profiler,
    )
    with log_file(run_dir / LOG_FILE):
        logger.info(f"run folder: {run_dir}; log file: {run_dir / LOG_FILE}")
        if dist.is_main() and (config.data.dataset_type == "persistent" or config.stage in (2, 3)):
            note_sources(run_dir, volumes)
        try:
            if checkpoint and is_in_run(checkpoint, run_dir) and checkpoint.path != last:
                run.save("last")  # the run's own is missing, damaged or abandoned
            scores = fit(run)
        finally:
            log.close()
            if lines := profiler.table():
                write_text(run_dir / PROFILE_FILE, "\n".join(lines) + "\n")
                for line in ("time of the training loop, of rank 0:", *lines):
                    logger.info(line)
        printed = ", ".join(f"{k} {v:.4f}" for k, v in scores.items() if k in stage.printed_scores)
        logger.info(f"done: {last} (step {position.step}; {printed or 'nothing was left to do'})")
        if best.step is not None:
            path = checkpoints / "best.ckpt"
            logger.info(f"best: {path} (step {best.step}; {best.name} {best.value:.4f})")
    if not math.isfinite(scores.get("loss", 0.0)):
        raise InputError(
            f"{run_dir}: the training has diverged, its last validation loss is {scores['loss']}:"
            " train again from an earlier checkpoint with a lower train.learning_rate"
        )
    return scores
