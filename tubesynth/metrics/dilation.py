"""What lies within some mm of a mask: a ball's dilation by squared distances, axis by axis.

min over offsets k of (value + (k spacing)^2) along each axis in turn gives the exact squared
Euclidean distance up to the reach; for balls of a few mm this is several times faster than a
distance transform of the whole volume.
"""

import numpy as np
import torch
from torch import Tensor

FAR = 1e9


def within(mask: np.ndarray, spacing, reach_mm: float) -> np.ndarray:
    """(X, Y, Z) bool: the voxels whose distance to the nearest True of the mask is <= reach_mm.

    spacing: (3,) mm. Only the box around the mask is worked on.
    """
    result = np.zeros(mask.shape, dtype=bool)
    spans = [np.flatnonzero(mask.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1))]
    if not len(spans[0]):
        return result
    steps = _steps(spacing, reach_mm)
    box = tuple(
        slice(max(span[0] - n, 0), span[-1] + n + 1) for span, n in zip(spans, steps, strict=True)
    )
    near = dilated(torch.from_numpy(mask[box])[None], spacing, reach_mm)
    result[box] = near[0].numpy()
    return result


def dilated(masks: Tensor, spacing, reach_mm: float) -> Tensor:
    """(B, X, ...) bool -> the same, `within` of each mask, on its device and without a sync point.

    spacing: mm along X, ...
    """
    squares = torch.where(masks, 0.0, FAR)
    for axis, (size_mm, most) in enumerate(zip(spacing, _steps(spacing, reach_mm), strict=True), 1):
        before, size = squares, squares.shape[axis]
        squares = before.clone()
        for k in range(1, min(most, size - 1) + 1):
            added = (k * float(size_mm)) ** 2
            for source, target in ((0, k), (k, 0)):
                moved = before.narrow(axis, source, size - k) + added
                part = squares.narrow(axis, target, size - k)
                torch.minimum(part, moved, out=part)
    return squares <= reach_mm**2 * (1 + 1e-6)


def _steps(spacing, reach_mm: float) -> list[int]:
    return [int(reach_mm / s + 1e-6) for s in spacing]
