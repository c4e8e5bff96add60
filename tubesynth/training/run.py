"""A run from its folder to its last checkpoint: resume, log, save, fit; for every stage."""

from pathlib import Path

from tubesynth.config import Config
from tubesynth.runtime import checkpoint, dist
from tubesynth.runtime.log import RunLog
from tubesynth.strict import dump, to_plain
from tubesynth.training.inputs import Volumes
from tubesynth.training.loop import Position, Stage, StopSignal, fit
from tubesynth.training.resume import resume


def run_stage(
    config: Config,
    stage: Stage,
    volumes: Volumes,
    position: Position,
    run_dir: Path,
    resume_path: Path | None,
    logger: str,
    stop: StopSignal,
) -> dict[str, float]:
    """Train a stage on every rank; the last validation scores. Rank 0 writes and reports."""
    if resume_path:
        resume(resume_path, stage, position, config, run_dir)
    checkpoints = run_dir / "checkpoints"
    log = RunLog(run_dir, dump(config), logger, position.step)

    def save(name: str) -> None:
        if not dist.is_main():
            return
        state = {
            "config": to_plain(config),
            "position": vars(position).copy(),
            "phases": {phase.name: phase.state() for phase in stage.phases},
            **stage.extra_state(),
        }
        checkpoint.save(state, checkpoints / f"{name}.ckpt")
        checkpoint.prune(checkpoints, "epoch_*.ckpt", config.train.keep)

    global_batch = volumes.batch_size * dist.world_size() * config.train.accumulate
    num_cases = len(volumes.training)
    try:
        scores = fit(
            stage,
            config.train,
            position,
            num_cases,
            global_batch,
            config.seed,
            log,
            save,
            stop,
        )
    finally:
        log.close()
    if dist.is_main():
        shown = ", ".join(f"{name} {value:.4f}" for name, value in scores.items())
        last = checkpoints / "last.ckpt"
        print(f"done: {last} (step {position.step}; {shown or 'nothing was left to do'})")
    return scores
