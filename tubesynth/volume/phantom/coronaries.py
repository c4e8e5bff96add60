"""The coronary trees: paths on the epicardium between the chambers, radii by taper and Murray's law.

A path starts as a line through anatomical waypoints and then settles like an elastic band: it is held at a distance
from the nearest chamber, drawn into its groove (where two chambers are equally near), and kept smooth. Every piece
between two branchings is one Branch, so the law r0^3 = r1^3 + r2^3 (Murray 1926) holds between a branch's last radius
and the first radii of its children.
"""

from dataclasses import dataclass, field

import numpy as np

from .heart import LEFT_MAIN_END, ROOT, ROOT_AXIS, Pose, sinus_direction, ventricular
from .shapes import Lattice, resample_path, smooth_path

STEP_MM = 0.5
SMALLEST_MM = 0.5


@dataclass(frozen=True)
class Branch:
    """points: (N, 4) x, y, z, radius in world mm, from the root outwards; parent: index of a branch or None."""

    name: str
    parent: int | None
    points: np.ndarray


@dataclass
class Vessel:
    """A named vessel before its radii are known: (N, 3) points and what leaves it."""

    name: str
    points: np.ndarray
    end_radius: float
    children: list[tuple[int, float, "Vessel"]] = field(
        default_factory=list
    )  # at point, share of flow


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

    def settle(self, path, height_mm, groove=None, free=(0.0, 0.0), rounds=90) -> np.ndarray:
        """(N, 3) -> a smooth path that high above the heart; its start stays where it is.

        The groove does not pull the first and last `free` mm.
        """
        path = resample_path(np.asarray(path, float), 1.5)
        for k in range(rounds):
            normal = _unit_rows(self.soft_gradient(path))
            move = -0.6 * np.clip(self.soft(path) - height_mm, -3, 3)[:, None] * normal
            if groove:
                value, slope = self.grooves[groove][0](path), self.grooves[groove][1](path)
                slope -= (slope * normal).sum(1, keepdims=True) * normal
                along = _arc_length(path)
                pull = np.clip((along - free[0]) / 8, 0, 1)
                if free[1]:
                    pull *= np.clip((along[-1] - free[1] - along) / 8, 0, 1)
                step = np.clip(value, -5, 5) * pull / np.maximum((slope**2).sum(1), 0.5)
                move -= 0.3 * step[:, None] * slope
            path[1:] += move[1:]
            short = np.clip(height_mm - 0.7 - self.hard(path), 0, 2)
            path[1:] += (short[:, None] * _unit_rows(self.hard_gradient(path)))[1:]
            path[1:-1] += 0.4 * (path[:-2] + path[2:] - 2 * path[1:-1])
            if k % 10 == 9:
                path = resample_path(path, 1.5)
        return path

    def finish(self, path, radius_mm, rng, wiggle_mm=1.0, exempt=0.0) -> np.ndarray:
        """Add tortuosity, clear the walls by the radius, resample to STEP_MM.

        The first `exempt` mm may touch walls: the way out of a sinus, or out of the parent.
        """
        path = resample_path(path, 1.0)
        along = _arc_length(path)
        normal = _unit_rows(self.soft_gradient(path))
        side = _unit_rows(np.cross(normal, np.gradient(path, axis=0)))
        sway, rise = (_sway(along, rng) for _ in range(2))
        sway, rise = sway[:, None] * side, 0.5 * rise[:, None] * normal
        path = path + wiggle_mm * np.clip(along / 10, 0, 1)[:, None] * (sway + rise)
        hold = np.clip((along - exempt) / 2, 0, 1)
        for k in range(14):
            high = np.clip(self.soft(path) - (radius_mm + 3.0), 0, 1) * (along > 6)
            path = path - 0.5 * high[:, None] * _unit_rows(self.soft_gradient(path))
            short = np.clip(radius_mm + 0.5 - self.hard(path), 0, 1.5) * hold
            path = path + short[:, None] * _unit_rows(self.hard_gradient(path))
            if k < 12:
                path[1:-1] += 0.3 * (path[:-2] + path[2:] - 2 * path[1:-1])
        path = resample_path(path, 1.5)
        for _ in range(4):  # rounds off the last pushes by less than the clearance
            path[1:-1] += 0.25 * (path[:-2] + path[2:] - 2 * path[1:-1])
        return smooth_path(path, STEP_MM)


def _sway(along: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A few sines of 11 to 45 mm; longer waves are higher, so that no bend is sharp."""
    draws = rng.normal(0, 0.02, 4), rng.uniform(11, 45, 4), rng.uniform(0, 2 * np.pi, 4)
    waves = [a * w * np.sin(2 * np.pi * along / w + p) for a, w, p in zip(*draws, strict=True)]
    return np.sum(waves, axis=0)


def _arc_length(path: np.ndarray) -> np.ndarray:
    return np.r_[0, np.cumsum(np.linalg.norm(np.diff(path[:, :3], axis=0), axis=1))]


def grow_trees(lattice: Lattice, shapes, pose: Pose, rng: np.random.Generator) -> list[Branch]:
    """Both trees of one case as branches in world mm, parents before children, [0] the left main."""
    surface = Surface(lattice, shapes)
    tree = _Grower(surface, pose, rng)
    dominance = rng.choice(["right", "left", "balanced"], p=[0.8, 0.1, 0.1])
    branches: list[Branch] = []
    _emit(branches, tree.left(dominance), rng.uniform(1.95, 2.2), None)
    _emit(
        branches,
        tree.right(dominance),
        rng.uniform(1.35, 1.6) if dominance == "left" else rng.uniform(1.7, 2.1),
        None,
    )
    return branches


class _Grower:
    def __init__(self, surface: Surface, pose: Pose, rng: np.random.Generator):
        self.surface, self.pose, self.rng = surface, pose, rng

    def world(self, along, degrees, radius):
        return self.pose.to_world(ventricular(along, degrees, radius))

    def ostium(self, sinus: str, level_mm: float) -> tuple[np.ndarray, np.ndarray]:
        """Where the sinus wall is met from the root's axis, and the way out."""
        turn = np.radians(self.rng.normal(0, 6))
        d = sinus_direction(sinus)
        d = np.cos(turn) * d + np.sin(turn) * np.cross(ROOT_AXIS, d)
        origin, out = self.pose.to_world(ROOT + level_mm * ROOT_AXIS), self.pose.direction(d)
        ray = origin + np.arange(0, 30, 0.1)[:, None] * out
        return ray[np.argmax(self.surface.aorta(ray) > -0.4)], out

    def side(
        self,
        parent: np.ndarray,
        at: int,
        waypoints,
        radius,
        name,
        end_radius,
        wiggle=0.8,
        groove=None,
    ) -> Vessel:
        start = parent[at]
        ahead = (
            start
            + 4
            * _unit_rows((parent[min(at + 4, len(parent) - 1)] - parent[max(at - 4, 0)])[None])[0]
        )
        first = np.asarray(waypoints[0])
        path = np.vstack(
            [
                start,
                ahead * 0.6 + 0.4 * (start + 4 * _unit_rows((first - start)[None])[0]),
                waypoints,
            ]
        )
        path = self.surface.settle(smooth_path(path, 1.5), radius + 1.2, groove, free=(10, 0))
        return Vessel(
            name, self.surface.finish(path, radius, self.rng, wiggle, exempt=-4.0), end_radius
        )

    def left(self, dominance: str) -> Vessel:
        rng, s = self.rng, self.surface
        ostium, out = self.ostium("left", rng.uniform(8, 11))
        split = self.pose.to_world(LEFT_MAIN_END + rng.normal(0, 1.2, 3))
        split = ostium + np.clip(rng.normal(10, 2.5), 5, 15) * _unit_rows((split - ostium)[None])[0]
        for _ in range(30):
            split = (
                split
                + np.clip(3.2 - s.hard(split[None]), 0, 1)
                * _unit_rows(s.hard_gradient(split[None]))[0]
            )
        main = smooth_path(
            np.vstack([ostium, ostium + 0.35 * np.linalg.norm(split - ostium) * out, split]),
            STEP_MM,
        )
        lm = Vessel("LM", main, 1.9)

        end = rng.uniform(84, 89)
        path = np.vstack(
            [
                split,
                self.world(np.linspace(12, 70, 8), 66, 37),
                self.world([80, end], [64, -40], [22, 6]),
            ]
        )
        path = s.settle(smooth_path(path, 1.5), 2.8, "lv|rv", free=(4, 14))
        lad = Vessel("LAD", s.finish(path, 1.6, rng, 0.9), rng.uniform(0.6, 0.75))
        stop = {"right": rng.uniform(205, 235), "balanced": 255, "left": 280}[dominance]
        around = np.arange(128, stop, 12.0)
        path = np.vstack(
            [split, self.world(-2, around, np.interp(around, [120, 200, 290], [36, 38, 36]))]
        )
        path = s.settle(smooth_path(path, 1.5), 3.0, "la|lv", free=(3, 0))
        lcx = Vessel("LCX", s.finish(path, 1.5, rng, 0.9), rng.uniform(0.7, 0.85))
        lm.children = [(len(main) - 1, rng.uniform(0.52, 0.62), lad), (len(main) - 1, 0.0, lcx)]

        for k, mm in enumerate(np.cumsum(rng.uniform(14, 26, rng.integers(2, 4))) + 4):
            at = int(mm / STEP_MM)
            if at > len(lad.points) - 60:
                break
            # How far along the ventricle the parent is there.
            a0, goal = self.along(lad.points[at]), 104 + 12 * k + rng.normal(0, 7)
            a1 = min(a0 + rng.uniform(34, 46), 74)
            way = self.world(np.linspace(a0 + 7, a1, 5), np.linspace(78, goal, 5), 38)
            vessel = self.side(lad.points, at, way, 0.9, f"D{k + 1}", rng.uniform(0.5, 0.6))
            lad.children.append((at, rng.uniform(0.2, 0.34), vessel))
        for k, mm in enumerate(np.cumsum(rng.uniform(9, 15, rng.integers(1, 4))) + 10):
            at = int(mm / STEP_MM)
            a0, angle = self.along(lad.points[at]), self.angle(lad.points[at])
            depth = np.array([0.35, 0.7, 1.0]) * rng.uniform(26, 40)
            way = self.world(a0 + depth * 0.25, angle - depth, [32, 30, 30])
            path = smooth_path(np.vstack([lad.points[at], way]), STEP_MM)
            lad.children.append((at, 0.06, Vessel(f"S{k + 1}", path, 0.5)))
        for k, mm in enumerate(np.cumsum(rng.uniform(12, 22, rng.integers(1, 4)))):
            at = int(mm / STEP_MM)
            if at > len(lcx.points) - 16:
                break
            angle = self.angle(lcx.points[at])
            a1 = rng.uniform(44, 66)
            way = self.world(
                np.linspace(9, a1, 5), np.linspace(angle + 4, angle + rng.normal(8, 5), 5), 38
            )
            vessel = self.side(lcx.points, at, way, 1.0, f"OM{k + 1}", rng.uniform(0.5, 0.65))
            lcx.children.append((at, rng.uniform(0.3, 0.5), vessel))
        if dominance == "left":
            self.inferior(lcx)
        if rng.random() < 0.2:
            way = self.world(np.linspace(12, 52, 5), np.linspace(104, 122, 5), 38)
            lcx.children.insert(0, (3, 0.35, self.side(lcx.points, 3, way, 1.0, "RI", 0.55)))
        return lm

    def right(self, dominance: str) -> Vessel:
        rng, s = self.rng, self.surface
        ostium, out = self.ostium("right", rng.uniform(8, 11))
        centre, normal = np.array([30.0, 16.0, -16.0]), np.array([0.82, -0.55, 0.12])
        u = np.cross(normal, [0, 0, 1.0])
        u /= np.linalg.norm(u)  # towards anterior right around the annulus
        u *= np.sign(u[1])
        v = np.cross(normal, u)
        v *= np.sign(v[2])
        stop = 228 if dominance == "left" else 262
        angles = np.radians(
            90 - np.arange(0, stop - 60, 14.0)
        )  # from the top over the right border to the crux
        ring = centre + 29 * (np.cos(angles)[:, None] * u + np.sin(angles)[:, None] * v)
        path = np.vstack([ostium, ostium + 6 * out, self.pose.to_world(ring[1:])])
        if dominance != "left":
            path = np.vstack([path, self.pose.to_world([[18, -12, -30]])])
        path = s.settle(smooth_path(path, 1.5), 3.0, "ra|rv", free=(4, 6))
        rca = Vessel("RCA", s.finish(path, 1.8, rng, 1.0, exempt=2.0), rng.uniform(1.1, 1.3))
        total = len(rca.points)
        if rng.random() < 0.6:
            way = self.pose.to_world([[4, 44, 12], [-6, 51, 8], [-14, 54, 0]])
            rca.children.append(
                (
                    int(9 / STEP_MM),
                    0.07,
                    self.side(rca.points, int(9 / STEP_MM), way, 0.7, "CB", 0.5),
                )
            )
        for k, part in enumerate(np.sort(rng.uniform(0.3, 0.62, rng.integers(1, 3)))):
            at = int(part * total)
            start = rca.points[at]
            goal = self.world(rng.uniform(52, 72), rng.uniform(-38, -5) + 30 * (k == 0), 44)
            way = start + np.array([0.3, 0.55, 0.8, 1.0])[:, None] * (goal - start)
            rca.children.append(
                (
                    at,
                    rng.uniform(0.12, 0.22),
                    self.side(rca.points, at, way, 0.8, f"AM{k + 1}", 0.5),
                )
            )
        if dominance == "left":
            rca.end_radius = 0.6
        else:
            self.inferior(rca)
        return rca

    def inferior(self, parent: Vessel) -> None:
        """The posterior descending and posterolateral arteries from the crux."""
        rng, points = self.rng, parent.points
        last = len(points) - 1
        at = last - int(rng.uniform(4.5, 8) / STEP_MM)
        a0 = self.along(points[at])
        way = self.world(np.linspace(a0 + 8, rng.uniform(52, 70), 6), 292, 37)
        pda = self.side(points, at, way, 1.0, "PDA", rng.uniform(0.55, 0.7), groove="lv|rv")
        ends = [(268, rng.uniform(34, 50))] if parent.name == "RCA" else [(262, 40)]
        parent.children.append((at, rng.uniform(0.4, 0.55), pda))
        for k, (angle, a1) in enumerate(ends):
            bend = self.world(
                [2, 8, a1 * 0.6, a1],
                [angle + 8, angle + 2, angle - 4, angle - 8 + rng.normal(0, 5)],
                38,
            )
            trunk = self.side(points, last, bend, 1.0, f"PL{k + 1}", 0.6)
            middle = int(len(trunk.points) * 0.3)
            a2 = rng.uniform(28, 44)
            way = self.world([a2 * 0.5, a2], [angle - 18, angle - 26], 38)
            trunk.children.append(
                (middle, 0.4, self.side(trunk.points, middle, way, 0.7, f"PL{k + 2}", 0.5))
            )
            parent.children.append((last, 1.0, trunk))

    def along(self, point) -> float:
        """Distance along the left ventricle's axis of a world point."""
        a, b = self.world(0, 0, 0), self.world(1, 0, 0)
        return float((point - a) @ (b - a) / ((b - a) @ (b - a)))

    def angle(self, point) -> float:
        """Degrees around the left ventricle's axis of a world point, 0..360."""
        q = (self.pose.rotation.T @ (point - self.pose.shift)) / self.pose.scale
        base, septal, up = ventricular([0.0, 0.0, 0.0], [0.0, 0.0, 90.0], [0.0, 1.0, 1.0])
        return (
            float(np.degrees(np.arctan2((q - base) @ (up - base), (q - base) @ (septal - base))))
            % 360
        )


def _emit(branches: list[Branch], vessel: Vessel, radius: float, parent: int | None) -> None:
    """Cut a vessel at its children, give radii, and append the pieces and the children."""
    last = len(vessel.points) - 1
    cuts: list[tuple[int, float, Vessel]] = []
    for at, share, child in sorted(vessel.children, key=lambda c: c[0]):
        if at == last or (at >= 8 and (not cuts or at - cuts[-1][0] >= 8) and last - at >= 8):
            cuts.append((at, share, child))
        elif at < 8 and not cuts:
            cuts.append((max(at, 2), share, child))
    inner = [(at, share) for at, share, _ in cuts if at < last]
    lost = np.prod([(1 - share) ** (1 / 3) for _, share in inner]) if inner else 1.0
    length = last * STEP_MM
    rate = max(np.log(radius * lost / vessel.end_radius), 0.02) / max(length, 1.0)
    start = 0
    for at, share, child in [*inner_cuts(cuts, last), (last, None, None)]:
        piece = vessel.points[start : at + 1]
        radii = radius * np.exp(-rate * STEP_MM * np.arange(len(piece)))
        if radii[-1] < SMALLEST_MM:
            keep = max(int(np.argmax(radii < SMALLEST_MM)), 2)
            if keep > 2:
                branches.append(
                    Branch(
                        vessel.name,
                        parent,
                        np.c_[piece[:keep], np.maximum(radii[:keep], SMALLEST_MM)],
                    )
                )
            return
        branches.append(Branch(vessel.name, parent, np.c_[piece, radii]))
        parent, radius, start = len(branches) - 1, radii[-1], at
        if child is None:
            break
        least = (SMALLEST_MM * 1.04 / radius) ** 3
        share = max(share, least)
        if share > 0.8:
            continue
        _emit(branches, child, radius * share ** (1 / 3), parent)
        radius *= (1 - share) ** (1 / 3)
    ends = [(share, child) for at, share, child in cuts if at == last]
    if len(ends) == 2:
        share = ends[0][0]
        _emit(branches, ends[0][1], radius * share ** (1 / 3), parent)
        _emit(branches, ends[1][1], radius * (1 - share) ** (1 / 3), parent)
    elif ends:
        _emit(branches, ends[0][1], radius, parent)


def inner_cuts(cuts, last):
    return [c for c in cuts if c[0] < last]


def _unit_rows(v: np.ndarray) -> np.ndarray:
    return v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-6)
