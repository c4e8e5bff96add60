"""From rows of per-case scores to what people read: statistics, metrics.json, metrics.csv, a table.

A row is a dict: "case", "sample", "source" (real, reconstruction, synthesis), one float a metric.
STAT is {"mean", "std", "ci95": [lo, hi], "n"} over cases: several samples of one case are averaged
first, so that n counts independent cases. ci95 is Student's t interval of the mean, cut to what the
metric can be (a share is at most 1). JSON has no NaN: what is undefined is null, and a case without
the metric is left out of n.
"""

import csv
import io
import json
import math
from pathlib import Path

from tubesynth.runtime.atomic import write_text

KEYS = ("case", "sample", "source")
BOUNDS = {
    "centreline_": (0.0, 1.0),
    "ms_ssim": (0.0, 1.0),
    "ssim": (-1.0, 1.0),
    "psnr": (-math.inf, 100.0),
    **dict.fromkeys(("dice", "cldice", "vesselness_auc", "vesselness_shell"), (0.0, 1.0)),
    "vesselness_contrast": (-1.0, 1.0),
    "vesselness": (0.0, 1.0),
    **dict.fromkeys(("mae_hu", "betti", "radius_error", "radius_ratio"), (0.0, math.inf)),
    **dict.fromkeys(("evaluations", "seconds"), (0.0, math.inf)),
}


def statistics(values, bounds=(-math.inf, math.inf)) -> dict:
    """STAT of one value a case; nan and None are left out; std is that of a sample (n - 1)."""
    known = [float(v) for v in values if v is not None and math.isfinite(v)]
    n = len(known)
    if n == 0:
        return {"mean": None, "std": None, "ci95": [None, None], "n": 0}
    mean = math.fsum(known) / n
    if n == 1:
        return {"mean": mean, "std": None, "ci95": [None, None], "n": 1}
    from scipy.special import stdtrit

    std = math.sqrt(math.fsum((v - mean) ** 2 for v in known) / (n - 1))
    half = float(stdtrit(n - 1, 0.975)) * std / math.sqrt(n)
    interval = [max(mean - half, bounds[0]), min(mean + half, bounds[1])]
    return {"mean": mean, "std": std, "ci95": interval, "n": n}


def summarise(rows) -> dict[str, dict]:
    """{METRIC: STAT} over the cases of rows of one source, in the order metrics first appear."""
    by_metric: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        for metric, value in row.items():
            if metric not in KEYS:
                by_metric.setdefault(metric, {}).setdefault(row["case"], []).append(value)
    return {
        metric: statistics([_mean(samples) for samples in cases.values()], bounds_of(metric))
        for metric, cases in by_metric.items()
    }


def bounds_of(metric: str) -> tuple[float, float]:
    """The range of a metric's values by its name."""
    for start, bounds in BOUNDS.items():
        if metric.removeprefix("segmenter_").startswith(start):
            return bounds
    return -math.inf, math.inf


def write_json(path: Path, content: dict) -> None:
    """Indented JSON without NaN or infinity (null instead)."""
    write_text(path, json.dumps(json_safe(content), indent=2, allow_nan=False) + "\n")


def write_csv(path: Path, rows: list[dict]) -> None:
    """One line a row; a metric that a row lacks is an empty field."""
    columns = list(dict.fromkeys([*KEYS, *(key for row in rows for key in row)]))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: "" if json_safe(v) is None else v for k, v in row.items()})
    write_text(path, text.getvalue())


def json_safe(value):
    """nan and infinities become None, at any depth."""
    if isinstance(value, dict):
        return {key: json_safe(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [json_safe(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def table(columns: dict[str, dict[str, dict]], metrics: list[str]) -> str:
    """Aligned plain text: a line a metric, a column a source, `mean [lo, hi]` in each cell."""
    header = ["", *columns]
    lines = [
        [metric, *(cell(stats.get(metric), metric) for stats in columns.values())]
        for metric in metrics
    ]
    widths = [max(len(line[i]) for line in [header, *lines]) for i in range(len(header))]
    return "\n".join(
        "  ".join(
            text.ljust(width) if i == 0 else text.rjust(width)
            for i, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in [header, *lines]
    )


def cell(stat: dict | None, metric: str) -> str:
    """`mean [lo, hi]` with the decimals that mean something: HU to a tenth, shares to a thousandth.

    "-" where nothing is known.
    """
    if stat is None or stat["mean"] is None:
        return "-"
    digits = (
        1
        if "_hu" in metric or metric.startswith("frechet")
        else 2
        if metric.startswith(("psnr", "betti"))
        else 3
    )
    mean, (low, high) = f"{stat['mean']:.{digits}f}", stat["ci95"]
    return mean if low is None else f"{mean} [{low:.{digits}f}, {high:.{digits}f}]"


def _mean(values) -> float | None:
    known = [v for v in values if v is not None and math.isfinite(v)]
    return math.fsum(known) / len(known) if known else None
