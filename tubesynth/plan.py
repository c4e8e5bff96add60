"""What trainings would cost: memory, FLOPs, hours and disk, computed without data and a GPU.

    tubesynth plan stage_1_3d_f4 stage_2_3d_f4_lfm_base
    tubesynth plan stage_2_3d_f4_lfm_crossattn --fit 8

Memory and FLOPs are counted on the training loop's own step (doctor/training_memory.py). Hours are
its FLOPs over the share of a GPU's peak that was measured (docs/gpu.md), without loading and
validation. --fit names the settings with which a training fits into the memory of a GPU.
"""

if __name__ == "__main__":
    from tubesynth.runtime.errors import run_module

    run_module("plan")  # imports this file as tubesynth.plan

import argparse
import math
from collections.abc import Iterator

from tubesynth.build.base_models import latent_sizes, open_base_models
from tubesynth.config.loading import load_config
from tubesynth.config.schema import Config, Stage1Config, Stage2Config
from tubesynth.doctor.config_rules import REACHED_SHARES, case_bytes, size_text
from tubesynth.doctor.training_memory import estimate
from tubesynth.runtime.errors import CommandParser, InputError
from tubesynth.runtime.precision import AUTOCAST_DTYPE

# FLOPs a second: dense products in 16 bits, by NVIDIA's data sheets.
GPUS = {"H100": 989e12, "A100": 312e12, "RTX 4090": 165e12}
SPARE = 0.95  # of a GPU's memory: what other programs leave


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    if args.fit is not None:
        for name in args.configs:
            print(f"{name}: {fitting(name, args)}")
        return
    rows = [["config", "parameters", "memory", "TFLOP a step", "steps", *GPUS, "cache"]]
    for name in args.configs:
        rows.append([name, *columns(configured(name, args), args.cases)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )
    low, high = (f"{share:.0%}" for share in REACHED_SHARES)
    print(
        f"\nComputed for {args.cases} training cases and {args.precision}: the memory of a step on"
        f" one GPU, and hours on one at {high} to {low} of its peak in 16 bits."
    )


def configured(name: str, args: argparse.Namespace, *changes: str) -> Config:
    """A config with the items of the command line, of which the changes replace those of a key."""
    keys = {change.partition("=")[0] for change in changes}
    kept = [item for item in args.overrides if item.partition("=")[0] not in keys]
    return load_config(name, [*kept, f"train.precision={args.precision}", *changes])


def columns(config: Config, cases: int) -> Iterator[str]:
    """The cells of a config's row."""
    sizes = latent_sizes(config, open_base_models(config))
    needed = estimate(config, sizes)
    batch = config.data.batch_size * config.train.accumulate
    steps = math.ceil(config.train.epochs * cases / batch)
    yield f"{needed.parameters / 1e6:.1f} M"
    yield size_text(needed.training)
    yield f"{needed.flops / 1e12:.3g}"
    yield f"{steps:,}"
    for peak in GPUS.values():
        hours = [steps * needed.flops / (share * peak) / 3600 for share in REACHED_SHARES]
        yield " to ".join(f"{h:.0f}" if h >= 10 else f"{h:.2g}" for h in hours[::-1]) + " h"
    yield size_text(cases * sum(case_bytes(config, sizes)))


def fitting(name: str, args: argparse.Namespace) -> str:
    """The first settings of `attempts` with which a training fits into --fit GB."""
    least = math.inf
    config = configured(name, args)
    sizes = latent_sizes(config, open_base_models(config))
    for changes in attempts(config):
        needed = estimate(configured(name, args, *changes), sizes).training
        if needed <= SPARE * args.fit * 1e9:
            settings = " ".join([f"--precision {args.precision}", *changes])
            return f"{size_text(needed)} with {settings}"
        least = min(least, needed)
    return f"no setting fits into {args.fit:g} GB; the least is {size_text(int(least))}"


def attempts(config: Config) -> Iterator[list[str]]:
    """Changes of a config, each with less memory than the one before, first those without loss."""
    changes: list[str] = []
    yield changes
    data, train = config.data, config.train
    if data.batch_size > 1:  # the same gradient, in several passes
        changes = ["data.batch_size=1", f"train.accumulate={data.batch_size * train.accumulate}"]
        yield changes
    if not train.checkpointing:
        changes = [*changes, "train.checkpointing=true"]
        yield changes
    if isinstance(config, Stage2Config):  # it is trained on whole volumes
        return
    factor = config.autoencoder.factor if isinstance(config, Stage1Config) else 8
    crop = data.crop or data.resolution
    for _ in range(2):
        crop = [max(n // 2 // factor, 4) * factor for n in crop]
        yield [*changes, f"data.crop={crop}"]


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = CommandParser(
        prog="tubesynth plan",
        description="Compute what trainings would cost: memory, FLOPs, hours and disk.",
        example="tubesynth plan stage_1_3d_f4 stage_2_3d_f4_lfm_base\n"
        "tubesynth plan stage_2_3d_f4_lfm_crossattn --fit 8",
    )
    add = parser.add_argument
    add("items", nargs="+", metavar="CONFIG", help="configs, and key=value items for all of them")
    add("--cases", type=int, default=900, help="training cases (default: 900, ImageCAS)")
    add("--precision", choices=["32", *AUTOCAST_DTYPE], default="bf16-mixed")
    add("--fit", type=float, metavar="GB", help="name settings that fit into a GPU's memory")
    args = parser.parse_args(argv)
    args.configs = [item for item in args.items if "=" not in item]
    args.overrides = [item for item in args.items if "=" in item]
    if not args.configs:
        raise InputError("name a config: tubesynth configs lists them")
    if args.cases < 1:
        raise InputError(f"--cases {args.cases}: must be at least 1")
    if args.fit is not None and not 0 < args.fit < math.inf:
        raise InputError(f"--fit {args.fit}: must be a positive number of GB")
    return args
