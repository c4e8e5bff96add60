"""From voxel paths to smooth vessels: the center at sub-voxel precision and the radius, in mm.

Each voxel of the mask belongs to the vessel point with the smallest power distance
|x - c|^2 - r^2 (Aurenhammer 1987, doi:10.1137/0216006), which leaves the voxels of a wide vessel to
the wide vessel. The center moves to the mean of its voxels, and the radius is that of a tube with
their volume per length: counting has no bias where a vessel is two voxels across, while the
distance transform of a mask is off by half a voxel. The first points of a vessel that still lie
inside its parent take their values from further out.

A vessel's points are (K, 4): x, y, z, radius. Voxels are (N, 3) mm.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from tubesynth.volume.polyline import (
    arc_length,
    interpolate,
    point_tree,
    resample,
    smooth,
    tangents,
)
from tubesynth.volume.thinning import VoxelCloud
from tubesynth.volume.vessel_tree import Vessel

VOXEL_LIMIT = 60_000  # of a larger mask only every second (third, fourth) voxel is used
WINDOW_MM = 1.0  # smallest standard deviation of the Gaussian means along a vessel
ROUNDS = 2


def refine(vessels: list[Vessel], cloud: VoxelCloud) -> list[Vessel]:
    """The same vessels with dense points: smooth, centered, as long as the mask, with their radius.

    A piece that was thinned to a single voxel becomes a short line. It is dropped if the piece of
    the mask itself is a single voxel.
    """
    stride = -(-len(cloud.inside) // VOXEL_LIMIT)
    voxels = cloud.inside[::stride]  # (N, 3)
    voxel_mm3 = float(np.prod(cloud.spacing)) * stride
    surface = point_tree(cloud.outside)
    step_mm = float(cloud.spacing.min()) / 2
    if any(len(vessel.points) == 1 for vessel in vessels):
        vessels, voxels = _expand_single_points(vessels, voxels, step_mm)
        if not vessels:
            return []
    vessels = [_smooth_staircase(vessel, step_mm) for vessel in vessels]
    for round_number in range(ROUNDS):
        hidden = [_rows_inside_parent(vessel, vessels, 0.0) for vessel in vessels]
        refined: list[Vessel] = []  # parents come first, so a vessel's parent is in it already
        for vessel, skip, (number, row) in zip(
            vessels, hidden, _assign_voxels(vessels, hidden, voxels), strict=True
        ):
            members = voxels[number]  # (M, 3)
            vessel = _center(vessel, members, row, skip, refined, cloud.spacing)
            if round_number == 0:
                vessel = _extend_free_ends(vessel, members, row, step_mm)
            else:
                overlap = max(skip, _rows_inside_parent(vessel, refined, 0.5))
                vessel = _measure_radius(
                    vessel, members, row, overlap, voxel_mm3, surface, cloud.spacing
                )
            refined.append(vessel)
        vessels = refined
    return vessels


def _expand_single_points(
    vessels: list[Vessel], voxels: np.ndarray, step_mm: float
) -> tuple[list[Vessel], np.ndarray]:
    """Vessels of one point become short lines; vessels of one voxel are removed with their voxels.

    Vessels of one point are whole components and come last, so that no vessel's number changes.
    """
    lines, single_voxels = [], []
    for vessel, (number, _) in zip(
        vessels, _assign_voxels(vessels, [0] * len(vessels), voxels), strict=True
    ):
        if len(vessel.points) > 1:
            lines.append(vessel)
        elif len(number) > 1:
            lines.append(_ellipsoid_axis(vessel, voxels[number], step_mm))
        else:
            single_voxels.append(number)
    if single_voxels:
        voxels = np.delete(voxels, np.concatenate(single_voxels), axis=0)
    return lines, voxels


def _ellipsoid_axis(vessel: Vessel, members: np.ndarray, step_mm: float) -> Vessel:
    """A line along the longest axis of the voxels (M, 3), from focus to focus of their ellipsoid.

    A solid ellipsoid with half axes a >= b has the variances a^2 / 5 and b^2 / 5, and its foci lie
    sqrt(a^2 - b^2) = sqrt(5 (var_a - var_b)) from its middle.
    """
    variance, axes = np.linalg.eigh(np.cov(members.T))  # (3,) ascending, (3, 3) columns
    half_mm = np.sqrt(5 * max(variance[2] - variance[1], 0)) + step_mm / 2
    axis = axes[:, 2] * np.sign(axes[np.abs(axes[:, 2]).argmax(), 2])  # its sign made unique
    line = members.mean(axis=0) + np.linspace(-half_mm, half_mm, 3)[:, None] * axis  # (3, 3)
    points = np.column_stack([line, np.full(3, vessel.points[0, 3])])
    return Vessel(points, [0, 2], None, False, False)


def _window_rows(vessel: Vessel) -> float:
    """Standard deviation in rows of the means along a vessel; wide vessels bend more slowly."""
    points = vessel.points
    row_mm = max(arc_length(points)[-1] / (len(points) - 1), 1e-6)
    return max(WINDOW_MM, float(np.median(points[:, 3])) / 2) / row_mm


def _windowed_sum(values: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian sum of (K,) or (K, C) along the rows; beyond the ends all values are zero."""
    from scipy.ndimage import gaussian_filter1d

    return gaussian_filter1d(values, sigma, axis=0, mode="constant", truncate=3)


def _smooth_staircase(vessel: Vessel, step_mm: float) -> Vessel:
    """The staircase of voxels as a smooth line, with points about step_mm apart."""
    chain = smooth(vessel.points, 1.5)  # (K, 4)
    chain[:, 3] = np.maximum(chain[:, 3], step_mm / 2)
    along = arc_length(chain)
    num_points = max(int(np.ceil(along[-1] / step_mm)), 2) + 1
    # the stops keep their arc length: row = along / length * (num_points - 1)
    stops = np.round(along[vessel.stops] / along[-1] * (num_points - 1)).astype(int).tolist()
    return replace(vessel, points=resample(chain, num_points), stops=stops)


def _rows_inside_parent(vessel: Vessel, vessels: list[Vessel], margin: float) -> int:
    """Number of first points that lie within the parent's radius plus `margin` times their radius.

    This is the first row k with |c_k - p| >= R + margin r_k, where p is the parent's nearest point
    and R its radius; all rows if there is none.
    """
    if vessel.parent is None:
        return 0
    parent = vessels[vessel.parent[0]].points
    distance, nearest = point_tree(parent[:, :3]).query(vessel.points[:, :3])  # (K,), (K,)
    outside = np.flatnonzero(distance >= parent[nearest, 3] + margin * vessel.points[:, 3])
    return int(outside[0]) if len(outside) else len(distance)


def _assign_voxels(
    vessels: list[Vessel], hidden: list[int], voxels: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield for each vessel its voxels' numbers (M,) and the row of the point of each (M,).

    hidden: for each vessel the number of first points that get no voxels.
    """
    # all points of all vessels in one list: vessel number and row of each
    sizes = np.array([len(vessel.points) for vessel in vessels])
    points = np.vstack([vessel.points for vessel in vessels])  # (P, 4)
    vessel_number = np.repeat(np.arange(len(vessels)), sizes)
    row = np.concatenate([np.arange(size) for size in sizes])
    visible = np.flatnonzero(row >= np.array(hidden)[vessel_number])
    # The power distance as an ordinary one in four dimensions: with w = sqrt(r_max^2 - r^2),
    # |(x, 0) - (c, w)|^2 = |x - c|^2 - r^2 + r_max^2.
    radius = points[visible, 3]
    # np.square: x**2 of a scalar and of an array may be rounded differently
    lift = np.sqrt(np.square(radius.max()) - np.square(radius))
    tree = point_tree(np.column_stack([points[visible, :3], lift]))
    owner = visible[tree.query(np.column_stack([voxels, np.zeros(len(voxels))]))[1]]  # (N,)
    # sorted by owner, the voxels of each vessel are one run
    order = np.argsort(owner, kind="stable")
    bounds = np.searchsorted(vessel_number[owner[order]], np.arange(len(vessels) + 1))
    for first, last in zip(bounds[:-1], bounds[1:], strict=True):
        yield order[first:last], row[owner[order[first:last]]]


def _center(
    vessel: Vessel,
    members: np.ndarray,
    row: np.ndarray,
    skip: int,
    refined: list[Vessel],
    spacing: np.ndarray,
) -> Vessel:
    """Move each point, across the vessel, to the Gaussian mean of the voxels around it.

    members: (M, 3) voxels of the vessel, row (M,) the point that each belongs to; skip: number of
    first points inside the parent, which is in `refined`.
    """
    points, size = vessel.points, len(vessel.points)
    sigma = _window_rows(vessel)
    # The tangent of the smooth line: across each kink of the staircase, points could change order.
    tangent = tangents(smooth(points[:, :3], 2 * sigma))  # (K, 3)
    # mean offset of row k: sum_j G(k - j) (offsets of row j) / sum_j G(k - j) (voxels of row j)
    offset = members - points[row, :3]  # (M, 3)
    count = _windowed_sum(np.bincount(row, minlength=size).astype(float), sigma)  # (K,)
    offset_sum = np.column_stack([np.bincount(row, offset[:, axis], size) for axis in range(3)])
    shift = _windowed_sum(offset_sum, sigma) / np.maximum(count, 1e-6)[:, None]  # (K, 3)
    # only the component across the vessel, s - (s.t) t, and at most one voxel long
    shift -= (shift * tangent).sum(axis=1, keepdims=True) * tangent
    limit = spacing.mean() / np.maximum(np.linalg.norm(shift, axis=1, keepdims=True), 1e-9)
    shift *= np.minimum(limit, 1)
    if vessel.parent is not None:
        # the first point lies on the parent; inside the parent the shift is blended linearly into
        # that of the first point outside
        parent = refined[vessel.parent[0]]
        start = parent.points[parent.stops[vessel.parent[1]], :3] - points[0, :3]
        skip = min(max(skip, 3), size - 1)
        blend = np.linspace(1, 0, skip, endpoint=False)[:, None]
        shift[:skip] = blend * start + (1 - blend) * shift[skip]
    position = smooth(points[:, :3] + shift, 0.7 * sigma)
    return _space_evenly(replace(vessel, points=np.column_stack([position, points[:, 3]])))


def _space_evenly(vessel: Vessel) -> Vessel:
    """The same number of points, equally far apart within each branch."""
    along = arc_length(vessel.points)
    at = np.interp(np.arange(len(along)), vessel.stops, along[vessel.stops])
    return replace(vessel, points=interpolate(vessel.points, at, along))


def _extend_free_ends(
    vessel: Vessel, members: np.ndarray, row: np.ndarray, step_mm: float
) -> Vessel:
    """Extend free ends to the end of the mask: thinning removes about a radius from them."""
    points, stops = vessel.points, vessel.stops
    tangent = tangents(points)
    back = min(int(2.0 / step_mm) + 1, len(points))  # the direction is the mean over 2 mm
    extensions = []
    for is_free, end, outward in (
        (vessel.free_start, 0, -tangent[:back].mean(axis=0)),
        (vessel.free_end, len(points) - 1, tangent[-back:].mean(axis=0)),
    ):
        # reach of the end's voxels, max (x - c).u, less half a radius for the round end
        beyond = ((members[np.abs(row - end) <= 1] - points[end, :3]) @ outward) if is_free else []
        reach_mm = max(beyond, default=0.0) - points[end, 3] / 2
        num_steps = int(np.clip(reach_mm, 0, 4 * points[end, 3]) / step_mm)
        distance = np.arange(1, num_steps + 1) * step_mm
        line = points[end, :3] + distance[:, None] * outward
        extensions.append(np.column_stack([line, np.full(len(line), points[end, 3])]))
    before, after = extensions[0][::-1], extensions[1]
    stops = [0] + [stop + len(before) for stop in stops[1:]]
    stops[-1] += len(after)
    return replace(vessel, points=np.vstack([before, points, after]), stops=stops)


def _measure_radius(
    vessel: Vessel,
    members: np.ndarray,
    row: np.ndarray,
    overlap: int,
    voxel_mm3: float,
    surface,
    spacing: np.ndarray,
) -> Vessel:
    """Radius from the voxels' volume per length, nowhere less than the largest ball inside.

    pi r_k^2 = sum_j G(k - j) V_j / sum_j G(k - j) l_j, with the volume V_j (mm^3) and the length
    l_j (mm) of row j. overlap: number of first rows in the parent, which count in neither sum.
    surface: tree of the voxels outside.
    """
    points, size = vessel.points, len(vessel.points)
    along, tangent = arc_length(points), tangents(points)
    if along[-1] < 2 * spacing.max():
        # Too short for cross-sections. A line with round ends has V = pi r^2 (L + 4/3 r): solved
        # for r by fixed-point iteration.
        radius = points[0, 3]
        for _ in range(20):
            radius = np.sqrt(len(members) * voxel_mm3 / np.pi / (along[-1] + 4 / 3 * radius))
        radius = np.full(size, max(radius, spacing.min() / 4))
        return replace(vessel, points=np.column_stack([points[:, :3], radius]))
    row_mm = np.gradient(along)  # (K,) length of each row
    sigma = _window_rows(vessel)
    ahead = ((members - points[row, :3]) * tangent[row]).sum(axis=1)  # (M,) mm along the vessel
    # Of a voxel across an end only the part before it counts; the rest is in no cross-section.
    # extent: (K,) length of a voxel along the vessel, sum_a |t_a| spacing_a
    extent = np.abs(tangent) @ spacing
    fraction = np.ones(len(members))
    for end, beyond in ((0, -ahead), (size - 1, ahead)):
        before_end = ((row_mm[end] / 2 - beyond) / extent[end] + 0.5).clip(0, 1)
        fraction = np.where(row == end, np.minimum(fraction, before_end), fraction)
    # Each voxel is split linearly between the two rows around it: rows and voxel layers have
    # different steps, and counted in the nearest row alone, some rows would get no voxel.
    position = (row + ahead / row_mm[row]).clip(0, size - 1)  # (M,) in rows
    lower = position.astype(int)
    upper = np.minimum(lower + 1, size - 1)
    is_used = np.arange(size) >= overlap
    count = np.bincount(lower, fraction * (lower + 1 - position), size)
    count = (count + np.bincount(upper, fraction * (position - lower), size)) * is_used  # (K,)
    length = _windowed_sum(row_mm * is_used, sigma)
    volume = _windowed_sum(count * voxel_mm3, sigma)
    radius = np.sqrt(volume / np.maximum(length, 1e-6) / np.pi)
    measured = np.flatnonzero(is_used & (length > 0))
    if len(measured) == 0:
        return vessel
    radius = np.interp(np.arange(size), measured, radius[measured])
    # the inscribed ball: distance to the nearest voxel center outside, less half a voxel
    inscribed = surface.query(points[:, :3])[0] - spacing.max() / 2
    radius = np.maximum(np.maximum(radius, inscribed), spacing.min() / 4)
    return replace(vessel, points=np.column_stack([points[:, :3], radius]))
