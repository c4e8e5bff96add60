"""The chest around the heart: body wall, bones, lungs and their vessels, diaphragm, fat.

Shapes are lattice fields in mm (see shapes.py), defined for the whole chest, so that a larger field
of view shows more of it. The midline lies right of the origin because a cardiac scan is centered on
the heart.
"""

import numpy as np

from tubesynth.phantom.shapes import Lattice, ellipsoid, tube, union
from tubesynth.volume.polyline import hermite_curve

MIDLINE = 17.0


def thorax_shapes(
    lattice: Lattice, floor_mm: float, front_mm: float, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Lattice fields in mm of the body outside of the heart.

    floor_mm, front_mm: world z of the heart's lowest and y of its foremost point. `rib_angle` is no
    shape: it grows from 0 at the sternum to 1 at the spine.
    """
    x, y, z = lattice.points()
    s: dict[str, np.ndarray] = {}
    mid = np.float32(MIDLINE + rng.normal(0, 3))
    width, front = rng.uniform(150, 168), max(rng.uniform(55, 62), front_mm)
    back = rng.uniform(-88, -82)
    wave = lattice.noise(rng, 40.0)

    # The pleural surface: a superellipse |px|^2.6 + |py|^2.6 = 1 in x, y that narrows upwards. Its
    # distance is first order, (k - 1) / |grad k|, and the body wall lies around it.
    widen = (z + 60) * np.float32(-0.10)
    half_x = width * np.float32(0.82) + widen
    half_y = np.float32((front - back) / 2) + widen * np.float32(0.3)
    px, py = (x - mid) / half_x, (y - np.float32((front + back) / 2)) / half_y
    radius = (np.abs(px) ** 2.6 + np.abs(py) ** 2.6) ** np.float32(1 / 2.6) + np.float32(1e-6)
    slope = np.sqrt((px / half_x) ** 2 + (py / half_y) ** 2) / radius
    wall = (radius - 1) / np.maximum(slope, 1e-3) * np.float32(0.97)
    # The sternum and the spine protrude into the chest between the lungs.
    ridge = np.exp(-(((x - mid) / 26) ** 2))
    s["pleura"] = wall + ridge * np.where(y > 0, 3, 14).astype(np.float32) + wave * 0.6
    inner = wall + ridge * np.where(y > 0, 1, 0).astype(np.float32)
    muscle = rng.uniform(17, 21) + 5 * np.exp(-(((np.abs(x - mid) - 62) / 32) ** 2)) * (y > 0)
    muscle = muscle - 7 * np.exp(-(((x - mid) / 18) ** 2)) * (y > 0)
    fat = rng.uniform(5, 22)
    s["muscle"] = inner - muscle + wave * np.float32(1.5)
    s["intercostal_fat"] = np.abs(inner - muscle * np.float32(0.68)) - 1.6 + wave * 0.8
    s["body"] = (inner - muscle - np.float32(fat) + wave * np.float32(1.0)).astype(np.float32)
    s["skin"] = s["body"] - 1.8

    # Ribs: bands of the wall, one each `pitch` mm, that fall from the spine to the side and rise
    # again to the sternum; each band is an ellipse in depth and height.
    angle = np.arctan2(np.abs(x - mid), y - np.float32((front + back) / 2)) / np.float32(np.pi)
    s["rib_angle"] = angle
    pitch, offset = rng.uniform(25, 30), rng.uniform(0, 28)
    fall = 62 * np.sin(np.pi * np.clip(angle, 0, 1) ** 0.8) ** 1.2 - 55 * (1 - angle)
    height = z + fall + np.float32(offset) + np.where(x > mid, 3, 0)
    height = height - pitch * np.round(height / pitch)
    depth = inner - np.float32(6.5)
    rib = np.sqrt((depth / 4.2) ** 2 + (height / 6.8) ** 2) - 1
    s["rib"] = np.where(np.abs(x - mid) < 16, 9, rib * np.float32(4.6))

    tilt = np.float32(rng.uniform(-0.12, 0.06))
    body_of_sternum = ellipsoid(
        [x, y - tilt * z, z * 0], (mid, front + 7.5, 0), (17 * rng.uniform(0.85, 1.15), 6.5, 30)
    )
    s["sternum"] = body_of_sternum + lattice.noise(rng, 9.0) * np.float32(0.8)

    # Vertebral bodies, discs, canal, arch.
    level = z / np.float32(rng.uniform(23, 26)) + np.float32(rng.uniform(0, 1))
    level = (level - np.round(level)) * 24.5  # 0 in the middle of a vertebra, 12 in the disc
    waist = np.float32(2.2) * np.cos(level * np.float32(np.pi / 12.25))
    spine_y = np.float32(back + 15 + rng.normal(0, 1.5))
    column = ellipsoid([x, y, z * 0], (mid, spine_y, 0), (17.5 * rng.uniform(0.92, 1.1), 14.5, 30))
    s["column"] = column + waist * np.float32(0.6)
    s["vertebra"] = np.maximum(s["column"], np.abs(level) - np.float32(9.8))
    canal_y = spine_y - 23
    s["canal"] = ellipsoid([x, y, z * 0], (mid, canal_y, 0), (9.5, 8.5, 30))
    arch = np.maximum(
        ellipsoid([x, y, z * 0], (mid, canal_y - 1, 0), (14, 13, 30)), np.abs(level) - 8
    )
    process = np.maximum(np.abs(x - mid) - 3.2, np.maximum(y - canal_y, canal_y - 42 - y))
    process = np.maximum(process, np.abs(level + 4) - 7 + 0 * x)
    side = np.maximum(
        np.abs(np.abs(x - mid) - 24) - 14, np.abs(y - canal_y + 4 + 0.3 * np.abs(x - mid)) - 5
    )
    side = np.maximum(side, np.abs(level - 2) - 6)
    s["arch"] = np.minimum(np.minimum(arch, process), side)

    # Diaphragm: two domes; the heart lies on the saddle between them.
    shift = np.float32(floor_mm + 53 + rng.normal(0, 2))
    right = ellipsoid(
        [x, y, z],
        (mid + 58, -4, -116 + shift + rng.normal(0, 4)),
        (74, 84, 74 * rng.uniform(0.94, 1.06)),
    )
    left = ellipsoid(
        [x, y, z], (mid - 80, -14, -121 + shift), (66, 76, 68 * rng.uniform(0.94, 1.06))
    )
    saddle = ellipsoid([x, y, z], (mid - 20, 16, -123 + shift), (84, 74, 72))
    s["liver"] = union(right, saddle, 14.0) + wave
    s["diaphragm"] = union(s["liver"], left, 14.0) - 2.5
    s["stomach"] = ellipsoid([x, y, z], (mid - 86, 8, -122 + shift), (44, 48, 58))
    s["spleen"] = ellipsoid([x, y, z], (mid - 96, -58, -116 + shift), (36, 30, 50))

    # Mediastinal fat between the lungs: behind the sternum, before the spine, above.
    anterior = tube(
        [x, y, z * 0], [(mid - 2, front + 4, 0), (mid - 6, front - 26, 0)], [rng.uniform(9, 15), 3]
    )
    path = np.array([(-22, 8, 0), (-6, 10, 0), (12, 2, 0)]) + [mid, spine_y, 0]
    posterior = tube([x, y, z * 0], path, [14, 14, 12])
    middle = tube([x, y, z], [(mid, -44, -140), (mid - 2, -42, 140)], [17, 17])
    upper = ellipsoid([x, y, z], (mid - 6, 0, 84), (40, 46, 50))
    mediastinum = union(union(anterior, posterior, 12.0), upper, 20.0)
    s["mediastinum"] = union(mediastinum, middle, 14.0) + wave * np.float32(0.8)

    aorta = [(-26, -3, -130), (-25, -2, -60), (-26, 0, 0), (-26, 1, 50), (-25, 1, 92)]
    aorta = np.array(aorta) + [mid, spine_y + 11, 0]
    aorta[:, :2] += rng.normal(0, 1.0, (5, 2))
    path = hermite_curve(aorta, 28.0)
    caliber = rng.uniform(10.5, 13.0)
    s["descending"] = tube([x, y, z], path, np.full(len(path), caliber), 10.0)
    gullet = np.array([(-18, 27, -130), (-11, 23, -40), (-6, 22, 20), (-4, 21, 130)])
    gullet = hermite_curve(gullet + [mid, spine_y, 0], 40.0)
    flat = [(x - mid) * np.float32(0.7) + mid, y, z]
    gullet[:, 0] = (gullet[:, 0] - mid) * 0.7 + mid
    s["esophagus"] = tube(flat, gullet, np.full(len(gullet), 5.5), 8.0)
    s["gullet_air"] = tube(flat, gullet + [1.0, 0.5, 0], np.full(len(gullet), 1.6), 8.0)
    azygos = [(mid + 8, spine_y + 18, -130), (mid + 9, spine_y + 18, 130)]
    s["azygos"] = tube([x, y, z], azygos, [3.6, 4.2], 8.0)
    carina = (mid, -42, 84, 8)
    bronchi = (
        [(mid - 1, -40, 110, 8.5), carina, (mid + 20, -45, 62, 6.5), (mid + 30, -47, 40, 5.2)],
        [(mid + 30, -47, 40, 5.2), (mid + 40, -52, 14, 3.6), (mid + 52, -56, -10, 2.6)],
        [carina, (mid - 22, -44, 66, 6), (mid - 42, -46, 47, 5), (mid - 52, -54, 22, 3.6)],
        [(mid - 42, -46, 47, 5), (mid - 52, -54, 22, 3.6), (mid - 62, -60, -4, 2.4)],
    )
    paths = [hermite_curve(branch, 12.0) for branch in bronchi]
    tubes = [tube([x, y, z], path[:, :3], path[:, 3], 8.0) for path in paths]
    s["bronchus"] = np.minimum.reduce(tubes)
    return {k: np.asarray(np.broadcast_to(f, lattice.shape), np.float32) for k, f in s.items()}


def lung_vessels(stems, rng: np.random.Generator) -> np.ndarray:
    """(N, 8) segments of the pulmonary trees: two ends, two radii, in world mm.

    stems: position, direction, radius (mm) of each vein and artery at the hilum. At a branching the
    flow is divided as r^2.6, and vessels end below a radius of 0.62 mm.
    """
    segments = []

    def grow(start, direction, radius, outward, generation):
        """Add a vessel and all that leave it; outward: +1 right, -1 left."""
        if radius < 0.62:
            return
        # the vessel itself: one or two segments with a random bend, away from the midline
        length = 6.8 * radius**0.55 * rng.uniform(0.7, 1.5)
        for _ in range(2 if radius > 1.0 else 1):
            bent = direction + rng.normal(0, 0.14, 3)
            bent[0] += 0.25 * outward if bent[0] * outward < 0.15 else 0.0
            bent /= np.linalg.norm(bent)
            end = start + bent * length / (2 if radius > 1.0 else 1)
            segments.append([*start, *end, radius, radius * 0.96])
            start, direction, radius = end, bent, radius * 0.96
        # its two children, in a random plane through its direction
        side = rng.normal(0, 1, 3)
        side -= (side @ direction) * direction
        side /= np.linalg.norm(side)
        share = rng.uniform(0.12, 0.5) if generation else 0.45
        spread = 0.9 if generation < 3 else 1.1
        for flow, turn in ((share, spread * (1 - 0.5 * share)), (1 - share, -spread * share)):
            child_radius = radius * flow ** (1 / 2.6)
            grow(start, direction + side * turn, child_radius, outward, generation + 1)

    for position, direction, radius in stems:
        outward = 1.0 if position[0] > MIDLINE else -1.0
        grow(position - 4 * direction, direction, radius, outward, 0)
    return np.array(segments)
