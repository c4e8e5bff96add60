"""Vessel tokens as voxels: distance and radius fields, and label maps with these vessels.

The tokens of a branch are a chain of tubes with round ends whose radius changes linearly from token
to token. Arrays are (X, Y, Z); positions are mm relative to the middle of the grid.
"""

from collections.abc import Sequence

import numpy as np

from tubesynth.volume.grid import Volume
from tubesynth.volume.vessels import VesselTokens

FIELD_REACH_CELLS = 3.0  # distance from a vessel's wall at which condition_fields end


def vessel_fields(
    tokens: VesselTokens, shape: tuple[int, int, int], spacing, max_mm: float = 8.0
) -> np.ndarray:
    """The tokens as two images (2, X, Y, Z) float32 in mm, on any grid centered on the volume.

    [0] is the signed distance to the nearest vessel surface, negative inside, clipped to +-max_mm;
    [1] is the radius of the vessel that this surface belongs to, 0 where none is within max_mm. A
    vessel between the cells of a coarse latent grid is still represented. shape, spacing: of that
    grid, (3,) cells and mm.
    """
    start, end, radii = _tubes(tokens)  # (S, 3), (S, 3), (S, 2)
    spacing, shape = np.asarray(spacing, np.float32), (int(shape[0]), int(shape[1]), int(shape[2]))
    middle = (np.array(shape, np.float32) - 1) / 2
    distance = np.full(int(np.prod(shape)), max_mm, np.float32)
    radius = np.zeros_like(distance)
    # each tube's box of cells, [low, high) (S, 3): its ends with a margin of radius + max_mm
    reach = radii.max(axis=1, initial=0)[:, None] + max_mm
    low = np.ceil((np.minimum(start, end) - reach) / spacing + middle).astype(int).clip(0)
    high = np.floor((np.maximum(start, end) + reach) / spacing + middle).astype(int) + 1
    sides = (np.minimum(high, shape) - low).clip(0)
    num_cells = sides.prod(axis=1)  # (S,)
    # All cells of all boxes in one list, in groups of about a million so that memory stays small.
    for group in np.split(
        np.arange(len(start)), np.flatnonzero(np.diff(num_cells.cumsum() >> 20)) + 1
    ):
        # (C,) tube of each cell, and its rank in that tube's box -> (C, 3) index in the grid
        tube = np.repeat(group, num_cells[group])
        first = np.cumsum(num_cells[group]) - num_cells[group]
        rank = np.arange(len(tube)) - np.repeat(first, num_cells[group])
        rank, z = np.divmod(rank, sides[tube, 2])
        index = np.column_stack([*np.divmod(rank, sides[tube, 1]), z]) + low[tube]
        # p = cell - a and d = b - a of the tube from a to b: the nearest point of its axis is at
        # t = clip(p.d / d.d, 0, 1), the radius there is r_a + t (r_b - r_a), and the distance to
        # the surface is |p - t d| minus that radius
        offset = ((index - middle) * spacing).astype(np.float32) - start[tube]
        axis = (end - start)[tube]
        t = (offset * axis).sum(axis=1) / np.maximum((axis**2).sum(axis=1), 1e-12)
        t = t.clip(0, 1)
        cell_radius = radii[tube, 0] + t * (radii[tube, 1] - radii[tube, 0])
        cell_distance = np.linalg.norm(offset - t[:, None] * axis, axis=1) - cell_radius
        cell_distance = cell_distance.astype(np.float32)
        # the minimum over all tubes, and the radius of the tube that attains it
        cell = np.asarray(np.ravel_multi_index(tuple(index.T), shape))
        np.minimum.at(distance, cell, cell_distance)
        nearest = (cell_distance == distance[cell]) & (cell_distance < max_mm)
        radius[cell[nearest]] = cell_radius[nearest]
    return np.stack([distance.clip(-max_mm), radius]).reshape(2, *shape)


def condition_fields(
    tokens: VesselTokens, shape: Sequence[int], spacing: Sequence[float] | np.ndarray, factor: int
) -> np.ndarray:
    """(2, x, y, z) float32 for networks, on a grid of cells of `factor` voxels a side.

    shape: (3,) voxels; spacing: (3,) mm. factor 1 is the grid of the image, for the decoder of
    stage 1; the factor of the autoencoder is the grid of its latents, for stage 2.
    [0] is the closeness to the nearest vessel: 1 on its wall, more inside it, falling linearly to 0
    at FIELD_REACH_CELLS. [1] is the radius of that vessel in cells (of the geometric mean of a
    cell's sides); factor 1 measures both in mm, whatever the spacing. Both are 0 out of reach. An
    axis of one voxel (two-dimensional data) stays one cell.
    """
    step = np.where(np.asarray(shape) > 1, factor, 1)
    cell_sides_mm = np.asarray(spacing) * step
    is_deep = step > 1
    # 1 mm where no axis is deep: decoders of stage 1 are trained on fields in mm.
    cell_mm = float(np.prod(cell_sides_mm[is_deep]) ** (1 / max(1, is_deep.sum())))
    x, y, z = (int(n) for n in np.asarray(shape) // step)
    reach_mm = FIELD_REACH_CELLS * cell_mm
    distance_mm, radius_mm = vessel_fields(tokens, (x, y, z), cell_sides_mm, reach_mm)
    return np.stack([1 - distance_mm / reach_mm, radius_mm / cell_mm])


def rasterize_vessels(labels: Volume, tokens: VesselTokens, vessel_class: int) -> Volume:
    """The label map with these vessels and no others: background where it had vessels before.

    A voxel belongs to a vessel if its center lies inside, as in a label map that is resampled to
    this grid: networks see user centrelines as they saw the vessels of their training. A vessel
    thinner than a voxel is in pieces, of the same volume in the mean.
    """
    array = np.where(labels.array == vessel_class, 0, labels.array).astype(labels.array.dtype)
    spacing = labels.spacing
    distance, _ = vessel_fields(tokens, labels.shape, spacing, float(spacing.max()))
    array[distance <= 0] = vessel_class
    return Volume(array, labels.affine)


def _tubes(tokens: VesselTokens) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens -> tubes: start (S, 3), end (S, 3), radii (S, 2); a token by itself is a ball.

    Tokens of one branch are equally far apart, so a wider step is a gap that a crop has made: steps
    above 1.5 times the branch's shortest step are no tubes.
    """
    step = np.diff(tokens.root_distance_mm)
    same_branch = np.diff(tokens.branch) == 0
    shortest = np.full(int(tokens.branch.max(initial=0)) + 1, np.inf)  # per branch
    np.minimum.at(shortest, tokens.branch[1:][same_branch], step[same_branch])
    first = np.flatnonzero(same_branch & (step < 1.5 * shortest[tokens.branch[1:]] + 1e-3))
    single = np.setdiff1d(np.arange(len(tokens)), np.concatenate([first, first + 1]))
    begin, end = np.concatenate([first, single]), np.concatenate([first + 1, single])
    position, radius = np.asarray(tokens.position_mm), np.asarray(tokens.radius_mm)
    return position[begin], position[end], np.column_stack([radius[begin], radius[end]])
