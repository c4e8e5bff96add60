"""Augmentation that moves image, label map and vessel tokens together.

A Pose is a box of the volume, flips of its axes, and quarter turns in one plane. It is drawn once
per sample from a generator keyed to (seed, sample index), and applied to voxels as a view (no copy)
and to tokens by the same signs and permutation. Only quarter turns in a plane of equal extent and
spacing are drawn, since all others would change the grid. Intensities are not changed in this file:
scale and shift go to the device as two numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tubesynth.volume.vessels import in_box


@dataclass(frozen=True)
class Augmentation:
    """Probabilities and ranges; the defaults change nothing."""

    flip: float = 0.0  # of each axis independently
    rotate90: float = 0.0  # of one to three quarter turns in one plane
    intensity: float = 0.0  # of a scale and, independently, of a shift
    intensity_scale: float = 0.1  # the factor is in [1 - this, 1 + this]
    intensity_shift: float = 0.05  # the offset is in [-this, this], in units of the HU window


@dataclass(frozen=True)
class Pose:
    """A box from voxel `start` of `size` voxels; then flips; then `turns` quarters in `plane`."""

    start: tuple[int, ...]
    size: tuple[int, ...]
    flips: tuple[bool, ...] = (False, False, False)
    plane: tuple[int, int] = (0, 1)
    turns: int = 0


@dataclass(frozen=True)
class Transform:
    """The random choices of one sample: its pose, and intensity -> scale * intensity + shift."""

    pose: Pose
    scale: float = 1.0
    shift: float = 0.0


def random_transform(
    rng: np.random.Generator,
    shape: Sequence[int],
    spacing: np.ndarray | Sequence[float],
    crop: Sequence[int] | None = None,
    augmentation: Augmentation | None = None,
) -> Transform:
    """A sample's crop and augmentation; shape, crop (3,) voxels, spacing (3,) mm.

    Every random number is drawn whether or not it is used, so one setting never shifts the numbers
    of another.
    """
    a = augmentation or Augmentation()
    size = tuple(int(n) for n in (crop or shape))
    room = np.array(shape) - size
    assert (room >= 0).all(), f"a crop of {size} does not fit into {tuple(shape)}"
    corner, flips, turn, intensity = (rng.random(n) for n in (3, 3, 3, 4))
    start = tuple(int(n) for n in np.floor(corner * (room + 1)))
    planes = turnable_planes(size, spacing)
    # turn: (whether, how many quarters, which plane); intensity: (whether, scale, whether, shift)
    turns = 1 + int(3 * turn[1]) if planes and turn[0] < a.rotate90 else 0
    plane = planes[int(len(planes) * turn[2])] if planes else (0, 1)
    scale = (2 * intensity[1] - 1) * a.intensity_scale if intensity[0] < a.intensity else 0.0
    shift = (2 * intensity[3] - 1) * a.intensity_shift if intensity[2] < a.intensity else 0.0
    # an axis of one voxel belongs to two-dimensional data and is not flipped
    flipped = tuple(bool(f < a.flip and n > 1) for f, n in zip(flips, size, strict=True))
    return Transform(Pose(start, size, flipped, plane, turns), 1.0 + scale, shift)


def turnable_planes(
    size: Sequence[int], spacing: np.ndarray | Sequence[float]
) -> list[tuple[int, int]]:
    """The planes that a quarter turn maps onto a grid of the same shape and spacing."""
    return [
        (i, j)
        for i, j in ((0, 1), (0, 2), (1, 2))
        if size[i] == size[j] > 1 and abs(spacing[i] - spacing[j]) <= 1e-3 * spacing[i]
    ]


def pose_array(array: np.ndarray, pose: Pose) -> np.ndarray:
    """A view of voxels (..., X, Y, Z) in the pose."""
    lead = array.ndim - 3
    box = [slice(s, s + n) for s, n in zip(pose.start, pose.size, strict=True)]
    view = array[(..., *box)]
    flips = [slice(None, None, -1) if flip else slice(None) for flip in pose.flips]
    view = view[(..., *flips)]
    i, j = pose.plane
    return np.rot90(view, pose.turns, (lead + i, lead + j))


def pose_tokens(
    tokens: dict[str, np.ndarray], pose: Pose, shape: Sequence[int], spacing: np.ndarray
) -> dict[str, np.ndarray]:
    """Tokens {name: (N, ...)} in the pose; tokens whose vessel lies outside the box are dropped.

    position_mm is relative to the center of the volume, and of the box in the result. tangent turns
    with it; all other columns stay.
    """
    size, start = np.array(pose.size), np.array(pose.start)
    spacing = np.asarray(spacing, dtype=np.float64)
    # (3,) mm from the volume's center to the box's
    offset_mm = (start + (size - 1) / 2 - (np.array(shape) - 1) / 2) * spacing
    position = np.asarray(tokens["position_mm"], dtype=np.float64) - offset_mm  # (N, 3)
    radius = tokens.get("radius_mm", np.zeros(len(position)))
    inside = in_box(position, radius, size * spacing)
    posed = {name: np.asarray(values)[inside] for name, values in tokens.items()}
    rotation = pose_matrix(pose)
    posed["position_mm"] = (position[inside] @ rotation.T).astype(np.float32)
    if "tangent" in tokens:
        posed["tangent"] = (posed["tangent"] @ rotation.T).astype(np.float32)
    return posed


def pose_matrix(pose: Pose) -> np.ndarray:
    """(3, 3) of 0, 1 and -1: a direction in the box -> the same direction in the posed sample."""
    signs = np.diag([-1.0 if flip else 1.0 for flip in pose.flips])
    i, j = pose.plane
    quarter = np.eye(3)
    # np.rot90 in the plane (i, j) turns axis i towards axis j: e_i -> e_j, e_j -> -e_i
    quarter[[i, j]] = quarter[[j, i]]
    quarter[i] *= -1
    return np.linalg.matrix_power(quarter, pose.turns % 4) @ signs
