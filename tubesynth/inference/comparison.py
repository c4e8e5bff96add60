"""Names the label maps that are unlike the training, before the first volume is made of one."""

from collections.abc import Callable, Mapping

from tubesynth.inference.job import Job
from tubesynth.inference.overlap import overlapped
from tubesynth.runtime import dist
from tubesynth.runtime.errors import InputError
from tubesynth.runtime.kinds import lines_by_kind
from tubesynth.runtime.log import Progress, logger
from tubesynth.runtime.stop_signal import STARTS_AGAIN
from tubesynth.volume.anatomy import Comparison

MOST_LINES = 10  # in the terminal; the sidecars have all


def warn_of(unusual: Mapping[str, list[str]]) -> None:
    """Lines on the points in which label maps are unlike the training, by case, up to MOST_LINES.

    Cases that differ in the same points share a line.
    """
    lines = lines_by_kind((case, point) for case, points in unusual.items() for point in points)
    for line in lines[:MOST_LINES]:
        logger.warning(line)
    if len(lines) > MOST_LINES:
        logger.warning(f"and {len(lines) - MOST_LINES} more, listed in the JSON files")


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
    empty = [row["case"] for row in all_rows if row["is_empty"]]
    if empty and not force:
        others = f" and {len(empty) - 1} more" if empty[1:] else ""
        raise InputError(
            f"case {empty[0]}{others}: its label map has none of the structures that the model was"
            " trained with: correct it (tubesynth doctor shows its classes), or give --force"
        )
    warn_of({row["case"]: row["unusual"] for row in all_rows})
    return {row["case"]: row["unusual"] for row in rows}
