"""A convolutional network over a volume tile by tile, equal to the whole to rounding.

Each tile is taken with a halo of the network's receptive field, and only the part that no cut edge
has touched is kept. Right wherever normalisation is local; the autoencoder here has none.
"""

import itertools
import math
from collections.abc import Callable
from fractions import Fraction

import torch
from torch import Tensor


def run_tiled(
    function: Callable[[Tensor], Tensor], x: Tensor, tile: int, halo: int, scale: Fraction
) -> Tensor:
    """function over x (B, C, X, ...) in tiles of at most `tile` a side.

    scale: output voxels per input voxel along each axis; tile and halo (input voxels) must be
    multiples of its denominator, so that every cut falls between two output voxels.
    """
    assert tile % scale.denominator == 0 and halo % scale.denominator == 0
    sizes, out = x.shape[2:], None
    for corner in itertools.product(*[range(0, n, tile) for n in sizes]):
        ends = [min(c + tile, n) for c, n in zip(corner, sizes, strict=True)]
        first = [max(0, c - halo) for c in corner]
        last = [min(n, e + halo) for e, n in zip(ends, sizes, strict=True)]
        box = (..., *[slice(a, b) for a, b in zip(first, last, strict=True)])
        result = function(x[box])
        if out is None:
            shape = [int(n * scale) for n in sizes]
            out = torch.empty((*result.shape[:2], *shape), dtype=result.dtype, device=x.device)
        inner, target = [...], [...]
        for c, e, a in zip(corner, ends, first, strict=True):
            inner.append(slice(int((c - a) * scale), int((e - a) * scale)))
            target.append(slice(int(c * scale), int(e * scale)))
        out[tuple(target)] = result[tuple(inner)]
    return out


def largest_tile(size: tuple[int, ...], halo: int, multiple: int, budget: float) -> int | None:
    """The largest tile side whose box with halo has at most `budget` voxels; None: no need to tile.

    Never below the halo: smaller tiles would do most of their work twice.
    """
    if math.prod(size) <= budget:
        return None
    smallest = max(multiple, math.ceil(halo / multiple) * multiple)
    for tile in range(max(size) // multiple * multiple, smallest, -multiple):
        if math.prod(min(n, tile + 2 * halo) for n in size) <= budget:
            return tile
    return smallest
