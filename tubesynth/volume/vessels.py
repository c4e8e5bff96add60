"""Vessel tokens: the centreline of a vessel mask as points with radius, direction and branch.

Thinning (thinning.py) -> graph (skeleton.py) -> rooted vessels (vessel_tree.py) -> smooth centre
and radius (centreline.py) -> points at equal steps of arc length, here. Positions are mm relative
to the middle of the volume along its own axes, (index - (shape - 1) / 2) * spacing, so that an
oblique affine changes nothing and a flip is a sign.
"""

from dataclasses import dataclass, fields

import numpy as np

from tubesynth.volume.centreline import directions, refine
from tubesynth.volume.grid import Volume, spacing_of
from tubesynth.volume.skeleton import skeleton_graph
from tubesynth.volume.thinning import VoxelCloud, thin
from tubesynth.volume.vessel_tree import Vessel, arc, rooted_vessels

COLUMNS = ("x", "y", "z", "radius", "tx", "ty", "tz", "branch", "root_distance")


@dataclass(frozen=True)
class VesselTokens:
    """N points of all centrelines, root first, depth first by branch, along a branch from the root.

    A branch runs from a junction or root to the next junction or tip, both included: neighbouring
    branches repeat the junction's position. Consecutive tokens of one branch are joined.
    """

    position_mm: np.ndarray  # (N, 3) float32, relative to the middle of the volume
    radius_mm: np.ndarray  # (N,) float32
    tangent: np.ndarray  # (N, 3) float32, unit, away from the root
    branch: np.ndarray  # (N,) int32, from 0 in the order of the tokens
    root_distance_mm: np.ndarray  # (N,) float32, along the tree; each component has its own root

    def __len__(self) -> int:
        return len(self.radius_mm)

    def to_array(self) -> np.ndarray:
        """(N, 9) float32 with the columns of COLUMNS."""
        parts = [np.asarray(getattr(self, f.name), np.float32) for f in fields(self)]
        return np.column_stack(parts).astype(np.float32).reshape(-1, len(COLUMNS))

    @classmethod
    def from_array(cls, array: np.ndarray) -> "VesselTokens":
        """The inverse of to_array."""
        array = np.asarray(array, dtype=np.float32)
        assert array.ndim == 2 and array.shape[1] == len(COLUMNS), f"{array.shape} is not (N, 9)"
        branch = np.round(array[:, 7]).astype(np.int32)
        return cls(array[:, :3], array[:, 3], array[:, 4:7], branch, array[:, 8])


def extract_tokens(
    vessel_mask: np.ndarray,
    affine: np.ndarray,
    step_mm: float = 1.0,
    root_mask: np.ndarray | None = None,
) -> VesselTokens:
    """The tokens of a mask (X, Y, Z), at most step_mm apart, equally spaced along each branch.

    root_mask: (X, Y, Z) where the vessels come from, such as the aorta: the end of each component
    that is nearest to it is the root. Without one, each component's widest end is. An empty mask
    has no tokens, and neither has a voxel that touches no other.
    """
    spacing = np.round(spacing_of(affine), 6)  # or an oblique affine's last digits break ties
    cloud = thin(np.asarray(vessel_mask, dtype=bool), spacing)
    if cloud is None:
        return VesselTokens.from_array(np.zeros((0, len(COLUMNS))))
    vessels = rooted_vessels(skeleton_graph(cloud), root_points(root_mask, spacing))
    table = resampled(refine(vessels, cloud), step_mm)
    table[:, :3] = held_in_mask(table[:, :3], cloud)
    return VesselTokens.from_array(table)


def place_tokens(tokens: VesselTokens, source: Volume, shape, affine) -> VesselTokens:
    """The tokens of a label map on another grid of the same world: relative to its middle, along
    its axes. Those whose vessel lies outside it are left out.
    """
    target = np.asarray(affine, dtype=np.float64)
    shape = np.array(shape)
    into = np.linalg.inv(target[:3, :3] / spacing_of(target))
    turn = into @ (source.affine[:3, :3] / source.spacing)
    middle = target[:3, :3] @ ((shape - 1) / 2) + target[:3, 3]
    position = tokens.position_mm @ turn.T + into @ (source.center_mm - middle)
    kept = in_box(position, tokens.radius_mm, shape * spacing_of(target))
    columns = {name: np.asarray(values)[kept] for name, values in vars(tokens).items()}
    columns["position_mm"] = position[kept].astype(np.float32)
    columns["tangent"] = (columns["tangent"] @ turn.T).astype(np.float32)
    return VesselTokens(**columns)


def in_box(position_mm: np.ndarray, radius_mm, sides_mm: np.ndarray) -> np.ndarray:
    """(N,) bool: which points (N, 3), relative to a box's middle, lie in it or a radius off it."""
    return (np.abs(position_mm) <= sides_mm / 2 + np.asarray(radius_mm)[:, None]).all(axis=1)


def root_points(root_mask: np.ndarray | None, spacing: np.ndarray) -> np.ndarray | None:
    """(P, 3) mm: at most some thousand voxels of the mask, evenly taken."""
    if root_mask is None or not np.any(root_mask):
        return None
    found = np.flatnonzero(root_mask)
    found = found[:: 1 + len(found) // 5000]
    index = np.stack(np.unravel_index(found, root_mask.shape), axis=1)
    return (index - (np.array(root_mask.shape) - 1) / 2) * spacing


def resampled(vessels: list[Vessel], step_mm: float) -> np.ndarray:
    """Dense vessels -> (N, 9) rows, depth first: at a junction the vessel goes on, then others."""
    rows, count = [], 0
    children: dict[tuple[int, int], list[int]] = {}
    for number, vessel in enumerate(vessels):
        if vessel.parent is not None:
            children.setdefault(vessel.parent, []).append(number)
    along = [arc(vessel.points) for vessel in vessels]
    waiting = [(n, 0, 0.0) for n, vessel in enumerate(vessels) if vessel.parent is None][::-1]
    while waiting:
        number, piece, start_mm = waiting.pop()
        vessel = vessels[number]
        first, last = vessel.stops[piece : piece + 2]
        length = along[number][last] - along[number][first]
        if length > 0:
            rows.append(spaced(vessel.points, step_mm, count, start_mm, first, last))
            count += 1
        start_mm += length
        onward = [(child, 0, start_mm) for child in children.get((number, piece + 1), [])]
        if piece + 2 < len(vessel.stops):
            onward.insert(0, (number, piece + 1, start_mm))
        waiting += onward[::-1]
    return np.vstack(rows) if rows else np.zeros((0, len(COLUMNS)))


def spaced(
    points: np.ndarray, step_mm: float, branch: int, start_mm: float, first=0, last=-1
) -> np.ndarray:
    """Points (K, 4) from row `first` to row `last` -> (N, 9) rows of one branch, equally far apart,
    at most step_mm; start_mm: the root distance at its first.
    """
    along = arc(points)
    begin, end = along[first], along[last]
    steps = max(int(np.ceil((end - begin) / step_mm - 1e-6)), 1)
    at = np.linspace(begin, end, steps + 1)
    row = [np.interp(at, along, column) for column in points.T]
    tangent = directions(points)[np.searchsorted(along, at - 1e-6)]
    return np.column_stack([*row, tangent, np.full(len(at), branch), start_mm + at - begin])


def held_in_mask(points: np.ndarray, cloud: VoxelCloud) -> np.ndarray:
    """(N, 3) mm; where smoothing led more than a voxel off the mask, back to a voxel from it."""
    from scipy.spatial import cKDTree

    gap, voxel = cKDTree(cloud.inside / cloud.spacing).query(points / cloud.spacing)
    home = cloud.inside[voxel]
    return home + (points - home) / np.maximum(gap, 1)[:, None]
