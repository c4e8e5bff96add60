"""The validation losses in the metrics.jsonl of training runs.

The log holds one JSON object a line: {"step": 10, "split": "validation", "loss": 0.12, ...}.
"""

import math
from pathlib import Path

from tubesynth.runtime.errors import InputError
from tubesynth.runtime.reading import fits, json_lines


def validation_losses(logs) -> dict[str, dict]:
    """{run: first, last and lowest validation loss with their steps} of metrics.jsonl files.

    logs: paths of metrics.jsonl files or of the run folders that hold them. A run has the name of
    its folder. "fell" is true where the last loss is lower than the first.
    """
    result: dict[str, dict] = {}
    for log in map(Path, logs):
        log = log / "metrics.jsonl" if log.is_dir() else log
        curve = loss_curve(log)
        name = log.resolve().parent.name
        name = name if name not in result else str(log)
        first, last, lowest = curve[0], curve[-1], min(curve, key=lambda point: point[1])
        result[name] = {
            "log": str(log),
            "first_step": first[0],
            "first_loss": first[1],
            "last_step": last[0],
            "last_loss": last[1],
            "lowest_step": lowest[0],
            "lowest_loss": lowest[1],
            "fell": last[1] < first[1],
        }
    return result


def loss_curve(log: Path) -> list[tuple[int, float]]:
    """[(step, validation loss)] by step; lines without a validation loss are skipped."""
    points = {}
    for _, row in json_lines(log, "check --training-log"):
        is_point = fits(row, {"split": str, "step": int, "loss": (float, int)})
        if is_point and row["split"] == "validation" and math.isfinite(row["loss"]):
            points[row["step"]] = float(row["loss"])
    if not points:
        raise InputError(f'{log}: no line has "split": "validation" and a loss: give another log')
    return sorted(points.items())
