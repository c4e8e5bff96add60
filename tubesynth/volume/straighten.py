"""A straightened vessel: the longest path from a root to a tip, and planes across it.

The frames along the path rotate as little as possible (double reflection, Wang et al. 2008,
doi:10.1145/1330511.1330513), so that the straightened picture does not twist.
"""

from dataclasses import dataclass

import numpy as np

from tubesynth.volume.polyline import arc_length, interpolate, smooth, tangents, without_repeats
from tubesynth.volume.vessels import VesselTokens


@dataclass(frozen=True)
class VesselPath:
    """K points at equal steps along a vessel; positions are mm relative to the volume's middle."""

    position_mm: np.ndarray  # (K, 3)
    radius_mm: np.ndarray  # (K,)
    normal: np.ndarray  # (K, 3) unit, across the vessel
    binormal: np.ndarray  # (K, 3) unit, across both
    along_mm: np.ndarray  # (K,) from the root

    def strip(self, half_width_mm: float, step_mm: float) -> np.ndarray:
        """(W, K, 3) mm: positions across the vessel in the direction of the normal."""
        offset = np.arange(-half_width_mm, half_width_mm + step_mm / 2, step_mm)
        return self.position_mm + offset[:, None, None] * self.normal

    def section(self, row: int, half_width_mm: float, step_mm: float) -> np.ndarray:
        """(W, W, 3) mm: positions of the plane across the vessel at one row."""
        offset = np.arange(-half_width_mm, half_width_mm + step_mm / 2, step_mm)
        up, right = offset[:, None, None] * self.normal[row], offset[:, None] * self.binormal[row]
        return self.position_mm[row] + up + right


def longest_path(tokens: VesselTokens, step_mm: float = 0.5) -> VesselPath | None:
    """The path from the root to the tip that is farthest from it; None without two tokens."""
    if len(tokens) < 2:
        return None
    position, distance = np.asarray(tokens.position_mm), np.asarray(tokens.root_distance_mm)
    # rows at which each branch begins and ends
    first = np.flatnonzero(np.diff(tokens.branch, prepend=-1))
    last = np.append(first[1:], len(tokens)) - 1
    # from the farthest tip branch by branch back to the root
    row = int(distance.argmax())
    pieces = []
    while True:
        start = int(first[first <= row][-1])
        pieces.append(np.arange(start, row + 1))
        # A branch begins at the position where its parent ends, at the same root distance.
        mismatch = np.linalg.norm(position[last] - position[start], axis=1)
        mismatch += np.abs(distance[last] - distance[start])
        before = last < start
        if distance[start] < 1e-3 or not before.any() or mismatch[before].min() > 1.0:
            break
        row = int(last[before][mismatch[before].argmin()])
    rows = np.concatenate(pieces[::-1])
    table = np.column_stack([position[rows], np.asarray(tokens.radius_mm)[rows]])
    table = without_repeats(table, tolerance_mm=1e-3)  # (T, 4)
    along = arc_length(table)
    at = np.arange(0, along[-1] + 1e-6, step_mm)  # (K,)
    if len(at) < 2:
        return None
    table = interpolate(table, at, along)  # (K, 4)
    # smoothed: planes across a kinked line would cross each other
    normal, binormal = frames(smooth(table[:, :3], sigma=2.0 / step_mm, truncate=4))
    return VesselPath(table[:, :3], table[:, 3], normal, binormal, at)


def frames(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(K, 3) points, K >= 2 -> normal and binormal, two (K, 3) unit vectors across the line.

    Rotation-minimizing frames by double reflection (Wang et al. 2008, algorithm 1).
    """
    tangent = tangents(points)
    normal = np.empty_like(points)
    # the first normal is across the tangent and the world axis that is least parallel to it
    world_axis = np.eye(3)[np.abs(tangent[0]).argmin()]
    normal[0] = np.cross(tangent[0], world_axis)
    normal[0] /= np.linalg.norm(normal[0])
    for i in range(len(points) - 1):
        # R1 reflects in the plane that bisects p_i and p_i+1: v' = v - 2 (v.c) c / (c.c)
        chord = points[i + 1] - points[i]
        scale = 2 / max(float(chord @ chord), 1e-12)
        n = normal[i] - scale * (chord @ normal[i]) * chord
        t = tangent[i] - scale * (chord @ tangent[i]) * chord
        # R2 reflects in the plane that maps the reflected tangent onto t_i+1
        chord = tangent[i + 1] - t
        n = n - 2 / max(float(chord @ chord), 1e-12) * (chord @ n) * chord
        # against rounding: across the tangent and of unit length again
        n -= (n @ tangent[i + 1]) * tangent[i + 1]
        normal[i + 1] = n / max(np.linalg.norm(n), 1e-9)
    return normal, np.cross(tangent, normal)
