"""What the machine reaches on the simplest work: the ceilings of the other benches' figures.

Cases:
  product  a matrix product; tflops_per_second counts 2 N^3
  copy     a copy of 4 N^2 bytes; gigabytes_per_second counts reading and writing
"""

from parts.measure import significant
from parts.options import add_device, add_precision, add_repeats, check_options

CASES = ("product", "copy")


def add_arguments(parser) -> None:
    parser.add_argument("--side", type=int, default=8192, help="N; default 8192")
    add_precision(parser)
    add_repeats(parser, 9, "runs")
    add_device(parser)


def check(args) -> None:
    check_options(args, "side", "repeats")


def run_case(case: str, args) -> dict:
    import torch
    from parts.turns import device_of, in_turns, result_on

    from tubesynth.runtime.precision import AUTOCAST_DTYPE

    device, side = device_of(args.device), args.side
    dtype = AUTOCAST_DTYPE.get(args.precision, torch.float32)
    a, b = torch.randn(2, side, side, device=device).to(dtype if case == "product" else None)
    work = (lambda: a @ b) if case == "product" else (lambda: b.copy_(a))
    (measured,) = in_turns([work], args.repeats, device)
    rate = {
        "product": {"tflops_per_second": significant(2 * side**3 / measured.seconds / 1e12)},
        "copy": {"gigabytes_per_second": significant(2 * 4 * side**2 / measured.seconds / 1e9)},
    }[case]
    return result_on(device, measured, f"{side} x {side}", precision=args.precision, **rate)
