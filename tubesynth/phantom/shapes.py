"""Implicit shapes in mm on a coarse lattice: ellipsoids, tubes, smooth unions, random fields.

A shape is a float32 array (X, Y, Z) of approximate signed distances (mm, negative inside) on a
lattice whose nodes lie at multiples of STEP_MM in world coordinates, independent of the voxels: so
a case has one anatomy at every resolution. Distances of ellipsoids (first order, exact near the
surface) and smooth unions (polynomial minimum) follow Quilez,
https://iquilezles.org/articles/distfunctions and https://iquilezles.org/articles/smin.

`points` are three arrays x, y, z in mm that broadcast to the lattice.
"""

import numpy as np

STEP_MM = 2.0  # between the nodes of the lattice
FAR_MM = 22.0  # beyond it the distance to a tube is not computed


class Lattice:
    """Nodes (X, Y, Z) over `extent_mm` (3,) around the world's origin, RAS+."""

    def __init__(self, extent_mm):
        reach = [int(np.ceil(e / 2 / STEP_MM)) + 2 for e in extent_mm]
        self.axes = [(np.arange(-n, n + 1) * STEP_MM).astype(np.float32) for n in reach]
        self.origin = np.array([-n * STEP_MM for n in reach])
        self.shape = tuple(len(a) for a in self.axes)

    def points(self) -> list[np.ndarray]:
        """Three open arrays x, y, z that broadcast to the lattice."""
        x, y, z = self.axes
        return [x[:, None, None], y[None, :, None], z[None, None, :]]

    def noise(self, rng: np.random.Generator, scale_mm: float, period: int = 16) -> np.ndarray:
        """(X, Y, Z) float32: a smooth random field of unit variance, fixed in the world.

        A cubic B-spline through Gaussian knots (period, period, period), `scale_mm` apart, that
        repeat periodically.
        """
        field = rng.standard_normal((period,) * 3).astype(np.float32)
        # The variance of the sum is the sum of the squared spline weights, 0.479 per axis.
        field /= np.float32(0.479**1.5)
        for axis in (2, 1, 0):
            # each node x = first + t lies between four knots, first - 1 ... first + 2
            position = self.axes[axis] / scale_mm
            first = np.floor(position).astype(int)
            t = (position - first).astype(np.float32)
            basis = [(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, 3 * (t + t * t - t**3) + 1, t**3]
            shape = [-1 if k == axis else 1 for k in range(3)]
            terms = [
                field.take((first + k - 1) % period, axis) * (b / 6).reshape(shape)
                for k, b in enumerate(basis)
            ]
            field = terms[0] + terms[1] + terms[2] + terms[3]
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
        components = [self.sampler(g) for g in np.gradient(field, STEP_MM)]
        return lambda points: np.stack([component(points) for component in components], 1)


def ellipsoid(points, center, radii, axes=None) -> np.ndarray:
    """Distance to an ellipsoid in mm, first order: (k - 1) / |grad k|.

    center, radii: (3,) mm; axes: (3, 3) with the unit axes in rows, the world's if None.
    """
    x, y, z = (p - np.float32(c) for p, c in zip(points, center, strict=True))
    if axes is not None:
        axes = np.asarray(axes, np.float32)
        x, y, z = (a[0] * x + a[1] * y + a[2] * z for a in axes)
    x, y, z = (p / np.float32(r) for p, r in zip((x, y, z), radii, strict=True))
    # k = |(x/a, y/b, z/c)| is 1 on the surface; slope is |k grad k| = |(x/a^2, y/b^2, z/c^2)|
    x, y, z = x * x, y * y, z * z
    level = np.sqrt(x + y + z)
    x, y, z = (p / np.float32(r * r) for p, r in zip((x, y, z), radii, strict=True))
    slope = np.sqrt(x + y + z)
    return level * (level - 1) / np.maximum(slope, np.float32(1e-4))


def tube(points, path, radii, far_mm: float = FAR_MM) -> np.ndarray:
    """Distance to a chain of cones in mm, at most `far_mm`: path (N, 3) mm, radii (N,) mm.

    On the segment from a to b, with d = b - a and p = point - a, the nearest point is at
    t = clip(p.d / d.d, 0, 1): the distance is |p - t d| - (r_a + t (r_b - r_a)).
    """
    path, radii = np.asarray(path, np.float32), np.asarray(radii, np.float32)
    # only the nodes in reach of the path are computed
    reach = far_mm + float(radii.max())
    box = _near(points, path.min(0) - reach, path.max(0) + reach)
    near = []
    for p in points:
        index = tuple(b if n > 1 else slice(None) for b, n in zip(box, p.shape, strict=True))
        near.append(p[index])
    best = np.float32(far_mm)
    for a, b, ra, rb in zip(path[:-1], path[1:], radii[:-1], radii[1:], strict=True):
        d = b - a
        x, y, z = (p - c for p, c in zip(near, a, strict=True))
        t = (x * d[0] + y * d[1] + z * d[2]) * np.float32(1 / max(float(d @ d), 1e-6))
        t = np.clip(t, 0, 1)
        x, y, z = x - t * d[0], y - t * d[1], z - t * d[2]
        # in place: most of the time of a phantom is spent on these arrays
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
    """The box of nodes between two corners (3,) mm, to four nodes: each fourth one is tested."""
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
    """Signed distance to a plane in mm, (p - origin).normal, negative behind its normal."""
    x, y, z = (
        (p - np.float32(o)) * np.float32(n) for p, o, n in zip(points, origin, normal, strict=True)
    )
    return x + y + z


def union(a: np.ndarray, b: np.ndarray, blend_mm: float) -> np.ndarray:
    """Minimum whose crease is rounded over `blend_mm` = k: min(a, b) - h^2 / (4 k).

    h = max(k - |a - b|, 0).
    """
    h = np.maximum(blend_mm - np.abs(a - b), 0)
    return np.minimum(a, b) - h * h * np.float32(0.25 / blend_mm)


def intersection(a: np.ndarray, b: np.ndarray, blend_mm: float) -> np.ndarray:
    """Maximum whose crease is rounded over `blend_mm`."""
    return -union(-a, -b, blend_mm)
