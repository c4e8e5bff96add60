"""Simulates the CT scan of the shapes: partial volume, point-spread blur, reconstruction noise.

Fields lie on the coarse lattice (shapes.py) and are interpolated to the voxels only inside their
bounding box. A voxel's share of a shape is its fraction inside: a ramp of one voxel's width across
the surface, or for the coronaries the count of the points of a finer grid that lie inside.
"""

import itertools
from collections.abc import Iterator

import numpy as np

from tubesynth.phantom.shapes import STEP_MM, Lattice
from tubesynth.volume.grid import bounding_box
from tubesynth.volume.polyline import (
    arc_length,
    decimate,
    interpolate,
    squared_distance_to_segment,
)

FINE_MM = 0.4  # step of the grid on which the voxels' shares of the coronaries are counted
POINT_SPREAD_MM = (0.38, 0.38, 0.45)  # standard deviation of the point-spread function
REFERENCE_MM = (0.7, 0.7, 1.05)  # voxel size at which the noise has a case's standard deviation


class Canvas:
    """HU (X, Y, Z) float32 and labels (X, Y, Z) uint8, painted from back to front."""

    def __init__(self, shape, spacing, lattice: Lattice):
        self.shape, self.lattice = tuple(shape), lattice
        self.spacing = np.asarray(spacing, np.float64)
        self.ramp = np.float32(np.sqrt(np.mean(self.spacing**2)))  # mm, width of a surface's ramp
        self.hu = np.full(self.shape, -1000.0, np.float32)
        self.labels = np.zeros(self.shape, np.uint8)
        # world coordinates of the voxel centers along each axis, in mm
        self.axes = [
            (np.arange(n) - (n - 1) / 2) * d for n, d in zip(shape, self.spacing, strict=True)
        ]
        # for each axis the lattice node before each voxel, and the weight t of the node after it
        self.weights = []
        for axis, origin, nodes in zip(self.axes, lattice.origin, lattice.shape, strict=True):
            position = (axis - origin) / STEP_MM
            first = np.clip(np.floor(position).astype(int), 0, nodes - 2)
            self.weights.append((first, (position - first).astype(np.float32)))

    def box(self, field: np.ndarray) -> tuple[slice, ...] | None:
        """The box of voxels that a shape (lattice field) can touch; None if there is none."""
        nodes = bounding_box(field < self.ramp + STEP_MM)
        if nodes is None:
            return None
        sides = list(zip(self.lattice.axes, nodes, strict=True))
        low = [axis[side.start] - STEP_MM for axis, side in sides]
        high = [axis[side.stop - 1] + STEP_MM for axis, side in sides]
        box = _box_between(self.axes, low, high)
        return box if all(side.start < side.stop for side in box) else None

    def planes(self, field: np.ndarray, box) -> Iterator[np.ndarray]:
        """Yield (Y, Z) trilinear values of a lattice field in each x plane of a box of voxels.

        Each plane overwrites the one before it. Plane by plane the work stays in the processor's
        cache. No matrix product: its sums would depend on the number of threads.
        """
        (x, tx), (y, ty), (z, tz) = (
            (first[extent], t[extent]) for (first, t), extent in zip(self.weights, box, strict=True)
        )
        field = _between(field[x[0] : x[-1] + 2, y[0] : y[-1] + 2], z, tz, axis=2)
        field = _between(field, y - y[0], ty, axis=1)  # (lattice X, Y, Z)
        # f(x) = (1 - t) f_i + t f_i+1
        out, step = np.empty(field.shape[1:], np.float32), np.empty(field.shape[1:], np.float32)
        for i, share in zip(x - x[0], tx, strict=True):
            np.multiply(field[i], 1 - share, out=out)
            np.multiply(field[i + 1], share, out=step)
            yield np.add(out, step, out=out)

    def interpolate(self, field: np.ndarray) -> np.ndarray:
        """Trilinear values of a lattice field at every voxel."""
        out = np.empty(self.shape, np.float32)
        for plane, values in zip(out, self.planes(field, [slice(None)] * 3), strict=True):
            plane[:] = values
        return out

    def paint(self, field: np.ndarray, hu, label: int | None = None, voxels=None) -> None:
        """Paint a shape over the canvas: hu += share (value - hu), share in [0, 1].

        field: the shape, a lattice field in mm. hu: its value, a number or a lattice field; voxels:
        (X, Y, Z) HU, replaces it. label: the class of the voxels of which half or more is inside.
        """
        box = self.box(field)
        if box is None:
            return
        if voxels is not None:
            values = voxels[box]
        elif isinstance(hu, np.ndarray):
            values = self.planes(hu, box)
        else:
            values = itertools.repeat(np.float32(hu))
        for share, value, view, labels in zip(
            self.planes(field, box), values, self.hu[box], self.labels[box], strict=False
        ):
            # share = clip(1/2 - distance / ramp, 0, 1)
            share *= -1 / self.ramp
            share += np.float32(0.5)
            if label is not None:
                labels[share >= 0.5] = label
            np.clip(share, 0, 1, out=share)
            share *= value - view
            view += share

    def tubes(self, segments: np.ndarray) -> np.ndarray:
        """(N, 8) segments (two ends, two radii; world mm) -> (X, Y, Z) float32 share.

        A tube thinner than a voxel gets the share of its cross-section, pi r^2 / ramp^2.
        """
        share = np.zeros(self.shape, np.float32)
        reach = segments[:, 6] + 1.5 * self.ramp
        low = np.minimum(segments[:, :3], segments[:, 3:6]) - reach[:, None]
        high = np.maximum(segments[:, :3], segments[:, 3:6]) + reach[:, None]
        start = np.stack([np.searchsorted(a, l) for a, l in zip(self.axes, low.T, strict=True)], 1)
        stop = np.stack([np.searchsorted(a, h) for a, h in zip(self.axes, high.T, strict=True)], 1)
        axes = [a.astype(np.float32) for a in self.axes]
        for segment, i, j in zip(segments.astype(np.float32), start, stop, strict=True):
            if (i == j).any():
                continue
            box = tuple(slice(a, b) for a, b in zip(i, j, strict=True))
            box_axes = [axis[extent] for axis, extent in zip(axes, box, strict=True)]
            squared, _ = squared_distance_to_segment(box_axes, segment[:3], segment[3:6])
            distance = np.sqrt(squared)
            radius = segment[6]
            # the ramp's value on the axis, min(1, 1/2 + r / ramp), is scaled to the largest share
            largest = min(1.0, np.pi * radius**2 / self.ramp**2)
            value = np.clip(0.5 - (distance - radius) / self.ramp, 0, 1) * (
                largest / min(1.0, 0.5 + radius / self.ramp)
            )
            np.maximum(share[box], value, out=share[box])
        return share


def _between(field: np.ndarray, first: np.ndarray, t: np.ndarray, axis: int) -> np.ndarray:
    """f_first + t (f_first+1 - f_first) along one axis; first, t: (n,) -> n values on that axis."""
    low = field.take(first, axis)
    field = field.take(first + 1, axis)
    field -= low
    field *= t.reshape([-1 if k == axis else 1 for k in range(3)])
    field += low
    return field


def blend(target: np.ndarray, share: np.ndarray, hu: float) -> None:
    """target += share (hu - target) in place, on the few voxels whose share is not zero."""
    index, flat = np.flatnonzero(share), target.reshape(-1)
    flat[index] += share.reshape(-1)[index] * (np.float32(hu) - flat[index])


def coronary_share(canvas: Canvas, branches: list[np.ndarray]):
    """Share of each voxel inside the coronary tubes, counted on a grid of at most FINE_MM.

    branches: (N, 4) points and radii in mm. Returns the box of voxels around them, the share
    (X, Y, Z) float32 in it, and a mask (X, Y, Z) of its voxels that a centreline passes.
    """
    ends = np.concatenate(branches)[:, :3]
    box = _box_between(canvas.axes, ends.min(0) - 4, ends.max(0) + 4)
    # each voxel has times[0] x times[1] x times[2] fine points; axes: their world mm
    times = np.ceil(canvas.spacing / FINE_MM - 1e-6).astype(int)
    axes = []
    for axis, voxels, k, d in zip(canvas.axes, box, times, canvas.spacing, strict=True):
        offset = (np.arange(k) + 0.5) / k - 0.5  # in voxels
        axes.append((axis[voxels][:, None] + offset * d).ravel().astype(np.float32))
    inside = np.zeros([len(a) for a in axes], bool)
    mask = np.zeros([len(a) // k for a, k in zip(axes, times, strict=True)], bool)
    origin = np.array(
        [a[b.start] if b.stop > b.start else 0 for a, b in zip(canvas.axes, box, strict=True)]
    )
    for branch in branches:
        # the fine points inside: |p - t d|^2 <= (r_0 + t (r_1 - r_0))^2 for any segment
        points = decimate(branch, 3).astype(np.float32)  # about 1.5 mm apart
        for segment in np.stack([points[:-1], points[1:]], axis=1):  # (2, 4)
            p, r = segment[:, :3], segment[:, 3]
            segment_box = _box_between(axes, p.min(0) - r.max(), p.max(0) + r.max())
            box_axes = [axis[extent] for axis, extent in zip(axes, segment_box, strict=True)]
            squared, t = squared_distance_to_segment(box_axes, p[0], p[1])
            inside[segment_box] |= squared <= (r[0] + t * (r[1] - r[0])) ** 2
        # the voxels that the centreline passes, on points a fifth of a voxel apart
        line = _dense(branch[:, :3], canvas.spacing.min() / 5)
        index = np.rint((line - origin) / canvas.spacing).astype(int)
        index = index[((index >= 0) & (index < mask.shape)).all(1)]
        mask[tuple(index.T)] = True
    share = inside.view(np.uint8)
    # Counts per voxel as strided sums: reshaping to six axes takes three times longer.
    for axis, k in enumerate(times):
        terms = [share[(slice(None),) * axis + (slice(i, None, k),)] for i in range(k)]
        share = sum(terms[1:], terms[0].astype(np.uint16))
    return box, share.astype(np.float32) / np.float32(times.prod()), mask


def _box_between(axes, low, high) -> tuple[slice, ...]:
    """The box of grid points between two corners (3,) mm; axes: their coordinates along each."""
    ends = zip(axes, low, high, strict=True)
    return tuple(slice(*np.searchsorted(axis, [a, b]).tolist()) for axis, a, b in ends)


def _dense(points: np.ndarray, step_mm: float) -> np.ndarray:
    """(K, 3) -> (M, 3): the points, and points on the polyline at most step_mm apart."""
    along = arc_length(points)
    even = np.linspace(0, along[-1], int(along[-1] / step_mm) + 2)
    return interpolate(points, np.union1d(along, even), along)


def blur(hu: np.ndarray, spacing) -> np.ndarray:
    """(X, Y, Z) HU convolved with the point-spread function, a Gaussian."""
    from scipy.ndimage import gaussian_filter1d

    for axis in range(3):
        sigma = POINT_SPREAD_MM[axis] / spacing[axis]
        if sigma > 0.15:
            hu = gaussian_filter1d(hu, sigma, axis=axis, mode="nearest", truncate=3.0)
    return hu


def noise_power(fx, fy, fz):
    """Noise power at frequencies in cycles per mm, which broadcast; in arbitrary units.

    Filtered back projection has a ramp |f| in the plane (Riederer, Pelc and Chesler 1978,
    doi:10.1088/0031-9155/23/3/008), apodized by a Gaussian; along z acts the slice profile.
    """
    plane_squared = fx * fx + fy * fy
    return np.sqrt(plane_squared) * np.exp(-plane_squared / 0.36**2) * np.exp(-((fz / 0.42) ** 2))


def ct_noise(shape, spacing, sigma_hu: float, rng: np.random.Generator) -> np.ndarray:
    """(X, Y, Z) float32 HU: correlated noise with the standard deviation sigma_hu.

    sigma_hu is that of voxels of REFERENCE_MM; larger voxels average more of it away.
    """
    from scipy.fft import irfftn

    # white noise in the half spectrum (X, Y, Z // 2 + 1), times the square root of the power
    fx = np.fft.fftfreq(shape[0], spacing[0]).astype(np.float32)
    fy = np.fft.fftfreq(shape[1], spacing[1]).astype(np.float32)
    fz = np.fft.rfftfreq(shape[2], spacing[2]).astype(np.float32)
    amplitude = np.sqrt(noise_power(fx[:, None, None], fy[None, :, None], fz))
    # The variance is the integral of the power over the band: of the reference voxels, the mean on
    # 64^3 frequencies times the band's volume.
    grid = [((np.arange(64) + 0.5) / 64 - 0.5) / d for d in REFERENCE_MM]
    total = np.mean(noise_power(grid[0][:, None, None], grid[1][None, :, None], grid[2]))
    total *= np.prod([1 / d for d in REFERENCE_MM])
    count = np.prod(shape)
    # The integral over this grid's band is a sum over its bins of 1 / (n d) each.
    scale = np.sqrt(count / np.prod(spacing) / total) * sigma_hu
    white = rng.standard_normal((*amplitude.shape, 2), dtype=np.float32)
    spectrum = white.view(np.complex64)[..., 0]
    spectrum *= amplitude * np.float32(scale / np.sqrt(2))
    # the plane fz = 0 is its own mirror image: only its Hermitian half survives, so twice the power
    spectrum[..., 0] *= np.sqrt(2)
    return np.asarray(irfftn(spectrum, s=shape, overwrite_x=True))
