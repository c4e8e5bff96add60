"""The heart and the great vessels as implicit shapes: chambers, walls, roots, veins and fat.

Positions are those of a typical adult in a canonical frame (RAS mm, +x = patient's right, origin =
middle of a cardiac field of view). A case rotates, scales, shifts and bends that frame, and has
sampled sizes: the shapes are evaluated at the world's lattice nodes, mapped into the canonical
frame.
"""

from dataclasses import dataclass

import numpy as np

from tubesynth.phantom.shapes import Lattice, ellipsoid, intersection, plane, tube, union
from tubesynth.volume.polyline import hermite_curve

MITRAL = np.array([-2.0, -12.0, 2.0])
ROOT = np.array([6.0, 4.0, 16.0])  # middle of the aortic valve


def _unit(v):
    v = np.asarray(v, np.float64)
    return v / np.linalg.norm(v)


APEXWARD = _unit([-0.64, 0.58, -0.46])  # left, anterior, inferior
SEPTAL = _unit([0.58, 0.64, 0.0])  # from the left ventricle to the right one
UPWARD = np.cross(SEPTAL, APEXWARD) * np.sign(np.cross(SEPTAL, APEXWARD)[2])
ROOT_AXIS = _unit([0.26, 0.14, 0.95])
LEFT_MAIN_END = np.array([-15.0, 3.0, 26.0])
PULMONARY_VALVE = np.array([-14.0, 33.0, 31.0])
PULMONARY_AXIS = _unit([-0.15, -0.35, 0.92])
# around the root, from right to anterior
SINUS_DEGREES = {"right": 70.0, "left": 188.0, "none": 308.0}


# Centrelines and radii (x, y, z, radius) from the heart outwards; the lungs' trees continue them.
PULMONARY_VEINS = (
    [(34, -33, 22, 8), (50, -31, 31, 6.5), (64, -30, 38, 4.6)],
    [(34, -38, 4, 8), (52, -46, 0, 6), (66, -53, -6, 4.4)],
    [(-10, -34, 23, 8), (-28, -34, 33, 6.5), (-44, -31, 40, 4.6)],
    [(-10, -38, 13, 8), (-30, -47, 11, 6), (-47, -54, 3, 4.4)],
)
PULMONARY_ARTERIES = (
    [(-15, -2, 54, 12), (0, -19, 57, 10.5), (20, -23.5, 56, 10), (44, -25, 53, 8.5)],
    [(44, -25, 53, 8.5), (58, -30, 46, 7), (66, -36, 30, 5.4)],
    [(40, -25, 54, 8), (56, -24, 60, 5.6), (64, -22, 66, 4)],
    [
        (-15, -2, 54, 12),
        (-26, -18, 60, 10.5),
        (-40, -34, 56, 8.5),
        (-48, -46, 40, 6),
        (-50, -50, 24, 5.2),
    ],
    [(-34, -26, 58, 7), (-46, -24, 63, 4)],
)

# Directions (mirrored for the left lung) of further lung vessels, see lung_stems.
FAN = ((0.5, 0.9, 0.1), (0.6, 0.6, -0.7), (0.8, 0.1, -0.7), (0.9, 0.4, 0.4), (0.5, -0.5, -0.9))


@dataclass
class Pose:
    """World = rotation @ (scale * canonical) + shift; the shapes are bent as well, paths are not.

    rotation: (3, 3), scale: (3,), shift: (3,) mm.
    """

    rotation: np.ndarray
    scale: np.ndarray
    shift: np.ndarray

    def to_world(self, canonical) -> np.ndarray:
        """(..., 3) canonical mm -> (..., 3) world mm."""
        return (np.asarray(canonical) * self.scale) @ self.rotation.T + self.shift

    def direction(self, canonical) -> np.ndarray:
        """(3,) canonical direction -> (3,) unit vector in the world."""
        return _unit((np.asarray(canonical) * self.scale) @ self.rotation.T)


def sample_pose(rng: np.random.Generator) -> Pose:
    """A random pose: up to 12 degrees around each axis, 8 % size, 2.5 mm standard deviation."""
    tilt, roll, turn = np.radians(np.clip(rng.normal(0, [4.0, 4.0, 7.0]), -12, 12))
    rotation = np.eye(3)
    for axis, angle in ((0, tilt), (1, roll), (2, turn)):
        a, b = (axis + 1) % 3, (axis + 2) % 3
        step = np.eye(3)
        step[[a, b], [a, b]] = np.cos(angle)
        step[a, b], step[b, a] = -np.sin(angle), np.sin(angle)
        rotation = step @ rotation
    scale = rng.uniform(0.92, 1.08) * rng.uniform(0.95, 1.05, 3)
    return Pose(rotation, scale, rng.normal(0, 2.5, 3))


def ventricular(along_mm, degrees, radius_mm) -> np.ndarray:
    """(..., 3) canonical points around the left ventricle's axis; 0 degrees is septal, 90 upward.

    The arguments broadcast: distance along the axis from the mitral valve, angle, distance from it.
    """
    along, angle, radius = np.broadcast_arrays(along_mm, np.radians(degrees), radius_mm)
    around = np.cos(angle)[..., None] * SEPTAL + np.sin(angle)[..., None] * UPWARD
    return MITRAL + along[..., None] * APEXWARD + radius[..., None] * around


def sinus_direction(name: str) -> np.ndarray:
    """(3,) canonical unit vector from the root's axis to a sinus, perpendicular to the axis."""
    angle = np.radians(SINUS_DEGREES[name])
    flat = np.array([np.cos(angle), np.sin(angle), 0.0])
    return _unit(flat - (flat @ ROOT_AXIS) * ROOT_AXIS)


def lung_stems(pose: Pose) -> list[tuple[np.ndarray, np.ndarray, float]]:
    """World position, direction, radius (mm) where each pulmonary vessel enters its lung."""
    stems = []
    for path in (*PULMONARY_VEINS, *PULMONARY_ARTERIES[1:]):
        (*before, _), (*end, radius) = path[-2:]
        stems.append((pose.to_world(end), pose.direction(np.subtract(end, before)), radius))
    for end, lung in (((62, -32, 30), 1), ((-46, -34, 32), -1)):  # to the front and the base
        for direction in FAN:
            towards = pose.direction(np.multiply(direction, (lung, 1, 1)))
            stems.append((pose.to_world(end), towards, 4.2))
    return stems


def heart_shapes(lattice: Lattice, pose: Pose, behind: np.ndarray, rng) -> dict[str, np.ndarray]:
    """Lattice fields in mm: cavities, outer surfaces (`*_wall`), great vessels, veins, fat.

    behind: the field of the spine and the aorta, which push the left atrium forwards.
    """
    # q: three fields (X, Y, Z), the canonical coordinates of the nodes,
    # q = rotation^T (p - shift) / scale + bend
    shifted = [p - np.float32(s) for p, s in zip(lattice.points(), pose.shift, strict=True)]
    bend = [lattice.noise(rng, 38.0) * np.float32(1.6) for _ in range(3)]
    q = []
    for column, scale, b in zip(pose.rotation.T.astype(np.float32), pose.scale, bend, strict=True):
        rotated = column[0] * shifted[0] + column[1] * shifted[1] + column[2] * shifted[2]
        q.append(rotated / np.float32(scale) + b)
    size = np.float32(pose.scale.mean())
    rough = lattice.noise(rng, 5.0)
    frame = np.stack([APEXWARD, SEPTAL, UPWARD])

    def vary(amount=0.07):
        return rng.uniform(1 - amount, 1 + amount)

    s = _ventricles(q, frame, rough, vary, rng)
    s.update(_atria(q, vary, rng))
    s.update(_great_vessels(q, vary, rng))
    # Where two shapes meet, one is cut: the vessels end at their valves, the chambers at the aorta.
    s["aorta"] = intersection(s["aorta"], -plane(q, ROOT, ROOT_AXIS), 1.0)
    s["pa"] = intersection(s["pa"], -plane(q, PULMONARY_VALVE, PULMONARY_AXIS), 1.0)
    for name in ("rv", "rv_wall"):
        s[name] = intersection(s[name], 2.5 - s["aorta"], 2.0)
    s["la"] = intersection(s["la"], 2.0 - s["aorta"], 1.0)
    s["ra"] = intersection(s["ra"], 2.5 - np.minimum(s["aorta"], s["la"]), 1.0)
    # Room for the left main artery between the root, the appendage and the trunk.
    corridor = [ROOT + 9 * ROOT_AXIS + 13 * sinus_direction("left"), LEFT_MAIN_END, (-13, 14, 23)]
    room = -tube(q, corridor, [6, 6, 5], 8.0)
    for name in ("la", "la_core", "lv_wall", "rv_wall"):
        s[name] = intersection(s[name], room, 3.0)
    # Room for the circumflex under the appendage; the spine and the aorta push from behind.
    groove = np.vstack([LEFT_MAIN_END, ventricular(-3.0, np.arange(128, 200, 16.0), 35.0)])
    room = np.maximum(-tube(q, groove, np.full(len(groove), 4.6), 8.0), 3.0 - behind / size)
    for name in ("la", "la_core"):
        s[name] = intersection(s[name], room, 3.0)
    # A cavity ends where its neighbor is nearer, max(a, (a - b) / 2 + 0.4); the gap is the valve.
    la, lv, ra, rv = s["la"], s["lv"], s["ra"], s["rv"]
    s["la"], s["lv"] = np.maximum(la, (la - lv) / 2 + 0.4), np.maximum(lv, (lv - la) / 2 + 0.4)
    s["ra"], s["rv"] = np.maximum(ra, (ra - rv) / 2 + 0.4), np.maximum(rv, (rv - ra) / 2 + 0.4)
    s["rv"] = np.maximum(s["rv"], -s["lv_wall"])
    s["la_wall"], s["ra_wall"] = la - 1.8, ra - 1.8
    ventricles = np.minimum(s["lv_wall"], s["rv_wall"])
    atria = np.minimum(s["la_wall"], s["ra_wall"])
    s["epicardium"] = np.minimum(ventricles, atria)
    # The sac spans the grooves; the veins and the upper vessels leave it.
    core = union(s["la_core"] - 1.8, s["ra_wall"], 14.0)
    sac = union(union(s["lv_wall"], s["rv_wall"], 22.0), core, 20.0)
    trunk = s.pop("trunk")
    roots = np.maximum(np.minimum(s["aorta"], trunk), plane(q, (0, 0, 40), (0, -0.3, 0.95)))
    sac = union(sac, roots, 14.0)
    upper = union(union(s["aorta"], trunk, 16.0), s["svc"], 18.0)
    s["great_vessel_fat"] = union(upper - np.float32(rng.uniform(0.5, 3)), sac, 12.0)
    s["pericardium"] = sac - np.float32(rng.uniform(1.0, 4.0)) - lattice.noise(rng, 24.0)
    return {name: (field * size).astype(np.float32) for name, field in s.items()}


def _ventricles(q, frame, rough, vary, rng) -> dict[str, np.ndarray]:
    """Both ventricles and their walls; frame: (3, 3) axes of the left one in rows."""
    girth, length, wall = 34.5 * vary(), 66 * vary(0.05), rng.uniform(8.5, 11.5)
    along = plane(q, MITRAL, APEXWARD)
    lv_wall = ellipsoid(q, MITRAL + 20 * APEXWARD, (length, girth, girth * vary(0.04)), frame)
    lv_wall = intersection(lv_wall, -along - 4.0, 6.0)
    inner = girth - wall
    radii = length - wall * 0.75, inner, inner * vary(0.04)
    lv = ellipsoid(q, MITRAL + 19 * APEXWARD, radii, frame)
    lv = lv + rough * np.clip(along / 40, 0, 1) * np.float32(1.5)
    for degrees in (140 + rng.normal(0, 8), 222 + rng.normal(0, 8)):  # papillary muscles
        path = ventricular([24 * vary(), 40, 58], degrees, inner * np.array([0.52, 0.62, 0.7]))
        lv = intersection(lv, -tube(q, path, [2.6 * vary(0.2), 4.2 * vary(), 4.4], 8.0), 1.5)
    middle = MITRAL + 16 * APEXWARD + 9 * SEPTAL + 5 * UPWARD
    outflow = tube(q, [middle, ROOT, ROOT + 4 * ROOT_AXIS], [13, 11, 11])
    outflow = intersection(outflow, plane(q, ROOT, ROOT_AXIS), 1.0)
    lv = union(lv, outflow, 4.0)
    lv_wall = union(lv_wall, outflow - 3.0, 4.0)
    lv = intersection(lv, -along - 3.0, 2.0)

    body = MITRAL + 33 * APEXWARD + 25 * SEPTAL * vary() - 4 * UPWARD
    rv = ellipsoid(q, body, (47 * vary(0.05), 26 * vary(), 33 * vary()), frame)
    rv = union(rv, ellipsoid(q, (20, 20, -21), (21 * vary(), 22 * vary(), 25 * vary())), 10.0)
    infundibulum = [(4, 32, -4), (-4, 37, 10), (-11, 37, 24), (-14, 33, 31)]
    rv = union(rv, tube(q, infundibulum, np.array([17, 15.5, 13, 12]) * vary()), 8.0)
    rv_wall = rv - 3.2
    rv = rv + np.abs(rough) * np.float32(1.1)
    septum = MITRAL + 50 * APEXWARD + 26 * SEPTAL
    free_wall = MITRAL + 52 * APEXWARD + 52 * SEPTAL - 12 * UPWARD
    rv = intersection(rv, -tube(q, [septum, free_wall], [2, 2]), 1.5)  # moderator band
    # Nothing of the right ventricle lies beyond the pulmonary valve.
    beyond = plane(q, PULMONARY_VALVE, PULMONARY_AXIS)
    near = ellipsoid(q, PULMONARY_VALVE + 4 * PULMONARY_AXIS, (26, 26, 14)) < 0
    rv = np.where(near, np.maximum(rv, beyond), rv)
    rv_wall = np.where(near, np.maximum(rv_wall, beyond - 1.5), rv_wall)
    return {"lv": lv, "lv_wall": lv_wall, "rv": rv, "rv_wall": rv_wall}


def _atria(q, vary, rng) -> dict[str, np.ndarray]:
    """Both atria, the veins that enter them, and the left atrium without its veins (la_core)."""
    la = ellipsoid(q, (13, -29, 13), (30 * vary(0.1), 18.5 * vary(0.1), 23 * vary(0.1)))
    la = union(la, tube(q, [(8, -24, 10), MITRAL - 5 * SEPTAL - 2 * APEXWARD], [17, 15]), 8.0)
    tip = np.array([-32, 5, 30]) + rng.normal(0, 2.5, 3)
    appendage = hermite_curve(
        [(-9, -24, 22, 9), (-25, -20, 32, 8), (-34, -8, 33, 7.5), (*tip, 5)], 5.0
    )
    la = union(la, tube(q, appendage[:, :3], appendage[:, 3] * vary(0.12)), 4.0)
    core = la
    for vein in PULMONARY_VEINS:
        vein = np.array(vein, float)
        vein[1, :3] += rng.normal(0, 2.0, 3)
        path = hermite_curve(vein, 8.0)
        la = union(la, tube(q, path[:, :3], path[:, 3] * vary(), 10.0), 4.0)
    ra = ellipsoid(q, (46, -5, -7), (23 * vary(0.1), 25 * vary(0.1), 31 * vary(0.1)))
    right_appendage = tube(q, [(42, 6, 8), (34, 26, 14), (24, 34, 17)], [15, 11, 6])
    ra = union(ra, right_appendage, 8.0)
    ra = union(ra, tube(q, [(40, 4, -12), (32, 14, -16)], [22, 20]), 6.0)
    svc = tube(q, [(44, -6, 90), (45, -5, 45), (45, -6, 14)], np.array([9.0, 9.5, 11]) * vary(0.12))
    ivc = tube(
        q, [(47, -14, -28), (45, -19, -52), (44, -23, -110)], np.array([12.0, 12.5, 13]) * vary(0.1)
    )
    sinus = hermite_curve(
        [(30, -22, -20, 5), (14, -28, -18, 4.2), (-8, -34, -10, 3.4), (-24, -33, 0, 2.4)], 5.0
    )
    cs = tube(q, sinus[:, :3], sinus[:, 3], 8.0)
    return {"la": la, "la_core": core, "ra": ra, "svc": svc, "ivc": ivc, "cs": cs}


def _great_vessels(q, vary, rng) -> dict[str, np.ndarray]:
    """The aorta with its sinuses, the pulmonary arteries, and their trunk alone."""
    caliber = vary(0.1)
    aorta = tube(q, [ROOT - 4 * ROOT_AXIS, ROOT + 12 * ROOT_AXIS], [11.5 * caliber, 12.5 * caliber])
    for name in SINUS_DEGREES:
        center = ROOT + 8 * ROOT_AXIS + 6.0 * caliber * sinus_direction(name)
        aorta = union(aorta, ellipsoid(q, center, np.array([10.2, 10.2, 11]) * caliber), 3.0)
    ascending = [(7, 5, 20, 12.5), (11, 8, 33, 13.2), (17, 10, 50, 15), (19, 5, 72, 15)]
    arch = [(13, -10, 94, 14.5), (1, -32, 101, 13.5), (-8, -54, 92, 12.5)]
    ascending = np.array([*ascending, *arch], float)
    ascending[2:4, :2] += rng.normal(0, 1.5, 2)
    ascending[:, 3] *= caliber * vary(0.05)
    path = hermite_curve(ascending, 10.0)
    aorta = union(aorta, tube(q, path[:, :3], path[:, 3]), 3.0)
    caliber = vary(0.1)
    trunk = hermite_curve(
        [(-13, 36, 24, 12.5), (-15, 31, 34, 13), (-18, 17, 45, 13.2), (-15, -2, 54, 13)], 6.0
    )
    pa = main = tube(q, trunk[:, :3], trunk[:, 3] * caliber)
    for arm in PULMONARY_ARTERIES:
        path = hermite_curve(arm, 7.0)
        pa = union(pa, tube(q, path[:, :3], path[:, 3] * caliber), 4.0)
    return {"aorta": aorta, "pa": np.maximum(pa, 2.5 - aorta), "trunk": main}
