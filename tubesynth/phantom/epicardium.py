"""Paths on the outside of the heart: elastic bands that settle between the chambers.

A band is held at a distance from the nearest chamber, drawn into its groove (where two chambers are
equally near) and kept smooth. Positions are (N, 3) world mm.
"""

import numpy as np

from tubesynth.phantom.murray import STEP_MM
from tubesynth.phantom.shapes import Lattice
from tubesynth.volume.polyline import arc_length, hermite_curve, relax, resample_to_step


class Surface:
    """The outside of the heart as the bands feel it."""

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

    def settle(self, path, height_mm, groove=None, free=(0.0, 0.0), rounds=60) -> np.ndarray:
        """(N, 3) -> a smooth path that high above the heart; its start stays where it is.

        The groove does not pull the first and last `free` mm.
        """
        path = resample_to_step(np.asarray(path, float), 1.5)
        for k in range(rounds):
            normal = unit_rows(self.soft_gradient(path))
            move = -0.6 * np.clip(self.soft(path) - height_mm, -3, 3)[:, None] * normal
            if groove:
                value, slope = self.grooves[groove][0](path), self.grooves[groove][1](path)
                slope -= (slope * normal).sum(1, keepdims=True) * normal
                along = arc_length(path)
                pull = np.clip((along - free[0]) / 8, 0, 1)
                if free[1]:
                    pull *= np.clip((along[-1] - free[1] - along) / 8, 0, 1)
                step = np.clip(value, -5, 5) * pull / np.maximum((slope**2).sum(1), 0.5)
                move -= 0.3 * step[:, None] * slope
            path[1:] += move[1:]
            short = np.clip(height_mm - 0.7 - self.hard(path), 0, 2)
            path[1:] += (short[:, None] * unit_rows(self.hard_gradient(path)))[1:]
            relax(path, 0.4)
            if k % 10 == 9:
                path = resample_to_step(path, 1.5)
        return path

    def finish(self, path, radius_mm, rng, wiggle_mm=1.0, exempt=0.0) -> np.ndarray:
        """Add tortuosity, clear the walls by the radius, resample to STEP_MM.

        The first `exempt` mm may touch walls: the way out of a sinus, or out of the parent.
        """
        path = resample_to_step(path, 1.0)
        along = arc_length(path)
        normal = unit_rows(self.soft_gradient(path))
        side = unit_rows(np.cross(normal, np.gradient(path, axis=0)))
        sway, rise = (_sway(along, rng) for _ in range(2))
        sway, rise = sway[:, None] * side, 0.5 * rise[:, None] * normal
        path = path + wiggle_mm * np.clip(along / 10, 0, 1)[:, None] * (sway + rise)
        hold = np.clip((along - exempt) / 2, 0, 1)
        hold[0] = 0
        for k in range(14):
            high = np.clip(self.soft(path) - (radius_mm + 3.0), 0, 1) * (along > 6)
            path = path - 0.5 * high[:, None] * unit_rows(self.soft_gradient(path))
            short = np.clip(radius_mm + 0.5 - self.hard(path), 0, 1.5) * hold
            path = path + short[:, None] * unit_rows(self.hard_gradient(path))
            if k < 12:
                relax(path, 0.3)
        path = resample_to_step(_unfolded(resample_to_step(path, 1.5)), 1.5)
        for _ in range(4):  # rounds off the last pushes by less than the clearance
            relax(path, 0.25)
        return hermite_curve(path, STEP_MM)


def _sway(along: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A few sines of 11 to 45 mm; longer waves are higher, so that no bend is sharp."""
    draws = rng.normal(0, 0.02, 4), rng.uniform(11, 45, 4), rng.uniform(0, 2 * np.pi, 4)
    waves = [a * w * np.sin(2 * np.pi * along / w + p) for a, w, p in zip(*draws, strict=True)]
    return np.sum(waves, axis=0)


def _unfolded(path: np.ndarray) -> np.ndarray:
    """Without the points where a push has folded the path: turns of more than 50 degrees."""
    while len(path) > 4:
        step = unit_rows(np.diff(path, axis=0))
        cosine = (step[1:] * step[:-1]).sum(1)
        if cosine.min() > np.cos(np.radians(50)):
            break
        path = np.delete(path, cosine.argmin() + 1, axis=0)
    return path


def unit_rows(v: np.ndarray) -> np.ndarray:
    return v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-6)
