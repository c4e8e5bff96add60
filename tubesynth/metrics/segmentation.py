"""Coronary arteries found in a CT by its intensities alone, so that masks can be compared.

Bright voxels that look tubular (vesselness), lie around the heart and outside the large blood pools
are grown from the aorta, over gaps of a few mm. The condition gives only where the heart and the
aorta are, never where a vessel should be: a synthesis that forgot a vessel cannot get it back here.
Tuned on 0.7 mm voxels; on coarser ones, or without contrast, few coronaries are found in real CTs
either, which the numbers of the real CT show. Volumes lie on one grid, HU.
"""

import numpy as np

from tubesynth.metrics.frangi import vesselness

LEAST_HU = 80.0  # thin lumina lose most of their contrast to partial volume
LEAST_VESSELNESS = 0.05
POOL_HU, POOL_RADIUS_MM = 180.0, 3.0  # blood pools: brighter than this, wider than twice this
POOL_MARGIN_MM = 1.5  # the blurred rim of a blood pool
HEART_MARGIN_MM = 12.0  # the epicardial fat in which the coronaries run
GAP_MM = 2.0
LEAST_PIECE_MM3 = 4.0  # smaller ones are noise


def segment_vessels(hu, heart, aorta, spacing) -> np.ndarray:
    """(X, Y, Z) bool: the coronary arteries of a CT.

    hu: (X, Y, Z); heart, aorta: bool masks of the chambers with the myocardium, and of the aorta;
    spacing: (3,) mm. All False where there is no heart or no aorta to start from.
    """
    from scipy import ndimage

    spacing = np.asarray(spacing, dtype=float)
    result = np.zeros(hu.shape, dtype=bool)
    found = np.argwhere(heart)
    if not len(found) or not np.any(aorta):
        return result
    margin = np.ceil((HEART_MARGIN_MM + 2 * POOL_RADIUS_MM) / spacing).astype(int)
    low = np.maximum(found.min(0) - margin, 0)
    box = tuple(slice(a, b) for a, b in zip(low, found.max(0) + margin + 1, strict=True))
    hu, heart, aorta = np.asarray(hu[box], dtype=np.float32), heart[box], aorta[box]

    def grown(mask, by_mm):
        return ndimage.distance_transform_edt(~mask, spacing) <= by_mm

    # A pool is what a ball of POOL_RADIUS_MM fits into: distance in, then distance out again.
    core = ndimage.distance_transform_edt(hu > POOL_HU, spacing) > POOL_RADIUS_MM
    pool = grown(core, POOL_RADIUS_MM + POOL_MARGIN_MM) if core.any() else core
    allowed = grown(heart, HEART_MARGIN_MM) & ~pool & ~aorta
    bright = allowed & (hu > LEAST_HU)
    tubular = np.zeros_like(bright)
    tubular[bright] = vesselness(hu, spacing, where=bright) > LEAST_VESSELNESS
    if not tubular.any():
        return result
    pieces, _ = ndimage.label(tubular, np.ones((3, 3, 3)))
    tubular &= (np.bincount(pieces.ravel()) * spacing.prod() >= LEAST_PIECE_MM3)[pieces]
    # Pieces less than GAP_MM apart are one; the first starts where the aorta's blurred rim ends.
    labels, _ = ndimage.label(grown(tubular, GAP_MM / 2), np.ones((3, 3, 3)))
    roots = np.unique(labels[grown(aorta, POOL_MARGIN_MM + spacing.max())])
    vessel = tubular & np.isin(labels, roots[roots > 0])
    if vessel.any():  # the rim of a thick vessel is more of an edge than of a tube
        vessel |= grown(vessel, spacing.max()) & allowed & (hu > POOL_HU)
    result[box] = vessel
    return result
