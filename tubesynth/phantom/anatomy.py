"""A procedural coronary CT angiogram with ground truth: image, label map, centrelines.

`make_phantom(seed, case, resolution, spacing)` samples one anatomy in mm (the same at every
resolution), paints it as a contrast-enhanced scan, and returns it in RAS+ order, centered on the
world's origin. heart.py, thorax.py and coronaries.py contain the anatomy, scanner.py the physics,
shapes.py the geometry.
"""

from dataclasses import dataclass

import numpy as np

from tubesynth.phantom.coronaries import grow_trees, make_room
from tubesynth.phantom.heart import heart_shapes, lung_stems, sample_pose
from tubesynth.phantom.scanner import Canvas, blend, blur, coronary_share, ct_noise
from tubesynth.phantom.shapes import Lattice
from tubesynth.phantom.thorax import lung_vessels, thorax_shapes
from tubesynth.volume.centreline_file import Branch
from tubesynth.volume.classes import NINE_CLASSES, LabelScheme, translate
from tubesynth.volume.grid import Volume, centered_affine

# The painted classes, in the order of NINE_CLASSES.names; make_phantom turns them into its scheme.
MYOCARDIUM, LA, LV, RA, RV, AORTA, PA, CORONARY = range(1, NINE_CLASSES.num_classes)


@dataclass(frozen=True)
class Phantom:
    """image: int16 HU; labels: uint8 of the scheme; branches: the coronary trees in world mm."""

    image: Volume
    labels: Volume
    branches: list[Branch]


@dataclass(frozen=True)
class Anatomy:
    """One case before it is scanned: lattice fields (mm, negative inside), vessels (world mm)."""

    lattice: Lattice
    heart: dict[str, np.ndarray]
    chest: dict[str, np.ndarray]
    lung_vessels: np.ndarray
    branches: list[Branch]


def make_phantom(
    seed: int, case: int, resolution, spacing, scheme: LabelScheme = NINE_CLASSES
) -> Phantom:
    """One case; resolution: (X, Y, Z) voxels, spacing: (sx, sy, sz) mm.

    The anatomy depends on seed and case alone, so another grid shows the same patient.
    """
    extent_mm = np.multiply(spacing, resolution)
    anatomy = sample_anatomy(seed, case, extent_mm)
    return scan(anatomy, seed, case, resolution, spacing, scheme)


def scan(
    anatomy: Anatomy, seed: int, case: int, resolution, spacing, scheme: LabelScheme = NINE_CLASSES
) -> Phantom:
    """The anatomy, or one with other branches, under the contrast and noise of seed and case."""
    shape, spacing = tuple(int(n) for n in resolution), np.asarray(spacing, np.float64)
    phase_rng, texture_rng, noise_rng = (_rng(seed, case, k) for k in (4, 5, 6))
    phase = _sample_contrast(phase_rng)
    canvas = Canvas(shape, spacing, anatomy.lattice)
    _paint_chest(canvas, anatomy.chest, anatomy.lung_vessels, phase, texture_rng)
    _paint_heart(canvas, anatomy.heart, anatomy.chest, phase, texture_rng)
    _paint_coronaries(canvas, anatomy.branches, phase)
    hu = blur(canvas.hu, spacing)
    hu += ct_noise(shape, spacing, phase["noise"], noise_rng)
    image = np.rint(np.clip(hu, -1024, 3071, out=hu), out=hu).astype(np.int16)
    affine = centered_affine(shape, spacing)
    labels = translate(canvas.labels, scheme.from_nine_classes())
    return Phantom(Volume(image, affine), Volume(labels, affine), anatomy.branches)


def sample_anatomy(seed: int, case: int, extent_mm=(180.0, 180.0, 135.0)) -> Anatomy:
    """The patient of one case. A field of view smaller than the heart crops it, unchanged."""
    pose_rng, heart_rng, chest_rng, tree_rng = (_rng(seed, case, k) for k in range(4))
    lattice = Lattice(np.maximum(extent_mm, 180.0))
    pose = sample_pose(pose_rng)
    floor, front = pose.to_world((-8.0, 18.0, -50.0))[2], pose.to_world((8.0, 60.0, -14.0))[1]
    chest = thorax_shapes(lattice, floor, front, chest_rng)
    behind = np.minimum(chest["descending"], chest["column"])
    heart = heart_shapes(lattice, pose, behind, heart_rng)
    lung = lung_vessels(lung_stems(pose), chest_rng)
    branches = grow_trees(lattice, heart, pose, tree_rng)
    make_room(lattice, heart, branches)
    return Anatomy(lattice, heart, chest, lung, branches)


def _rng(seed: int, case: int, use: int) -> np.random.Generator:
    """The generator of one purpose; a change of one purpose leaves the others unchanged."""
    return np.random.default_rng([seed, case, use])


def _sample_contrast(rng: np.random.Generator) -> dict[str, float]:
    """Contrast timing and dose: HU of each blood pool and tissue."""
    aorta, right = rng.uniform(290, 530), rng.uniform(125, 235)
    return {
        "aorta": aorta,
        "lv": aorta - rng.uniform(0, 18),
        "la": aorta + rng.uniform(-10, 25),
        "coronary": aorta - rng.uniform(0, 15),
        "rv": right,
        "ra": np.clip(right + rng.uniform(-20, 20), 120, 250),
        "pa": np.clip(right + rng.uniform(0, 60), 130, 290),
        "svc": right + rng.uniform(0, 180),
        "ivc": rng.uniform(70, 120),
        "myocardium": rng.uniform(100, 128),
        "fat": rng.uniform(-95, -75),
        "lung": rng.uniform(-875, -825),
        "muscle": rng.uniform(46, 58),
        "liver": rng.uniform(65, 100),
        "lung_vessels": (aorta + right) / 2 - 40,
        "noise": rng.uniform(16, 34),
    }


def _paint_chest(canvas: Canvas, s, vessels, phase, rng) -> None:
    """Paint the shapes `s` of the chest from the skin inwards, each over those before it."""
    lattice, fat, muscle = canvas.lattice, phase["fat"] - 15, phase["muscle"]
    x, y, z = lattice.points()
    patches = lattice.noise(rng, 6.0)
    canvas.paint(s["skin"], 30)
    canvas.paint(s["body"], fat)
    canvas.paint(s["muscle"], muscle + 6 * patches)
    canvas.paint(s["intercostal_fat"], fat + 20)
    # the lung is denser at the back (-y) by gravity, with texture of two scales
    gravity = (
        phase["lung"] - 0.28 * y + 14 * lattice.noise(rng, 4.0) + 12 * lattice.noise(rng, 22.0)
    ).astype(np.float32)
    lung = canvas.interpolate(np.broadcast_to(gravity, lattice.shape))
    share = canvas.tubes(vessels)
    blend(lung, share, phase["lung_vessels"])
    canvas.paint(s["pleura"], None, voxels=lung)
    cartilage = np.clip((s["rib_angle"] - 0.22) / 0.06, 0, 1)
    canvas.paint(s["rib"], 120 + 590 * cartilage)
    canvas.paint(s["rib"] + 1.7, 110 + (200 + 50 * patches) * cartilage)
    canvas.paint(s["diaphragm"], muscle)
    canvas.paint(s["liver"], phase["liver"])
    canvas.paint(s["spleen"], phase["liver"] + 25)
    canvas.paint(s["stomach"], muscle + 10)
    canvas.paint(s["stomach"] + 4, 15 + 10 * patches)
    canvas.paint(s["mediastinum"], fat + 6 * patches)
    canvas.paint(s["column"], 85)
    canvas.paint(s["arch"], 560)
    canvas.paint(s["arch"] + 1.6, 300)
    canvas.paint(s["vertebra"], 620)
    canvas.paint(s["vertebra"] + 1.5, 300 + 45 * patches)
    canvas.paint(s["canal"], 35)
    canvas.paint(s["bronchus"] - 1.3, 30)
    blend(canvas.hu, share, phase["lung_vessels"])
    canvas.paint(s["azygos"], 130)
    canvas.paint(s["esophagus"], 45)
    canvas.paint(s["gullet_air"], -500)


def _paint_heart(canvas: Canvas, s, chest, phase, rng) -> None:
    """Paint the shapes `s` of the heart and its labels, with the chest's bones, bronchi, aorta."""
    lattice, fat = canvas.lattice, phase["fat"]
    fine, broad = lattice.noise(rng, 5.0), lattice.noise(rng, 14.0)
    canvas.paint(s["great_vessel_fat"], fat - 8 + 6 * fine)
    canvas.paint(s["pericardium"], 10)
    canvas.paint(s["pericardium"] + 1.1, fat + 8 * fine)
    canvas.paint(chest["sternum"], 610)
    canvas.paint(chest["sternum"] + 1.6, 240 + 30 * fine)
    canvas.paint(chest["bronchus"], -990)
    canvas.paint(chest["descending"] - 1.2, 60)
    canvas.paint(chest["descending"], phase["aorta"], AORTA)
    canvas.paint(s["ivc"], phase["ivc"] + 12 * broad)
    canvas.paint(s["svc"] - 1, 50)
    canvas.paint(s["svc"], phase["svc"] + 30 * broad)
    canvas.paint(s["cs"], (phase["ra"] + 160) / 2)
    # inside the pericardium only: vessels in the lungs have no visible wall
    canvas.paint(np.maximum(s["epicardium"], s["pericardium"]), phase["myocardium"] - 20)
    canvas.paint(s["lv_wall"], phase["myocardium"] + 5 * broad + 4 * fine, MYOCARDIUM)
    canvas.paint(s["ra"], phase["ra"] + 20 * broad, RA)
    canvas.paint(s["rv"], phase["rv"] + 8 * broad, RV)
    canvas.paint(s["la"], phase["la"] + 4 * broad, LA)
    canvas.paint(s["lv"], phase["lv"] + 4 * broad, LV)
    canvas.paint(np.maximum(s["pa"] - 1.0, s["great_vessel_fat"]), 50)
    canvas.paint(s["aorta"] - 1.3, 70)
    canvas.paint(s["rv"], phase["rv"] + 8 * broad, RV)
    canvas.paint(s["pa"], phase["pa"] + 5 * broad, PA)
    canvas.paint(s["la"], phase["la"] + 4 * broad, LA)
    canvas.paint(s["lv"], phase["lv"] + 4 * broad, LV)
    canvas.paint(s["aorta"], phase["aorta"], AORTA)


def _paint_coronaries(canvas: Canvas, branches: list[Branch], phase) -> None:
    """Blend the coronaries into the HU by their share; label voxels half inside or on a line."""
    box, share, line = coronary_share(canvas, [b.points for b in branches])
    hu, labels = canvas.hu[box], canvas.labels[box]
    hu += share * (phase["coronary"] - hu)
    labels[((share >= 0.5) | line) & (labels != AORTA)] = CORONARY
