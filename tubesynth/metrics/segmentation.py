"""Segmentation of the coronary arteries of a CT by its intensities alone.

Bright voxels that look tubular (vesselness), lie near the heart and outside the large blood pools
are grown from the aorta, over gaps of a few mm. The label map gives only the place of the heart and
the aorta, never that of a vessel, so a vessel that a synthesis lacks is not detected. Tuned on
voxels of 0.7 mm; on larger ones, or without contrast agent, few coronaries of real CTs are detected
either: the scores of the real CTs show it. All arrays are (X, Y, Z) on one grid, CTs in HU.
"""

from dataclasses import dataclass

import numpy as np

from tubesynth.metrics.dilation import Spacing, within
from tubesynth.metrics.frangi import vesselness
from tubesynth.metrics.topology import label_components
from tubesynth.volume.grid import Box, bounding_box

MIN_HU = 80.0  # thin lumina lose most of their contrast to partial volume
MIN_VESSELNESS = 0.05
POOL_HU, POOL_RADIUS_MM = 180.0, 3.0  # blood pools: brighter than this, wider than twice this
POOL_MARGIN_MM = 1.5  # the blurred rim of a blood pool
HEART_MARGIN_MM = 12.0  # the epicardial fat in which the coronaries run
GAP_MM = 2.0
MIN_COMPONENT_MM3 = 4.0  # smaller ones are noise


@dataclass(frozen=True)
class Region:
    """Where coronaries are searched for: a box of the volume, and masks of that box."""

    box: Box
    near_heart: np.ndarray  # within HEART_MARGIN_MM, without the aorta
    near_aorta: np.ndarray  # voxels in which a coronary may begin
    spacing: np.ndarray  # (3,) mm


def search_region(
    heart: np.ndarray, aorta: np.ndarray, spacing: Spacing, include: Box | None = None
) -> Region | None:
    """The search region of a label map; None where it has no heart or no aorta to start from.

    heart, aorta: (X, Y, Z) bool masks of the chambers with the myocardium, and of the aorta;
    include: a box that the region's box must contain.
    """
    spacing = np.asarray(spacing, dtype=float)
    margin = np.ceil((HEART_MARGIN_MM + 2 * POOL_RADIUS_MM) / spacing).astype(int)
    box = bounding_box(heart, margin)
    if box is None or not np.any(aorta):
        return None
    box = box if include is None else enclosing_box(box, include)
    heart, aorta = np.asarray(heart[box], dtype=bool), np.asarray(aorta[box], dtype=bool)
    near_heart = within(heart, spacing, HEART_MARGIN_MM) & ~aorta
    near_aorta = within(aorta, spacing, POOL_MARGIN_MM + spacing.max())
    return Region(box, near_heart, near_aorta, spacing)


def enclosing_box(a: Box, b: Box) -> Box:
    """The smallest box that contains both."""
    x, y, z = (slice(min(s.start, t.start), max(s.stop, t.stop)) for s, t in zip(a, b, strict=True))
    return x, y, z


def allowed_voxels(hu: np.ndarray, region: Region) -> np.ndarray:
    """Mask of the voxels near the heart and outside of blood pools; hu: of the region's box."""
    # A pool is the opening of the bright voxels with a ball of POOL_RADIUS_MM: an erosion, which is
    # the complement's dilation, then a dilation, here with the blurred rim added to the radius.
    core = ~within(hu <= POOL_HU, region.spacing, POOL_RADIUS_MM)
    pool = within(core, region.spacing, POOL_RADIUS_MM + POOL_MARGIN_MM)
    return region.near_heart & ~pool


def grow(hu: np.ndarray, allowed: np.ndarray, tubular: np.ndarray, region: Region) -> np.ndarray:
    """Vessel mask of the region's box: the tubular components that are connected to the aorta."""
    spacing = region.spacing
    # 1. Drop components (26 neighbors) smaller than MIN_COMPONENT_MM3.
    components = label_components(tubular, 26)
    volumes_mm3 = np.bincount(components.ravel()) * spacing.prod()
    tubular = tubular & (volumes_mm3 >= MIN_COMPONENT_MM3)[components]
    # 2. Components less than GAP_MM apart are one: dilated by half of it, they touch.
    groups = label_components(within(tubular, spacing, GAP_MM / 2), 26)
    # 3. Retain the groups that begin where the aorta's blurred rim ends; group 0 is background.
    from_aorta = np.zeros(groups.max() + 1, dtype=bool)
    from_aorta[np.unique(groups[region.near_aorta])] = True
    from_aorta[0] = False
    vessel = tubular & from_aorta[groups]
    # 4. Add the bright rim, one voxel wide: in a thick vessel it looks like an edge, not a tube.
    return vessel | (within(vessel, spacing, spacing.max()) & allowed & (hu > POOL_HU))


def find_vessels(
    hu: np.ndarray, region: Region, extra_voxels: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The mask of a CT's coronaries, bool, and the vesselness it is computed from, float32.

    hu: (X, Y, Z) of the region's box, as both results. Vesselness is computed in the candidate
    voxels and in the mask `extra_voxels`; elsewhere it is 0.
    """
    hu = np.asarray(hu, dtype=np.float32)
    allowed = allowed_voxels(hu, region)
    bright = allowed & (hu > MIN_HU)
    where = bright if extra_voxels is None else bright | extra_voxels
    response = np.zeros(hu.shape, dtype=np.float32)
    response[where] = vesselness(hu, region.spacing, where=where)
    return grow(hu, allowed, bright & (response > MIN_VESSELNESS), region), response
