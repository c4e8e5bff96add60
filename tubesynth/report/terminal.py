"""What evaluate prints: the verdict, and the headline scores of every source side by side."""

from typing import Any

from tubesynth.metrics.published import SUFFIX
from tubesynth.metrics.summary import table
from tubesynth.report.charts import Stats
from tubesynth.report.verdict import HEADLINE

SET_METRICS = ("frechet", "frechet_excess", "precision", "recall", "diversity_ms_ssim", "copied")
# Metrics by the beginning of their name that are in metrics.json and in metrics.csv only.
ONLY_IN_FILES = (
    *("lumen_hu_", "contrast_hu_", "radius_bias", "radius_ratio", "vesselness_shell"),
    *("segmenter_betti", "segmenter_radius", "vessel_match_left_out_"),
)
CONTROL = "negative control"  # the column of result["floor"]


def tables(result: dict[str, Any], vessel_class: int) -> str:
    """The verdict and the tables: mean and 95 % interval over cases."""
    count = result["provenance"]["n_cases"]
    lines = ["", *result["verdict"]]
    lines += [f"\n{count} case{'s' * (count != 1)}, mean [95 % interval of the mean]"]
    images = columns(result, result, "synthesis")
    if images:
        metrics = ["psnr", "ssim", "ms_ssim", "lpips", "mae_hu", f"mae_hu_class{vessel_class}"]
        metrics += [*SET_METRICS, *sorted({m for s in images.values() for m in s if SUFFIX in m})]
        scored = [m for m in metrics if any(m in stats for stats in images.values())]
        lines += ["", table(images, scored)]
    vessels = columns(result, result["vessels"], "vessels")
    if vessels:
        metrics = list(dict.fromkeys(m for stats in vessels.values() for m in stats))
        metrics = [m for m in metrics if not m.startswith(ONLY_IN_FILES)]
        metrics.sort(key=lambda metric: (not metric.startswith(HEADLINE), "left_out" in metric))
        lines += ["", table(vessels, metrics)]
    elif "labels" in result["provenance"]["folders"]:
        reason = f"no label map contains class {vessel_class}"
        if result["provenance"]["are_pictures"]:
            reason = "vessels are scored by their HU, and these are gray values"
        lines += ["", f"no vessel scores: {reason}"]
    if result["floor"]:
        lines += ["", f"{CONTROL}: the real CT of another patient in place of the image"]
        if any(metric in result["floor"] for metric in SET_METRICS):
            lines += [f"of {', '.join(SET_METRICS)}: one half of the real CTs against the other,"]
            lines[-1] += " about the best that a synthesis can reach"
    for run, losses in result["training"].items():
        first, last = losses["first_loss"], losses["last_loss"]
        lines += ["", f"validation loss of {run}: first {first:.4g}, last {last:.4g}"]
    return "\n".join(lines) + "\n"


def columns(result: dict[str, Any], stats: dict[str, Stats], section: str) -> dict[str, Stats]:
    """{column: {METRIC: STAT}}: real, reconstruction, every run, negative control; scored ones."""
    sources = {"real": stats.get("real"), "reconstruction": stats["reconstruction"]}
    sources |= {name: run[section] for name, run in result["runs"].items()}
    sources[CONTROL] = stats["floor"]
    return {name: stat for name, stat in sources.items() if stat}
