"""Evaluation of a network in overlapping tiles, whose outputs are averaged with smooth weights.

MultiDiffusion (Bar-Tal et al. 2023, arXiv 2302.08113, eq. 5): a sampler that uses the average at
every step gives one volume without seams, of any size, though no evaluation sees all of it. Unlike
tiling.py this is for networks whose receptive field is the whole grid, so the output is another
one than that of the whole. Where the receptive field is smaller than MARGIN the two are equal.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tubesynth.models.window import Window

# Of the side of a tile. Neighbors share at least the overlap; at either end of it the margin counts
# for nothing, since it lies beside the padding of the convolutions, not beside its neighborhood.
OVERLAP, MARGIN = 1 / 4, 1 / 16


@dataclass(frozen=True)
class Tile:
    """weight: (X, ...) of the cells of the window; the weights of all tiles sum to 1."""

    window: Window
    weight: Tensor


def blended_tiles(
    size: tuple[int, ...], side: int, multiple: int, device: torch.device
) -> list[Tile]:
    """Tiles of at most `side` cells along each axis, which begin at multiples of `multiple`.

    side: a multiple of `multiple`, at least twice as large.
    """
    assert side % multiple == 0 and side >= 2 * multiple
    tiles = []
    for axes in itertools.product(*[_tiles_of_axis(n, side, multiple) for n in size]):
        weight = torch.ones(())
        for _, axis_weight in axes:  # the product over the axes
            weight = weight[..., None] * axis_weight
        tiles.append(Tile(Window(size, tuple(box for box, _ in axes)), weight.to(device)))
    return tiles


def blend(function: Callable[[int, Tensor], Tensor], x: Tensor, tiles: list[Tile]) -> Tensor:
    """The weighted mean of function(index, tile of x) over the tiles, for x (B, C, X, ...)."""
    out = torch.zeros_like(x)
    for index, tile in enumerate(tiles):
        result = function(index, tile.window.crop(x))
        tile.window.crop(out).add_(tile.weight * result)  # a view of `out`
    return out


def _tiles_of_axis(n: int, side: int, multiple: int) -> list[tuple[slice, Tensor]]:
    """Evenly spaced tiles of n cells, with their weights."""
    if n <= side:
        return [(slice(0, n), torch.ones(n))]
    overlap = max(multiple, math.ceil(side * OVERLAP / multiple) * multiple)
    steps = math.ceil((n - side) / (side - overlap))
    last = math.ceil((n - side) / multiple) * multiple  # where the last tile begins
    first = [round(i * last / steps / multiple) * multiple for i in range(steps + 1)]
    # ramps[i] rises from 0 to 1 in the middle of what tiles i - 1 and i share. Its width keeps it
    # apart from the next ramp, so that the weights ramps[i] - ramps[i + 1] are positive.
    cells, ramps = torch.arange(n) + 0.5, [torch.ones(n)]
    for before, begin in itertools.pairwise(first):
        shared = before + side - begin
        width = max(1, min(shared - 2 * round(side * MARGIN), begin - before))
        position = (cells - begin - (shared - width) / 2) / width
        ramps.append((1 - torch.cos(math.pi * position.clamp(0, 1))) / 2)
    ramps.append(torch.zeros(n))
    boxes = [slice(begin, min(begin + side, n)) for begin in first]
    weights = [rising - falling for rising, falling in itertools.pairwise(ramps)]
    return [(box, weight[box]) for box, weight in zip(boxes, weights, strict=True)]
