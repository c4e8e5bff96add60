"""Cases on the model's grid, and grids whose axes are not those of the world."""

import numpy as np
from scipy.spatial.transform import Rotation

from tubesynth.data.preprocessing import Preprocessing, preprocess_case, read_case
from tubesynth.volume.cases import Case


def resampled(case: Case, preprocessing: Preprocessing) -> tuple[dict, np.ndarray]:
    """(arrays, affine) of a case on the model's grid."""
    return preprocess_case(*read_case(case, preprocessing), preprocessing)


def oblique_affine(spacing, degrees=(20, -35, 50)) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix() * spacing
    affine[:3, 3] = 40, -80, 1200
    return affine
