"""Vessel tokens as voxels: distance and radius fields, and label maps with these vessels.

The tokens of a branch are a chain of tubes with round ends whose radius changes linearly from token
to token. Arrays are (X, Y, Z); positions are mm relative to the middle of the grid.
"""

from collections.abc import Sequence

import numpy as np

from tubesynth.volume.grid import Volume
from tubesynth.volume.polyline import squared_distance_to_segment
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
    spacing = np.asarray(spacing, np.float64)
    middle = (np.array(shape) - 1) / 2
    axes = [
        (step * (np.arange(n) - center)).astype(np.float32)
        for n, center, step in zip(shape, middle, spacing, strict=True)
    ]
    distance = np.full(shape, max_mm, np.float32)
    radius = np.zeros_like(distance)
    start, end, radii = _tubes(tokens)  # (S, 3), (S, 3), (S, 2)
    # each tube's box of cells, [low, high) (S, 3): its ends with a margin of radius + max_mm
    reach = radii.max(axis=1, initial=0)[:, None] + max_mm
    low = np.ceil((np.minimum(start, end) - reach) / spacing + middle).astype(int).clip(0)
    high = np.floor((np.maximum(start, end) + reach) / spacing + middle).astype(int).clip(-1) + 1
    for a, b, (radius_a, radius_b), *bounds in zip(start, end, radii, low, high, strict=True):
        box = tuple(slice(*ends) for ends in zip(*bounds, strict=True))
        of_box = [axis[cells] for axis, cells in zip(axes, box, strict=True)]
        squared, t = squared_distance_to_segment(of_box, a, b)
        tube_radius = radius_a + t * (radius_b - radius_a)
        tube_distance = np.sqrt(squared) - tube_radius
        nearer = tube_distance < distance[box]
        np.copyto(distance[box], tube_distance, where=nearer)
        np.copyto(radius[box], tube_radius, where=nearer)
    return np.stack([distance.clip(-max_mm), radius])


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
    above 1.5 times the branch's shortest step are no tubes. Nor are those above twice the median of
    all branches, whose steps differ by less: a crop may leave a branch with the gap alone.
    """
    step = np.diff(tokens.root_distance_mm)
    same_branch = np.diff(tokens.branch) == 0
    shortest = np.full(int(tokens.branch.max(initial=0)) + 1, np.inf)  # per branch
    np.minimum.at(shortest, tokens.branch[1:][same_branch], step[same_branch])
    typical = np.median(step[same_branch]) if same_branch.any() else np.inf
    longest = np.minimum(1.5 * shortest[tokens.branch[1:]], 2 * typical) + 1e-3
    first = np.flatnonzero(same_branch & (step < longest))
    single = np.setdiff1d(np.arange(len(tokens)), np.concatenate([first, first + 1]))
    begin, end = np.concatenate([first, single]), np.concatenate([first + 1, single])
    position, radius = (np.asarray(x, np.float32) for x in (tokens.position_mm, tokens.radius_mm))
    return position[begin], position[end], np.column_stack([radius[begin], radius[end]])
