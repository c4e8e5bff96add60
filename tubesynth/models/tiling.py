"""Tiled evaluation of a convolutional network; the result equals that of the whole volume, to
rounding.

Each tile is evaluated with a halo as wide as the network's receptive-field radius, and the halo is
cut off the result. The network must have no normalization over the whole volume.
"""

import itertools
import math
from collections.abc import Callable
from fractions import Fraction

import torch
from torch import Tensor


def run_tiled(
    function: Callable[..., Tensor],
    x: Tensor,
    tile: int,
    halo: int,
    scale: Fraction,
    condition: Tensor | None = None,
) -> Tensor:
    """function(x) for x (B, C, X, ...), evaluated in tiles of at most `tile` input voxels a side.

    scale: output voxels per input voxel along each axis. tile and halo (input voxels) must be
    multiples of its denominator, so that every cut lies between two output voxels. condition:
    (B, K, scale * X, ...), cut at the same places: the function is then called as
    function(x, condition).
    """
    assert tile % scale.denominator == 0 and halo % scale.denominator == 0
    sizes, out = x.shape[2:], None
    for corner in itertools.product(*[range(0, n, tile) for n in sizes]):
        # The tile is [corner, ends), with its halo [first, last), both clipped to the volume.
        ends = [min(c + tile, n) for c, n in zip(corner, sizes, strict=True)]
        first = [max(0, c - halo) for c in corner]
        last = [min(n, e + halo) for e, n in zip(ends, sizes, strict=True)]
        box = (..., *[slice(a, b) for a, b in zip(first, last, strict=True)])
        inputs = [x[box]]
        if condition is not None:
            bounds = [(int(a * scale), int(b * scale)) for a, b in zip(first, last, strict=True)]
            inputs.append(condition[(..., *[slice(a, b) for a, b in bounds])])
        result = function(*inputs)
        if out is None:
            shape = [int(n * scale) for n in sizes]
            out = torch.empty((*result.shape[:2], *shape), dtype=result.dtype, device=x.device)
        # source: the tile in the evaluated box; target: the tile in the whole output.
        source: list = [...]
        target: list = [...]
        for c, e, a in zip(corner, ends, first, strict=True):
            source.append(slice(int((c - a) * scale), int((e - a) * scale)))
            target.append(slice(int(c * scale), int(e * scale)))
        out[tuple(target)] = result[tuple(source)]
    assert out is not None
    return out


def largest_tile(size: tuple[int, ...], halo: int, multiple: int, budget: float) -> int | None:
    """The largest tile side for which tile and halo have at most `budget` voxels; None if the whole
    volume fits.

    A tile is at least as wide as the halo: smaller tiles would compute most voxels twice.
    """
    if math.prod(size) <= budget:
        return None
    smallest = max(multiple, math.ceil(halo / multiple) * multiple)
    for tile in range(max(size) // multiple * multiple, smallest, -multiple):
        if math.prod(min(n, tile + 2 * halo) for n in size) <= budget:
            return tile
    return smallest
