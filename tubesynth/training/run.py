"""A run from its folder to its last checkpoint: resume, log, save, fit; for every stage."""

from pathlib import Path

from tubesynth.config.schema import Config
from tubesynth.config.strict import dump, to_plain
from tubesynth.runtime import checkpoint, dist
from tubesynth.runtime.compiler import require_compiler
from tubesynth.runtime.loggers import require_logger
from tubesynth.runtime.run_log import RunLog
from tubesynth.training.best import Best
from tubesynth.training.inputs import Volumes
from tubesynth.training.loop import Position, Stage, StopSignal, fit
from tubesynth.training.resume import resume


def require_tools(config: Config, logger: str) -> None:
    """InputError where this machine lacks what the run will ask for; before anything is encoded."""
    require_logger(logger)
    if config.train.compile:
        require_compiler()


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
    score = config.train.best_score
    best = Best(score, config.BEST_SCORES[score])
    if resume_path:
        resume(resume_path, stage, position, best, config, run_dir)
    checkpoints = run_dir / "checkpoints"
    log = RunLog(run_dir, dump(config), logger, position.step)

    def save(name: str) -> None:
        if not dist.is_main():
            return
        state = {
            "config": to_plain(config),
            "position": vars(position).copy(),
            "best": vars(best).copy(),
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
            best,
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
        shown = ", ".join(f"{k} {v:.4f}" for k, v in scores.items() if k in stage.printed_scores)
        last = checkpoints / "last.ckpt"
        print(f"done: {last} (step {position.step}; {shown or 'nothing was left to do'})")
        if best.step is not None:
            top = checkpoints / "best.ckpt"
            print(f"best: {top} (step {best.step}; {best.name} {best.value:.4f})")
    return scores
