"""Vessel tokens: the centreline of a vessel mask as points with radius, direction and branch.

Thinning (thinning.py) -> graph (skeleton.py) -> rooted vessels (vessel_tree.py) -> smooth center
and radius (centreline.py) -> points at equal steps of arc length (this file). Positions are mm
relative to the middle of the volume along its own axes, (index - (shape - 1) / 2) * spacing, so
that an oblique affine changes nothing and a flip is a sign.
"""

from dataclasses import dataclass, fields

import numpy as np

from tubesynth.volume.centreline import refine
from tubesynth.volume.grid import Volume, spacing_of
from tubesynth.volume.polyline import arc_length, interpolate, point_tree, tangents
from tubesynth.volume.skeleton import skeleton_graph
from tubesynth.volume.thinning import VoxelCloud, thin
from tubesynth.volume.vessel_tree import Vessel, rooted_vessels

COLUMNS = ("x", "y", "z", "radius", "tx", "ty", "tz", "branch", "root_distance")


@dataclass(frozen=True)
class VesselTokens:
    """N points of all centrelines: branch after branch, depth first, each away from the root.

    A branch runs from a junction or root to the next junction or tip, both included: neighboring
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
        columns = [np.asarray(getattr(self, f.name), np.float32) for f in fields(self)]
        return np.column_stack(columns).astype(np.float32).reshape(-1, len(COLUMNS))

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

    affine: (4, 4), of which only the spacing counts. root_mask: (X, Y, Z), the organ that the
    vessels come from, such as the aorta: the end of each component that is nearest to it is the
    root. Without a root_mask, the widest end of each component is the root. An empty mask and a
    voxel without neighbors have no tokens.
    """
    # rounded, so that rounding errors of an oblique affine decide no tie
    spacing = np.round(spacing_of(affine), 6)
    cloud = thin(np.asarray(vessel_mask, dtype=bool), spacing)
    if cloud is None:
        return VesselTokens.from_array(np.zeros((0, len(COLUMNS))))
    vessels = rooted_vessels(skeleton_graph(cloud), _root_points(root_mask, spacing))
    table = _token_table(refine(vessels, cloud), step_mm)  # (N, 9)
    table[:, :3] = _pull_to_mask(table[:, :3], cloud)
    return VesselTokens.from_array(table)


def place_tokens(tokens: VesselTokens, source: Volume, shape, affine) -> VesselTokens:
    """The tokens of the volume `source` on another grid of the same world.

    shape, affine: of that grid. Positions and tangents become relative to its middle, along its
    axes; tokens whose vessel lies outside it are left out.
    """
    target = np.asarray(affine, dtype=np.float64)
    shape = np.array(shape)
    # Unit axes U_s, U_t and middles m_s, m_t of both grids in the world give
    # p_t = U_t^-1 (U_s p_s + m_s - m_t), and the same without the middles for directions.
    to_target = np.linalg.inv(target[:3, :3] / spacing_of(target))
    rotation = to_target @ (source.affine[:3, :3] / source.spacing)
    middle = target[:3, :3] @ ((shape - 1) / 2) + target[:3, 3]
    position = tokens.position_mm @ rotation.T + to_target @ (source.center_mm - middle)  # (N, 3)
    inside = in_box(position, tokens.radius_mm, shape * spacing_of(target))
    columns = {name: np.asarray(values)[inside] for name, values in vars(tokens).items()}
    columns["position_mm"] = position[inside].astype(np.float32)
    columns["tangent"] = (columns["tangent"] @ rotation.T).astype(np.float32)
    return VesselTokens(**columns)


def in_box(position_mm: np.ndarray, radius_mm, sides_mm: np.ndarray) -> np.ndarray:
    """(N,) bool: points (N, 3), in mm from a box's middle, at most a radius outside of the box."""
    limit = sides_mm / 2 + np.asarray(radius_mm)[:, None]  # (N, 3)
    return np.all(np.abs(position_mm) <= limit, axis=1)


def _root_points(root_mask: np.ndarray | None, spacing: np.ndarray) -> np.ndarray | None:
    """(P, 3) mm: at most 5000 voxels of the mask, in even steps; None if it has none."""
    if root_mask is None or not np.any(root_mask):
        return None
    voxels = np.flatnonzero(root_mask)
    voxels = voxels[:: 1 + len(voxels) // 5000]
    index = np.stack(np.unravel_index(voxels, root_mask.shape), axis=1)
    return (index - (np.array(root_mask.shape) - 1) / 2) * spacing


def _token_table(vessels: list[Vessel], step_mm: float) -> np.ndarray:
    """Dense vessels -> (N, 9) rows of tokens, depth first.

    At a junction the vessel's own continuation comes first, then its children.
    """
    rows: list[np.ndarray] = []
    children: dict[tuple[int, int], list[int]] = {}
    for number, vessel in enumerate(vessels):
        if vessel.parent is not None:
            children.setdefault(vessel.parent, []).append(number)
    along = [arc_length(vessel.points) for vessel in vessels]
    # a stack of (vessel number, branch of the vessel, distance of its start from the root)
    waiting = [(n, 0, 0.0) for n, vessel in enumerate(vessels) if vessel.parent is None][::-1]
    while waiting:
        number, piece, start_mm = waiting.pop()
        vessel = vessels[number]
        first, last = vessel.stops[piece : piece + 2]
        length_mm = along[number][last] - along[number][first]
        if length_mm > 0:
            rows.append(token_rows(vessel.points, step_mm, len(rows), start_mm, first, last))
        start_mm += length_mm
        onward = [(child, 0, start_mm) for child in children.get((number, piece + 1), [])]
        if piece + 2 < len(vessel.stops):
            onward.insert(0, (number, piece + 1, start_mm))
        waiting += onward[::-1]
    return np.vstack(rows) if rows else np.zeros((0, len(COLUMNS)))


def token_rows(
    points: np.ndarray, step_mm: float, branch: int, start_mm: float, first=0, last=-1
) -> np.ndarray:
    """Points (K, 4) from row `first` to row `last` -> (N, 9) rows of tokens of one branch.

    The tokens are equally far apart, at most step_mm. start_mm: the root distance of the first.
    """
    along = arc_length(points)
    begin, end = along[first], along[last]
    num_steps = max(int(np.ceil((end - begin) / step_mm - 1e-6)), 1)
    at = np.linspace(begin, end, num_steps + 1)  # (N,) arc length of the tokens
    values = interpolate(points, at, along)  # (N, 4)
    tangent = tangents(points)[np.searchsorted(along, at - 1e-6)]  # of the next dense point
    return np.column_stack([values, tangent, np.full(len(at), branch), start_mm + at - begin])


def _pull_to_mask(points: np.ndarray, cloud: VoxelCloud) -> np.ndarray:
    """(N, 3) mm: points more than a voxel off the mask are moved back to a distance of one voxel.

    With the nearest voxel v of the mask at the distance g > 1 voxel, p becomes v + (p - v) / g.
    """
    distance, row = point_tree(cloud.inside / cloud.spacing).query(points / cloud.spacing)
    nearest = cloud.inside[row]
    return nearest + (points - nearest) / np.maximum(distance, 1)[:, None]
