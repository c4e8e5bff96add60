"""The evaluation: all image and vessel scores of pairs of CTs, without distributions and pictures.

Cases:
  pairs   from files to scores, as `evaluate` works: a pair a core
  tokens  the vessels of the label maps, traced to tokens
The real CTs are phantoms; beside each lies a blurred and noisy copy, in place of a model's output.
"""

from functools import partial
from pathlib import Path

import numpy as np
from parts.data import make_phantoms
from parts.measure import measure, result, significant
from parts.options import GRID, add_repeats, check_options

from tubesynth.data.pool import cores, each

CASES = ("pairs", "tokens")
BLUR_VOXELS, NOISE_HU = 0.6, 15.0


def add_arguments(parser) -> None:
    add = parser.add_argument
    add("--data-dir", help="folder of phantoms, which are made if missing")
    add("--pairs", type=int, default=20)
    add("--resolution", type=int, default=(256, 256, 128), **GRID)
    add("--spacing", type=float, default=(0.7, 0.7, 1.05), **GRID)
    add("--workers", type=int, nargs="+", default=[cores()], help="pairs at a time: a line each")
    add_repeats(parser, 3, "evaluations of all pairs")


def check(args) -> None:
    check_options(args, "pairs", "repeats", "workers")


def lines(case: str, args) -> list[tuple[int]]:
    return [(workers,) for workers in args.workers]


def prepare(case: str, args) -> None:
    from scipy.ndimage import gaussian_filter

    from tubesynth.volume.files import read_volume, write_volume
    from tubesynth.volume.grid import Volume

    make_phantoms(args.data_dir / "phantoms", args.pairs, args.resolution, args.spacing)
    for real, synthetic, _ in pairs(args):
        if not synthetic.is_file():
            ct = read_volume(real)
            random = np.random.default_rng(0)
            noise = random.normal(0, NOISE_HU, ct.shape)
            blurred = gaussian_filter(ct.array.astype(np.float32), BLUR_VOXELS) + noise
            write_volume(synthetic, Volume(blurred, ct.affine), "int16")


def pairs(args) -> list[tuple[Path, Path, Path]]:
    """(real, made, label) files of each pair."""
    from tubesynth.volume.cases import pair_cases

    root = args.data_dir / "phantoms" / "training"
    cases = pair_cases(root / "images", root / "labels")[: args.pairs]
    return [(c.image, args.data_dir / "made" / c.image.name, c.label) for c in cases]


def score(real: Path, synthetic: Path, label: Path) -> dict:
    from tubesynth.volume.files import read_labels, read_volume

    return evaluate_pair(read_volume(real), read_volume(synthetic), read_labels(label))


def evaluate_pair(real, other, label) -> dict[str, dict[str, float]]:
    """All image and vessel scores of one pair: {"image", "real", "made"}, each {METRIC: value}.

    other: a reconstruction or synthesis of the real CT; its vessel scores are named "made".
    """
    from tubesynth.metrics.case import EvaluationCase, ScoreSettings, score_case
    from tubesynth.metrics.condition import tokens_of

    case = EvaluationCase("pair", None, [("real", 0, Path()), ("made", 0, Path())])
    tokens = tokens_of(label, ScoreSettings().classes)
    scores = score_case(case, [real, other], label, tokens, ScoreSettings())
    rows = [scores.images[0], *scores.vessels]
    return {
        name: {k: v for k, v in row.items() if k not in ("case", "sample", "source")}
        for name, row in zip(("image", "real", "made"), rows, strict=True)
    }


def trace(label) -> None:
    from tubesynth.metrics.condition import tokens_of
    from tubesynth.volume.classes import NINE_CLASSES

    tokens_of(label, NINE_CLASSES)


def run_case(case: str, args, workers: int) -> dict:
    """All pairs, measured: the JSON object."""
    jobs, work = pairs(args), score
    if case == "tokens":
        from tubesynth.volume.files import read_labels

        jobs, work = [(read_labels(label),) for *_, label in jobs], trace
    measured = measure(partial(each, work, jobs, workers, case), args.repeats)
    return result(
        measured,
        f"{len(jobs)} x {'x'.join(map(str, args.resolution))}",
        device="cpu",
        threads=workers,
        seconds_per_pair=significant(measured.seconds / len(jobs)),
    )
