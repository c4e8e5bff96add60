"""The validation losses in the metrics.jsonl of training runs.

The log holds one JSON object a line: {"step": 10, "split": "validation", "loss": 0.12, ...}.
"""

import json
import math
from pathlib import Path

from tubesynth.runtime.errors import InputError


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
    if not log.is_file():
        raise InputError(f"{log}: no such training log; check --training-log")
    points = {}
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue  # a process that was killed while writing leaves half a line
        if not isinstance(row, dict) or row.get("split") != "validation":
            continue
        step, loss = row.get("step"), row.get("loss")
        if isinstance(step, int) and isinstance(loss, float | int) and math.isfinite(loss):
            points[step] = float(loss)
    if not points:
        raise InputError(f'{log}: holds no line with "split": "validation" and a loss')
    return sorted(points.items())
