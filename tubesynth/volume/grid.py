"""A volume and where it lies: the array in (x, y, z) RAS+ order always travels with its affine.

The affine maps voxel indices to world millimetres (RAS+), as nibabel gives it after reorientation.
Its columns may be oblique: spacing is the length of each column.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Volume:
    """array: (X, Y, Z) in RAS+ order; affine: (4, 4) float64, voxel index -> world mm."""

    array: np.ndarray
    affine: np.ndarray

    def __post_init__(self):
        assert self.array.ndim == 3, f"a volume has three axes, not shape {self.array.shape}"
        assert np.shape(self.affine) == (4, 4), f"an affine is 4x4, not {np.shape(self.affine)}"
        object.__setattr__(self, "affine", np.asarray(self.affine, dtype=np.float64))

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.array.shape

    @property
    def spacing(self) -> np.ndarray:
        """(3,) mm along x, y, z."""
        return spacing_of(self.affine)

    @property
    def center_mm(self) -> np.ndarray:
        """(3,) world position of the middle of the grid."""
        return self.to_world((np.array(self.shape) - 1) / 2)

    def to_world(self, index: np.ndarray) -> np.ndarray:
        """(..., 3) voxel indices -> (..., 3) world mm."""
        return np.asarray(index) @ self.affine[:3, :3].T + self.affine[:3, 3]

    def to_index(self, world_mm: np.ndarray) -> np.ndarray:
        """(..., 3) world mm -> (..., 3) fractional voxel indices."""
        inverse = np.linalg.inv(self.affine)
        return np.asarray(world_mm) @ inverse[:3, :3].T + inverse[:3, 3]


def spacing_of(affine: np.ndarray) -> np.ndarray:
    """(3,) mm: the lengths of the affine's columns."""
    return np.linalg.norm(np.asarray(affine, dtype=np.float64)[:3, :3], axis=0)


def centered_affine(shape, spacing) -> np.ndarray:
    """An axis-aligned RAS+ affine whose grid is centred on the world's origin."""
    affine = np.diag([*spacing, 1.0]).astype(np.float64)
    affine[:3, 3] = -(np.array(shape) - 1) / 2 * np.asarray(spacing)
    return affine


def same_grid(a: Volume, b: Volume, tolerance_mm: float = 0.01) -> bool:
    """True where both have one shape and every corner voxel lies within the tolerance."""
    if a.shape != b.shape:
        return False
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in a.shape])).reshape(3, -1).T
    return bool(np.abs(a.to_world(corners) - b.to_world(corners)).max() <= tolerance_mm)
