"""An evaluation of the latent generator with conditions cached once a sample or at every step.

The network of a config with random weights, cases with labels, tokens and fields.
Cases:
  conditional  a row for each case
  guided       three rows for each: both conditions, the label map alone, none
seconds are those of an evaluation with cached conditions; the peer computes them again, as a
network without a cache must. seconds_per_case falls with a larger --batch-size.
"""

from pathlib import Path

from parts.options import add_device, add_precision, add_repeats, check_options

from tubesynth.runtime.errors import InputError

CASES = ("conditional", "guided")
ROWS = {"conditional": [(1, 1)], "guided": [(1, 1), (1, 0), (0, 0)]}  # keep_label, keep_vessels
FACTOR, LATENT_CHANNELS = 4, 8  # of the published autoencoder


def add_arguments(parser) -> None:
    add = parser.add_argument
    add("--config", type=Path, default=Path("configs/demo/stage_2_crossattn.yml"), help="stage 2")
    add("--resolution", type=int, nargs="+", help="voxels; default: the config's")
    add("--tokens", type=int, default=500)
    add("--batch-size", type=int, default=1, help="cases that go through the network together")
    add_precision(parser)
    add_repeats(parser, 5, "turns of both")
    add_device(parser)


def check(args) -> None:
    check_options(args, "tokens", "batch_size", "repeats")
    shape = config_of(args).data.resolution
    if any(n % FACTOR for n in shape):
        raise InputError(f"--resolution {shape}: must be multiples of {FACTOR}")


def config_of(args):
    """The config at the resolution of the command line."""
    from tubesynth.config.loading import load_config

    overrides = [f"data.resolution={args.resolution}"] if args.resolution else []
    config = load_config(args.config, overrides)
    if config.stage != 2:
        raise InputError(f"{args.config}: for stage {config.stage}, where one of stage 2 is needed")
    return config


def run_case(case: str, args) -> dict:
    import torch
    from parts.measure import significant
    from parts.turns import compared, device_of, in_turns

    from tubesynth.build.networks import build_unet
    from tubesynth.models.conditions import Conditions
    from tubesynth.runtime.precision import AUTOCAST_DTYPE

    device, config = device_of(args.device), config_of(args)
    torch.manual_seed(0)
    net = build_unet(config, LATENT_CHANNELS, FACTOR).to(device).eval().requires_grad_(False)
    shape = tuple(config.data.resolution)
    size, cases = tuple(n // FACTOR for n in shape), args.batch_size
    keep = torch.tensor(ROWS[case], device=device).float().repeat_interleave(cases, dim=0)
    rows = len(keep)
    spacing = torch.tensor(config.data.spacing, device=device).expand(rows, -1)
    extent_mm = spacing[0] * torch.tensor(shape, device=device)
    position = torch.zeros(cases, args.tokens, 3, device=device)
    position[..., : len(shape)] = extent_mm * (torch.rand(args.tokens, len(shape)) - 0.5).to(device)
    ones = torch.ones(cases, args.tokens, device=device)
    tokens = {"position_mm": position, "radius_mm": ones, "tangent": torch.zeros_like(position)}
    tokens |= {"root_distance_mm": ones, "mask": ones.bool()}
    labels = torch.randint(0, config.labels.num_classes, (cases, *shape), dtype=torch.uint8)
    fields = torch.randn(cases, 2, *size, device=device)
    conditions = Conditions(labels.to(device), tokens, fields, *keep.unbind(1))
    x = torch.randn(rows, LATENT_CHANNELS, *size, device=device)
    t = torch.full((rows,), 0.5, device=device)

    dtype = AUTOCAST_DTYPE.get(args.precision)
    with torch.no_grad(), torch.autocast(device.type, dtype, dtype is not None):
        prepared = net.cache_conditions(conditions, size, spacing)
        works = [lambda: net(x, t, spacing, prepared), lambda: net(x, t, spacing, conditions)]
        once, every = in_turns(works, args.repeats, device)
    return compared(
        device,
        once,
        "conditions prepared at every step",
        every,
        f"{cases} x {'x'.join(map(str, shape))}, {args.tokens} tokens, {rows} rows",
        precision=args.precision,
        config=str(args.config),
        seconds_per_case=significant(once.seconds / cases),
        saved_seconds=significant(every.seconds - once.seconds),
    )
