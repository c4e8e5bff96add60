"""The tables that evaluate prints: the headline scores of every source side by side."""

from tubesynth.metrics.summary import table

OF_SETS = ("frechet", "frechet_excess", "precision", "recall", "diversity_ms_ssim", "copied")
ONLY_IN_FILES = ("lumen_hu_", "contrast_hu_", "radius_bias", "radius_ratio", "vesselness_shell")
ONLY_IN_FILES += ("segmenter_betti", "segmenter_radius")


def tables(result, vessel_class) -> str:
    """The tables for the terminal: mean and 95 % interval over cases."""
    n = result["provenance"]["n_cases"]
    lines = [f"\n{n} case{'s' * (n != 1)}, mean [95 % interval of the mean]"]
    images = columns(result, result, "synthesis")
    if images:
        metrics = ["psnr", "ssim", "ms_ssim", "mae_hu", f"mae_hu_class{vessel_class}", *OF_SETS]
        lines += ["", table(images, [m for m in metrics if any(m in s for s in images.values())])]
    vessels = columns(result, result["vessels"], "vessels")
    if vessels:
        metrics = list(dict.fromkeys(m for stats in vessels.values() for m in stats))
        metrics = [m for m in metrics if not m.startswith(ONLY_IN_FILES)]
        lines += ["", table(vessels, metrics)]
    elif "labels" in result["provenance"]["folders"]:
        lines += ["", f"no vessels: no label map holds class {vessel_class}"]
    if result["floor"]:
        lines += ["", "floor: the real CT of another patient in place of the image"]
    for run, losses in result["training"].items():
        first, last = losses["first_loss"], losses["last_loss"]
        lines += ["", f"validation loss of {run}: {first:.4g} at first, {last:.4g} at last"]
    return "\n".join(lines) + "\n"


def columns(result, stats, part) -> dict[str, dict]:
    """What has scores: real, reconstruction, every run by its name, floor."""
    made = {name: run[part] for name, run in result["runs"].items()}
    found = {"real": stats.get("real"), "reconstruction": stats["reconstruction"], **made}
    return {name: stat for name, stat in {**found, "floor": stats["floor"]}.items() if stat}
