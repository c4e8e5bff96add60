"""A training step of any stage, on a random batch of its config's sizes.

Cases:
  step     forward, losses, backward, clipping, optimizers and averages
  kernels  the convolutions, matrix products and attention of that step, alone
The loader is not measured. flops are those of the kernels (torch.utils.flop_counter), and
tflops_per_second is their number over the time; stored_mb is what autograd stores in the step.
--set takes the settings of a config, e.g.
train.precision=bf16-mixed train.checkpointing=false.
"""

from pathlib import Path

from parts.measure import significant
from parts.options import add_device, add_repeats, add_settings, check_options

CASES = ("step", "kernels")


def add_arguments(parser) -> None:
    add = parser.add_argument
    add("--config", type=Path, required=True)
    add_settings(parser, "the config's")
    add("--tokens", type=int, default=1000, help="vessel tokens of a case; default 1000")
    add_repeats(parser, 5, "steps")
    add_device(parser)


def check(args) -> None:
    check_options(args, "tokens", "repeats")
    config_of(args)


def config_of(args):
    from tubesynth.config.loading import load_config

    return load_config(args.config, args.overrides)


def run_case(case: str, args) -> dict:
    from parts.kernels_alone import kernels_alone
    from parts.stored import stored_mb
    from parts.turns import device_of, in_turns, result_on
    from torch.utils.flop_counter import FlopCounterMode

    from tubesynth.runtime.kernels import choose_kernels
    from tubesynth.training.random_step import random_step

    config, device = config_of(args), device_of(args.device)
    choose_kernels(device, config.train.deterministic)
    step, _ = random_step(config, device, args.tokens)
    step()  # the optimizers' moments
    with FlopCounterMode(display=False) as counter:
        step()
    stored = None if case == "kernels" else stored_mb(step)
    if case == "kernels":
        step = kernels_alone(step)
    (measured,) = in_turns([step], args.repeats, device)
    shape, train = config.data.crop or config.data.resolution, config.train
    flops = counter.get_total_flops()
    return result_on(
        device,
        measured,
        f"{config.data.batch_size} x {'x'.join(map(str, shape))}",
        config=str(args.config),
        settings=args.overrides,
        precision=train.precision,
        checkpointing=train.checkpointing,
        flops=flops,
        tflops_per_second=significant(flops / measured.seconds / 1e12),
        stored_mb=stored,
    )
