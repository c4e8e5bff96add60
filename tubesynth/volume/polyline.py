"""Polylines: arc length, resampling, smoothing, tangents, and the distance to a segment.

A polyline is an array (K, C) of K points in order. Columns 0 to 2 are x, y, z in mm; the others,
such as the radius in mm, are values at the points that vary linearly between them.
"""

import numpy as np


def segment_lengths(points: np.ndarray) -> np.ndarray:
    """(K, C) -> (K - 1,) mm: the distance from each point to the next."""
    return np.linalg.norm(np.diff(points[:, :3], axis=0), axis=1)


def arc_length(points: np.ndarray) -> np.ndarray:
    """(K, C) -> (K,) mm: the distance of each point from the first, along the polyline."""
    return np.concatenate([[0.0], np.cumsum(segment_lengths(points))])


def total_length(points: np.ndarray) -> float:
    """Length of the polyline in mm."""
    return float(segment_lengths(points).sum())


def interpolate(points: np.ndarray, at: np.ndarray, along: np.ndarray | None = None) -> np.ndarray:
    """(K, C) points -> (M, C) points at the positions `at` (M,), linear between the points.

    along: (K,) increasing position of each point; the arc length in mm if None.
    """
    along = arc_length(points) if along is None else along
    return np.column_stack([np.interp(at, along, column) for column in points.T])


def resample(points: np.ndarray, num_points: int) -> np.ndarray:
    """(K, C) -> (num_points, C) at equal steps of arc length; both ends stay."""
    along = arc_length(points)
    return interpolate(points, np.linspace(0, along[-1], num_points), along)


def resample_to_step(points: np.ndarray, step_mm: float) -> np.ndarray:
    """(K, C) -> (M, C) at equal steps of arc length, as near to step_mm as both ends allow."""
    return resample(points, max(int(round(arc_length(points)[-1] / step_mm)), 1) + 1)


def densify(points: np.ndarray, step_mm: float) -> np.ndarray:
    """(K, C) -> (M, C): the same polyline with its corners, points at most step_mm apart."""
    along = arc_length(points)
    # each segment [a, b) in ceil((b - a) / step) equal parts; the last point closes the polyline
    positions = [
        np.linspace(a, b, max(1, int(np.ceil((b - a) / step_mm))), endpoint=False)
        for a, b in zip(along[:-1], along[1:], strict=True)
    ]
    return interpolate(points, np.concatenate([*positions, along[-1:]]), along)


def decimate(points: np.ndarray, every: int) -> np.ndarray:
    """(K, C) -> (M, C): each `every`-th point from the first, and the last."""
    rows = np.unique(np.append(np.arange(0, len(points), every), len(points) - 1))
    return points[rows]


def without_repeats(points: np.ndarray, tolerance_mm: float = 0.0) -> np.ndarray:
    """(K, C) -> (M, C) without the points at most tolerance_mm from the point before them."""
    return points[np.append(True, np.diff(arc_length(points)) > tolerance_mm)]


def tangents(points: np.ndarray) -> np.ndarray:
    """(K, C), K >= 2 -> (K, 3) unit vectors along the polyline, by central differences.

    Where the difference vanishes (the path turns back on itself) the last tangent before it holds.
    """
    difference = np.gradient(points[:, :3], axis=0)  # (K, 3)
    size = np.linalg.norm(difference, axis=1)  # (K,)
    # row[k]: the last row up to k with a direction; before the first such row, that row
    row = np.maximum.accumulate(np.where(size > 1e-6, np.arange(len(size)), 0))
    row = np.where(size[row] > 1e-6, row, (size > 1e-6).argmax())
    return difference[row] / np.maximum(size[row], 1e-9)[:, None]


def smooth(points: np.ndarray, sigma: float) -> np.ndarray:
    """(K, C) -> (K, C): Gaussian mean over the rows; both ends and straight lines stay.

    sigma: standard deviation in rows; the kernel ends at 3 sigma. Beyond an end p_0 the polyline is
    continued by point reflection, p_-k = 2 p_0 - p_k.
    """
    from scipy.ndimage import gaussian_filter1d

    pad = int(3 * sigma + 1.5)  # at least the kernel's half width, int(3 sigma + 0.5)
    padded = np.pad(points, ((pad, pad), (0, 0)), mode="reflect", reflect_type="odd")
    return gaussian_filter1d(padded, sigma, axis=0, truncate=3.0)[pad:-pad]


def relax(points: np.ndarray, weight: float) -> None:
    """One Laplacian smoothing step in place: p_k += weight (p_k-1 + p_k+1 - 2 p_k); ends stay."""
    points[1:-1] += weight * (points[:-2] + points[2:] - 2 * points[1:-1])


def hermite_curve(waypoints, step_mm: float = 1.0) -> np.ndarray:
    """(N, C) waypoints -> (M, C): a smooth curve through them, resampled to about step_mm.

    Positions follow the cubic Hermite spline over the chord length s, with the slopes dp/ds by
    central differences. Columns after the third, such as radii, are linear: no overshoot.
    """
    waypoints = np.asarray(waypoints, np.float64)
    points = waypoints[:, :3]
    chord = arc_length(points)  # (N,)
    fine = np.linspace(0, chord[-1], max(int(chord[-1] / step_mm) * 4, 8))  # (F,)
    # each of the F positions lies in the interval [first, first + 1], at t in [0, 1]
    first = np.clip(np.searchsorted(chord, fine, side="right") - 1, 0, len(chord) - 2)
    width = np.diff(chord)[first, None]  # (F, 1)
    t = (fine - chord[first])[:, None] / width
    slope = np.gradient(points, chord, axis=0)  # (N, 3)
    # p(t) = h00 p_i + h01 p_i+1 + width (h10 m_i + h11 m_i+1), the four Hermite basis polynomials
    curve = (
        (2 * t**3 - 3 * t**2 + 1) * points[first]
        + (3 * t**2 - 2 * t**3) * points[first + 1]
        + width * (t**3 - 2 * t**2 + t) * slope[first]
        + width * (t**3 - t**2) * slope[first + 1]
    )
    values = [np.interp(fine, chord, column) for column in waypoints[:, 3:].T]
    return resample_to_step(np.column_stack([curve, *values]), step_mm)


def point_tree(points: np.ndarray):
    """A scipy KDTree of points (K, D), for the distances of other points to the nearest of them."""
    from scipy.spatial import KDTree

    # Which of two equally near points is returned depends on the leaf size, and tokens with it.
    return KDTree(points, leafsize=16)


def squared_distance_to_segment(axes, start, end) -> tuple[np.ndarray, np.ndarray]:
    """Distance of grid points to a segment: (squared distance in mm^2, position t in [0, 1]).

    axes: x, y, z coordinates in mm of the grid, each (n,) float32; both results are (X, Y, Z).
    start, end: (3,) mm. With d = end - start and p = point - start, t = clip(p.d / d.d, 0, 1) and
    the squared distance is |p - t d|^2.
    """
    d = end - start
    x = (axes[0] - start[0])[:, None, None]
    y = (axes[1] - start[1])[None, :, None]
    z = (axes[2] - start[2])[None, None, :]
    t = np.clip((x * d[0] + y * d[1] + z * d[2]) / max(float(d @ d), 1e-9), 0, 1)
    x, y, z = x - t * d[0], y - t * d[1], z - t * d[2]
    return x * x + y * y + z * z, t
