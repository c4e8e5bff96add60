"""Betti numbers of a mask: its connected components, loops and cavities.

Foreground voxels are connected through faces, edges and corners (26 neighbors), background voxels
through faces (6). Euler's characteristic chi = b0 - b1 + b2 gives the loops without tracing them.
"""

import numpy as np

from tubesynth.volume.grid import bounding_box


def betti_numbers(mask: np.ndarray) -> tuple[int, int, int]:
    """(b0 components, b1 loops, b2 cavities) of a mask (X, Y, Z)."""
    from skimage.measure import euler_number

    bounds = bounding_box(mask)
    if bounds is None:
        return 0, 0, 0
    # The bounding box with a rim of background, which is then one component around the mask.
    box = np.pad(np.asarray(mask[bounds], dtype=bool), 1)
    # b0: components of the foreground. b2: components of the background but for the outer one.
    components = int(label_components(box, 26).max())
    cavities = int(label_components(~box, 6).max()) - 1
    # b1 = b0 + b2 - chi.
    loops = components + cavities - int(euler_number(box, connectivity=3))
    return components, loops, cavities


def label_components(mask: np.ndarray, neighbors: int) -> np.ndarray:
    """(X, Y, Z) int32: 1 to N in the N components of a mask, 0 outside; neighbors: 6 or 26."""
    from scipy import ndimage

    labels = np.zeros(mask.shape, dtype=np.int32)
    ndimage.label(mask, ndimage.generate_binary_structure(3, {6: 1, 26: 3}[neighbors]), labels)
    return labels


def betti_errors(predicted: tuple[int, int, int], true: tuple[int, int, int]) -> dict[str, int]:
    """|b0 - b0 true| and |b1 - b1 true| of two masks' Betti numbers; 0 is right."""
    return {
        "betti0_error": abs(predicted[0] - true[0]),
        "betti1_error": abs(predicted[1] - true[1]),
    }
