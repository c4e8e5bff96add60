"""The tables of docs/results.md: the effect of each setting with the same steps, data and seeds.

    python tests/bench/coronary_boxes.py --output-dir bench/boxes
    python tests/bench/ablations.py stage-1 --data bench/boxes --output-dir bench/stage_1
    python tests/bench/ablations.py stage-2 --data bench/boxes --output-dir bench/stage_2 \\
        --autoencoder bench/stage_1/kl_weighted_seed0/checkpoints/last.ckpt --seeds 0 1

Runs use the commands of the package, --jobs at a time with one thread each; finished runs are not
repeated. Prints a Markdown table: the mean over seeds and, behind +-, half their range.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

BENCH_FOLDER = Path(__file__).parent
WEIGHTED = "losses.vessel_weight=10"
TOKENS, DISTANCE = ("unet.vessel_attention=plain",), ("unet.vessel_attention=distance",)
FIELDS = (*DISTANCE, "unet.vessel_fields=true")
CHAMBERS = ("unet.label_map_vessels=false", "flow.vessel_weight=10")


@dataclass(frozen=True)
class Table:
    """The variants of a table (overrides by name) and its columns (heading: score, digits)."""

    variants: dict[str, tuple[str, ...]]
    columns: dict[str, tuple[str, int]]


STAGE_1 = Table(
    {
        f"{quantizer}{name}": (f"autoencoder.quantizer={quantizer}", *weight)
        for quantizer in ("ema_vq", "fsq", "kl")
        for name, weight in (("", ()), ("_weighted", (WEIGHTED,)))
    },
    {
        "PSNR, dB": ("psnr", 2),
        "SSIM": ("ssim", 3),
        "vessel PSNR, dB": ("vessel_psnr", 2),
        "vessel MAE, HU": ("vessel_mae_hu", 0),
        "contrast kept": ("vessel_contrast_kept", 2),
        "< 1.5 mm": ("vessel_contrast_kept_lt1.5mm", 2),
        "1.5 to 3 mm": ("vessel_contrast_kept_1.5to3mm", 2),
        "codes used": ("codebook_used", 2),
        "s a step": ("seconds_per_step", 2),
        "peak MB": ("peak_mb", 0),
    },
)
STAGE_2 = Table(
    {
        "base": (),
        "tokens": TOKENS,
        "tokens_bias": DISTANCE,
        "tokens_bias_fields": FIELDS,
        "tokens_bias_fields_weighted": (*FIELDS, "flow.vessel_weight=10"),
        "weighted": ("flow.vessel_weight=10",),
        # The coronaries are not in the label map: each vessel condition by itself.
        "chambers": CHAMBERS,
        "chambers_tokens": (*CHAMBERS, *TOKENS),
        "chambers_tokens_bias": (*CHAMBERS, *DISTANCE),
        "chambers_fields": (*CHAMBERS, "unet.vessel_fields=true"),
        "chambers_tokens_bias_fields": (*CHAMBERS, *FIELDS),
    },
    {
        "in lumen range": ("centreline_in_range", 3),
        "in range < 1.5 mm": ("centreline_in_range_lt1.5mm", 3),
        "contrast < 1.5 mm, HU": ("contrast_hu_lt1.5mm", 1),
        "contrast 1.5 to 3 mm, HU": ("contrast_hu_1.5to3mm", 1),
        "vesselness AUC": ("vesselness_auc", 3),
        "MAE, HU": ("mae_hu", 1),
        "validation loss": ("loss", 4),
        "s a step": ("seconds_per_step", 2),
        "peak MB": ("peak_mb", 0),
    },
)


def main() -> None:
    args = parse()
    table, score = {"stage-1": (STAGE_1, stage_1), "stage-2": (STAGE_2, stage_2)}[args.stage]
    runs = [(name, seed) for seed in args.seeds for name in args.variants or table.variants]

    def one(run):
        name, seed = run
        folder = args.output_dir / f"{name}_seed{seed}"
        result = folder / "scores.json"
        if not result.is_file():
            overrides = [*table.variants[name], *args.overrides, f"seed={seed}"]
            scores = score(args, folder, overrides)
            result.write_text(json.dumps(scores, indent=1), encoding="utf-8")
        return name, json.loads(result.read_text(encoding="utf-8"))

    with ThreadPoolExecutor(args.jobs) as pool:
        rows: dict[str, list[dict]] = {}
        for name, scores in pool.map(one, runs):
            rows.setdefault(name, []).append(scores)
    print(markdown(table, rows))


def stage_1(args, folder: Path, overrides: list[str]) -> dict:
    return train(args, folder, "ablation_stage_1.yml", overrides)


def stage_2(args, folder: Path, overrides: list[str]) -> dict:
    """Train a model, synthesize one CT from each held-out label map, and score them."""
    scores = train(
        args,
        folder,
        "ablation_stage_2.yml",
        [*overrides, f"latents.autoencoder={args.autoencoder}"],
    )
    labels, synthesis_dir = args.data / "validation" / "labels", folder / "synthesis"
    model = ["--model", folder / "checkpoints" / "last.ckpt"]
    command("synthesize", *model, "--input-dir", labels, "--output-dir", synthesis_dir)
    compared = ["--real", args.data / "validation" / "images", "--labels", labels]
    out = ["--output-dir", folder / "evaluation", "--workers", 1, "--no-distribution"]
    command("evaluate", *compared, "--synthesis", synthesis_dir, *out)
    text = (folder / "evaluation" / "metrics.json").read_text(encoding="utf-8")
    metrics_file = json.loads(text)
    for metrics in (metrics_file["synthesis"], metrics_file["vessels"]["synthesis"]):
        scores |= {name: stat["mean"] for name, stat in metrics.items()}
    return scores


def train(args, folder: Path, config: str, overrides: list[str]) -> dict:
    """A finished run's last validation scores, with its seconds a step and peak memory."""
    places = [f"data.root={args.data}", f"data.cache_dir={args.output_dir / 'cache'}"]
    options = ["--config", BENCH_FOLDER / config, "--run-dir", folder, "--logger", "none"]
    peak = command("train", *options, *places, *overrides)
    metrics, timing = (
        [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]
        for name in ("metrics.jsonl", "timing.jsonl")
    )
    last = [row for row in metrics if row["split"] == "validation"][-1]
    seconds = [row["seconds_per_step"] for row in timing]
    return {**last, "seconds_per_step": statistics.median(seconds), "peak_mb": peak}


def command(module: str, *arguments) -> float:
    """python -m tubesynth.MODULE in one thread; its peak memory in MB."""
    line = [sys.executable, "-m", f"tubesynth.{module}", *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    job = subprocess.Popen(line, env=environment, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(job.pid, 0)
    if status:
        raise SystemExit(f"failed: {' '.join(line)}")
    return usage.ru_maxrss / 1024


def markdown(table: Table, rows: dict[str, list[dict]]) -> str:
    lines = ["| | " + " | ".join(table.columns) + " |", "|---" * (len(table.columns) + 1) + "|"]
    for name, scores in rows.items():
        cells = []
        for key, digits in table.columns.values():
            values = [row[key] for row in scores if row.get(key) is not None]
            cell = f"{statistics.fmean(values):.{digits}f}" if values else "-"
            if len(values) > 1:
                cell += f" +- {(max(values) - min(values)) / 2:.{digits}f}"
            cells.append(cell)
        lines.append(f"| {name.replace('_', ' ')} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=("stage-1", "stage-2"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--autoencoder", type=Path, help="stage-2: checkpoint of stage 1")
    parser.add_argument("--variants", nargs="+", help="default: all")
    parser.add_argument("--set", nargs="+", default=[], metavar="key=value", dest="overrides")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--jobs", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    main()
