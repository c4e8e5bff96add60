"""Vessel tokens as voxels: distance and radius fields, and label maps with these vessels.

The tokens of a branch are a chain of tubes (cones with round ends) whose radius changes linearly
from token to token. Arrays are (X, Y, Z); positions are mm relative to the middle of the grid.
"""

import numpy as np

from tubesynth.volume.grid import Volume
from tubesynth.volume.vessels import VesselTokens


def vessel_fields(
    tokens: VesselTokens, shape: tuple[int, int, int], spacing, max_mm: float = 8.0
) -> np.ndarray:
    """The tokens as two images (2, X, Y, Z) float32 in mm, on any grid centred on the volume.

    [0] is the signed distance to the nearest vessel surface, negative inside, clipped to +-max_mm;
    [1] is the radius of the vessel that this surface belongs to, 0 where none is within max_mm.
    Joined tokens are tubes with round ends whose radius changes linearly, so that a vessel between
    the cells of a coarse latent grid still shows. shape, spacing: of that grid, (3,) cells and mm.
    """
    start, end, radii = tubes(tokens)
    spacing, shape = np.asarray(spacing, np.float32), tuple(int(n) for n in shape)
    middle = (np.array(shape, np.float32) - 1) / 2
    distance = np.full(int(np.prod(shape)), max_mm, np.float32)
    radius = np.zeros_like(distance)
    reach = radii.max(axis=1, initial=0)[:, None] + max_mm
    low = np.ceil((np.minimum(start, end) - reach) / spacing + middle).astype(int).clip(0)
    high = np.floor((np.maximum(start, end) + reach) / spacing + middle).astype(int) + 1
    sides = (np.minimum(high, shape) - low).clip(0)
    volumes = sides.prod(axis=1)
    # Every cell of every tube's box, some million at a time.
    for group in np.split(
        np.arange(len(start)), np.flatnonzero(np.diff(volumes.cumsum() >> 20)) + 1
    ):
        tube = np.repeat(group, volumes[group])
        first = np.cumsum(volumes[group]) - volumes[group]
        rest = np.arange(len(tube)) - np.repeat(first, volumes[group])
        rest, z = np.divmod(rest, sides[tube, 2])
        index = np.column_stack([*np.divmod(rest, sides[tube, 1]), z]) + low[tube]
        offset = ((index - middle) * spacing).astype(np.float32) - start[tube]
        along = (end - start)[tube]
        share = (offset * along).sum(axis=1) / np.maximum((along**2).sum(axis=1), 1e-12)
        share = share.clip(0, 1)
        own = radii[tube, 0] + share * (radii[tube, 1] - radii[tube, 0])
        gap = (np.linalg.norm(offset - share[:, None] * along, axis=1) - own).astype(np.float32)
        cell = np.ravel_multi_index(tuple(index.T), shape)
        np.minimum.at(distance, cell, gap)
        nearest = (gap == distance[cell]) & (gap < max_mm)
        radius[cell[nearest]] = own[nearest]
    return np.stack([distance.clip(-max_mm), radius]).reshape(2, *shape)


def rasterize_vessels(labels: Volume, tokens: VesselTokens, vessel_class: int) -> Volume:
    """The label map with these vessels, and no others: background where it had its own.

    A voxel is of a vessel where its middle lies inside, or where a centreline passes through it: a
    vessel thinner than a voxel stays in one piece.
    """
    array = np.where(labels.array == vessel_class, 0, labels.array).astype(labels.array.dtype)
    shape, spacing = np.array(labels.shape), labels.spacing
    distance, _ = vessel_fields(tokens, labels.shape, spacing, float(spacing.max()))
    array[distance <= 0] = vessel_class
    start, end, _ = tubes(tokens)
    longest = np.linalg.norm(end - start, axis=1).max(initial=0)
    along = np.linspace(0, 1, 2 + int(4 * longest / spacing.min()))[:, None, None]
    points = (start + along * (end - start)).reshape(-1, 3)
    passed = np.rint(points / spacing + (shape - 1) / 2).astype(int)
    passed = passed[((passed >= 0) & (passed < shape)).all(axis=1)]
    array[tuple(passed.T)] = vessel_class
    return Volume(array, labels.affine)


def tubes(tokens: VesselTokens):
    """Tokens -> tubes: start (S, 3), end (S, 3), radii (S, 2); a token by itself is a ball.

    Tokens of one branch are equally far apart, so a wider step is a gap that a crop has made.
    """
    step = np.diff(tokens.root_distance_mm)
    same = np.diff(tokens.branch) == 0
    least = np.full(int(tokens.branch.max(initial=0)) + 1, np.inf)
    np.minimum.at(least, tokens.branch[1:][same], step[same])
    first = np.flatnonzero(same & (step < 1.5 * least[tokens.branch[1:]] + 1e-3))
    alone = np.setdiff1d(np.arange(len(tokens)), np.concatenate([first, first + 1]))
    begin, end = np.concatenate([first, alone]), np.concatenate([first + 1, alone])
    position, radius = np.asarray(tokens.position_mm), np.asarray(tokens.radius_mm)
    return position[begin], position[end], np.column_stack([radius[begin], radius[end]])
