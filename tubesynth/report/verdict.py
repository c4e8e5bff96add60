"""The verdict: one sentence per source on its coronaries, at the head of terminal and report."""

from typing import Any

from tubesynth.metrics.summary import Stat
from tubesynth.metrics.vessel_match import MIN_CONTRAST_HU, MIN_POINTS
from tubesynth.report.charts import Stats

# Calibres are classes of the radius; sentences speak of the diameter, as clinicians do.
DIAMETERS = {
    "_gt3mm": "wider than 6 mm in diameter",
    "_1.5to3mm": "from 3 to 6 mm in diameter",
    "_lt1.5mm": "below 3 mm in diameter",
}
HEADLINE = ("vessel_match", "segmenter_cldice", "segmenter_centreline_recall")


def verdict(result: dict[str, Any]) -> list[str]:
    """Sentences on the reconstruction and each run: vessel_match by calibre and the segmenter's
    scores; or why there are none. result: content of metrics.json."""
    folders, real = result["provenance"]["folders"], result["vessels"]["real"]
    if "labels" not in folders:
        return ["Coronaries are not scored: give --labels."]
    sources = {"reconstruction": result["vessels"]["reconstruction"]}
    sources |= {name: run["vessels"] for name, run in result["runs"].items()}
    sources = {name: stats for name, stats in sources.items() if stats}
    sentences = []
    if sources and "real" not in folders:
        sentences.append("Coronaries are not compared with the real CT's: give --real.")
    for name, stats in sources.items():
        shares = [
            f"{number:.2f} {diameter}"
            for suffix, diameter in DIAMETERS.items()
            if (number := mean(stats.get(f"vessel_match{suffix}"))) is not None
        ]
        if (whole := mean(stats.get("vessel_match"))) is not None:
            by_calibre = f" ({', '.join(shares)})" if shares else ""
            sentences.append(
                f"Coronaries in the {name}: {whole:.2f} of the real CT's{by_calibre}; "
                "0 is another patient's CT or noise."
            )
        elif "real" in folders:
            sentences.append(
                f"Coronaries in the {name} have no score: fewer than {MIN_POINTS} of their points "
                f"have {MIN_CONTRAST_HU:g} HU of contrast in the real CT."
            )
        if (text := segmenter_text(stats)) is not None:
            ceiling = segmenter_text(real)
            in_real = f"; in the real CT {ceiling}" if ceiling else ""
            sentences.append(f"Segmented in the {name}: {text}{in_real}.")
    return sentences


def segmenter_text(stats: Stats) -> str | None:
    """clDice and centreline recall of the trained segmenter; None without one."""
    cldice, recall = (mean(stats.get(metric)) for metric in HEADLINE[1:])
    if cldice is None or recall is None:
        return None
    return f"clDice {cldice:.2f}, centreline recall {recall:.2f}"


def mean(stat: Stat | None) -> float | None:
    return None if stat is None else stat["mean"]
