"""The coronary trees: the branching order of the vessels, and the waypoints of each.

The paths settle on the epicardium (epicardium.py); radii follow from Murray's law (murray.py).
Left: LM, LAD with diagonals and septals, LCX with obtuse marginals, sometimes a ramus. Right: RCA
with conus and acute marginals. The posterior descending and posterolateral arteries come from the
side that is dominant.
"""

import numpy as np

from tubesynth.phantom.epicardium import Surface, unit_rows
from tubesynth.phantom.heart import (
    LEFT_MAIN_END,
    ROOT,
    ROOT_AXIS,
    Pose,
    sinus_direction,
    ventricular,
)
from tubesynth.phantom.murray import STEP_MM, Artery, assign_radii
from tubesynth.phantom.shapes import Lattice, tube
from tubesynth.volume.centreline_file import Branch
from tubesynth.volume.polyline import decimate, hermite_curve


def grow_trees(lattice: Lattice, shapes, pose: Pose, rng: np.random.Generator) -> list[Branch]:
    """Both trees of one case in world mm, parents before children; branch 0 is the left main."""
    surface = Surface(lattice, shapes)
    tree = _TreeSampler(surface, pose, rng)
    dominance = rng.choice(["right", "left", "balanced"], p=[0.8, 0.1, 0.1])
    branches: list[Branch] = []
    assign_radii(branches, tree.left(dominance), rng.uniform(1.95, 2.2), None)
    sizes = (1.35, 1.6) if dominance == "left" else (1.7, 2.1)
    assign_radii(branches, tree.right(dominance), rng.uniform(*sizes), None)
    return branches


def make_room(lattice: Lattice, shapes: dict[str, np.ndarray], branches: list[Branch]) -> None:
    """Dent the cavities where a tight groove pressed an artery against them."""
    nearest = np.full(lattice.shape, 6.0, np.float32)
    for branch in branches:
        points = decimate(branch.points, 4)
        np.minimum(nearest, tube(lattice.points(), points[:, :3], points[:, 3], 6.0), out=nearest)
    for name in ("la", "lv", "ra", "rv"):
        shapes[name] = np.maximum(shapes[name], 1.5 - nearest)


class _TreeSampler:
    """Samples the paths of both trees; positions on the left ventricle as in heart.ventricular."""

    def __init__(self, surface: Surface, pose: Pose, rng: np.random.Generator):
        self.surface, self.pose, self.rng = surface, pose, rng

    def world(self, along, degrees, radius) -> np.ndarray:
        """(..., 3) world mm of points around the left ventricle's axis."""
        return self.pose.to_world(ventricular(along, degrees, radius))

    def ostium(self, sinus: str, level_mm: float) -> tuple[np.ndarray, np.ndarray]:
        """(3,) world mm where a ray from the root's axis meets the sinus wall; its direction."""
        turn = np.radians(self.rng.normal(0, 6))
        d = sinus_direction(sinus)
        d = np.cos(turn) * d + np.sin(turn) * np.cross(ROOT_AXIS, d)
        origin, out = self.pose.to_world(ROOT + level_mm * ROOT_AXIS), self.pose.direction(d)
        ray = origin + np.arange(0, 30, 0.1)[:, None] * out
        return ray[np.argmax(self.surface.aorta(ray) > -0.4)], out

    def side(self, parent: Artery, at, waypoints, radius, name, end_radius, groove=None) -> Artery:
        """A vessel that leaves its parent at row `at`, forwards where its goal lies ahead.

        waypoints: (W, 3) world mm; radius, end_radius: mm; groove: as in Surface.settle.
        """
        trunk, start = parent.points, parent.points[at]
        forward = trunk[min(at + 4, len(trunk) - 1)] - trunk[max(at - 4, 0)]
        forward, goal = unit_rows(np.stack([forward, np.asarray(waypoints[0]) - start]))
        leave = start + 4 * (max(forward @ goal, 0) * forward + goal) / 1.6
        path = hermite_curve(np.vstack([start, leave, waypoints]), 1.5)
        path = self.surface.settle(path, radius + 1.2, groove, free=(10, 0))
        path = self.surface.finish(path, radius, self.rng, 0.8)
        return Artery(name, path, end_radius)

    def left(self, dominance: str) -> Artery:
        """The left tree: LM, then LAD with D and S, LCX with OM, and sometimes RI."""
        rng, s = self.rng, self.surface
        # LM: 5 to 15 mm to its bifurcation, which is pushed at least 3.2 mm off the walls
        ostium, out = self.ostium("left", rng.uniform(8, 11))
        split = self.pose.to_world(LEFT_MAIN_END + rng.normal(0, 1.2, 3))
        split = ostium + np.clip(rng.normal(10, 2.5), 5, 15) * unit_rows((split - ostium)[None])[0]
        for _ in range(30):
            push = np.clip(3.2 - s.hard(split[None]), 0, 1)
            split = split + push * unit_rows(s.hard_gradient(split[None]))[0]
        bend = ostium + 0.35 * np.linalg.norm(split - ostium) * out
        main = hermite_curve(np.vstack([ostium, bend, split]), STEP_MM)
        lm = Artery("LM", main, 1.9)

        # LAD: in the groove between the ventricles to the apex and around it
        end = rng.uniform(84, 89)
        groove = self.world(np.linspace(12, 70, 8), 66, 37)
        path = np.vstack([split, groove, self.world([80, end], [64, -40], [22, 6])])
        path = s.settle(hermite_curve(path, 1.5), 2.8, "lv|rv", free=(4, 14))
        lad = Artery("LAD", s.finish(path, 1.6, rng, 0.9), rng.uniform(0.6, 0.75))
        # LCX: in the groove between left atrium and left ventricle, as far as dominance decides
        stop = {"right": rng.uniform(205, 235), "balanced": 255, "left": 280}[dominance]
        around = np.arange(128, stop, 12.0)
        groove = self.world(-2, around, np.interp(around, [120, 200, 290], [36, 38, 36]))
        path = np.vstack([split, groove])
        path = s.settle(hermite_curve(path, 1.5), 3.0, "la|lv", free=(3, 0))
        lcx = Artery("LCX", s.finish(path, 1.5, rng, 0.9), rng.uniform(0.7, 0.85))
        share = rng.uniform(0.52, 0.62)
        lm.children = [(len(main) - 1, share, lad), (len(main) - 1, 1 - share, lcx)]

        # D: diagonals of the LAD, over the front of the left ventricle towards its apex
        for k, mm in enumerate(np.cumsum(rng.uniform(14, 26, rng.integers(2, 4))) + 4):
            at = int(mm / STEP_MM)
            if at > len(lad.points) - 60:
                break
            a0, goal = self.along(lad.points[at]), 104 + 12 * k + rng.normal(0, 7)
            a1 = min(a0 + rng.uniform(34, 46), 74)
            waypoints = self.world(np.linspace(a0 + 7, a1, 5), np.linspace(78, goal, 5), 38)
            vessel = self.side(lad, at, waypoints, 0.9, f"D{k + 1}", rng.uniform(0.5, 0.6))
            lad.children.append((at, rng.uniform(0.2, 0.34), vessel))
        # S: septals of the LAD, into the septum, so they do not settle on the epicardium
        for k, mm in enumerate(np.cumsum(rng.uniform(9, 15, rng.integers(1, 4))) + 10):
            at = int(mm / STEP_MM)
            a0, angle = self.along(lad.points[at]), self.angle(lad.points[at])
            depth = np.array([0.35, 0.7, 1.0]) * rng.uniform(26, 40)
            waypoints = self.world(a0 + depth * 0.25, angle - depth, [32, 30, 30])
            path = hermite_curve(np.vstack([lad.points[at], waypoints]), STEP_MM)
            lad.children.append((at, 0.06, Artery(f"S{k + 1}", path, 0.5)))
        # OM: obtuse marginals of the LCX, down the left side of the left ventricle
        for k, mm in enumerate(np.cumsum(rng.uniform(12, 22, rng.integers(1, 4)))):
            at = int(mm / STEP_MM)
            if at > len(lcx.points) - 16:
                break
            angle = self.angle(lcx.points[at])
            a1 = rng.uniform(44, 66)
            angles = np.linspace(angle + 4, angle + rng.normal(8, 5), 5)
            waypoints = self.world(np.linspace(9, a1, 5), angles, 38)
            vessel = self.side(lcx, at, waypoints, 1.0, f"OM{k + 1}", rng.uniform(0.5, 0.65))
            lcx.children.append((at, rng.uniform(0.3, 0.5), vessel))
        if dominance == "left":
            self.inferior(lcx)
        # RI: a ramus in one of five patients, from the start of the LCX
        if rng.random() < 0.2:
            waypoints = self.world(np.linspace(12, 52, 5), np.linspace(104, 122, 5), 38)
            lcx.children.insert(0, (3, 0.35, self.side(lcx, 3, waypoints, 1.0, "RI", 0.55)))
        return lm

    def right(self, dominance: str) -> Artery:
        """The right tree: RCA around the tricuspid annulus, with CB and AM."""
        rng, s = self.rng, self.surface
        ostium, out = self.ostium("right", rng.uniform(8, 11))
        # RCA: a ring of 29 mm around the annulus in its plane, u towards anterior right, v upwards
        center, normal = np.array([30.0, 16.0, -16.0]), np.array([0.82, -0.55, 0.12])
        u = np.cross(normal, [0, 0, 1.0])
        u /= np.linalg.norm(u)
        u *= np.sign(u[1])
        v = np.cross(normal, u)
        v *= np.sign(v[2])
        stop = 228 if dominance == "left" else 262
        # from the top over the right border to the crux
        angles = np.radians(90 - np.arange(0, stop - 60, 14.0))
        ring = center + 29 * (np.cos(angles)[:, None] * u + np.sin(angles)[:, None] * v)
        path = np.vstack([ostium, ostium + 6 * out, self.pose.to_world(ring[1:])])
        if dominance != "left":
            path = np.vstack([path, self.pose.to_world([[18, -12, -30]])])
        path = s.settle(hermite_curve(path, 1.5), 3.0, "ra|rv", free=(4, 6))
        rca = Artery("RCA", s.finish(path, 1.8, rng, 1.0, exempt=2.0), rng.uniform(1.1, 1.3))
        total = len(rca.points)
        # CB: a conus branch in three of five patients
        if rng.random() < 0.6:
            waypoints = self.pose.to_world([[4, 44, 12], [-6, 51, 8], [-14, 54, 0]])
            at = int(9 / STEP_MM)
            rca.children.append((at, 0.07, self.side(rca, at, waypoints, 0.7, "CB", 0.5)))
        # AM: acute marginals, over the right ventricle
        for k, fraction in enumerate(np.sort(rng.uniform(0.3, 0.62, rng.integers(1, 3)))):
            at = int(fraction * total)
            start = rca.points[at]
            goal = self.world(rng.uniform(52, 72), rng.uniform(-38, -5) + 30 * (k == 0), 44)
            waypoints = start + np.array([0.3, 0.55, 0.8, 1.0])[:, None] * (goal - start)
            share = rng.uniform(0.12, 0.22)
            vessel = self.side(rca, at, waypoints, 0.8, f"AM{k + 1}", 0.5)
            rca.children.append((at, share, vessel))
        if dominance == "left":
            rca.end_radius = 0.6
        else:
            self.inferior(rca)
        return rca

    def inferior(self, parent: Artery) -> None:
        """The posterior descending and posterolateral arteries from the crux."""
        rng, points = self.rng, parent.points
        last = len(points) - 1
        # PDA: in the inferior groove between the ventricles
        at = last - int(rng.uniform(4.5, 8) / STEP_MM)
        a0 = self.along(points[at])
        waypoints = self.world(np.linspace(a0 + 8, rng.uniform(52, 70), 6), 292, 37)
        pda = self.side(parent, at, waypoints, 1.0, "PDA", rng.uniform(0.55, 0.7), groove="lv|rv")
        ends = [(268, rng.uniform(34, 50))] if parent.name == "RCA" else [(262, 40)]
        parent.children.append((at, rng.uniform(0.4, 0.55), pda))
        # PL: on the inferior wall of the left ventricle, with a side branch
        for k, (angle, a1) in enumerate(ends):
            angles = [angle + 8, angle + 2, angle - 4, angle - 8 + rng.normal(0, 5)]
            bend = self.world([2, 8, a1 * 0.6, a1], angles, 38)
            trunk = self.side(parent, last, bend, 1.0, f"PL{k + 1}", 0.6)
            middle = int(len(trunk.points) * 0.3)
            a2 = rng.uniform(28, 44)
            waypoints = self.world([a2 * 0.5, a2], [angle - 18, angle - 26], 38)
            vessel = self.side(trunk, middle, waypoints, 0.7, f"PL{k + 2}", 0.5)
            trunk.children.append((middle, 0.4, vessel))
            parent.children.append((last, 1.0, trunk))

    def along(self, point) -> float:
        """Distance along the left ventricle's axis of a world point, in canonical mm."""
        a, b = self.world(0, 0, 0), self.world(1, 0, 0)
        return float((point - a) @ (b - a) / ((b - a) @ (b - a)))

    def angle(self, point) -> float:
        """Degrees around the left ventricle's axis of a world point, 0..360."""
        q = (self.pose.rotation.T @ (point - self.pose.shift)) / self.pose.scale
        base, septal, up = ventricular([0.0, 0.0, 0.0], [0.0, 0.0, 90.0], [0.0, 1.0, 1.0])
        x, y = (q - base) @ (septal - base), (q - base) @ (up - base)
        return float(np.degrees(np.arctan2(y, x))) % 360
