"""Scores and pictures of reconstructions and syntheses against the real CTs and their label maps.

    tubesynth evaluate --real data/validation/images --labels data/validation/labels \\
        --reconstruction out/reconstruction --synthesis out/synthesis --output-dir out/evaluation

Files are paired by case id (the name up to the first dot); samples of one case are <case>_s0,
<case>_s1 and so on. Without label maps, syntheses with other ids than the real CTs', such as
unconditional ones, are compared with the real CTs as a set. --synthesis NAME=DIR, repeated,
compares several runs; the headline scores are those of the first. Writes metrics.json (statistics
and provenance), metrics.csv (one line per image), panels/<case>.png and report.html (one file
without a server), and prints the tables. The coronaries in a panel have the names of the user
centreline, or of centrelines/ beside the folder of label maps. Every worker holds one case in
memory.
"""

if __name__ == "__main__":
    from tubesynth.runtime.errors import run_module

    run_module("evaluate")  # imports this file as tubesynth.evaluate

import argparse
import multiprocessing
from functools import partial
from pathlib import Path
from typing import Any

from tubesynth.config.labels import load_label_map
from tubesynth.data import pool
from tubesynth.inference.case_scores import scores_or_fault, trained_segmenter
from tubesynth.inference.label_maps import evaluated_classes
from tubesynth.metrics.case import CaseScores, EvaluationCase, ScoreSettings
from tubesynth.metrics.distribution import diversity_scores
from tubesynth.metrics.features import load_features
from tubesynth.metrics.pairing import (
    SynthesisRun,
    collect_cases,
    cost_rows,
    files_of,
    listed,
    runs_of,
    sidecar_notes,
)
from tubesynth.metrics.published import load_lpips
from tubesynth.metrics.set_scores import score_sets
from tubesynth.metrics.summary import write_csv, write_json
from tubesynth.metrics.training_log import validation_losses
from tubesynth.metrics.vessel import LUMEN_RANGE_HU
from tubesynth.pictures.case_pictures import panel_path
from tubesynth.report.content import (
    Rows,
    ceiling_notes,
    label_notes,
    provenance,
    statistics_by_source,
)
from tubesynth.report.page import report_page
from tubesynth.report.terminal import tables
from tubesynth.report.verdict import verdict
from tubesynth.runtime.atomic import check_apart, check_writable, write_text
from tubesynth.runtime.errors import CommandParser, InputError
from tubesynth.runtime.left_out import LeftOut
from tubesynth.runtime.stop_signal import STARTS_AGAIN, interruptible, kept

MAX_LISTED_PICTURES = 10
# The fork server imports it once for all workers: importing torch takes longer than a small case.
PRELOADED = [scores_or_fault.__module__]


def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    then = f"no scores are written: {STARTS_AGAIN}"
    message = kept("the panels of the finished cases", args.output_dir, then)
    interruptible(lambda: evaluate(args), message)


def evaluate(args: argparse.Namespace) -> None:
    """Score and render all cases, and write the report."""
    for option, (low, high) in (
        ("--hu-window", args.hu_window or (0, 1)),
        ("--lumen-range", args.lumen_range),
    ):
        if not low < high:
            raise InputError(f"{option} {low:g} {high:g}: give the lower number first")
    if args.workers is not None and args.workers < 0:
        raise InputError(f"--workers {args.workers}: give 0, for this process alone, or more")
    workers = pool.check_workers(1 if args.workers == 0 else args.workers)
    if args.training is not None:
        files_of(args.training, "--training")
    runs = runs_of(args.synthesis)
    folders = {f: getattr(args, f) for f in ("real", "labels", "reconstruction", "centrelines")}
    folders |= {run.source: run.folder for run in runs}
    check_apart(args.output_dir, {**folders, "training": args.training})
    classes = evaluated_classes(args)
    label_map = load_label_map(args.config, classes)
    cases, notes = collect_cases(
        args.real, args.labels, args.reconstruction, runs, args.centrelines, label_map
    )
    losses = validation_losses(args.training_log)
    are_pictures = cases[0].images[0][2].suffix.lower() == ".png"
    low, high = args.hu_window or ((0.0, 255.0) if are_pictures else (-1000.0, 1000.0))
    settings = ScoreSettings(
        (low, high), tuple(args.lumen_range), classes, args.as_published, are_pictures
    )
    with_sets = not args.no_distribution
    has_real = args.real is not None or cases[0].images[0][0] == "real"
    with_features = with_sets and has_real and args.features is None
    # What is wrong ends the command before any case is scored.
    if args.labels is None and args.reconstruction is None and not runs:
        raise InputError("nothing to score: give --reconstruction, --synthesis or --labels")
    check_writable(args.output_dir)
    if args.segmenter is not None:
        trained_segmenter(args.segmenter)
    if args.lpips:
        load_lpips(*args.lpips)
    if args.features is not None:
        load_features(args.features)
    options = (settings, args.output_dir, with_sets, with_features, args.segmenter, args.lpips)
    jobs = [(case, *options) for case in cases]
    multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOADED)
    results = pool.each(scores_or_fault, jobs, workers, "evaluate")
    left_out, every_case = LeftOut(r for r in results if isinstance(r, str)), cases
    scores = [r for r in results if not isinstance(r, str)]
    cases = [c for c, r in zip(cases, results, strict=True) if not isinstance(r, str)]
    if not cases:
        left_out.refuse(args.output_dir, len(every_case))
    others = [c.id for c, r in zip(every_case, results, strict=True) if isinstance(r, str)]
    if others:
        notes.append(
            f"{len(others)} cases are left out, whose files cannot be scored: {listed(others)}"
        )

    notes += sorted(set().union(*(s.notes for s in scores)))
    rows = Rows(
        [row for s in scores for row in s.images],
        [row for s in scores for row in s.vessels],
        cost_rows(cases),
    )
    result = statistics_by_source(rows, runs, losses)
    if not args.no_distribution:
        reals = {c: p for c, p in files_of(args.real, "--real").items() if c not in others}
        notes += add_distribution(result, args, reals, cases, scores, runs, settings, workers)
    notes += sidecar_notes(cases)
    if not are_pictures:  # whose gray values are no HU
        notes += [*label_notes(rows.vessels), *ceiling_notes(result)]
    if args.as_published and not args.lpips:
        notes.append("no lpips_as_published: give --lpips")
    if args.as_published and not args.features:
        notes.append("no frechet_*_as_published: give --features")
    folders = {name: str(folder) for name, folder in folders.items() if folder is not None}
    result["provenance"] = provenance(settings, len(cases), folders, args.segmenter, notes)
    result["verdict"] = verdict(result)
    write_csv(args.output_dir / "metrics.csv", rows.merged())
    write_json(args.output_dir / "metrics.json", result)
    page = report_page(result, rows.merged(), args.output_dir)
    write_text(args.output_dir / "report.html", page)
    print(tables(result, settings.classes.vessel))
    for note in notes:
        print(f"note: {note}")
    print(f"\nscores    {args.output_dir / 'metrics.json'}")
    print(f"per case  {args.output_dir / 'metrics.csv'}")
    print(f"report    {args.output_dir / 'report.html'}")
    for case in cases[:MAX_LISTED_PICTURES]:
        print(f"picture   {panel_path(args.output_dir, case.id)}")
    if len(cases) > MAX_LISTED_PICTURES:
        print(f"          and {len(cases) - MAX_LISTED_PICTURES} more")
    left_out.refuse(args.output_dir, len(every_case))


def parser() -> argparse.ArgumentParser:
    result = CommandParser(
        prog="tubesynth evaluate",
        description="Score reconstructions and syntheses against the real CTs and their label"
        " maps.",
        example="tubesynth evaluate --real data/validation/images --labels data/validation/labels"
        " \\\n    --reconstruction OUT1 --synthesis OUT2 --output-dir SCORES",
    )
    add = result.add_argument
    add("--real", type=Path, help="folder of real CTs")
    add("--labels", "--label-dir", type=Path, help="folder of their label maps (the condition)")
    add(
        "--centrelines",
        type=Path,
        metavar="DIR",
        help="folder with CASE.centreline.json of each case: user centrelines that replace the"
        " vessels of its label map, as in synthesize --centrelines",
    )
    add(
        "--reconstruction",
        "--reconstruction-dir",
        type=Path,
        help="folder of reconstructions; needs --real, unless it has the layout of the published"
        " code: ID/ID.img-rec and ID/ID.img, for --synthesis ID-synth/1-synth, ID.img and ID.label",
    )
    add(
        "--synthesis",
        "--synthesis-dir",
        action="append",
        metavar="[NAME=]DIR",
        help="folder of synthetic CTs, scored against --labels, --real or both; repeat it with"
        " names to compare runs",
    )
    add(
        "--output-dir",
        "--report",
        type=Path,
        required=True,
        help="folder of the scores and pictures",
    )
    add(
        "--workers",
        "--num-workers",
        type=int,
        help="processes, one case each (default: one per core); 0: this process alone",
    )
    add("--training", type=Path, help="folder of training CTs, to detect copies of them")
    add(
        "--segmenter",
        type=Path,
        metavar="CKPT|NAME",
        help="checkpoint of segment train, or the name of a packaged model; its vessel masks are"
        " scored",
    )
    add(
        "--features",
        type=Path,
        help="weights for the distribution scores: ResNet-50 (RadImageNet, ImageNet) or"
        " Inception-v3",
    )
    add(
        "--lpips",
        nargs="+",
        default=[],
        metavar="FILE",
        help="weights of LPIPS (AlexNet): torchvision's alexnet and LPIPS's alex.pth",
    )
    add(
        "--as-published",
        action="store_true",
        help="also SSIM, MS-SSIM, LPIPS (--lpips) and FID (--features) as the published code"
        " computes them, named *_as_published",
    )
    add("--no-distribution", action="store_true", help="skip the distribution scores")
    add(
        "--training-log",
        type=Path,
        nargs="+",
        default=[],
        help="runs/NAME/metrics.jsonl; adds its losses",
    )
    add_range = partial(add, type=float, nargs=2, metavar=("LOW", "HIGH"))
    add_range("--lumen-range", default=LUMEN_RANGE_HU, help="HU of contrast-filled lumen")
    text = "HU to which images are clipped (default: -1000 1000; of pictures 0 255)"
    add_range("--hu-window", help=text)
    add(
        "--config",
        metavar="YAML",
        help="its section labels (default: nine classes) and data.label_map, of the label maps",
    )
    add("--vessel-class", type=int, help="vessel class; default: that of the scheme")
    add(
        "--heart-classes",
        type=int,
        nargs="+",
        help="myocardium and chambers; default: those of the scheme",
    )
    add("--aorta-class", type=int, help="class of the aorta; default: that of the scheme")
    return result


def add_distribution(
    result: dict[str, Any],
    args: argparse.Namespace,
    reals: dict[str, Path],
    cases: list[EvaluationCase],
    scores: list[CaseScores],
    runs: list[SynthesisRun],
    settings: ScoreSettings,
    workers: int,
) -> list[str]:
    """Add the distribution scores to `result`, the content of metrics.json; returns notes."""
    if args.features is not None:
        workers = 1  # these features are too large to be sent between processes

    def each(function, jobs: list[tuple], title: str, unit: str = "case") -> list:
        return pool.each(function, jobs, workers, title, unit)

    training, sets_of_cases = files_of(args.training, "--training"), [s.sets for s in scores]
    sets = score_sets(cases, sets_of_cases, settings, each, args.features, reals, training)
    if sets.validity:
        result["validity"] = sets.validity
    result["floor"] |= sets.control
    result["reconstruction"] |= sets.by_source.get("reconstruction", {})
    diversity = diversity_scores({c.id: s.diversity for c, s in zip(cases, scores, strict=True)})
    for i, run in enumerate(runs):
        metrics = sets.by_source.get(run.source, {}) | (diversity if i == 0 else {})
        result["runs"][run.name]["synthesis"] |= metrics
        if i == 0:
            result["synthesis"] |= metrics
    return sets.notes
