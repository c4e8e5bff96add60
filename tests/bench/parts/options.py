"""Command-line options shared by several benches, and their checks.

Without torch, like all that a bench imports first: a case's process holds what the case needs.
"""

from argparse import ArgumentParser, Namespace

from tubesynth.runtime.errors import InputError

GRID = dict(nargs=3, metavar=("X", "Y", "Z"))


def add_repeats(parser: ArgumentParser, default: int, unit: str) -> None:
    text = f"timed {unit}, after one to warm up; default {default}"
    parser.add_argument("--repeats", type=int, default=default, help=text)


def add_device(parser: ArgumentParser) -> None:
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")


def add_precision(parser: ArgumentParser) -> None:
    parser.add_argument("--precision", choices=("32", "bf16-mixed", "16-mixed"), default="32")


def check_options(args: Namespace, *counts: str) -> None:
    """InputError for a count (a number, or some) below 1, or a device that is not there."""
    for name in counts:
        value = getattr(args, name)
        if min(value if isinstance(value, list | tuple) else [value]) < 1:
            raise InputError(f"--{name.replace('_', '-')} {value}: must be at least 1")
    if "device" in args:
        from parts.turns import device_of

        device_of(args.device)
