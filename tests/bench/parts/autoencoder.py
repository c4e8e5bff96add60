"""A training step of stage 1 at the published widths, and its convolutions alone.

Cases:
  step          generator and discriminator: forward, losses, backward, clipping, both optimizers
  convolutions  every convolution of that step, alone, forward and backward for the same gradients
                as in the step: input, weights or both
The batch is random: the loader is not measured. --set takes the settings of a config,
e.g. train.checkpointing=true losses.vessel_weight=10.
"""

from parts.options import add_device, add_repeats, add_settings, check_options

CASES = ("step", "convolutions")


def add_arguments(parser) -> None:
    add = parser.add_argument
    add("--crop", type=int, nargs="+", default=(64, 64, 64), help="voxels a side")
    add("--batch", type=int, default=1)
    add_settings(parser, "the published ones")
    add_repeats(parser, 5, "steps")
    add_device(parser)


def check(args) -> None:
    check_options(args, "batch", "repeats")
    config_of(args)


def config_of(args):
    """Published sizes and losses that need no weights, with --set on top."""
    from tubesynth.config.loading import config_from_plain
    from tubesynth.config.overrides import apply_overrides

    data = {"crop": list(args.crop), "batch_size": args.batch}
    if len(args.crop) == 2:
        data |= {"resolution": [256, 256], "spacing": [0.7, 0.7]}
    plain = {"stage": 1, "dim": len(args.crop), "data": data}
    return config_from_plain(apply_overrides(plain, args.overrides), "--set")


def run_case(case: str, args) -> dict:
    """One case, measured: its JSON object."""
    from parts.turns import device_of, in_turns, result_on

    from tubesynth.training.random_step import random_step

    device = device_of(args.device)
    step, stage = random_step(config_of(args), device, 0)
    if case == "convolutions":
        step = bare(recorded_convolutions(stage, step))
    (measured,) = in_turns([step], args.repeats, device)
    size = f"{args.batch} x {'x'.join(map(str, args.crop))}"
    return result_on(device, measured, size, settings=args.overrides)


def recorded_convolutions(stage, step) -> list[tuple]:
    """(layer, shape of its input, requires_grad of the input, and of the weights) of each call."""
    import torch

    calls, handles = [], []

    def record(layer, inputs):
        (x,) = inputs
        calls.append((layer, x.shape, x.requires_grad, layer.weight.requires_grad))

    for phase in stage.phases:
        for layer in phase.module.modules():
            if isinstance(layer, torch.nn.modules.conv._ConvNd):
                handles.append(layer.register_forward_pre_hook(record))
    step()
    for handle in handles:
        handle.remove()
    return calls


def bare(calls: list[tuple]):
    """A function that runs these convolutions forward and backward, one by one."""
    import torch

    work = []
    for layer, shape, for_input, for_weights in calls:
        x = torch.randn(shape, device=layer.weight.device, requires_grad=for_input)
        with torch.no_grad():
            gradient = torch.randn_like(layer(x))
        inputs = [x] if for_input else []
        inputs += list(layer.parameters()) if for_weights else []
        work.append((layer, x, gradient, inputs))

    def run():
        for layer, x, gradient, inputs in work:
            torch.autograd.grad(layer(x), inputs, gradient)

    return run
