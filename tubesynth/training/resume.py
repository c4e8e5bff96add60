"""Resuming a run: the choice of its checkpoint, and the state that is restored or restarts.

A file of tubesynth export has weights alone: a run that starts from it restarts everything else.
"""

from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch

from tubesynth.build.checkpoint import Best, Checkpoint, Position
from tubesynth.config.differences import DATA_KEYS, differences, label_keys, objective_keys
from tubesynth.config.schema import RESTARTS, Config
from tubesynth.runtime import dist
from tubesynth.runtime.errors import InputError
from tubesynth.runtime.log import logger
from tubesynth.runtime.precision import resolved
from tubesynth.training.checkpoint_files import has_best, newest_undamaged
from tubesynth.training.loop import Stage

AnyConfig = TypeVar("AnyConfig", bound=Config)

# Sections that decide the shapes of the weights and their meaning, but for FREE_KEYS.
MODEL_SECTIONS = (
    "dim",
    "latent_mode",
    "autoencoder",
    "discriminator",
    "unet",
    "control",
    "segmenter",
)
# The weights of control.base are compared (build/base_models.py).
LABEL_KEYS = ("labels.names", "data.label_map", "data.token_step_mm")
FREE_KEYS = ("control.base", "discriminator.learning_rate_ratio")


def find_checkpoint(requested: str | None, run_dir: Path, config: Config) -> Checkpoint | None:
    """The checkpoint that a run resumes, checked to fit its config; None for a new run.

    requested: a path, the name of a packaged model, "auto" (the newest checkpoint of the run's
    folder, if any) or None. A folder that holds a run is resumed by the command of that run; any
    other command is refused. A path in the run's own folder goes back to that checkpoint; the same
    command again, after a stop, resumes the newest one that has come of it. Ranks that see other
    files, as on a shared file system for a while, are refused.
    """
    checkpoint = dist.together(lambda: _find(requested, run_dir, config))
    rows = dist.gather_rows([{"rank": dist.rank(), "checkpoint": _name_and_step(checkpoint)}])
    other = next((row for row in rows if row["checkpoint"] != rows[0]["checkpoint"]), None)
    if other:
        raise InputError(
            f"{run_dir}: rank 0 resumes {rows[0]['checkpoint']}, rank {other['rank']}"
            f" {other['checkpoint']}: their machines show different files: start the same command"
            " again when the shared file system has caught up, or check that it is shared"
        )
    return checkpoint


def _name_and_step(checkpoint: Checkpoint | None) -> str:
    if checkpoint is None:
        return "no checkpoint"
    assert checkpoint.path is not None
    step = f" at step {checkpoint.position.step}" if checkpoint.position else ""
    return f"{checkpoint.path.name}{step}"


def _find(requested: str | None, run_dir: Path, config: Config) -> Checkpoint | None:
    newest = newest_undamaged(run_dir / "checkpoints")
    if newest:
        config = _with_precision_of(newest, config)
    requested_path = None if requested in (None, "auto") else Path(requested)
    if requested_path and newest and run_dir.resolve() in requested_path.resolve().parents:
        checkpoint = _own_checkpoint(requested_path, newest, config)
    elif newest:
        checkpoint = newest
        assert checkpoint.position
        checkpoint.position.resumed_from = None
        if requested != "auto":
            _require_same_run(checkpoint, run_dir, requested_path, config)
    elif requested_path:
        checkpoint = Checkpoint.load(requested_path, config.stage)
    else:
        return None
    checkpoint.require_stage(config.stage)
    _require_same_model(checkpoint, config)
    return checkpoint


def _own_checkpoint(path: Path, newest: Checkpoint, config: Config) -> Checkpoint:
    """The checkpoint of a run's own folder that --resume names, or the newest that came of it."""
    assert newest.position
    if newest.position.resumed_from == path.name and newest.config == config:
        return newest
    if not path.is_file():
        raise InputError(
            f"--resume {path}: no such checkpoint in this run, which keeps the newest train.keep"
            " periodic ones: use --resume auto"
        )
    checkpoint = Checkpoint.load(path, config.stage)
    if checkpoint.position:
        is_older = checkpoint.position.age < newest.position.age
        checkpoint.position = replace(
            checkpoint.position,
            resumed_from=path.name,
            rollbacks=newest.position.rollbacks + is_older,
        )
    return checkpoint


def _require_same_run(
    checkpoint: Checkpoint, run_dir: Path, started_from: Path | None, config: Config
) -> None:
    assert checkpoint.position  # a run's own checkpoints have one
    if checkpoint.config.stage != config.stage:
        raise InputError(
            f"{run_dir}: holds a run of stage {checkpoint.config.stage} already: --run-dir for a"
            " new folder"
        )
    differing = differences(config, checkpoint.config)
    start = str(started_from) if started_from else None
    if start != checkpoint.position.started_from:
        differing["--resume"] = start, checkpoint.position.started_from
    if differing:
        resume = "" if config.stage == "segmenter" else "--resume auto to resume it, or "
        pairs = [
            f"{key}: {stored} in its checkpoint, {value} in this command"
            for key, (value, stored) in differing.items()
        ]
        raise InputError(
            f"{run_dir}: holds another run already ({'; '.join(pairs[:3])}): {resume}--run-dir for"
            " a new folder"
        )


def _require_same_model(checkpoint: Checkpoint, config: Config) -> None:
    for key, (value, stored) in differences(config, checkpoint.config).items():
        if key.partition(".")[0] not in MODEL_SECTIONS and key not in label_keys(config):
            continue
        if key not in FREE_KEYS and (
            key.partition(".")[0] != "discriminator" or "discriminator" in checkpoint.phases
        ):
            raise InputError(
                f"{checkpoint.path}: {key} is {stored} in the checkpoint and {value} in this"
                " config: make them equal to resume"
            )


def with_precision(
    config: AnyConfig, checkpoint: Checkpoint | None, run_dir: Path, device: torch.device
) -> AnyConfig:
    """The config with the precision that auto stands for: that of the run so far, if any."""
    if checkpoint and is_in_run(checkpoint, run_dir):
        config = _with_precision_of(checkpoint, config)
    precision = resolved(config.train.precision, device)
    return replace(config, train=replace(config.train, precision=precision))


def _with_precision_of(checkpoint: Checkpoint, config: AnyConfig) -> AnyConfig:
    """The config with the precision of the checkpoint in place of auto."""
    if config.train.precision != "auto":
        return config
    precision = checkpoint.config.train.precision
    return replace(config, train=replace(config.train, precision=precision))


def starting_position(checkpoint: Checkpoint | None, config: Config, run_dir: Path) -> Position:
    """Zero, or the position of the checkpoint with the counts of train.restart at zero."""
    if checkpoint is None:
        return Position()
    if checkpoint.position is None:
        return Position(started_from=str(checkpoint.path))
    stored, restart = checkpoint.position, _restarts(checkpoint, config, run_dir)
    is_own = is_in_run(checkpoint, run_dir)
    return replace(
        stored if is_own else Position(started_from=str(checkpoint.path)),
        step=stored.step,
        sample_index=0 if "epochs" in restart else stored.sample_index,
        schedule_start=stored.step if "schedule" in restart else stored.schedule_start,
    )


def restore(
    checkpoint: Checkpoint, stage: Stage, best: Best, config: Config, run_dir: Path
) -> Best:
    """Load a checkpoint into a stage on every rank; returns the best score so far.

    best: that of a new run, without a value. It is returned where the checkpoint is of another run
    or has the best value of another score.
    """
    restart = _restarts(checkpoint, config, run_dir)
    frozen = config.train.frozen_encoder
    if frozen != checkpoint.config.train.frozen_encoder and "optimizers" not in restart:
        raise InputError(
            f"train.frozen_encoder: {frozen}, but the optimizer in {checkpoint.path} has the"
            " moments of other weights: add optimizers to train.restart"
        )
    for phase in stage.phases:
        if phase.name in checkpoint.phases:
            phase.load(checkpoint.phases[phase.name], restart)
    stored = checkpoint.best
    is_of_run = is_in_run(checkpoint, run_dir)
    same_score = stored and is_of_run and stored.name == best.name
    differing = differences(config, checkpoint.config)
    if differing:
        logger.info(f"changed settings: {', '.join(differing)}")
    meanings = (*DATA_KEYS, *LABEL_KEYS, *objective_keys(config))
    for key in () if is_of_run else meanings:
        if key in differing:
            value, stored_value = differing[key]
            logger.warning(f"{checkpoint.path}: trained with {key} {stored_value}, not {value}")
    # Scores of another loss or of other data do not compare.
    is_comparable = same_score and all(key.startswith("train.") for key in differing)
    if stored and is_comparable and has_best(stored, checkpoint, run_dir):
        best = stored
    logger.info(_report(checkpoint, stage, best, config, restart))
    return best


def _restarts(checkpoint: Checkpoint, config: Config, run_dir: Path) -> set[str]:
    """train.restart; empty where the run has restarted them before, everything if the checkpoint
    has weights alone.
    """
    if checkpoint.position is None:
        return set(RESTARTS)
    has_restarted = (
        is_in_run(checkpoint, run_dir) and checkpoint.config.train.restart == config.train.restart
    )
    return set() if has_restarted else set(config.train.restart)


def is_in_run(checkpoint: Checkpoint, run_dir: Path) -> bool:
    """Whether the checkpoint is a file of the run's folder."""
    assert checkpoint.path is not None
    return run_dir.resolve() in checkpoint.path.resolve().parents


def _report(
    checkpoint: Checkpoint, stage: Stage, best: Best, config: Config, restart: set[str]
) -> str:
    """One line that lists what is restored and what restarts."""
    train, restored, restarted = config.train, ["weights"], []
    for phase in stage.phases:
        if phase.name not in checkpoint.phases:
            restarted.append(phase.name)
            continue
        for ema in phase.averages:
            stored = ema.half_life in checkpoint.phases[phase.name].ema
            (restored if stored else restarted).append(f"average over {ema.half_life:g} steps")
        if phase.swa and (swa := checkpoint.phases[phase.name].swa):
            restored.append(f"mean of {swa.epochs} epochs")
    for item in RESTARTS:
        warmup = 0 if train.schedule == "minimum" else train.warmup_steps
        schedule = f"schedule ({warmup} steps of warm-up, then {train.schedule})"
        text = schedule if item == "schedule" else item
        (restarted if item in restart else restored).append(text)
    if best.step is None:
        restarted.append("best checkpoint")
    else:
        restored.append(f"best {best.name} {best.value:.4g} of step {best.step}")
    start = f"started from {checkpoint.path}, which has weights alone"
    if checkpoint.position:
        start = f"resumed {checkpoint.path} at step {checkpoint.position.step}"
    text = f"{start}: restored {', '.join(restored)}"
    return text + (f"; restarted {', '.join(restarted)}" if restarted else "")
