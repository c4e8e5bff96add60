"""Implicit shapes in mm on a coarse lattice: ellipsoids, tubes, smooth unions, random fields.

A shape is a float32 array of approximate signed distances (mm, negative inside) on a lattice whose
nodes lie at multiples of STEP_MM in world coordinates, whatever the voxels are: so a case has one
anatomy at every resolution. Distances of ellipsoids follow Quilez (first order, exact near the
surface); smooth unions are his polynomial minimum.
"""

import numpy as np

STEP_MM = 2.0


class Lattice:
    """Nodes (X, Y, Z) over `extent_mm` (3,) around the world's origin, RAS+."""

    def __init__(self, extent_mm):
        reach = [int(np.ceil(e / 2 / STEP_MM)) + 2 for e in extent_mm]
        self.index = [np.arange(-n, n + 1) for n in reach]
        self.axes = [(i * STEP_MM).astype(np.float32) for i in self.index]
        self.origin = np.array([-n * STEP_MM for n in reach])
        self.shape = tuple(len(a) for a in self.axes)

    def points(self) -> list[np.ndarray]:
        """Three open arrays x, y, z that broadcast to the lattice."""
        x, y, z = self.axes
        return [x[:, None, None], y[None, :, None], z[None, None, :]]

    def noise(self, rng: np.random.Generator, scale_mm: float, period: int = 16) -> np.ndarray:
        """A smooth random field of unit variance, knots `scale_mm` apart, fixed in the world."""
        field = rng.standard_normal((period,) * 3).astype(np.float32)
        field /= np.float32(0.479**1.5)  # sums of squared B-spline weights
        for axis in (2, 1, 0):
            position = self.axes[axis] / scale_mm
            first = np.floor(position).astype(int)
            t = (position - first).astype(np.float32)
            basis = [(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, 3 * (t + t * t - t**3) + 1, t**3]
            shape = [-1 if k == axis else 1 for k in range(3)]
            field = sum(
                field.take((first + k - 1) % period, axis) * (b / 6).reshape(shape)
                for k, b in enumerate(basis)
            )
        return field

    def sampler(self, field: np.ndarray):
        """A function (N, 3) world mm -> (N,) trilinear values of a lattice field."""
        from scipy.ndimage import map_coordinates

        def sample(points: np.ndarray) -> np.ndarray:
            index = (np.asarray(points) - self.origin).T / STEP_MM
            return map_coordinates(field, index, order=1, mode="nearest")

        return sample

    def gradient_sampler(self, field: np.ndarray):
        """A function (N, 3) world mm -> (N, 3) gradient of a lattice field."""
        parts = [self.sampler(g) for g in np.gradient(field, STEP_MM)]
        return lambda points: np.stack([part(points) for part in parts], 1)


def ellipsoid(points, centre, radii, axes=None) -> np.ndarray:
    """Distance to an ellipsoid; `axes` (3, 3) has its unit axes in rows (default: the world's)."""
    x, y, z = (p - np.float32(c) for p, c in zip(points, centre, strict=True))
    if axes is not None:
        axes = np.asarray(axes, np.float32)
        x, y, z = (a[0] * x + a[1] * y + a[2] * z for a in axes)
    x, y, z = (p / np.float32(r) for p, r in zip((x, y, z), radii, strict=True))
    x, y, z = x * x, y * y, z * z
    level = np.sqrt(x + y + z)
    x, y, z = (p / np.float32(r * r) for p, r in zip((x, y, z), radii, strict=True))
    slope = np.sqrt(x + y + z)
    return level * (level - 1) / np.maximum(slope, np.float32(1e-4))


FAR_MM = 22.0


def tube(points, path, radii, far_mm: float = FAR_MM) -> np.ndarray:
    """Distance to a chain of cones, at most `far_mm`: path (N, 3) mm, radii (N,) mm."""
    path, radii = np.asarray(path, np.float32), np.asarray(radii, np.float32)
    reach = far_mm + float(radii.max())
    box = _near(points, path.min(0) - reach, path.max(0) + reach)
    near = [p[tuple(b if n > 1 else slice(None) for b, n in zip(box, p.shape, strict=True))]
            for p in points]  # fmt: skip
    best = np.float32(far_mm)
    for a, b, ra, rb in zip(path[:-1], path[1:], radii[:-1], radii[1:], strict=True):
        d = b - a
        x, y, z = (p - c for p, c in zip(near, a, strict=True))
        t = (x * d[0] + y * d[1] + z * d[2]) * np.float32(1 / max(float(d @ d), 1e-6))
        t = np.clip(t, 0, 1)
        x, y, z = x - t * d[0], y - t * d[1], z - t * d[2]
        x *= x
        y *= y
        z *= z
        x = x + y + z
        np.sqrt(x, out=x)
        best = np.minimum(best, x - (ra + t * (rb - ra)))
    full = np.full(np.broadcast_shapes(*(p.shape for p in points)), far_mm, np.float32)
    full[box] = best
    return full


def _near(points, low, high) -> tuple[slice, ...]:
    """The nodes between two corners, found on every fourth node."""
    shape = np.broadcast_shapes(*(p.shape for p in points))
    inside = np.ones((1, 1, 1), bool)
    for p, a, b in zip(points, low, high, strict=True):
        coarse = p[::4, ::4, ::4]
        inside = inside & (coarse > a - 5 * STEP_MM) & (coarse < b + 5 * STEP_MM)
    slices = []
    for axis, n in enumerate(shape):
        hit = np.flatnonzero(inside.any(tuple(k for k in range(3) if k != axis))) * 4
        slices.append(slice(max(hit[0] - 4, 0), min(hit[-1] + 5, n)) if len(hit) else slice(0, 0))
    return tuple(slices)


def plane(points, origin, normal) -> np.ndarray:
    """Signed distance to a plane, negative behind its normal."""
    return sum(
        (p - np.float32(o)) * np.float32(n) for p, o, n in zip(points, origin, normal, strict=True)
    )


def union(a: np.ndarray, b: np.ndarray, blend_mm: float) -> np.ndarray:
    """Minimum whose crease is rounded over `blend_mm`."""
    h = np.maximum(blend_mm - np.abs(a - b), 0)
    return np.minimum(a, b) - h * h * np.float32(0.25 / blend_mm)


def intersection(a: np.ndarray, b: np.ndarray, blend_mm: float) -> np.ndarray:
    """Maximum whose crease is rounded over `blend_mm`."""
    return -union(-a, -b, blend_mm)
