"""The command-line options that reconstruct and synthesize share."""

import argparse
from typing import get_args

from tubesynth.config.schema import Precision
from tubesynth.inference.arguments import LEAST_TILE
from tubesynth.inference.sampling import Tile
from tubesynth.runtime.errors import InputError


def add_model_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--resolution", type=int, nargs="+", metavar="N", help="voxels x y z; default: trained")
    add("--spacing", type=float, nargs="+", metavar="MM", help="mm x y z; default: trained")
    add(
        "--label-map",
        nargs="*",
        metavar="VALUE=CLASS",
        help="classes of the label maps' values, e.g. 1=3 2=7, in place of data.label_map; none:"
        " the values are classes",
    )
    add(
        "--precision",
        default="auto",
        choices=get_args(Precision),
        help="of the networks; auto: bf16-mixed on a GPU that has bf16, else 32",
    )
    add(
        "--tile",
        default="auto",
        metavar="VOXELS",
        help="side of the autoencoder's tiles: voxels, auto (fits the memory) or none",
    )


def precision_option(args: argparse.Namespace) -> Precision:
    """The value of --precision, or of its older name --amp."""
    if not args.amp:
        return args.precision
    if args.precision not in ("auto", "16-mixed"):
        raise InputError(f"--precision {args.precision} and --amp: give one of them")
    return "16-mixed"


def tile_option(text: str) -> Tile:
    """The value of --tile: auto, none (as None), or voxels per side."""
    if text == "auto":
        return "auto"
    if text == "none":
        return None
    if not text.isdecimal() or int(text) < LEAST_TILE:
        raise InputError(
            f"--tile {text}: expected auto, none, or a number of voxels from {LEAST_TILE} on"
        )
    return int(text)
