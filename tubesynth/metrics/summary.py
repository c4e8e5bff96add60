"""Statistics over the rows of per-case scores, written as metrics.json, metrics.csv and a table.

A row is a dict: "case", "sample", "source" (real, reconstruction, synthesis), and one float per
metric. A Stat is over cases: several samples of one case are averaged first, so that n counts
independent cases. ci95 is Student's t interval of the mean, clipped to the metric's range (a share
is at most 1). JSON has no NaN: an undefined number is null, and a case without the metric is not
counted in n.
"""

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from tubesynth.runtime.atomic import write_text

Row = Mapping[str, Any]


class Stat(TypedDict):
    """One metric over n cases; std and the ends of ci95 are None where n is too small for them."""

    mean: float | None
    std: float | None
    ci95: list[float | None]
    n: int


KEYS = ("case", "sample", "source")
BOUNDS = {
    **dict.fromkeys(("vessel_match", "centreline_"), (0.0, 1.0)),
    "ms_ssim": (0.0, 1.0),
    "ssim": (-1.0, 1.0),
    "psnr": (-math.inf, 100.0),
    "lpips": (0.0, math.inf),
    **dict.fromkeys(("dice", "cldice", "vesselness_auc", "vesselness_shell"), (0.0, 1.0)),
    "vesselness_contrast": (-1.0, 1.0),
    "vesselness": (0.0, 1.0),
    **dict.fromkeys(("mae_hu", "betti", "radius_error", "radius_ratio"), (0.0, math.inf)),
    **dict.fromkeys(("evaluations", "seconds", "false_vessel"), (0.0, math.inf)),
}


def stat(mean: float | None, n: int, std=None, low=None, high=None) -> Stat:
    """A Stat of Python numbers, from numbers of any type."""
    ends = [None if end is None else float(end) for end in (low, high)]
    return {
        "mean": None if mean is None else float(mean),
        "std": None if std is None else float(std),
        "ci95": ends,
        "n": n,
    }


def statistics(values: Iterable[float | None], bounds=(-math.inf, math.inf)) -> Stat:
    """Mean of one value per case, nan and None left out; std has the divisor n - 1."""
    finite = [float(v) for v in values if v is not None and math.isfinite(v)]
    n = len(finite)
    if n < 2:
        return stat(finite[0] if finite else None, n)
    from scipy.special import stdtrit

    mean = math.fsum(finite) / n
    std = math.sqrt(math.fsum((v - mean) ** 2 for v in finite) / (n - 1))
    half = float(stdtrit(n - 1, 0.975)) * std / math.sqrt(n)
    return stat(mean, n, std, max(mean - half, bounds[0]), min(mean + half, bounds[1]))


def summarize(rows: Iterable[Row]) -> dict[str, Stat]:
    """{METRIC: Stat} over the cases of rows of one source, in the order metrics first appear."""
    by_metric: dict[str, dict[str, list[float | None]]] = {}
    for row in rows:
        for metric, value in row.items():
            if metric not in KEYS:
                by_metric.setdefault(metric, {}).setdefault(row["case"], []).append(value)
    return {
        metric: statistics([statistics(v)["mean"] for v in cases.values()], bounds_of(metric))
        for metric, cases in by_metric.items()
    }


def bounds_of(metric: str) -> tuple[float, float]:
    """The range of a metric's values by its name."""
    for start, bounds in BOUNDS.items():
        if metric.removeprefix("segmenter_").startswith(start):
            return bounds
    return -math.inf, math.inf


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Indented JSON without NaN or infinity (null instead)."""
    write_text(path, json.dumps(json_safe(content), indent=2, allow_nan=False) + "\n")


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """One line per row; a metric that is missing in a row is an empty field."""
    columns = list(dict.fromkeys([*KEYS, *(key for row in rows for key in row)]))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: "" if json_safe(v) is None else v for k, v in row.items()})
    write_text(path, text.getvalue())


def json_safe(value: Any) -> Any:
    """The value with None for nan and infinities, at any depth of dicts and lists."""
    if isinstance(value, dict):
        return {key: json_safe(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [json_safe(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def table(columns: Mapping[str, Mapping[str, Stat]], metrics: Sequence[str]) -> str:
    """Aligned plain text: one line per metric, one column per source, `mean [low, high]` in each
    cell, and the numbers of cases, as `23-24` where they differ between sources."""
    lines = [["", *columns, "n"]]
    for m in metrics:
        stats = [column.get(m) for column in columns.values()]
        lines.append([m, *(cell(each, m) for each in stats), case_count(stats)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    aligned = [
        [text.rjust(width) for text, width in zip(line, widths, strict=True)] for line in lines
    ]
    for line, texts in zip(aligned, lines, strict=True):
        line[0] = texts[0].ljust(widths[0])
    return "\n".join("  ".join(line).rstrip() for line in aligned)


def case_count(stats: Iterable[Stat | None]) -> str:
    """The number of cases of a metric's columns: "24", or "23-24" where they differ."""
    counts = [each["n"] for each in stats if each is not None and each["mean"] is not None]
    if not counts:
        return "-"
    low, high = min(counts), max(counts)
    return f"{low}" if low == high else f"{low}-{high}"


def cell(stat: Stat | None, metric: str) -> str:
    """`mean [low, high]` with one decimal for HU and Frechet distances, two for dB and Betti
    numbers, three for shares and all others; "-" where there is no mean."""
    if stat is None or stat["mean"] is None:
        return "-"
    if "_hu" in metric or metric.startswith("frechet") and not metric.endswith("published"):
        digits = 1
    else:
        digits = 2 if metric.startswith(("psnr", "betti")) else 3
    mean, (low, high) = f"{stat['mean']:.{digits}f}", stat["ci95"]
    return mean if low is None else f"{mean} [{low:.{digits}f}, {high:.{digits}f}]"
