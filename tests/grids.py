"""Grids whose axes are not those of the world."""

import numpy as np
from scipy.spatial.transform import Rotation


def oblique_affine(spacing, degrees=(20, -35, 50)) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix() * spacing
    affine[:3, 3] = 40, -80, 1200
    return affine
