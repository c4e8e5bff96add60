"""Scores and pictures of reconstructions and syntheses against the real CTs and their label maps.

    python -m tubesynth.evaluate --real data/validation/images --labels data/validation/labels \\
        --reconstruction out/reconstruction --synthesis out/synthesis --output-dir out/evaluation

Files are paired by case id (the name up to the first dot); samples of one case are <case>_s0,
<case>_s1, ... Writes metrics.json (statistics and provenance), metrics.csv (one line an image) and
panels/<case>.png, and prints the tables. One case is in memory at a time.
"""

import argparse
import re
import sys
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
from tqdm import tqdm

import tubesynth
from tubesynth.errors import InputError, run_command
from tubesynth.metrics.case import EvaluationCase, read_case, score_images, score_vessels
from tubesynth.metrics.summary import summarise, table, write_csv, write_json
from tubesynth.metrics.training_log import validation_losses
from tubesynth.metrics.vessel import LUMEN_RANGE_HU
from tubesynth.runtime.log import environment
from tubesynth.runtime.panels import draw_panel, save_png
from tubesynth.volume.files import find_cases, read_labels
from tubesynth.volume.grid import same_grid
from tubesynth.volume.resample import resample_image, resample_labels

DEFINITIONS = {
    "psnr": "dB, of HU clipped to hu_window and scaled to [0, 1], data range 1; at most 100",
    "ssim": "Wang 2004, the same images; Gaussian window 11, sigma 1.5, K1 .01, K2 .03, 3D, valid",
    "ms_ssim": "Wang 2003, the same images; 5 scales above 160 voxels an axis, fewer below",
    "mae_hu": "mean absolute error in HU, clipped to hu_window",
    "_classK": "the same inside class K of the label map",
    "centreline_in_range": "share of the condition's centreline points with HU in lumen_range",
    "centreline_covered": "share of the condition's centreline points that lie inside the CT",
    "lumen_hu": "mean HU of the centreline points",
    "contrast_hu": "lumen minus the median of a shell 1.5 to 3 radii plus one voxel away",
    "_lt1.5mm, _1.5to3mm, _gt3mm": "calibre: radius of the lumen in the label map",
    "STAT": "over cases, samples of one case averaged first; std of a sample; ci95 by Student's t, "
    "cut to what the metric can be",
}
SAMPLES_IN_PANEL = 3
PICTURES_LISTED = 10


def main(argv=None) -> None:
    args = parser().parse_args(argv)
    for option, (low, high) in (
        ("--hu-window", args.hu_window),
        ("--lumen-range", args.lumen_range),
    ):
        if not low < high:
            raise InputError(f"{option} {low:g} {high:g}: the first number must be the lower one")
    cases, notes = collect_cases(args.real, args.labels, args.reconstruction, args.synthesis)
    losses = validation_losses(args.training_log)
    image_rows, vessel_rows, resampled, pictures = [], [], set(), []
    for case in tqdm(cases, desc="evaluate", unit="case", disable=None):
        volumes = read_case(case)
        label = None if case.label is None else read_labels(case.label)
        for key, scores, where in score_images(case, volumes, label, args.hu_window):
            image_rows.append({**key, **scores})
            resampled |= where
        for key, scores in score_vessels(case, volumes, label, args.vessel_class, args.lumen_range):
            vessel_rows.append({**key, **scores})
        pictures.append(args.output_dir / "panels" / f"{case.id}.png")
        save_png(pictures[-1], case_panel(case, volumes, label, args.vessel_class))

    notes += [f"resampled for scoring: {what}" for what in sorted(resampled)]
    vessels = {s: summarise(of(vessel_rows, s)) for s in ("real", "reconstruction", "synthesis")}
    ceiling = vessels["real"].get("centreline_in_range", {"mean": None})["mean"]
    if ceiling is not None and ceiling < 0.5:
        notes.append(
            f"centreline_in_range of the real CTs themselves is {ceiling:.2f}: at this voxel size "
            "and lumen range that is the most that can be reached"
        )
    result = {
        **{s: summarise(of(image_rows, s)) for s in ("reconstruction", "synthesis")},
        "vessels": vessels,
        "training": losses,
        "provenance": provenance(args, cases, notes),
    }
    write_csv(args.output_dir / "metrics.csv", merged(image_rows, vessel_rows))
    write_json(args.output_dir / "metrics.json", result)
    print(report(result, args.vessel_class))
    for note in notes:
        print(f"note: {note}")
    print(f"\nscores    {args.output_dir / 'metrics.json'}")
    print(f"per case  {args.output_dir / 'metrics.csv'}")
    for picture in pictures[:PICTURES_LISTED]:
        print(f"picture   {picture}")
    if len(pictures) > PICTURES_LISTED:
        print(f"          and {len(pictures) - PICTURES_LISTED} more")


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(prog="python -m tubesynth.evaluate", description=__doc__)
    result.formatter_class = argparse.RawDescriptionHelpFormatter
    add = result.add_argument
    add("--real", type=Path, help="folder of real CTs")
    add("--labels", type=Path, help="folder of their label maps (the condition)")
    add("--reconstruction", type=Path, help="folder of reconstructions; needs --real")
    add("--synthesis", type=Path, help="folder of synthetic CTs; needs --labels")
    add("--output-dir", type=Path, required=True)
    add("--training-log", type=Path, nargs="+", default=[], help="runs/<name>/metrics.jsonl")
    range_ = dict(type=float, nargs=2, metavar=("LOW", "HIGH"))
    add("--lumen-range", **range_, default=LUMEN_RANGE_HU, help="HU; default 200 600")
    add("--hu-window", **range_, default=(-1000.0, 1000.0), help="HU; default -1000 1000")
    add("--vessel-class", type=int, default=8, help="class of the label map; default 8")
    return result


def collect_cases(real, labels, reconstruction, synthesis) -> tuple[list[EvaluationCase], list]:
    """Every image with its partners, and notes on real CTs that nothing was made from."""
    if real is None and synthesis is None:
        raise InputError("nothing to score: give --real and --reconstruction, or --synthesis")
    if reconstruction is not None and real is None:
        raise InputError("--reconstruction is scored against the real CT; give --real")
    if synthesis is not None and labels is None:
        raise InputError("--synthesis is scored against its condition; give --labels")
    reals, maps = files_of(real, "--real"), files_of(labels, "--labels")
    made: dict[str, list[tuple[str, int, Path]]] = {}
    for case, path in files_of(reconstruction, "--reconstruction").items():
        made.setdefault(case, []).append(("reconstruction", 0, path))
    for name, path in files_of(synthesis, "--synthesis").items():
        found = None if name in maps else re.fullmatch(r"(.+)_s(\d+)", name)
        case, sample = (found[1], int(found[2])) if found else (name, 0)
        images = made.setdefault(case, [])
        if ("synthesis", sample) in [image[:2] for image in images]:
            raise InputError(f"{path}: sample {sample} of case {case} is there twice; keep one")
        images.append(("synthesis", sample, path))
    for folder, there in ((real, reals), (labels, maps)):
        missing = [p.name for c, images in made.items() if c not in there for *_, p in images]
        if folder is not None and missing:
            raise InputError(
                f"{folder}: unpaired, no file for {listed(missing)}; ids are names up to the first "
                "dot, add the missing files or remove these"
            )
    chosen = list(made) or [case for case in reals if labels is None or case in maps]
    if not chosen:
        raise InputError(f"{labels}: no label map has the id of a CT in {real}; rename the files")
    notes = []
    if left := [case for case in reals if case not in chosen]:
        notes.append(f"{len(left)} real CTs without a partner were left out: {listed(left)}")
    for source, folder in (("reconstruction", reconstruction), ("synthesis", synthesis)):
        lacking = [c for c in chosen if source not in [image[0] for image in made.get(c, [])]]
        if folder is not None and lacking:
            notes.append(f"{len(lacking)} cases have no {source}: {listed(lacking)}")
    cases = []
    for case in chosen:
        own = [("real", 0, reals[case])] if case in reals else []
        cases.append(EvaluationCase(case, maps.get(case), own + made.get(case, [])))
    return cases, notes


def files_of(folder: Path | None, option: str) -> dict[str, Path]:
    if folder is not None and not folder.is_dir():
        raise InputError(f"{folder}: no such folder; check {option}")
    return {} if folder is None else find_cases(folder)


def case_panel(case, volumes, label, vessel_class) -> np.ndarray:
    """All images of a case, on the grid of the last: the model's, where grids differ."""
    grid = volumes[-1]
    samples = sum(source == "synthesis" for source, *_ in case.images)
    rows = {}
    for (source, sample, _), volume in zip(case.images, volumes, strict=True):
        if sample >= SAMPLES_IN_PANEL:
            continue
        on_grid = same_grid(volume, grid)
        shown = volume if on_grid else resample_image(volume, grid.shape, grid.affine)
        several = source == "synthesis" and samples > 1
        rows[f"synthesis s{sample}" if several else source] = shown.array
    if label is not None and not same_grid(label, grid):
        label = resample_labels(label, grid.shape, grid.affine)
    classes = None if label is None else label.array
    title = f"case {case.id}"
    return draw_panel(rows, grid.spacing, classes, vessel_class=vessel_class, title=title)


def provenance(args, cases, notes) -> dict:
    folders = ("real", "labels", "reconstruction", "synthesis")
    return {
        **environment(),
        "version": tubesynth.__version__,
        "command": sys.argv,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "hu_window": list(args.hu_window),
        "data_range": 1.0,
        "lumen_range": list(args.lumen_range),
        "vessel_class": args.vessel_class,
        "n_cases": len(cases),
        "folders": {f: str(getattr(args, f)) for f in folders if getattr(args, f) is not None},
        "definitions": DEFINITIONS,
        "notes": notes,
    }


def report(result, vessel_class) -> str:
    """The tables for the terminal: mean and 95 % interval over cases."""
    n = result["provenance"]["n_cases"]
    lines = [f"\n{n} case{'s' * (n != 1)}, mean [95 % interval of the mean]"]
    images = {s: result[s] for s in ("reconstruction", "synthesis") if result[s]}
    if images:
        metrics = ["psnr", "ssim", "ms_ssim", "mae_hu", f"mae_hu_class{vessel_class}"]
        lines += ["", table(images, [m for m in metrics if any(m in s for s in images.values())])]
    vessels = {source: stats for source, stats in result["vessels"].items() if stats}
    if vessels:
        metrics = list(dict.fromkeys(m for stats in vessels.values() for m in stats))
        metrics = [m for m in metrics if not m.startswith("lumen_hu_")]  # those are in the files
        lines += ["", table(vessels, metrics)]
    elif "labels" in result["provenance"]["folders"]:
        lines += ["", f"no vessels: no label map holds class {vessel_class}"]
    for run, losses in result["training"].items():
        first, last = losses["first_loss"], losses["last_loss"]
        lines += ["", f"validation loss of {run}: {first:.4g} at first, {last:.4g} at last"]
    return "\n".join(lines) + "\n"


def of(rows, source) -> list[dict]:
    return [row for row in rows if row["source"] == source]


def merged(image_rows, vessel_rows) -> list[dict]:
    """Image and vessel scores of one image on one line, in the order of cases."""
    rows: dict[tuple, dict] = {}
    for row in [*vessel_rows, *image_rows]:
        key = row["case"], row["source"], row["sample"]
        rows[key] = {**rows.get(key, {}), **row}
    return list(rows.values())


def listed(names) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


if __name__ == "__main__":
    run_command(main)
