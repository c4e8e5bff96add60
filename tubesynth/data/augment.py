"""Augmentation that moves image, label map and vessel tokens together.

A Pose is a box of the volume, flips of its axes, and quarter turns in one plane. It is chosen at
random once per sample, by a generator seeded with (seed, sample index). Voxels get it as a view
(no copy), tokens by the same signs and permutation. Only planes of equal extent and spacing are
turned, since other turns would change the grid. Intensity scale and shift are two numbers of the
sample, which are applied on the device.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tubesynth.volume.vessels import in_box


@dataclass(frozen=True)
class Augmentation:
    """Probabilities and ranges; the defaults change nothing."""

    flip: float = 0.0  # for each axis independently
    rotate90: float = 0.0  # for one to three quarter turns in one plane
    intensity: float = 0.0  # for a scale and, independently, for a shift
    intensity_scale: float = 0.1  # s: the factor is in [1 - s, 1 + s]
    intensity_shift: float = 0.05  # s: the offset is in [-s, s], in units of the HU window


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
    """The crop and augmentation of a sample; shape, crop: (3,) voxels; spacing: (3,) mm.

    The generator gives the same number of values whether or not they are used, so one setting never
    changes the random numbers of another.
    """
    a = augmentation or Augmentation()
    size = tuple(int(n) for n in (crop or shape))
    room = np.array(shape) - size
    assert (room >= 0).all(), f"a crop of {size} does not fit into {tuple(shape)}"
    corner, flips, turn, intensity = (rng.random(n) for n in (3, 3, 3, 4))
    start = tuple(int(n) for n in np.floor(corner * (room + 1)))
    planes = turnable_planes(size, spacing)
    # Uniform numbers in [0, 1). turn: decides on a turn, its quarters and its plane. intensity:
    # decides on a scale, gives the scale, decides on a shift, gives the shift.
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
    """Voxels (..., X, Y, Z) cropped, flipped and turned, as a view."""
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
    """Tokens {name: (N, ...)} cropped, flipped and turned, without those outside of the box.

    position_mm is relative to the center of the volume, and in the result to that of the box. Only
    position_mm and tangent change.
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
    """The matrix (3, 3) of 0, 1 and -1 that maps directions of the box to those of the sample."""
    signs = np.diag([-1.0 if flip else 1.0 for flip in pose.flips])
    i, j = pose.plane
    quarter = np.eye(3)
    # np.rot90 in the plane (i, j) turns axis i towards axis j: e_i -> e_j, e_j -> -e_i
    quarter[[i, j]] = quarter[[j, i]]
    quarter[i] *= -1
    return np.linalg.matrix_power(quarter, pose.turns % 4) @ signs
