"""What trainings would cost: memory, FLOPs, hours and disk, computed without data and a GPU.

    tubesynth plan stage_1_3d_f4 stage_2_3d_f4_lfm_base
    tubesynth plan stage_2_3d_f4_lfm_crossattn --fit 12
    tubesynth plan heart_stage_2 --gpus 8

Memory and FLOPs are counted on the training loop's own step (doctor/training_memory.py). Hours are
its FLOPs over the share of a GPU's peak that was measured (docs/gpu.md), without loading and
validation. --fit names the settings with which a training fits into the memory of a GPU. --gpus
adds the all-reduce of the gradients, which no machine has measured.
"""

if __name__ == "__main__":
    from tubesynth.runtime.errors import run_module

    run_module("plan")  # imports this file as tubesynth.plan

import argparse
import math
import sys
from collections.abc import Iterable, Iterator

from tubesynth.build.base_models import latent_sizes, open_base_models
from tubesynth.build.preprocessing import preprocessing_of, token_source_of
from tubesynth.config.length import (
    PEAK_FLOPS,
    REACHED_SHARES,
    num_steps,
    samples_per_step,
    seconds_per_step,
)
from tubesynth.config.loading import load_config
from tubesynth.config.schema import (
    AutoencoderConfig,
    Config,
    SegmenterConfig,
    Stage1Config,
    Stage2Config,
)
from tubesynth.doctor.config_rules import case_bytes, size_text
from tubesynth.doctor.training_memory import estimate
from tubesynth.runtime.errors import EXIT_INPUT, CommandParser, InputError, add_overrides
from tubesynth.runtime.precision import AUTOCAST_DTYPE

SPARE = 0.95  # of a GPU's memory: what other programs leave
# Bytes a second that one GPU sends: of an H100's NVLink and PCIe by the data sheet, of a network.
LINKS = {"NVLink": 450e9, "PCIe 5": 64e9, "100 Gb/s Ethernet": 12.5e9}
MANY_CASES = (1_000, 100_000)
SOURCES = 2  # of a case: image and label map, whose digests are files of the cache


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    if args.fit is not None:
        lines = {name: fitting(name, args) for name in args.configs}
        for name, (_, text) in lines.items():
            print(f"{name}: {text}")
        if not all(fits for fits, _ in lines.values()):
            sys.exit(EXIT_INPUT)
        return
    high, low = (f"{share:.0%}" for share in REACHED_SHARES)
    if args.gpus is not None:
        print("\n\n".join(on_gpus(name, args) for name in args.configs))
        print(
            f"\nComputed, not measured, for {args.cases} training cases and {args.precision}, with"
            f" GPUs at {high} to {low} of their peak.\nA ring sends 2 (N - 1) / N of the gradients"
            " at the peak of its slowest link, after the step or, overlapped, during it.\nEpochs"
            " and learning rate are the config's: train.epochs times N keeps its number of steps."
        )
        return
    rows = [["config", "parameters", "memory", "TFLOP a step", "steps", *PEAK_FLOPS, "cache"]]
    for name in args.configs:
        rows.append([name, *columns(configured(name, args), args.cases)])
    print(aligned(rows))
    print(
        f"\nComputed for {args.cases} training cases and {args.precision}: the memory of a step on"
        f" one GPU, and hours on one at {high} to {low} of its peak in 16 bits.\nSteps and hours"
        " are of all train.epochs; a run that --resume carries on does those that are left."
    )


def aligned(rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def configured(name: str, args: argparse.Namespace, *changes: str) -> Config:
    """A config with the items of the command line, of which the changes replace those of a key."""
    keys = {change.partition("=")[0] for change in changes}
    kept = [item for item in args.overrides if item.partition("=")[0] not in keys]
    try:
        return load_config(name, [*kept, f"train.precision={args.precision}", *changes])
    except InputError as error:
        if len(args.configs) == 1:
            raise
        raise InputError(f"{name}: {error}") from error


def columns(config: Config, cases: int) -> Iterator[str]:
    """The cells of a config's row."""
    sizes = latent_sizes(config, open_base_models(config))
    needed = estimate(config, sizes)
    steps = num_steps(config, cases)
    yield f"{needed.parameters / 1e6:.1f} M"
    yield size_text(needed.training)
    yield f"{needed.flops / 1e12:.3g}"
    yield f"{steps:,}"
    for peak in PEAK_FLOPS.values():
        yield f"{span(steps * s / 3600 for s in seconds_per_step(needed.flops, peak))} h"
    yield size_text(cases * sum(case_bytes(config, sizes)))


def figure(number: float) -> str:
    return f"{number:.0f}" if number >= 10 else f"{number:.2g}"


def span(numbers: Iterable[float]) -> str:
    return " to ".join(map(figure, numbers))


def on_gpus(name: str, args: argparse.Namespace) -> str:
    """Steps, all-reduce and hours of a training on --gpus H100s, and the disk of many cases."""
    config, count = configured(name, args), args.gpus
    sizes = latent_sizes(config, open_base_models(config))
    needed = estimate(config, sizes)
    batch = samples_per_step(config, count)
    steps, alone = (num_steps(config, args.cases, n) for n in (count, 1))
    rows = [["", "GB/s", "all-reduce", "share of a step", "hours", "overlapped", "GPU-hours"]]
    compute = seconds_per_step(needed.flops, PEAK_FLOPS["H100"])
    for link, bandwidth in LINKS.items():
        reduce = 2 * (count - 1) / count * needed.gradients / bandwidth
        hours = [steps * (seconds + reduce) / 3600 for seconds in compute]
        overlapped = [steps * max(seconds, reduce) / 3600 for seconds in compute]
        share = span(100 * reduce / (seconds + reduce) for seconds in reversed(compute))
        cells = [f"{bandwidth / 1e9:g}", f"{figure(1e3 * reduce)} ms", f"{share} %"]
        gpu_hours = span((count * overlapped[0], count * hours[1]))
        rows.append([link, *cells, span(hours), span(overlapped), gpu_hours])
    return (
        f"{name} on {count} H100: {steps:,} steps of {batch} samples (on one GPU {alone:,}),"
        f" {span(1e3 * seconds for seconds in compute)} ms and {size_text(needed.gradients)} of"
        f" gradients each\n{aligned(rows)}\n{disk(config, sizes)}"
    )


def disk(config: Config, sizes: AutoencoderConfig) -> str:
    """The disk cache of many cases."""
    entries = entries_of_case(config)
    rows = [["cases", "volumes", "latents", "files"]]
    for cases in MANY_CASES:
        totals = [cases * size for size in case_bytes(config, sizes)]
        files = cases * (SOURCES + entries)
        cells = [size_text(total) if total else "-" for total in totals]
        rows.append([f"{cases:,}", *cells, f"{files:,}"])
    return aligned(rows)


def entries_of_case(config: Config) -> int:
    """The number of entries, a file each, that a labeled case has in the disk cache."""
    entries = 0
    if config.data.dataset_type == "persistent":  # volumes, and tokens
        entries += 1 if token_source_of(config) is None else 2
    if isinstance(config, Stage2Config):
        entries += config.latents.variants
    return preprocessing_of(config).num_spacings * entries


def fitting(name: str, args: argparse.Namespace) -> tuple[bool, str]:
    """Whether a training fits into --fit GB, and the first settings of `attempts` with which it
    does, or those with the least memory."""
    least, settings = math.inf, ""
    config = configured(name, args)
    sizes = latent_sizes(config, open_base_models(config))
    for changes in attempts(config):
        needed = estimate(configured(name, args, *changes), sizes).training
        if needed < least:
            least, settings = needed, " ".join([f"--precision {args.precision}", *changes])
        if least <= SPARE * args.fit * 1e9:
            return True, f"{size_text(least)} with {settings}"
    network = "unet.spade=shared, unet.channels" if isinstance(config, Stage2Config) else "channels"
    return False, (
        f"does not fit into {args.fit:g} GB: {size_text(least)} with {settings}; a smaller network"
        f" takes less ({network})"
    )


def attempts(config: Config) -> Iterator[list[str]]:
    """Changes of a config that take memory from its training, first those without loss."""
    changes: list[str] = []
    yield changes
    data, train = config.data, config.train
    if data.batch_size > 1:  # the same gradient, in several passes
        changes = ["data.batch_size=1", f"train.accumulate={data.batch_size * train.accumulate}"]
        yield changes
    if not train.checkpointing and not isinstance(config, SegmenterConfig):
        changes = [*changes, "train.checkpointing=true"]
        yield changes
    if isinstance(config, Stage2Config):  # it is trained on whole volumes
        return
    factor = config.autoencoder.factor if isinstance(config, Stage1Config) else 8
    crop = data.crop or data.resolution
    for _ in range(2):
        crop = [max(n // 2 // factor, 4) * factor for n in crop]
        yield [*changes, f"data.crop={crop}"]


def gigabytes(text: str) -> float:
    """24, 24GB and "24 GB"."""
    try:
        return float(text.upper().removesuffix("GB"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is no number of GB: give 24 or 24GB") from None


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = CommandParser(
        prog="tubesynth plan",
        description="Compute what trainings would cost: memory, FLOPs, hours and disk.",
        example="tubesynth plan stage_1_3d_f4 stage_2_3d_f4_lfm_base\n"
        "tubesynth plan stage_2_3d_f4_lfm_crossattn --fit 12\n"
        "tubesynth plan heart_stage_2 --gpus 8",
    )
    add = parser.add_argument
    add("configs", nargs="*", metavar="CONFIG", help="packaged configs or YAML files")
    add("--cases", type=int, default=900, help="training cases (default: 900, ImageCAS)")
    add(
        "--precision",
        choices=["32", *AUTOCAST_DTYPE],
        default="bf16-mixed",
        help="of the training (default: bf16-mixed)",
    )
    add("--gpus", type=int, metavar="N", help="all-reduce and hours on N GPUs; disk of many cases")
    add("--fit", type=gigabytes, metavar="GB", help="name settings that fit into a GPU's memory")
    add_overrides(parser)  # of all configs
    args = parser.parse_with_overrides(argv)
    if not args.configs:
        raise InputError("name a config: tubesynth configs lists them")
    if args.cases < 1:
        raise InputError(f"--cases {args.cases}: must be at least 1")
    if args.gpus is not None and args.gpus < 1:
        raise InputError(f"--gpus {args.gpus}: must be at least 1")
    if args.fit is not None and args.gpus is not None:
        raise InputError("--fit and --gpus: give one of them; memory is that of one GPU")
    if args.fit is not None and not 0 < args.fit < math.inf:
        raise InputError(f"--fit {args.fit}: must be a positive number of GB")
    return args
