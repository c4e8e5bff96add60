"""Augmentation that moves image, label, masks and tokens as one body.

A Pose says which box of the volume is taken, which axes are flipped and which plane is turned; it
is drawn once per sample from a generator keyed to (seed, draw) and applied to voxels as a view
(no copy) and to tokens by the same signs and permutation. Only quarter turns in a plane of equal
extent and spacing are drawn: all others would change the grid. Intensities are not touched here:
scale and shift go to the device as two numbers.
"""

from dataclasses import dataclass

import numpy as np

from tubesynth.volume.vessels import in_box


@dataclass(frozen=True)
class Augmentation:
    """Probabilities and ranges; the defaults change nothing."""

    flip: float = 0.0  # each axis on its own
    rotate90: float = 0.0  # one to three quarter turns in one plane
    intensity: float = 0.0  # a scale and, on its own, a shift
    intensity_scale: float = 0.1  # factor from 1 -+ this
    intensity_shift: float = 0.05  # offset from -+ this, in units of the window


@dataclass(frozen=True)
class Pose:
    """The box start (3,), size (3,) in voxels; then flips; then `turns` quarters in `plane`."""

    start: tuple[int, int, int]
    size: tuple[int, int, int]
    flips: tuple[bool, bool, bool] = (False, False, False)
    plane: tuple[int, int] = (0, 1)
    turns: int = 0


@dataclass(frozen=True)
class Change:
    """What is drawn for one sample."""

    pose: Pose
    scale: float = 1.0
    shift: float = 0.0


def draw_change(rng, shape, spacing, crop=None, augmentation: Augmentation | None = None) -> Change:
    """A sample's crop and augmentation; shape, crop (3,) voxels, spacing (3,) mm.

    Every number is drawn whether or not it is used, so one setting never shifts another's numbers.
    """
    a = augmentation or Augmentation()
    size = tuple(int(n) for n in (crop or shape))
    room = np.array(shape) - size
    assert (room >= 0).all(), f"a crop of {size} does not fit into {tuple(shape)}"
    corner, flips, turn, intensity = (rng.random(n) for n in (3, 3, 3, 4))
    start = tuple(int(n) for n in np.floor(corner * (room + 1)))
    planes = turnable_planes(size, spacing)
    turns = 1 + int(3 * turn[1]) if planes and turn[0] < a.rotate90 else 0
    plane = planes[int(len(planes) * turn[2])] if planes else (0, 1)
    scale = (2 * intensity[1] - 1) * a.intensity_scale if intensity[0] < a.intensity else 0.0
    shift = (2 * intensity[3] - 1) * a.intensity_shift if intensity[2] < a.intensity else 0.0
    # an axis of one voxel is two-dimensional data: nothing to flip
    flipped = tuple(bool(f < a.flip and n > 1) for f, n in zip(flips, size, strict=True))
    return Change(
        Pose(start, size, flipped, plane, turns),
        scale=1.0 + scale,
        shift=shift,
    )


def turnable_planes(size, spacing) -> list[tuple[int, int]]:
    """The planes that a quarter turn maps onto a grid of the same shape and spacing."""
    return [
        (i, j)
        for i, j in ((0, 1), (0, 2), (1, 2))
        if size[i] == size[j] > 1 and abs(spacing[i] - spacing[j]) <= 1e-3 * spacing[i]
    ]


def move_array(array: np.ndarray, pose: Pose) -> np.ndarray:
    """A view of (..., X, Y, Z) voxels in the pose."""
    lead = array.ndim - 3
    box = [slice(s, s + n) for s, n in zip(pose.start, pose.size, strict=True)]
    view = array[(..., *box)]
    flips = [slice(None, None, -1) if flip else slice(None) for flip in pose.flips]
    view = view[(..., *flips)]
    return np.rot90(view, pose.turns, [lead + axis for axis in pose.plane])


def move_tokens(tokens: dict, pose: Pose, shape, spacing) -> dict:
    """Tokens {name: (N, ...)} in the pose; those whose vessel lies outside the box are left out.

    position_mm is relative to the volume's centre, and afterwards to the box's. Directions
    (tangent) turn with it; all other columns stay.
    """
    shape, spacing = np.array(shape), np.asarray(spacing, dtype=np.float64)
    size, start = np.array(pose.size), np.array(pose.start)
    shift_mm = (start + (size - 1) / 2 - (shape - 1) / 2) * spacing
    position = np.asarray(tokens["position_mm"], dtype=np.float64) - shift_mm
    inside = in_box(position, tokens.get("radius_mm", np.zeros(len(position))), size * spacing)
    moved = {name: np.asarray(values)[inside] for name, values in tokens.items()}
    turn = pose_matrix(pose)
    moved["position_mm"] = (position[inside] @ turn.T).astype(np.float32)
    if "tangent" in tokens:
        moved["tangent"] = (moved["tangent"] @ turn.T).astype(np.float32)
    return moved


def pose_matrix(pose: Pose) -> np.ndarray:
    """(3, 3) of 0, 1 and -1: a direction in the box -> the same direction in the moved sample."""
    matrix = np.diag([-1.0 if flip else 1.0 for flip in pose.flips])
    i, j = pose.plane
    quarter = np.eye(3)
    # np.rot90 in the plane (i, j) turns axis i towards axis j: e_i -> e_j, e_j -> -e_i
    quarter[[i, j]] = quarter[[j, i]]
    quarter[i] *= -1
    return np.linalg.matrix_power(quarter, pose.turns % 4) @ matrix
