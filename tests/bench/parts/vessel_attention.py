"""Cross-attention to vessel tokens with the distance bias, against the same without a bias.

One layer by itself: norm, projections of voxels and tokens, fused attention, output. Cases:
  forward   without gradients, as a sampler runs it
  training  forward and backward
"""

from functools import partial

from parts.options import GRID, add_device, add_precision, add_repeats, check_options

from tubesynth.runtime.errors import InputError

CASES = ("forward", "training")
FIELD_MM = 180.0  # of view, every side


def add_arguments(parser) -> None:
    add = parser.add_argument
    add("--size", type=int, default=(32, 32, 16), help="voxels", **GRID)
    add("--tokens", type=int, default=2000)
    add("--channels", type=int, default=384)
    add("--head-channels", type=int, default=64)
    add_precision(parser)
    add_repeats(parser, 7, "turns of both")
    add_device(parser)


def check(args) -> None:
    check_options(args, "size", "tokens", "repeats")
    if args.head_channels < 16 or args.channels % args.head_channels:
        raise InputError(
            f"--head-channels {args.head_channels}: at least 16, and a divisor of --channels"
        )


def run_case(case: str, args) -> dict:
    import torch
    from parts.turns import compared, device_of, in_turns

    from tubesynth.models.vessel_attention import LevelTokens, VesselAttention
    from tubesynth.models.vessel_tokens import EncodedTokens
    from tubesynth.runtime.precision import AUTOCAST_DTYPE

    device, size = device_of(args.device), tuple(args.size)
    torch.manual_seed(0)
    width, channels = 256, args.channels
    tokens = EncodedTokens(
        torch.randn(1, args.tokens, width, device=device),
        FIELD_MM * (torch.rand(1, args.tokens, 3, device=device) - 0.5),
        0.5 + 1.5 * torch.rand(1, args.tokens, device=device),
        torch.ones(1, args.tokens, dtype=torch.bool, device=device),
    )
    x = torch.randn(1, channels, *size, device=device, requires_grad=case == "training")
    cell_mm = torch.tensor([[FIELD_MM / n for n in size]], device=device)
    dtype = AUTOCAST_DTYPE.get(args.precision)

    def work(layer):
        training = case == "training"
        with (
            torch.autocast(device.type, dtype, dtype is not None),
            torch.set_grad_enabled(training),
        ):
            out = layer(x, layer.cache_keys_values([layer], LevelTokens(tokens, size, cell_mm))[0])
        if training:
            out.float().square().mean().backward()

    layers = [
        VesselAttention(3, channels, args.head_channels, width, distance).to(device)
        for distance in (True, False)
    ]
    biased, plain = in_turns([partial(work, layer) for layer in layers], args.repeats, device)
    text = f"{'x'.join(map(str, size))} voxels, {args.tokens} tokens, {channels} channels"
    return compared(device, biased, "without bias", plain, text, precision=args.precision)
