"""Where a run goes on: which checkpoint, what carries over, and what starts anew."""

from pathlib import Path

from tubesynth.config import Config
from tubesynth.errors import InputError
from tubesynth.runtime import checkpoint, dist
from tubesynth.strict import to_plain
from tubesynth.training.loop import Position, Stage

# Sections that decide the shapes of the weights.
MODEL_SECTIONS = ("dim", "autoencoder", "discriminator", "unet")


def find_checkpoint(resume: str | None, run_dir: Path, config: Config) -> Path | None:
    """The checkpoint to resume, checked to fit, before anything is lost; None to start."""
    last = run_dir / "checkpoints" / "last.ckpt"
    if resume == "auto":
        path = last if last.exists() else None
    else:
        path = Path(resume) if resume else None
        inside = path is not None and run_dir.resolve() in path.resolve().parents
        if last.exists() and not inside:
            raise InputError(
                f"{run_dir}: holds a run already: --resume auto to go on with it,"
                " or --run-dir for another folder"
            )
    if path is None:
        return None
    state = checkpoint.load(path, config.stage)
    for section in MODEL_SECTIONS:
        old, new = state["config"].get(section), to_plain(config).get(section)
        if old == new or old is None:
            continue
        if isinstance(new, dict):
            key = next(k for k in new if new[k] != old.get(k))
            section, old, new = f"{section}.{key}", old.get(key), new[key]
        raise InputError(
            f"{path}: {section} is {old} there and {new} in this config: make them equal to resume"
        )
    return path


def resume(path: Path, stage: Stage, position: Position, config: Config) -> None:
    """Load a checkpoint into a stage and its position, on every rank; print what carries over."""
    state = checkpoint.load(path, config.stage)
    restart = set(config.train.restart)
    if state["config"] == to_plain(config):
        restart = set()  # the very run, stopped and started again
    for phase in stage.phases:
        phase.load(state["phases"][phase.name], with_optimiser="optimisers" not in restart)
    saved = Position(**state["position"])
    position.step = saved.step
    position.draw = 0 if "epochs" in restart else saved.draw
    position.schedule_start = saved.step if "schedule" in restart else saved.schedule_start
    stage.check_resumed(state, path)
    if dist.is_main():
        carried = [what for what in ("schedule", "epochs", "optimisers") if what not in restart]
        print(
            f"resumed {path} at step {saved.step}: weights, averages"
            f"{', ' if carried else ''}{', '.join(carried)} carry over"
            f"{'; anew: ' + ', '.join(sorted(restart)) if restart else ''}"
        )
