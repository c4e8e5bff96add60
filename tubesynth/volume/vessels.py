"""Vessel tokens: the centreline of a vessel mask as points with radius, direction and branch.

Thinning (thinning.py) -> graph (skeleton.py) -> rooted vessels (vessel_tree.py) -> smooth centre
and radius (centreline.py) -> points at equal steps of arc length, here. Positions are mm relative
to the middle of the volume along its own axes, (index - (shape - 1) / 2) * spacing, so that an
oblique affine changes nothing and a flip is a sign.
"""

from dataclasses import dataclass, fields

import numpy as np

from tubesynth.volume.centreline import directions, refine
from tubesynth.volume.grid import spacing_of
from tubesynth.volume.skeleton import skeleton_graph
from tubesynth.volume.thinning import thin
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
    spacing = spacing_of(affine)
    cloud = thin(np.asarray(vessel_mask, dtype=bool), spacing)
    if cloud is None:
        return VesselTokens.from_array(np.zeros((0, len(COLUMNS))))
    vessels = rooted_vessels(skeleton_graph(cloud), root_points(root_mask, spacing))
    return resampled(refine(vessels, cloud), step_mm)


def root_points(root_mask: np.ndarray | None, spacing: np.ndarray) -> np.ndarray | None:
    """(P, 3) mm: at most some thousand voxels of the mask, evenly taken."""
    if root_mask is None or not np.any(root_mask):
        return None
    found = np.flatnonzero(root_mask)
    found = found[:: 1 + len(found) // 5000]
    index = np.stack(np.unravel_index(found, root_mask.shape), axis=1)
    return (index - (np.array(root_mask.shape) - 1) / 2) * spacing


def resampled(vessels: list[Vessel], step_mm: float) -> VesselTokens:
    """Dense vessels -> tokens, depth first: at a junction the vessel goes on, then the others."""
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
        first, last = along[number][vessel.stops[piece : piece + 2]]
        if last > first:
            steps = max(int(np.ceil((last - first) / step_mm - 1e-6)), 1)
            at = np.linspace(first, last, steps + 1)
            values = np.column_stack([vessel.points, directions(vessel.points)])
            values = np.column_stack([np.interp(at, along[number], v) for v in values.T])
            values[:, 4:7] /= np.maximum(
                np.linalg.norm(values[:, 4:7], axis=1, keepdims=True), 1e-9
            )
            rows.append(np.column_stack([values, np.full(len(at), count), start_mm + at - first]))
            count += 1
        start_mm += last - first
        onward = [(child, 0, start_mm) for child in children.get((number, piece + 1), [])]
        if piece + 2 < len(vessel.stops):
            onward.insert(0, (number, piece + 1, start_mm))
        waiting += onward[::-1]
    table = np.vstack(rows) if rows else np.zeros((0, len(COLUMNS)))
    return VesselTokens.from_array(table)
