"""Coronary arteries found in a CT by its intensities alone, so that masks can be compared.

Bright voxels that look tubular (vesselness), lie around the heart and outside the large blood pools
are grown from the aorta, over gaps of a few mm. The condition gives only where the heart and the
aorta are, never where a vessel should be: a synthesis that forgot a vessel cannot get it back here.
Tuned on 0.7 mm voxels; on coarser ones, or without contrast, few coronaries are found in real CTs
either, which the numbers of the real CT show. Volumes lie on one grid, HU.
"""

from dataclasses import dataclass

import numpy as np

from tubesynth.metrics.dilation import within
from tubesynth.metrics.frangi import vesselness

LEAST_HU = 80.0  # thin lumina lose most of their contrast to partial volume
LEAST_VESSELNESS = 0.05
POOL_HU, POOL_RADIUS_MM = 180.0, 3.0  # blood pools: brighter than this, wider than twice this
POOL_MARGIN_MM = 1.5  # the blurred rim of a blood pool
HEART_MARGIN_MM = 12.0  # the epicardial fat in which the coronaries run
GAP_MM = 2.0
LEAST_PIECE_MM3 = 4.0  # smaller ones are noise


@dataclass(frozen=True)
class Region:
    """Where coronaries are looked for: masks of one shape, the box that they were cut from."""

    box: tuple[slice, slice, slice]
    near_heart: np.ndarray  # within HEART_MARGIN_MM, without the aorta
    near_aorta: np.ndarray  # where a coronary may begin
    spacing: np.ndarray


def search_region(heart, aorta, spacing, include=None) -> Region | None:
    """The region of a condition; None where there is no heart or no aorta to start from.

    heart, aorta: (X, Y, Z) bool masks of the chambers with the myocardium, and of the aorta;
    include: a box that the region's box must hold.
    """
    spacing = np.asarray(spacing, dtype=float)
    found = bounding_box(heart)
    if found is None or not np.any(aorta):
        return None
    margin = np.ceil((HEART_MARGIN_MM + 2 * POOL_RADIUS_MM) / spacing).astype(int)
    box = tuple(slice(max(s.start - m, 0), s.stop + m) for s, m in zip(found, margin, strict=True))
    if include is not None:
        pairs = zip(box, include, strict=True)
        box = tuple(slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in pairs)
    heart, aorta = np.asarray(heart[box], dtype=bool), np.asarray(aorta[box], dtype=bool)
    near_heart = within(heart, spacing, HEART_MARGIN_MM) & ~aorta
    near_aorta = within(aorta, spacing, POOL_MARGIN_MM + spacing.max())
    return Region(box, near_heart, near_aorta, spacing)


def bounding_box(mask) -> tuple[slice, slice, slice] | None:
    """The bounding box of a mask."""
    from scipy import ndimage

    boxes = ndimage.find_objects(np.asarray(mask, dtype=np.uint8))
    return boxes[0] if boxes else None


def allowed_voxels(hu, region: Region) -> np.ndarray:
    """Near the heart and outside of blood pools; hu: of the region's box."""
    # A pool is what a ball of POOL_RADIUS_MM fits into: erosion, then dilation.
    core = ~within(hu <= POOL_HU, region.spacing, POOL_RADIUS_MM)
    pool = within(core, region.spacing, POOL_RADIUS_MM + POOL_MARGIN_MM)
    return region.near_heart & ~pool


def grow(hu, allowed, tubular, region: Region) -> np.ndarray:
    """Vessels of the region's box: tubular pieces that hang together with the aorta."""
    from scipy import ndimage

    spacing = region.spacing
    pieces, _ = ndimage.label(tubular, np.ones((3, 3, 3)))
    sizes = np.bincount(pieces.ravel()) * spacing.prod()
    tubular = tubular & (sizes >= LEAST_PIECE_MM3)[pieces]
    # Pieces less than GAP_MM apart are one; the first starts where the aorta's blurred rim ends.
    labels, _ = ndimage.label(within(tubular, spacing, GAP_MM / 2), np.ones((3, 3, 3)))
    roots = np.unique(labels[region.near_aorta])
    kept = np.zeros(labels.max() + 1, dtype=bool)
    kept[roots] = True
    kept[0] = False
    vessel = tubular & kept[labels]
    # The rim of a thick vessel is more of an edge than of a tube.
    return vessel | (within(vessel, spacing, spacing.max()) & allowed & (hu > POOL_HU))


def find_vessels(hu, region: Region, also=None) -> tuple[np.ndarray, np.ndarray]:
    """The coronaries of a CT, bool, and the vesselness that they were found by, float32.

    hu: (X, Y, Z) of the region's box, as both answers. Vesselness is known where it decides, and in
    the mask `also`; elsewhere it is 0.
    """
    hu = np.asarray(hu, dtype=np.float32)
    allowed = allowed_voxels(hu, region)
    bright = allowed & (hu > LEAST_HU)
    where = bright if also is None else bright | also
    response = np.zeros(hu.shape, dtype=np.float32)
    response[where] = vesselness(hu, region.spacing, where=where)
    return grow(hu, allowed, bright & (response > LEAST_VESSELNESS), region), response
