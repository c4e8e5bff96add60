"""What lies within some mm of a mask: a ball's dilation by squared distances, axis by axis.

min over offsets k of (value + (k spacing)^2) along each axis in turn gives the exact squared
Euclidean distance up to the reach; for balls of a few mm this is several times faster than a
distance transform of the whole volume. Masks are (X, Y, Z) bool, spacing is (3,) mm.
"""

import numpy as np
import torch

FAR = 1e9


def within(mask: np.ndarray, spacing, reach_mm: float) -> np.ndarray:
    """(X, Y, Z) bool: the voxels whose distance to the nearest True of the mask is <= reach_mm."""
    result = np.zeros(mask.shape, dtype=bool)
    spans = [np.flatnonzero(mask.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1))]
    if not len(spans[0]):
        return result
    steps = [int(reach_mm / s + 1e-6) for s in spacing]
    box = tuple(
        slice(max(span[0] - n, 0), span[-1] + n + 1) for span, n in zip(spans, steps, strict=True)
    )
    squares = torch.from_numpy(np.where(mask[box], np.float32(0), np.float32(FAR)))
    for axis, (size_mm, most) in enumerate(zip(spacing, steps, strict=True)):
        before, size = squares, squares.shape[axis]
        squares = before.clone()
        for k in range(1, min(most, size - 1) + 1):
            added = (k * float(size_mm)) ** 2
            for source, target in ((0, k), (k, 0)):
                moved = before.narrow(axis, source, size - k) + added
                part = squares.narrow(axis, target, size - k)
                torch.minimum(part, moved, out=part)
    result[box] = (squares <= reach_mm**2 * (1 + 1e-6)).numpy()
    return result
