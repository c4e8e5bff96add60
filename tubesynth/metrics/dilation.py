"""Dilation of masks by a ball of some mm, by squared distances along one axis after the other.

d^2(x) = min_k (d^2(x + k e) + (k spacing)^2) along each axis e in turn is the exact squared
Euclidean distance up to the reach; for balls of a few mm this is several times faster than a
distance transform of the whole volume.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tubesynth.volume.grid import bounding_box

FAR = 1e9  # mm^2
Spacing = Sequence[float] | np.ndarray  # mm along each axis


def within(mask: np.ndarray, spacing: Spacing, reach_mm: float) -> np.ndarray:
    """(X, Y, Z) bool: the voxels whose distance to the nearest True of the mask is <= reach_mm.

    spacing: (3,) mm. Computed in the mask's bounding box, enlarged by the reach.
    """
    result = np.zeros(mask.shape, dtype=bool)
    box = bounding_box(mask, np.array(_steps(spacing, reach_mm)))
    if box is None:
        return result
    result[box] = dilated(torch.from_numpy(mask[box])[None], spacing, reach_mm)[0].numpy()
    return result


def dilated(masks: Tensor, spacing: Spacing, reach_mm: float) -> Tensor:
    """`within` of each mask of a batch, (B, X, ...) bool, on its device and without a sync point.

    spacing: mm along X, ...
    """
    squares = torch.where(masks, 0.0, FAR)  # (B, X, ...) mm^2
    steps = _steps(spacing, reach_mm)
    for axis, (step_mm, max_offset) in enumerate(zip(spacing, steps, strict=True), 1):
        before, size = squares, squares.shape[axis]
        squares = before.clone()
        for k in range(1, min(max_offset, size - 1) + 1):
            added = (k * float(step_mm)) ** 2
            # Offset +k, then -k: d^2 of the neighbor at that offset plus (k spacing)^2.
            for source, target in ((0, k), (k, 0)):
                candidate = before.narrow(axis, source, size - k) + added
                view = squares.narrow(axis, target, size - k)
                torch.minimum(view, candidate, out=view)
    return squares <= reach_mm**2 * (1 + 1e-6)


def _steps(spacing: Spacing, reach_mm: float) -> list[int]:
    """The reach in whole voxels along each axis."""
    return [int(reach_mm / s + 1e-6) for s in spacing]
