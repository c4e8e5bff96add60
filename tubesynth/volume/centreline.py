"""From voxel paths to smooth vessels: sub-voxel centre and radius. All lengths in mm.

Each voxel of the mask is given to the vessel point it belongs to, by the power distance
|x - c|^2 - r^2, which leaves a wide vessel's voxels to the wide vessel. The centre moves to the
mean of its voxels, and the radius is that of a tube with their volume per length: counting has no
bias where a vessel is two voxels across, while the distance transform of a mask is off by half a
voxel. Where a vessel still runs inside the one it leaves, its values come from further out.
"""

from dataclasses import replace

import numpy as np

from tubesynth.volume.thinning import VoxelCloud
from tubesynth.volume.vessel_tree import Vessel, arc

VOXEL_LIMIT = 60_000  # more say nothing new about a wide vessel: every second, third, ... is taken
WINDOW_MM = 1.0  # at least this, see window
ROUNDS = 2


def refine(vessels: list[Vessel], cloud: VoxelCloud) -> list[Vessel]:
    """The same vessels with dense points, smooth, centred, as long as the mask, and their radius.

    A piece that was thinned to one voxel becomes a short line; where it was one voxel, it goes.
    """
    from scipy.spatial import cKDTree

    stride = -(-len(cloud.inside) // VOXEL_LIMIT)
    voxels, volume = cloud.inside[::stride], float(np.prod(cloud.spacing)) * stride
    surface = cKDTree(cloud.outside)
    step = float(cloud.spacing.min()) / 2
    if any(len(vessel.points) == 1 for vessel in vessels):
        shares = list(assign(vessels, [0] * len(vessels), voxels))
        lone = [
            own
            for vessel, (own, _) in zip(vessels, shares, strict=True)
            if len(vessel.points) == 1 and len(own) <= 1
        ]
        # They are whole components and stand last, so that no vessel's number changes.
        vessels = [
            vessel if len(vessel.points) > 1 else speck(vessel, voxels[own], step)
            for vessel, (own, _) in zip(vessels, shares, strict=True)
            if len(vessel.points) > 1 or len(own) > 1
        ]
        if not vessels:
            return []
        voxels = np.delete(voxels, np.concatenate(lone), axis=0) if lone else voxels
    vessels = [smoothed(vessel, step) for vessel in vessels]
    for round_number in range(ROUNDS):
        hidden = [rows_inside_parent(vessel, vessels, 0.0) for vessel in vessels]
        moved = []
        for vessel, skip, (own, row) in zip(
            vessels, hidden, assign(vessels, hidden, voxels), strict=True
        ):
            own = voxels[own]
            vessel = centred(vessel, own, row, skip, moved, cloud.spacing)
            if round_number == 0:
                vessel = lengthened(vessel, own, row, step)
            else:
                overlap = max(skip, rows_inside_parent(vessel, moved, 0.5))
                vessel = measured(vessel, own, row, overlap, volume, surface, cloud.spacing)
            moved.append(vessel)
        vessels = moved
    return vessels


def directions(points: np.ndarray) -> np.ndarray:
    """(K, >=3) points, K >= 2 -> (K, 3) unit tangents."""
    ahead = np.gradient(points[:, :3], axis=0)
    size = np.linalg.norm(ahead, axis=1)
    # Where a path turns back on itself its direction is the last one it had.
    known = np.maximum.accumulate(np.where(size > 1e-6, np.arange(len(size)), 0))
    known = np.where(size[known] > 1e-6, known, (size > 1e-6).argmax())
    return ahead[known] / np.maximum(size[known], 1e-9)[:, None]


def window(vessel: Vessel) -> float:
    """Standard deviation of the means along a vessel, in rows; wide vessels bend more slowly."""
    points = vessel.points
    row_mm = max(arc(points)[-1] / (len(points) - 1), 1e-6)
    return max(WINDOW_MM, float(np.median(points[:, 3])) / 2) / row_mm


def windowed(values: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian sum of (K,) or (K, C) along the rows; nothing lies beyond the ends."""
    from scipy.ndimage import gaussian_filter1d

    return gaussian_filter1d(values, sigma, axis=0, mode="constant", truncate=3)


def softened(values: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian mean of (K, C) along the rows that leaves both ends and straight lines alone."""
    from scipy.ndimage import gaussian_filter1d

    reach = int(3 * sigma + 1.5)
    padded = np.pad(values, ((reach, reach), (0, 0)), mode="reflect", reflect_type="odd")
    return gaussian_filter1d(padded, sigma, axis=0, truncate=3)[reach:-reach]


def smoothed(vessel: Vessel, step: float) -> Vessel:
    """The voxel staircase as a smooth line, with points `step` apart."""
    chain = softened(vessel.points, 1.5)
    chain[:, 3] = np.maximum(chain[:, 3], step / 2)
    along = arc(chain)
    count = max(int(np.ceil(along[-1] / step)), 2) + 1
    at = np.linspace(0, along[-1], count)
    points = np.column_stack([np.interp(at, along, column) for column in chain.T])
    stops = np.round(along[vessel.stops] / along[-1] * (count - 1)).astype(int).tolist()
    return replace(vessel, points=points, stops=stops)


def rows_inside_parent(vessel: Vessel, vessels: list[Vessel], margin: float) -> int:
    """How many first points lie within the parent's radius plus `margin` of the own one."""
    from scipy.spatial import cKDTree

    if vessel.parent is None:
        return 0
    parent = vessels[vessel.parent[0]].points
    gap, nearest = cKDTree(parent[:, :3]).query(vessel.points[:, :3])
    apart = np.flatnonzero(gap >= parent[nearest, 3] + margin * vessel.points[:, 3])
    return int(apart[0]) if len(apart) else len(gap)


def assign(vessels: list[Vessel], hidden: list[int], voxels: np.ndarray):
    """Yield for each vessel (voxel numbers, rows of its points that they belong to)."""
    from scipy.spatial import cKDTree

    sizes = np.array([len(vessel.points) for vessel in vessels])
    points = np.vstack([vessel.points for vessel in vessels])
    number = np.repeat(np.arange(len(vessels)), sizes)
    row = np.concatenate([np.arange(size) for size in sizes])
    shown = np.flatnonzero(row >= np.array(hidden)[number])
    # A fourth coordinate turns the power distance into an ordinary one.
    radius = points[shown, 3]
    lift = np.sqrt(radius.max() ** 2 - radius**2)
    tree = cKDTree(np.column_stack([points[shown, :3], lift]))
    owner = shown[tree.query(np.column_stack([voxels, np.zeros(len(voxels))]))[1]]
    order = np.argsort(owner, kind="stable")
    bounds = np.searchsorted(number[owner[order]], np.arange(len(vessels) + 1))
    for first, last in zip(bounds[:-1], bounds[1:], strict=True):
        yield order[first:last], row[owner[order[first:last]]]


def centred(vessel, own, row, skip, moved, spacing) -> Vessel:
    """Move each point, across the vessel, to the mean of the voxels around it."""
    points, size = vessel.points, len(vessel.points)
    sigma = window(vessel)
    # Across the vessel, not across each kink of its staircase, or points would overtake others.
    tangent = directions(softened(points[:, :3], 2 * sigma))
    offset = own - points[row, :3]
    count = windowed(np.bincount(row, minlength=size).astype(float), sigma)
    shift = (
        windowed(
            np.column_stack([np.bincount(row, offset[:, axis], size) for axis in range(3)]), sigma
        )
        / np.maximum(count, 1e-6)[:, None]
    )
    shift -= (shift * tangent).sum(axis=1, keepdims=True) * tangent
    limit = spacing.mean() / np.maximum(np.linalg.norm(shift, axis=1, keepdims=True), 1e-9)
    shift *= np.minimum(limit, 1)
    if vessel.parent is not None:
        above = moved[vessel.parent[0]]
        start = above.points[above.stops[vessel.parent[1]], :3] - points[0, :3]
        skip = min(max(skip, 3), size - 1)
        blend = np.linspace(1, 0, skip, endpoint=False)[:, None]
        shift[:skip] = blend * start + (1 - blend) * shift[skip]
    moved_to = softened(points[:, :3] + shift, 0.7 * sigma)
    return evened(replace(vessel, points=np.column_stack([moved_to, points[:, 3]])))


def evened(vessel: Vessel) -> Vessel:
    """The same rows, equally far apart within each branch."""
    along = arc(vessel.points)
    rows = np.arange(len(along))
    at = np.interp(rows, vessel.stops, along[vessel.stops])
    points = np.column_stack([np.interp(at, along, column) for column in vessel.points.T])
    return replace(vessel, points=points)


def lengthened(vessel: Vessel, own: np.ndarray, row: np.ndarray, step: float) -> Vessel:
    """Free ends go on to where the mask ends: thinning eats about a radius of them."""
    points, stops = vessel.points, vessel.stops
    tangent = directions(points)
    back = min(int(2.0 / step) + 1, len(points))
    added = []
    for free, last, outward in (
        (vessel.free_start, 0, -tangent[:back].mean(axis=0)),
        (vessel.free_end, len(points) - 1, tangent[-back:].mean(axis=0)),
    ):
        beyond = ((own[np.abs(row - last) <= 1] - points[last, :3]) @ outward) if free else []
        reach = max(beyond, default=0.0) - points[last, 3] / 2
        ahead = np.arange(1, int(np.clip(reach, 0, 4 * points[last, 3]) / step) + 1) * step
        line = points[last, :3] + ahead[:, None] * outward
        added.append(np.column_stack([line, np.full(len(line), points[last, 3])]))
    before, after = added[0][::-1], added[1]
    stops = [0] + [stop + len(before) for stop in stops[1:]]
    stops[-1] += len(after)
    return replace(vessel, points=np.vstack([before, points, after]), stops=stops)


def measured(vessel, own, row, overlap, volume, surface, spacing) -> Vessel:
    """Radius from the voxels' volume per length, nowhere less than the largest ball inside."""
    points, size = vessel.points, len(vessel.points)
    along, tangent = arc(points), directions(points)
    if along[-1] < 2 * spacing.max():  # too short for cross-sections: as a line with round ends
        radius = points[0, 3]
        for _ in range(20):
            radius = np.sqrt(len(own) * volume / np.pi / (along[-1] + 4 / 3 * radius))
        radius = np.full(size, max(radius, spacing.min() / 4))
        return replace(vessel, points=np.column_stack([points[:, :3], radius]))
    each = np.gradient(along)
    sigma = window(vessel)
    ahead = ((own - points[row, :3]) * tangent[row]).sum(axis=1)
    # Of a voxel across an end only the part before it counts; the rest is in no cross-section.
    long = np.abs(tangent) @ spacing
    share = np.ones(len(own))
    for end, beyond in ((0, -ahead), (size - 1, ahead)):
        part = ((each[end] / 2 - beyond) / long[end] + 0.5).clip(0, 1)
        share = np.where(row == end, np.minimum(share, part), share)
    # Rows and voxel layers have different steps: to the nearest row alone, some would get none.
    exact = (row + ahead / each[row]).clip(0, size - 1)
    lower = exact.astype(int)
    upper = np.minimum(lower + 1, size - 1)
    used = np.arange(size) >= overlap
    count = np.bincount(lower, share * (lower + 1 - exact), size)
    count = (count + np.bincount(upper, share * (exact - lower), size)) * used
    held = windowed(each * used, sigma)
    radius = np.sqrt(windowed(count * volume, sigma) / np.maximum(held, 1e-6) / np.pi)
    known = np.flatnonzero(used & (held > 0))
    if len(known) == 0:
        return vessel
    radius = np.interp(np.arange(size), known, radius[known])
    inscribed = surface.query(points[:, :3])[0] - spacing.max() / 2
    radius = np.maximum(np.maximum(radius, inscribed), spacing.min() / 4)
    return replace(vessel, points=np.column_stack([points[:, :3], radius]))


def speck(vessel: Vessel, own: np.ndarray, step: float) -> Vessel:
    """A line along the voxels' longest axis, from one focus of their ellipsoid to the other."""
    spread, axes = np.linalg.eigh(np.cov(own.T))
    half = np.sqrt(5 * max(spread[2] - spread[1], 0)) + step / 2
    axis = axes[:, 2] * np.sign(axes[np.abs(axes[:, 2]).argmax(), 2])
    line = own.mean(axis=0) + np.linspace(-half, half, 3)[:, None] * axis
    points = np.column_stack([line, np.full(3, vessel.points[0, 3])])
    return Vessel(points, [0, 2], None, False, False)
