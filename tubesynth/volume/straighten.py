"""Straightened vessels: the main paths from a root to a tip, and planes along and across them.

The frames along the path rotate as little as possible (double reflection, Wang et al. 2008,
doi:10.1145/1330511.1330513), so that the straightened picture does not twist.
"""

from dataclasses import dataclass

import numpy as np

from tubesynth.volume.polyline import arc_length, interpolate, smooth, tangents, without_repeats
from tubesynth.volume.vessels import VesselTokens

CENTER_MM = 1.5  # standard deviation of the Gaussian that smooths a path, and again its frames
LEAST_MM = 5.0  # of a path beyond those before it
JUNCTION_MM = 1.5  # between the start of a branch and its parent's token, along and across


@dataclass(frozen=True)
class VesselPath:
    """K points at equal steps along a vessel; positions are mm relative to the volume's middle."""

    position_mm: np.ndarray  # (K, 3)
    radius_mm: np.ndarray  # (K,)
    normal: np.ndarray  # (K, 3) unit, across the vessel
    binormal: np.ndarray  # (K, 3) unit, across both
    along_mm: np.ndarray  # (K,) from the root
    branch: int  # of the tokens, at the tip

    def strip(self, half_width_mm: float, step_mm: float) -> np.ndarray:
        """(W, K, 3) mm: positions across the vessel in the direction of the normal."""
        offset = np.arange(-half_width_mm, half_width_mm + step_mm / 2, step_mm)
        return self.position_mm + offset[:, None, None] * self.normal

    def section(self, row: int, half_width_mm: float, step_mm: float) -> np.ndarray:
        """(W, W, 3) mm: positions of the plane across the vessel at one row."""
        offset = np.arange(-half_width_mm, half_width_mm + step_mm / 2, step_mm)
        up, right = offset[:, None, None] * self.normal[row], offset[:, None] * self.binormal[row]
        return self.position_mm[row] + up + right


def main_paths(tokens: VesselTokens, count: int = 3, step_mm: float = 0.5) -> list[VesselPath]:
    """At most `count` paths from a root to a tip, each the one that adds most to those before it.

    The first is the longest. A path that adds less than LEAST_MM is left out.
    """
    if len(tokens) < 2:
        return []
    position, distance = np.asarray(tokens.position_mm), np.asarray(tokens.root_distance_mm)
    # rows at which each branch begins and ends
    first = np.flatnonzero(np.diff(tokens.branch, prepend=-1))
    last = np.append(first[1:], len(tokens)) - 1
    length = np.diff(distance, prepend=0)  # (T,) mm from the token before
    length[first] = 0
    candidates = [_rows_from_root(position, distance, first, row) for row in last]
    covered = np.zeros(len(tokens), dtype=bool)
    paths = []
    for _ in range(count):
        added = [length[rows][~covered[rows]].sum() for rows in candidates]
        rows = candidates[int(np.argmax(added))]
        if max(added) < LEAST_MM:
            break
        covered[rows] = True
        table = np.column_stack([position[rows], np.asarray(tokens.radius_mm)[rows]])
        table = without_repeats(table, tolerance_mm=1e-3)  # (T, 4)
        along = arc_length(table)
        at = np.arange(0, along[-1] + 1e-6, step_mm)  # (K,)
        table = interpolate(table, at, along)  # (K, 4)
        # smoothed: planes across a kinked line would cross each other
        center = smooth(table[:, :3], sigma=CENTER_MM / step_mm)
        normal, binormal = frames(smooth(center, sigma=CENTER_MM / step_mm))
        branch = int(tokens.branch[rows[-1]])
        paths.append(VesselPath(center, table[:, 3], normal, binormal, at, branch))
    return paths


def _rows_from_root(
    position: np.ndarray, distance: np.ndarray, first: np.ndarray, row: int
) -> np.ndarray:
    """The tokens from the root to a row; first: (B,) the rows at which branches begin."""
    pieces = []
    while True:
        start = int(first[first <= row][-1])
        pieces.append(np.arange(start, row + 1))
        # A branch begins near a token of its parent, at about the same root distance.
        mismatch = np.linalg.norm(position[:start] - position[start], axis=1)
        mismatch += np.abs(distance[:start] - distance[start])
        if distance[start] < 1e-3 or mismatch.min(initial=np.inf) > JUNCTION_MM:
            return np.concatenate(pieces[::-1])
        row = int(mismatch.argmin())


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
