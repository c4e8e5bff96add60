"""The checkpoint files of a run: the newest that is undamaged, and those that are removed."""

from collections.abc import Iterable
from pathlib import Path

from tubesynth.build.checkpoint import Best, Checkpoint
from tubesynth.runtime.errors import InputError
from tubesynth.runtime.log import logger


def newest_undamaged(folder: Path) -> Checkpoint | None:
    """The newest checkpoint of a run by the step in it, not by the time of its file.

    Damaged ones are passed over with a warning; None without a checkpoint, and InputError if all
    are damaged. best.ckpt is the last resort: last.ckpt and epoch_*.ckpt are written after it.
    """
    names = [*folder.glob("epoch_*.ckpt"), *folder.glob("last.ckpt")]
    ages, problems = _ages(names), []
    unreadable = [path for path, age in ages.items() if age is None]
    for path in [*unreadable, *_newest_first(ages), *folder.glob("best.ckpt")]:
        try:
            checkpoint = Checkpoint.load(path)
            if checkpoint.position is None:
                raise InputError(f"{path}: has weights alone, so no run resumes from it")
        except InputError as error:
            problems.append(str(error))
            continue
        for problem in problems:
            logger.warning(f"{problem}; resuming from {path.name} instead")
        return checkpoint
    if problems:
        raise InputError(
            f"{folder}: no checkpoint can be resumed: {' | '.join(problems)}: restore one of them,"
            " or choose another --run-dir for a new run"
        )
    return None


def _newest_first(ages: dict[Path, tuple[int, int] | None]) -> list[Path]:
    """Without those that cannot be read."""
    by_age = {path: age for path, age in ages.items() if age}
    return sorted(by_age, key=lambda path: by_age[path], reverse=True)


def _ages(paths: Iterable[Path]) -> dict[Path, tuple[int, int] | None]:
    """The age of each checkpoint, None where it cannot be read; last.ckpt before epoch_*.ckpt."""
    ages = {}
    for path in sorted(paths, reverse=True):
        try:
            ages[path] = Checkpoint.read_position(path).age
        except InputError:  # newest_undamaged reads it too, and names the damage
            ages[path] = None
    return ages


def remove_older(folder: Path, pattern: str, keep: int) -> None:
    """Remove all checkpoints of the pattern but the `keep` newest by the step in them.

    One that cannot be read stays: the file system may have failed for a moment.
    """
    for path in _newest_first(_ages(folder.glob(pattern)))[keep:]:
        path.unlink(missing_ok=True)


def has_best(best: Best, checkpoint: Checkpoint, run_dir: Path) -> bool:
    """Whether best.ckpt is of the best step, or of a later one: the run repeats that step.

    A later one that the run has gone back from is not repeated. Damage is a warning.
    """
    path = run_dir / "checkpoints" / "best.ckpt"
    if best.step is None or not path.is_file():
        return False
    try:
        saved = Checkpoint.load(path).position
    except InputError as error:
        logger.warning(f"{error}; the best checkpoint is chosen anew")
        return False
    if saved is None or checkpoint.position is None:
        return False
    repeats = saved.rollbacks == checkpoint.position.rollbacks
    return saved.step == best.step or (saved.step > best.step and repeats)
