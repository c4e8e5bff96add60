"""Betti numbers of a mask: how many pieces, how many loops, how many cavities.

Foreground voxels touch by faces, edges and corners (26 neighbours), background voxels by faces.
Euler's characteristic ties the three: chi = b0 - b1 + b2, so loops need no tracing.
"""

import numpy as np


def betti_numbers(mask: np.ndarray) -> tuple[int, int, int]:
    """(b0 pieces, b1 loops, b2 cavities) of a mask (X, Y, Z)."""
    from scipy import ndimage
    from skimage.measure import euler_number

    found = ndimage.find_objects(np.asarray(mask, dtype=np.uint8))
    if not found:
        return 0, 0, 0
    box = np.pad(np.asarray(mask[found[0]], dtype=bool), 1)
    pieces = ndimage.label(box, np.ones((3, 3, 3)))[1]
    cavities = ndimage.label(~box)[1] - 1
    return pieces, pieces + cavities - euler_number(box, connectivity=3), cavities


def betti_errors(found: tuple[int, int, int], truth: tuple[int, int, int]) -> dict[str, int]:
    """How many pieces and loops too many or too few, of two masks' Betti numbers: 0 is right."""
    return {"betti0_error": abs(found[0] - truth[0]), "betti1_error": abs(found[1] - truth[1])}
