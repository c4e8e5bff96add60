"""The tables of docs/results.md: the effect of each setting with the same steps, data and seeds.

    python tests/bench/coronary_boxes.py --output-dir bench/boxes
    python tests/bench/ablations.py stage-1 --data bench/boxes --output-dir bench/stage_1
    python tests/bench/ablations.py stage-2 --data bench/boxes --output-dir bench/stage_2 \\
        --autoencoder bench/stage_1/kl_weighted_seed0/checkpoints/last.ckpt --seeds 0 1

and the same choices on whole phantom hearts, as configs/heart_phantom trains them:

    python tests/bench/ablations.py decoder --data heart_phantom/data --output-dir bench/decoder
    python tests/bench/ablations.py conditions --data heart_phantom/data \\
        --output-dir bench/conditions --autoencoder heart-phantom

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

from own_contrast import own_contrast

BENCH_FOLDER = Path(__file__).parent
WEIGHTED = "losses.vessel_weight=10"
TOKENS, DISTANCE = ("unet.vessel_attention=plain",), ("unet.vessel_attention=distance",)
TOKENS_AT_ALL_LEVELS = (*DISTANCE, "unet.vessel_levels=[0, 1]", "unet.vessel_channels=64")
FIELDS = (*DISTANCE, "unet.vessel_fields=true")
CHAMBERS = ("unet.label_map_vessels=false", "flow.vessel_weight=10")


@dataclass(frozen=True)
class Table:
    """A table: its config, its variants (overrides by name), columns (heading: score, digits)."""

    config: str
    variants: dict[str, tuple[str, ...]]
    columns: dict[str, tuple[str, int]]


STAGE_1 = Table(
    str(BENCH_FOLDER / "ablation_stage_1.yml"),
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
    str(BENCH_FOLDER / "ablation_stage_2.yml"),
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
F4 = ()
NO_POOL = "autoencoder.contrast_pool=false"
F8 = (
    "autoencoder.channels=[16, 32, 96]",
    "autoencoder.residual_channels=[16, 32, 32]",
    "autoencoder.embedding_dim=16",
)
VESSEL_SCORES = {
    "vessel_match": ("vessel_match", 3),
    "< 1.5 mm": ("vessel_match_lt1.5mm", 3),
    "1.5 to 3 mm": ("vessel_match_1.5to3mm", 3),
    "clDice": ("segmenter_cldice", 3),
    "PSNR, dB": ("psnr", 2),
    "SSIM": ("ssim", 3),
    "Frechet": ("frechet_excess", 0),
    "own aorta": ("own_contrast", 2),
    "s a step": ("seconds_per_step", 2),
    "peak MB": ("peak_mb", 0),
}
DECODER = Table(
    "heart_phantom/stage_1",
    {
        f"{condition}_{name}": (f"autoencoder.decoder_condition={condition}", NO_POOL, *strides)
        for name, strides in (("f4", F4), ("f8", F8))
        for condition in ("none", "vessels", "labels")
    }
    | {"vessels_pool_f4": F4},
    {"contrast kept": ("vessel_contrast_kept", 2), **VESSEL_SCORES},
)
CONDITIONS = Table(
    "heart_phantom/stage_2",
    {
        "base": ("unet.vessel_fields=false",),
        "tokens": ("unet.vessel_fields=false", *TOKENS_AT_ALL_LEVELS),
        "fields": (),
        "tokens_fields": TOKENS_AT_ALL_LEVELS,
        "fields_no_offset": ("flow.offset_noise=0",),
        "fields_large_offset": ("flow.offset_noise=0.5",),
        # One hidden map of SPADE per level in place of one per norm, as wide and wider.
        "fields_shared": ("unet.spade=shared",),
        "fields_shared_wide": ("unet.spade=shared", "unet.spade_hidden=64"),
    },
    {"validation loss": ("loss", 4), **VESSEL_SCORES},
)
TABLES = {"stage-1": STAGE_1, "stage-2": STAGE_2, "decoder": DECODER, "conditions": CONDITIONS}


def main() -> None:
    args = parse()
    table = TABLES[args.table]
    score = {"stage-1": train, "decoder": decoder}.get(args.table, stage_2)
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


def stage_2(args, folder: Path, overrides: list[str]) -> dict:
    """Train a model, synthesize one CT from each held-out label map, and score them."""
    scores = train(args, folder, [*overrides, f"latents.autoencoder={args.autoencoder}"])
    model = ["--model", folder / "checkpoints" / "last.ckpt"]
    labels = args.data / "validation" / "labels"
    command("synthesize", *model, "--input-dir", labels, "--output-dir", folder / "synthesis")
    options = (
        ("--no-distribution",) if args.table == "stage-2" else ("--segmenter", "heart-phantom")
    )
    return scores | evaluate(args, folder, "synthesis", *options)


def decoder(args, folder: Path, overrides: list[str]) -> dict:
    """Train an autoencoder, reconstruct the held-out CTs, and score them."""
    scores = train(args, folder, overrides)
    cts, labels = (args.data / "validation" / kind for kind in ("images", "labels"))
    paths = ["--input-dir", cts, "--output-dir", folder / "reconstruction"]
    if "autoencoder.decoder_condition=none" not in overrides:
        paths += ["--labels", labels]
    command("reconstruct", "--model", folder / "checkpoints" / "last.ckpt", *paths)
    return scores | evaluate(args, folder, "reconstruction", "--segmenter", "heart-phantom")


def evaluate(args, folder: Path, kind: str, *options: str) -> dict:
    """The scores of a folder of CTs beside the real ones, and their contrast's correlation."""
    real, labels = (args.data / "validation" / name for name in ("images", "labels"))
    out = ["--output-dir", folder / "evaluation", "--workers", 1, *options]
    command("evaluate", "--real", real, "--labels", labels, f"--{kind}", folder / kind, *out)
    text = (folder / "evaluation" / "metrics.json").read_text(encoding="utf-8")
    metrics = json.loads(text)
    groups = (metrics[kind], metrics["vessels"][kind])
    scores = {name: stat["mean"] for group in groups for name, stat in group.items()}
    return scores | {"own_contrast": own_contrast(labels, folder / kind)["correlation"]}


def train(args, folder: Path, overrides: list[str]) -> dict:
    """A finished run's last validation scores, with its seconds a step and peak memory."""
    places = [f"data.root={args.data}", f"data.cache_dir={args.output_dir / 'cache'}"]
    options = ["--config", TABLES[args.table].config, "--run-dir", folder, "--logger", "none"]
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
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--autoencoder", type=Path, help="stage-2 and conditions: model of stage 1")
    parser.add_argument("--variants", nargs="+", help="default: all")
    parser.add_argument("--set", nargs="+", default=[], metavar="key=value", dest="overrides")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--jobs", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    main()
