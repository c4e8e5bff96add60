"""Command-line options shared by several benches, and their checks.

Imports no torch: the process of a case imports only the packages that the case needs.
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


def add_settings(parser: ArgumentParser, of: str) -> None:
    text = f"settings on top of {of}"
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="key=value", dest="overrides", help=text
    )


def check_options(args: Namespace, *counts: str) -> None:
    """InputError for a count (a number or several) below 1, or for a missing device."""
    for name in counts:
        value = getattr(args, name)
        if min(value if isinstance(value, list | tuple) else [value]) < 1:
            raise InputError(f"--{name.replace('_', '-')} {value}: must be at least 1")
    if "device" in args:
        from parts.turns import device_of

        device_of(args.device)
