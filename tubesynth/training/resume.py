"""Where a run goes on: which checkpoint, what carries over, and what starts anew."""

from pathlib import Path

from tubesynth.config.loading import config_from_plain
from tubesynth.config.schema import RESTARTS, Config, TrainConfig
from tubesynth.config.strict import to_plain
from tubesynth.runtime import checkpoint, dist
from tubesynth.runtime.errors import InputError
from tubesynth.training.best import Best
from tubesynth.training.loop import Position, Stage

# What decides the shapes of the weights, and what they mean.
MODEL_SECTIONS = (
    "dim",
    "latent_mode",
    "autoencoder",
    "discriminator",
    "unet",
    "control",
    "segmenter",
)


def find_checkpoint(wanted: str | None, run_dir: Path, config: Config) -> Path | None:
    """The checkpoint to go on from, checked to fit, before anything is lost; None to start.

    wanted: a path, "auto" (the run's own last one, if any) or None. The same command given again
    goes on with its own run; another command in the folder of a run is refused.
    """
    last = newest(run_dir / "checkpoints")
    path = Path(wanted) if wanted not in (None, "auto") else None
    if path is None or run_dir.resolve() not in path.resolve().parents:
        if last:
            if wanted != "auto":
                _require_same_run(last, path, config)
            path = last
    if path is not None:
        _require_same_model(path, config)
    return path


def newest(folder: Path) -> Path | None:
    """The checkpoint that a run goes on from: last.ckpt, or a periodic one that was written since,
    where the run was killed before its next validation.
    """
    found = [*folder.glob("epoch_*.ckpt"), *folder.glob("last.ckpt")]
    return max(found, key=lambda path: path.stat().st_mtime_ns, default=None)


def _require_same_run(last: Path, started_from: Path | None, config: Config) -> None:
    state = checkpoint.load(last)
    old, new = (_flat(plain) for plain in (_settings(state, last), to_plain(config)))
    old["--resume"] = state["position"]["started_from"]
    new["--resume"] = str(started_from) if started_from else None
    different = [key for key in {**new, **old} if old.get(key) != new.get(key)]
    if different:
        key = different[0]
        resume = "" if config.stage == "segmenter" else "--resume auto to go on with it, or "
        raise InputError(
            f"{last.parent.parent}: holds another run already ({key}: {old.get(key)} there,"
            f" {new.get(key)} now): {resume}--run-dir for a new folder"
        )


def _require_same_model(path: Path, config: Config) -> None:
    old, new = _settings(checkpoint.load(path, config.stage), path), to_plain(config)
    old, new = ({s: c[s] for s in MODEL_SECTIONS if s in c} for c in (old, new))
    old, new = _flat(old), _flat(new)
    for key in new:
        if old.get(key) != new[key]:
            raise InputError(
                f"{path}: {key} is {old.get(key)} there and {new[key]} in this config:"
                " make them equal to resume"
            )


def _settings(state: dict, path: Path) -> dict:
    """The config in a checkpoint; settings that came later have their defaults."""
    return to_plain(config_from_plain(state["config"], str(path)))


def _flat(plain: dict, prefix: str = "") -> dict:
    """{"train": {"epochs": 3}} -> {"train.epochs": 3}."""
    flat = {}
    for key, value in plain.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def resume(
    path: Path, stage: Stage, position: Position, best: Best, config: Config, run_dir: Path
) -> None:
    """Load a checkpoint into a stage and its position, on every rank; print what carries over.

    The best score so far is that of a run: another run, or another score, begins without.
    """
    state = checkpoint.load(path, config.stage)
    restart = set(config.train.restart)
    if _settings(state, path) == to_plain(config):
        restart = set()  # the very run, stopped and started again
    for phase in stage.phases:
        phase.load(state["phases"][phase.name], with_optimiser="optimizers" not in restart)
    saved = Position(**state["position"])
    same_run = run_dir.resolve() in path.resolve().parents
    position.started_from = saved.started_from if same_run else str(path)
    position.step = saved.step
    position.draw = 0 if "epochs" in restart else saved.draw
    position.schedule_start = saved.step if "schedule" in restart else saved.schedule_start
    stage.check_resumed(state, path)
    if same_run and state["best"]["name"] == best.name and _is_kept(state["best"], run_dir):
        vars(best).update(state["best"])
    if dist.is_main():
        print(_what_carries_over(path, stage, state, best, config.train, restart))


def _is_kept(best: dict, run_dir: Path) -> bool:
    """Whether best.ckpt is the one that a checkpoint speaks of; a later one has replaced it where
    the run goes on from before that.
    """
    path = run_dir / "checkpoints" / "best.ckpt"
    return path.is_file() and checkpoint.load(path)["position"]["step"] == best["step"]


def _what_carries_over(
    path: Path, stage: Stage, state: dict, best: Best, train: TrainConfig, restart: set[str]
) -> str:
    """One line: what goes on as it was, and what starts anew."""
    carried, anew = ["weights"], []
    for phase in stage.phases:
        for ema in phase.averages:
            known = ema.half_life in state["phases"][phase.name]["ema"]
            (carried if known else anew).append(f"average over {ema.half_life:g} steps")
    for what in RESTARTS:
        said = f"schedule ({train.warmup_steps} steps of warm-up, then {train.schedule})"
        said = said if what == "schedule" else what
        (anew if what in restart else carried).append(said)
    if best.step is None:
        anew.append("best checkpoint")
    else:
        carried.append(f"best {best.name} {best.value:.4g} of step {best.step}")
    text = f"resumed {path} at step {state['position']['step']}: {', '.join(carried)} carry over"
    return text + (f"; anew: {', '.join(anew)}" if anew else "")
