"""The verdict: one sentence per source on its vessels, at the head of terminal and report."""

from typing import Any

from tubesynth.metrics.summary import Stat
from tubesynth.metrics.vessel_match import MIN_CONTRAST_HU, MIN_POINTS
from tubesynth.report.charts import Stats
from tubesynth.report.content import MAX_HIDDEN

# Calibres are classes of the radius of the lumen in mm, here and in all tables.
RADII = {
    "_gt3mm": "above 3 mm",
    "_1.5to3mm": "from 1.5 to 3 mm",
    "_lt1.5mm": "below 1.5 mm",
}
MIN_COVERED = 0.98  # of the centreline points, or the sentence names their share
HEADLINE = ("vessel_match", "segmenter_cldice", "segmenter_centreline_recall")


def verdict(result: dict[str, Any]) -> list[str]:
    """Sentences on the reconstruction and each run: vessel_match by calibre and the segmenter's
    scores; or why there are none. result: content of metrics.json."""
    folders, real = result["provenance"]["folders"], result["vessels"]["real"]
    if "labels" not in folders and not any(result["vessels"].values()):
        return ["Vessels are not scored: give --labels."]
    vessels = vessel_name(result["provenance"])
    sources = {"reconstruction": result["vessels"]["reconstruction"]}
    sources |= {name: run["vessels"] for name, run in result["runs"].items()}
    sources = {name: stats for name, stats in sources.items() if stats}
    sentences = []
    has_real = "real" in folders or bool(real)
    if sources and not has_real:
        sentences.append(f"{vessels} are not compared with the real CT's: give --real.")
    for name, stats in sources.items():
        shares = [
            f"{number:.2f} {radius}"
            for suffix, radius in RADII.items()
            if (number := mean(stats.get(f"vessel_match{suffix}"))) is not None
        ]
        left_out = mean(real.get("vessel_match_left_out"))
        if left_out is not None and left_out > MAX_HIDDEN:
            sentences.append(
                f"{vessels} in the {name} have no score: {left_out:.0%} of their points have less "
                f"than {MIN_CONTRAST_HU:g} HU of contrast in the real CT, as without contrast "
                "agent or with the label maps of other images."
            )
        elif (whole := mean(stats.get("vessel_match"))) is not None:
            by_calibre = f" (by radius: {', '.join(shares)})" if shares else ""
            covered = mean(stats.get("centreline_covered"))
            within = "" if covered is None or covered > MIN_COVERED else f", within {covered:.0%}"
            within += " of their points: the others are outside of the image" if within else ""
            sentences.append(
                f"{vessels} in the {name}: {whole:.2f} of the real CT's{by_calibre}{within}; "
                "0 is another patient's CT or noise."
            )
        elif has_real:
            sentences.append(
                f"{vessels} in the {name} have no score: fewer than {MIN_POINTS} of their points "
                f"have {MIN_CONTRAST_HU:g} HU of contrast in the real CT."
            )
        if (text := segmenter_text(stats)) is not None:
            ceiling = segmenter_text(real)
            in_real = f"; in the real CT {ceiling}" if ceiling else ""
            sentences.append(f"Segmented in the {name}: {text}{in_real}.")
    return sentences


def vessel_name(provenance: dict[str, Any]) -> str:
    """The name of the vessel class, as a sentence begins with it."""
    name = provenance["class_names"][provenance["vessel_class"]]
    return "Coronaries" if name.startswith("coronary") else name[:1].upper() + name[1:]


def segmenter_text(stats: Stats) -> str | None:
    """clDice and centreline recall of the trained segmenter; None without one."""
    cldice, recall = (mean(stats.get(metric)) for metric in HEADLINE[1:])
    if cldice is None or recall is None:
        return None
    return f"clDice {cldice:.2f}, centreline recall {recall:.2f}"


def mean(stat: Stat | None) -> float | None:
    return None if stat is None else stat["mean"]
