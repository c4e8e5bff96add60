"""Paths on the outside of the heart: elastic bands that settle between the chambers.

A band is an active contour (Kass et al. 1988, doi:10.1007/BF00133570): forces move its points to a
given distance from the nearest chamber and into a groove, where two chambers are equally near, and
Laplacian smoothing keeps it smooth. Positions are (N, 3) world mm.
"""

import numpy as np

from tubesynth.phantom.murray import STEP_MM
from tubesynth.phantom.shapes import Lattice
from tubesynth.volume.polyline import arc_length, hermite_curve, relax, resample_to_step


class Surface:
    """Distance fields of the heart's outside, as functions (N, 3) world mm -> (N,) mm.

    hard: to the walls and great vessels, which no band may enter. soft: to the chambers, smoother,
    for the height of a band above them. grooves: difference of the distances to two chambers.
    """

    def __init__(self, lattice: Lattice, shapes: dict[str, np.ndarray]):
        from scipy.ndimage import gaussian_filter

        rv, lv, ra = (shapes[f"{n}_wall"] for n in ("rv", "lv", "ra"))
        vessels = np.minimum(shapes["aorta"], shapes["pa"]) - 1.5
        hard = gaussian_filter(np.minimum(shapes["epicardium"], vessels), 0.6)
        la_core = shapes["la_core"] - 1.8  # the groove runs under the veins
        soft = gaussian_filter(np.minimum(np.minimum(rv, lv), np.minimum(ra, la_core)), 1.0)
        self.hard, self.hard_gradient = lattice.sampler(hard), lattice.gradient_sampler(hard)
        self.soft, self.soft_gradient = lattice.sampler(soft), lattice.gradient_sampler(soft)
        self.aorta = lattice.sampler(shapes["aorta"])
        pairs = {"lv|rv": lv - rv, "la|lv": la_core - lv, "ra|rv": ra - rv}
        pairs = {k: gaussian_filter(v, 1.0) for k, v in pairs.items()}
        self.grooves = {
            k: (lattice.sampler(v), lattice.gradient_sampler(v)) for k, v in pairs.items()
        }

    def settle(
        self,
        path,
        height_mm: float,
        groove: str | None = None,
        free: tuple[float, float] = (0.0, 0.0),
    ) -> np.ndarray:
        """(N, 3) -> (M, 3): a smooth path `height_mm` above the heart; its start stays.

        groove: a key of self.grooves that attracts the path, but not its first and last `free` mm.
        """
        path = resample_to_step(np.asarray(path, float), 1.5)
        for k in range(60):
            # towards the height h: -0.6 (s(p) - h) n with the unit normal n = grad s / |grad s|
            normal = unit_rows(self.soft_gradient(path))
            shift = -0.6 * np.clip(self.soft(path) - height_mm, -3, 3)[:, None] * normal
            if groove:
                # towards the zero of g, across the normal: a damped Newton step -0.3 g q / |q|^2,
                # q = grad g - (grad g . n) n; the force fades in over 8 mm from the free ends
                value, slope = self.grooves[groove][0](path), self.grooves[groove][1](path)
                slope -= (slope * normal).sum(1, keepdims=True) * normal
                along = arc_length(path)
                strength = np.clip((along - free[0]) / 8, 0, 1)
                if free[1]:
                    strength *= np.clip((along[-1] - free[1] - along) / 8, 0, 1)
                step = np.clip(value, -5, 5) * strength / np.maximum((slope**2).sum(1), 0.5)
                shift -= 0.3 * step[:, None] * slope
            path[1:] += shift[1:]
            # out of the walls: at least h - 0.7 mm from them
            missing = np.clip(height_mm - 0.7 - self.hard(path), 0, 2)
            path[1:] += (missing[:, None] * unit_rows(self.hard_gradient(path)))[1:]
            relax(path, 0.4)
            if k % 10 == 9:
                path = resample_to_step(path, 1.5)
        return path

    def finish(self, path, radius_mm, rng, wiggle_mm=1.0, exempt=0.0) -> np.ndarray:
        """(N, 3) -> (M, 3): add tortuosity, clear the walls by the radius, resample to STEP_MM.

        The first `exempt` mm may touch walls: there the vessel leaves a sinus or its parent.
        """
        path = resample_to_step(path, 1.0)
        along = arc_length(path)
        # random waves to the side and, half as high, up and down; they fade in over 10 mm
        normal = unit_rows(self.soft_gradient(path))
        side = unit_rows(np.cross(normal, np.gradient(path, axis=0)))
        sway, rise = (_sway(along, rng) for _ in range(2))
        sway, rise = sway[:, None] * side, 0.5 * rise[:, None] * normal
        path = path + wiggle_mm * np.clip(along / 10, 0, 1)[:, None] * (sway + rise)
        strength = np.clip((along - exempt) / 2, 0, 1)
        strength[0] = 0
        for k in range(14):
            # down where it is more than r + 3 mm high, up where it is less than r + 0.5 mm
            excess = np.clip(self.soft(path) - (radius_mm + 3.0), 0, 1) * (along > 6)
            path = path - 0.5 * excess[:, None] * unit_rows(self.soft_gradient(path))
            missing = np.clip(radius_mm + 0.5 - self.hard(path), 0, 1.5) * strength
            path = path + missing[:, None] * unit_rows(self.hard_gradient(path))
            if k < 12:
                relax(path, 0.3)
        path = resample_to_step(_unfolded(resample_to_step(path, 1.5)), 1.5)
        for _ in range(4):  # rounds off the last pushes by less than the clearance
            relax(path, 0.25)
        return hermite_curve(path, STEP_MM)


def _sway(along: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(K,) arc lengths s -> (K,) mm: four sines, sum_i a_i w_i sin(2 pi s / w_i + p_i).

    The wavelengths w_i are 11 to 45 mm; longer waves are higher, so that no bend is sharp.
    """
    samples = rng.normal(0, 0.02, 4), rng.uniform(11, 45, 4), rng.uniform(0, 2 * np.pi, 4)
    waves = [a * w * np.sin(2 * np.pi * along / w + p) for a, w, p in zip(*samples, strict=True)]
    return np.sum(waves, axis=0)


def _unfolded(path: np.ndarray) -> np.ndarray:
    """(N, 3) -> (M, 3) without the points at turns of more than 50 degrees, where a path folds."""
    while len(path) > 4:
        step = unit_rows(np.diff(path, axis=0))
        cosine = (step[1:] * step[:-1]).sum(1)
        if cosine.min() > np.cos(np.radians(50)):
            break
        path = np.delete(path, cosine.argmin() + 1, axis=0)
    return path


def unit_rows(v: np.ndarray) -> np.ndarray:
    """(N, 3) -> (N, 3) unit vectors."""
    return v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-6)
