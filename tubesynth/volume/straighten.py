"""A vessel pulled straight: the longest way from a root of the tree to a tip, and planes across it.

Frames along the way turn as little as they can (double reflection, Wang et al. 2008,
doi:10.1145/1330511.1330513), so that the straightened picture does not twist.
"""

from dataclasses import dataclass

import numpy as np

from tubesynth.volume.vessels import VesselTokens


@dataclass(frozen=True)
class Way:
    """Points at equal steps along a vessel; positions relative to the volume's middle, in mm."""

    position_mm: np.ndarray  # (K, 3)
    radius_mm: np.ndarray  # (K,)
    normal: np.ndarray  # (K, 3) unit, across the vessel
    binormal: np.ndarray  # (K, 3) unit, across both
    along_mm: np.ndarray  # (K,) from the root

    def strip(self, half_width_mm: float, step_mm: float) -> np.ndarray:
        """(W, K, 3) positions across the vessel, in the direction of the normal."""
        offset = np.arange(-half_width_mm, half_width_mm + step_mm / 2, step_mm)
        return self.position_mm + offset[:, None, None] * self.normal

    def section(self, row: int, half_width_mm: float, step_mm: float) -> np.ndarray:
        """(W, W, 3) positions of the plane across the vessel at one row."""
        offset = np.arange(-half_width_mm, half_width_mm + step_mm / 2, step_mm)
        up, right = offset[:, None, None] * self.normal[row], offset[:, None] * self.binormal[row]
        return self.position_mm[row] + up + right


def longest_path(tokens: VesselTokens, step_mm: float = 0.5) -> Way | None:
    """From the tip that is farthest from its root back to that root; None without two tokens."""
    if len(tokens) < 2:
        return None
    position, distance = np.asarray(tokens.position_mm), np.asarray(tokens.root_distance_mm)
    first = np.flatnonzero(np.diff(tokens.branch, prepend=-1))
    last = np.append(first[1:], len(tokens)) - 1
    row = int(distance.argmax())
    rows = []
    while True:
        start = int(first[first <= row][-1])
        rows.append(np.arange(start, row + 1))
        # A branch repeats the place where its parent ends, and its distance from the root.
        gap = np.linalg.norm(position[last] - position[start], axis=1)
        gap += np.abs(distance[last] - distance[start])
        before = last < start
        if distance[start] < 1e-3 or not before.any() or gap[before].min() > 1.0:
            break
        row = int(last[before][gap[before].argmin()])
    chosen = np.concatenate(rows[::-1])
    table = np.column_stack([position[chosen], np.asarray(tokens.radius_mm)[chosen]])
    steps = np.linalg.norm(np.diff(table[:, :3], axis=0), axis=1)
    kept = np.concatenate([[True], steps > 1e-3])
    table, along = table[kept], np.concatenate([[0.0], np.cumsum(steps)])[kept]
    if len(table) < 2:
        return None
    at = np.arange(0, along[-1] + 1e-6, step_mm)
    if len(at) < 2:
        return None
    table = np.column_stack([np.interp(at, along, column) for column in table.T])
    normal, binormal = frames(smooth(table[:, :3], 2.0 / step_mm))
    return Way(table[:, :3], table[:, 3], normal, binormal, at)


def smooth(points: np.ndarray, sigma: float) -> np.ndarray:
    """(K, 3); planes across a kinked line would cross each other."""
    from scipy.ndimage import gaussian_filter1d

    reach = min(int(4 * sigma), len(points) - 1)
    padded = np.pad(points, ((reach, reach), (0, 0)), mode="reflect", reflect_type="odd")
    return gaussian_filter1d(padded, sigma, axis=0)[reach : reach + len(points)]


def frames(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(K, 3) points, K >= 2 -> two (K, 3) unit vectors across the line, with least rotation."""
    tangent = np.gradient(points, axis=0)
    tangent /= np.maximum(np.linalg.norm(tangent, axis=1, keepdims=True), 1e-9)
    normal = np.empty_like(points)
    helper = np.eye(3)[np.abs(tangent[0]).argmin()]
    normal[0] = np.cross(tangent[0], helper)
    normal[0] /= np.linalg.norm(normal[0])
    for i in range(len(points) - 1):
        chord = points[i + 1] - points[i]
        scale = 2 / max(float(chord @ chord), 1e-12)
        n = normal[i] - scale * (chord @ normal[i]) * chord
        t = tangent[i] - scale * (chord @ tangent[i]) * chord
        chord = tangent[i + 1] - t
        n = n - 2 / max(float(chord @ chord), 1e-12) * (chord @ n) * chord
        n -= (n @ tangent[i + 1]) * tangent[i + 1]
        normal[i + 1] = n / max(np.linalg.norm(n), 1e-9)
    return normal, np.cross(tangent, normal)
