"""The content of metrics.json and metrics.csv, from the rows of all images.

A row is a dict: "case", "sample", "source", and one value a metric. Keys that users script on
(reconstruction, synthesis, floor, vessels, runs, training, provenance) are stable.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import tubesynth
from tubesynth.metrics.case import ScoreSettings
from tubesynth.metrics.definitions import DEFINITIONS
from tubesynth.metrics.pairing import SynthesisRun, listed
from tubesynth.metrics.summary import summarize
from tubesynth.metrics.vessel_match import MIN_CONTRAST_HU
from tubesynth.report.charts import Stats
from tubesynth.runtime.environment import environment

# Below this mean of the real CTs a metric of detected vessels says little about a synthesis.
LOW_CEILINGS = {"centreline_in_range": 0.5, "cldice": 0.5, "segmenter_cldice": 0.7}
MAX_LEFT_OUT = 0.1  # share of the centreline points without a vessel_match
MAX_HIDDEN = 0.5  # of a case whose label map fits its CT


@dataclass
class Rows:
    """Rows of all images: image scores, vessel scores, and the cost of synthesizing an image."""

    images: list[dict[str, Any]]
    vessels: list[dict[str, Any]]
    costs: list[dict[str, Any]]

    def merged(self) -> list[dict[str, Any]]:
        """One row an image with all its values, in the order of cases: the lines of metrics.csv."""
        rows: dict[tuple, dict[str, Any]] = {}
        for row in [*self.vessels, *self.images, *self.costs]:
            key = row["case"], row["source"], row["sample"]
            rows[key] = {**rows.get(key, {}), **row}
        return list(rows.values())


def statistics_by_source(
    rows: Rows, runs: Sequence[SynthesisRun], losses: dict[str, Any]
) -> dict[str, Any]:
    """metrics.json without the provenance; its "synthesis" is the first run.

    losses: {run: validation losses of its training log}.
    """

    def stats(kind: list[dict[str, Any]], source: str) -> Stats:
        return summarize(row for row in kind if row["source"] == source)

    first = runs[0].source if runs else "synthesis"
    sources = {"reconstruction": "reconstruction", "synthesis": first, "floor": "floor"}
    return {
        **{name: stats(rows.images, source) for name, source in sources.items()},
        "vessels": {
            name: stats(rows.vessels, source)
            for name, source in {"real": "real", **sources}.items()
        },
        "runs": {
            run.name: {
                "folder": str(run.folder),
                **stats(rows.costs, run.source),
                "synthesis": stats(rows.images, run.source),
                "vessels": stats(rows.vessels, run.source),
            }
            for run in runs
        },
        "training": losses,
    }


def label_notes(rows: Sequence[dict[str, Any]]) -> list[str]:
    """A note on the cases whose real CT has no vessels where the label map has them.

    rows: the vessel scores of all images.
    """
    hidden = {
        row["case"]: row.get("vessel_match_left_out") for row in rows if row["source"] == "real"
    }
    cases = [case for case, share in hidden.items() if share is not None and share > MAX_HIDDEN]
    if not cases:
        return []
    return [
        f"no vessels in the real CT along most of the label map's: case {listed(cases)}; a scan"
        " without contrast agent, or the label map of another image: its vessel scores say nothing"
    ]


def ceiling_notes(result: dict[str, Any]) -> list[str]:
    """Notes on metrics for which the real CTs themselves score low, or have too little contrast."""
    notes = []
    left_out = result["vessels"]["real"].get("vessel_match_left_out", {"mean": None})["mean"]
    if left_out is not None and left_out > MAX_LEFT_OUT:
        notes.append(
            f"vessel_match leaves out {left_out:.0%} of the centreline points: the real CTs have "
            f"less than {MIN_CONTRAST_HU:g} HU of contrast there"
        )
    for metric, threshold in LOW_CEILINGS.items():
        mean = result["vessels"]["real"].get(metric, {"mean": None})["mean"]
        if mean is not None and mean < threshold:
            notes.append(
                f"{metric} of the real CTs is {mean:.2f}: it says little at this voxel size and "
                "contrast, and an image that has more is not better for it"
            )
    return notes


def provenance(
    settings: ScoreSettings,
    num_cases: int,
    folders: dict[str, str],
    segmenter: Path | None,
    notes: list[str],
) -> dict[str, Any]:
    """The environment, the command, the settings of the scores, and the metrics' definitions."""
    return {
        **environment(),
        "version": tubesynth.__version__,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "hu_window": list(settings.hu_window),
        "are_pictures": settings.are_pictures,
        "data_range": 1.0,
        "lumen_range": list(settings.lumen_range),
        "vessel_class": settings.classes.vessel,
        "heart_classes": list(settings.classes.heart),
        "aorta_class": settings.classes.aorta,
        "class_names": list(settings.classes.names),
        "n_cases": num_cases,
        "segmenter": None if segmenter is None else str(segmenter),
        "folders": folders,
        "definitions": DEFINITIONS,
        "notes": notes,
    }
