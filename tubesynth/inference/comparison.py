"""Names the label maps that are unlike the training, before the first volume is made of one."""

from collections.abc import Callable

from tubesynth.inference.jobs import Job
from tubesynth.inference.overlap import overlapped
from tubesynth.runtime import dist
from tubesynth.runtime.errors import InputError
from tubesynth.runtime.log import Progress, logger
from tubesynth.runtime.stop_signal import STARTS_AGAIN
from tubesynth.volume.anatomy import Comparison

MOST_LINES = 6  # of a case in the terminal; its sidecar has all


def warn_of(case: str, unusual: list[str]) -> None:
    """A line for each point in which a label map is unlike the training, up to MOST_LINES."""
    lines, more = unusual[:MOST_LINES], unusual[MOST_LINES:]
    for line in [*lines, *([f"and {len(more)} more, listed in its sidecar"] if more else [])]:
        logger.warning(f"case {case}: {line}")


def compare_cases(
    jobs: list[Job], compare: Callable[[Job], Comparison | None], force: bool
) -> dict[str, list[str]]:
    """{case: in which points it is unlike the training} of this rank's jobs; rank 0 logs all.

    compare: None for a job without a label map. InputError, unless force, for a label map without
    any structure of the training. Every rank must call it.
    """
    first_jobs = {job.settings["case"]: job for job in reversed(jobs)}

    def compare_each() -> list[dict]:
        rows = []

        def add(job: Job, comparison: Comparison | None) -> None:
            if comparison:
                case = job.settings["case"]
                rows.append(
                    {"case": case, "unusual": comparison.unusual, "is_empty": comparison.is_empty}
                )

        with Progress("label maps", len(first_jobs)) as counter:
            overlapped(
                first_jobs.values(), compare, add, lambda *_: None, lambda *_: counter.update()
            )
        return rows

    rows = dist.interruptible(compare_each, f"no volume was made; {STARTS_AGAIN}")
    all_rows = dist.gather_rows(rows)
    for row in all_rows:
        warn_of(row["case"], row["unusual"])
    empty = [row["case"] for row in all_rows if row["is_empty"]]
    if empty and not force:
        others = f" and {len(empty) - 1} more" if empty[1:] else ""
        raise InputError(
            f"case {empty[0]}{others}: its label map has none of the structures that the model was"
            " trained with: correct it (tubesynth doctor shows its classes), or give --force"
        )
    return {row["case"]: row["unusual"] for row in rows}
