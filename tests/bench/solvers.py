"""Quality against network evaluations: the same cases from the same noise with every solver.

    python tests/bench/solvers.py --model bench/stage_2/weighted_seed0/checkpoints/last.ckpt \\
        --data bench/boxes/validation --output-dir bench/solvers --picture docs/solvers.svg

Measures the distance of the latents and of the CT of a sample to a reference with many steps, and
the scores of `evaluate` for it. The noise is that of `synthesize --seed`. Yardsticks are the
reference itself, a sample from another noise (with the sampling of the model's config), and the
reconstruction of the real CT. Results in the output folder, by model, seed and reference, are not
computed again. Prints a Markdown table of means
over cases and renders the distance against evaluations.
"""

import argparse
import json
import math
import statistics
import time
from pathlib import Path

import torch
from solver_picture import picture
from tqdm import tqdm

from tubesynth.config.schema import SamplingConfig
from tubesynth.metrics.condition import tokens_of
from tubesynth.metrics.image import mae_hu
from tubesynth.metrics.vessel import centreline_scores
from tubesynth.pipeline import Pipeline, Sample, SampleOptions
from tubesynth.runtime.seeding import generator
from tubesynth.volume.cases import find_cases
from tubesynth.volume.classes import NINE_CLASSES
from tubesynth.volume.files import read_labels, read_volume
from tubesynth.volume.grid import Volume

STEPS = {
    "euler": (5, 10, 20, 50),
    "midpoint": (3, 5, 10, 25),
    "heun": (3, 5, 10, 25),
    "rk4": (1, 2, 5, 10),
    "adams": (6, 8, 10, 12, 15, 20),
    "ddim": (5, 10, 20, 50, 100, 200),
    "ddpm": (20, 50, 100, 200),
}
STAGES = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4, "adams": 1}
SHIFTS, SHIFTED_EVALUATIONS = (2.0, 3.0), 10  # a shift helps with few evaluations
RTOLS, ATOL_TO_RTOL = (1e-1, 1e-2, 1e-3), 1e-2
YARDSTICKS = ("reference", "another noise", "autoencoder alone")
COLUMNS = {
    "evaluations": ("evaluations", 1),
    "latent distance": ("latent_rms", 4),
    "CT distance, HU": ("ct_rms_hu", 2),
    "MAE to the real CT, HU": ("mae_hu", 1),
    "in lumen range": ("centreline_in_range", 3),
    "in range < 1.5 mm": ("centreline_in_range_lt1.5mm", 3),
    "contrast < 1.5 mm, HU": ("contrast_hu_lt1.5mm", 1),
    "contrast 1.5 to 3 mm, HU": ("contrast_hu_1.5to3mm", 1),
    "s a volume": ("seconds", 2),
}
ALONG = [key for key, _ in COLUMNS.values() if key.startswith(("centreline", "contrast"))]


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    exact = Pipeline.load(args.model, device=args.device, precision="32")
    pipeline = Pipeline.load(args.model, device=args.device, precision=args.precision)
    ways = ways_of(pipeline.config.latent_mode)
    if args.ways:
        if unknown := set(args.ways) - ways.keys():
            raise SystemExit(f"--ways {' '.join(sorted(unknown))}: choose from {' '.join(ways)}")
        ways = {name: ways[name] for name in args.ways}
    reference = reference_of(pipeline.config, args.reference_steps)
    maps, reals = find_cases(args.data / "labels"), find_cases(args.data / "images")
    cases = sorted(case for case in maps if case in reals)
    cases = cases[:: max(1, len(cases) // args.cases)][: args.cases]
    folder = args.output_dir / f"{pipeline.digest[:12]}_seed{args.seed}_{name_of(reference)}"
    if pipeline.precision != "32":
        folder = folder.with_name(f"{folder.name}_{pipeline.precision}")
    folder.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[dict]] = {}
    for case in cases:
        path = folder / f"{case}.json"
        scores = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if not {*YARDSTICKS, *ways} <= scores.keys():
            labels, real = read_labels(maps[case]), read_volume(reals[case])
            scores |= case_scores(pipeline, exact, case, labels, real, reference, ways, args.seed)
            path.write_text(json.dumps(scores, indent=1), encoding="utf-8")
        for name in (*ways, *YARDSTICKS):
            rows.setdefault(name, []).append(scores[name])
    means = {name: mean_of(scores) for name, scores in rows.items()}
    print(f"{len(cases)} cases, model {pipeline.digest[:12]}, reference {name_of(reference)}\n")
    print(markdown(means))
    if args.picture:
        lines: dict[str, list[tuple[float, float]]] = {}
        for name, way in ways.items():
            if way.shift == 1 and way.solver != "ddpm":  # ddpm adds noise: its samples are others
                point = (means[name]["evaluations"], means[name]["ct_rms_hu"])
                lines.setdefault(way.solver, []).append(point)
        labels = "network evaluations a volume", "distance of the CT, HU (RMS)"
        args.picture.write_text(picture(lines, *labels), encoding="utf-8")


def ways_of(latent_mode: str) -> dict[str, SamplingConfig]:
    if latent_mode == "diffusion":
        ways = [SamplingConfig(s, steps=n) for s in ("ddim", "ddpm") for n in STEPS[s]]
    else:
        ways = [
            SamplingConfig(solver, steps=steps, shift=shift)
            for solver, stages in STAGES.items()
            for shift in (1.0, *SHIFTS)
            for steps in STEPS[solver]
            if shift == 1 or stages * steps == SHIFTED_EVALUATIONS
        ]
        ways += [SamplingConfig("dopri5", atol=ATOL_TO_RTOL * rtol, rtol=rtol) for rtol in RTOLS]
    return {name_of(way): way for way in ways}


def reference_of(config, steps: int | None) -> SamplingConfig:
    if config.latent_mode == "diffusion":
        return SamplingConfig("ddim", steps=steps or config.diffusion.num_timesteps)
    # Steps far shorter than the shortest wavelength of the time embedding (models/unet_encoder.py).
    return SamplingConfig("midpoint", steps=steps or 200)


def name_of(way: SamplingConfig) -> str:
    if way.solver == "dopri5":
        return f"dopri5_{way.rtol:g}"
    return f"{way.solver}_{way.steps}" + (f"_shift{way.shift:g}" if way.shift != 1 else "")


def case_scores(
    pipeline: Pipeline,
    exact: Pipeline,
    case: str,
    labels: Volume,
    real: Volume,
    reference: SamplingConfig,
    ways: dict[str, SamplingConfig],
    seed: int,
) -> dict[str, dict[str, float]]:
    """{way or yardstick: {score: value}} of one case; real: its CT, HU.

    exact: the model in 32 bits, which makes the reference.
    """
    labels, real = pipeline.grid.labels(labels), pipeline.grid.image(real)
    tokens = tokens_of(labels, NINE_CLASSES)

    def solved(
        way: SamplingConfig, noise_seed: int, pipeline: Pipeline = pipeline
    ) -> tuple[Sample, float]:
        random = generator(torch.device("cpu"), noise_seed, "sample", case, 0)
        start = time.perf_counter()
        sample = pipeline.sample(labels, random, SampleOptions(sampling=way))
        return sample, time.perf_counter() - start

    def scores(ct: Volume) -> dict[str, float]:
        images = [torch.from_numpy(volume.array)[None, None] for volume in (ct, real)]
        along = centreline_scores(ct, tokens, labels)
        return {"mae_hu": mae_hu(*images)[0]} | {key: along.get(key) for key in ALONG}

    def row(sample: Sample, seconds: float) -> dict[str, float]:
        return scores(sample.volume) | {
            "evaluations": sample.evaluations,
            "latent_rms": rms(sample.latents - aim.latents),
            "ct_rms_hu": rms(torch.from_numpy(sample.volume.array - aim.volume.array)),
            "seconds": seconds,
        }

    aim, seconds = solved(reference, seed, exact)
    return {
        "reference": row(aim, seconds),
        "another noise": row(*solved(pipeline.config.sampling, seed + 1)),
        "autoencoder alone": scores(pipeline.reconstruct(real, labels=labels)),
        **{name: row(*solved(way, seed)) for name, way in tqdm(ways.items(), case)},
    }


def rms(difference: torch.Tensor) -> float:
    return difference.double().square().mean().sqrt().item()


def mean_of(rows: list[dict[str, float | None]]) -> dict[str, float]:
    """Means over the cases that have a value: not every box has vessels of every calibre."""
    values: dict[str, list[float]] = {}
    for row in rows:
        for key, value in row.items():
            if value is not None and math.isfinite(value):
                values.setdefault(key, []).append(value)
    return {key: statistics.fmean(values) for key, values in values.items()}


def markdown(means: dict[str, dict[str, float]]) -> str:
    lines = ["| | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name, scores in means.items():
        cells = [f"{scores[k]:.{n}f}" if k in scores else "-" for k, n in COLUMNS.values()]
        lines.append(f"| {name.replace('_', ' ')} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="checkpoint of stage 2 or 3")
    parser.add_argument("--data", type=Path, required=True, help="folder of images/ and labels/")
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--cases", type=int, default=8, help="evenly spaced among those there are")
    parser.add_argument("--ways", nargs="+", metavar="NAME", help="as heun_10; default: all")
    parser.add_argument("--reference-steps", type=int, help="default: 200 of midpoint, all of ddim")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", help="default: cuda where there is one")
    parser.add_argument("--precision", default="32", help="of all but the reference")
    parser.add_argument("--picture", type=Path, help="an SVG file")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
