"""Augmentation that moves image, label map and vessel tokens together.

A Pose is a box of the volume, flips of its axes, and quarter turns. It is chosen at random once per
sample, by a generator seeded with (seed, sample index). Voxels get it as a view (no copy), tokens
by the same signs and permutation, shape and spacing by the permutation. Intensity scale and shift
are two numbers of the sample, which are applied on the device.

A probability has two meanings. Share of the samples that flips of 0.5 and turns of 0.1 change, for
a crop of 128^3 voxels of 0.7 x 0.7 x 1.05 mm:

    convention   a flip of                  flipped   quarter turns in                   turned
    per_axis     each axis, independently   87.5 %    one plane of equal spacing         10 %
    published    one axis, chosen randomly  50 %      each of the planes, independently  27.1 %
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tubesynth.volume.vessels import in_box


@dataclass(frozen=True)
class Augmentation:
    """Probabilities and ranges; the defaults change nothing.

    per_axis: flips each axis with probability `flip`; makes one to three quarter turns in one of
    the planes of equal extent and spacing with probability `rotate90`, so the grid stays the same.
    published: flips one axis with probability `flip`; makes one quarter turn in each plane with
    probability `rotate90`, which exchanges the sides and spacings of the sample.
    """

    flip: float = 0.0
    rotate90: float = 0.0
    intensity: float = 0.0  # for a scale and, independently, for a shift
    intensity_scale: float = 0.1  # s: the factor is in [1 - s, 1 + s]
    intensity_shift: float = 0.05  # s: the offset is in [-s, s], in units of the HU window
    convention: Literal["per_axis", "published"] = "per_axis"


Plane = tuple[int, int]  # two axes


@dataclass(frozen=True)
class Pose:
    """A box from voxel `start` of `size` voxels; then flips; then each (plane, quarter turns)."""

    start: tuple[int, ...]
    size: tuple[int, ...]
    flips: tuple[bool, ...] = (False, False, False)
    turns: tuple[tuple[Plane, int], ...] = ()


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
    # Uniform numbers in [0, 1). intensity: decides on a scale, gives the scale, decides on a shift,
    # gives the shift.
    scale = (2 * intensity[1] - 1) * a.intensity_scale if intensity[0] < a.intensity else 0.0
    shift = (2 * intensity[3] - 1) * a.intensity_shift if intensity[2] < a.intensity else 0.0
    if a.convention == "published":
        flipped, turns = _published_pose(a, size, flips, turn)
    else:
        flipped, turns = _per_axis_pose(a, size, spacing, flips, turn)
    return Transform(Pose(start, size, flipped, turns), 1.0 + scale, shift)


def _per_axis_pose(
    a: Augmentation,
    size: tuple[int, ...],
    spacing: np.ndarray | Sequence[float],
    flips: np.ndarray,
    turn: np.ndarray,
) -> tuple[tuple[bool, ...], tuple[tuple[Plane, int], ...]]:
    """(flips, turns) of a Pose. flips: (3,), one for each axis; turn: (3,), which decides on a
    turn, its quarters and its plane; both uniform in [0, 1).
    """
    # an axis of one voxel belongs to two-dimensional data and is not flipped
    flipped = tuple(bool(f < a.flip and n > 1) for f, n in zip(flips, size, strict=True))
    planes = [(i, j) for i, j in image_planes(size) if _same_grid(size, spacing, i, j)]
    if not planes or turn[0] >= a.rotate90:
        return flipped, ()
    return flipped, ((planes[int(len(planes) * turn[2])], 1 + int(3 * turn[1])),)


def _published_pose(
    a: Augmentation, size: tuple[int, ...], flips: np.ndarray, turn: np.ndarray
) -> tuple[tuple[bool, ...], tuple[tuple[Plane, int], ...]]:
    """(flips, turns) of a Pose. flips: (3,), which decides on a flip and its axis; turn: (3,), one
    for each plane; all uniform in [0, 1).
    """
    axes = [axis for axis, n in enumerate(size) if n > 1]
    chosen = axes[int(len(axes) * flips[1])] if axes and flips[0] < a.flip else None
    planes = image_planes(size)
    turned = turn[: len(planes)] < a.rotate90
    turns = tuple((plane, 1) for plane, is_turned in zip(planes, turned, strict=True) if is_turned)
    return tuple(axis == chosen for axis in range(3)), turns


def image_planes(size: Sequence[int]) -> list[Plane]:
    """The planes of the axes with more than one voxel: three, or one of two-dimensional data."""
    return [(i, j) for i, j in ((0, 1), (0, 2), (1, 2)) if size[i] > 1 and size[j] > 1]


def _same_grid(size: Sequence[int], spacing: np.ndarray | Sequence[float], i: int, j: int) -> bool:
    """Whether a quarter turn in the plane (i, j) gives a grid of the same shape and spacing."""
    return size[i] == size[j] and abs(spacing[i] - spacing[j]) <= 1e-3 * spacing[i]


def pose_array(array: np.ndarray, pose: Pose) -> np.ndarray:
    """Voxels (..., X, Y, Z) cropped, flipped and turned, as a view."""
    lead = array.ndim - 3
    box = [slice(s, s + n) for s, n in zip(pose.start, pose.size, strict=True)]
    view = array[(..., *box)]
    flips = [slice(None, None, -1) if flip else slice(None) for flip in pose.flips]
    view = view[(..., *flips)]
    for (i, j), quarters in pose.turns:
        view = np.rot90(view, quarters, (lead + i, lead + j))
    return view


def pose_axes(values: Sequence[float] | np.ndarray, pose: Pose) -> np.ndarray:
    """Values of the box's axes, as its size or spacing, in the order of the sample's: (3,)."""
    return np.asarray(values)[np.abs(pose_matrix(pose)).argmax(axis=1)]


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
    matrix = np.diag([-1.0 if flip else 1.0 for flip in pose.flips])
    for (i, j), quarters in pose.turns:
        quarter = np.eye(3)
        # np.rot90 in the plane (i, j) turns axis i towards axis j: e_i -> e_j, e_j -> -e_i
        quarter[[i, j]] = quarter[[j, i]]
        quarter[i] *= -1
        matrix = np.linalg.matrix_power(quarter, quarters % 4) @ matrix
    return matrix
