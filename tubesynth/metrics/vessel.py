"""Scores of a CT along the centreline of its condition: HU of the lumen and contrast to its shell.

HU is sampled by trilinear interpolation at the centreline points (VesselTokens: position_mm
relative to the center of the condition's grid, radius_mm, unit tangent) through world coordinates,
so the CT may lie on another grid than the condition. The shell is sampled on rings across the
vessel. A calibre is a class of the token's radius; its bounds in mm are its name.
"""

import numpy as np

from tubesynth.volume.grid import Volume
from tubesynth.volume.vessels import VesselTokens

# Contrast-filled coronaries lie around 300-450 HU. Below 200 a voxel could as well be enhanced
# myocardium (80-160 HU) or a lumen blurred by partial volume; above 600 it is calcium, bone, metal.
LUMEN_RANGE_HU = (200.0, 600.0)
CALIBRES_MM = {"lt1.5mm": (0.0, 1.5), "1.5to3mm": (1.5, 3.0), "gt3mm": (3.0, np.inf)}
RING_ANGLES, RING_STEPS = 12, 4


def centreline_scores(
    ct: Volume,
    tokens: VesselTokens,
    condition: Volume,
    lumen_range: tuple[float, float] = LUMEN_RANGE_HU,
) -> dict[str, float]:
    """Scores of a CT (HU) along the centreline of its condition; {} where it has no vessels.

    centreline_in_range: share of points whose HU lies in lumen_range (ends included);
    lumen_hu: mean HU of the points; contrast_hu: mean difference between a point and the median of
    its shell, 1.5 to 3 radii plus one voxel away. Each also by calibre, as a suffix, where points
    of that calibre exist. centreline_covered: share of points inside the CT; others are not scored.
    """
    position, tangent = centreline_in_world(tokens, condition)
    radius = np.asarray(tokens.radius_mm, dtype=np.float64)
    if len(position) == 0:
        return {}
    lumen = sample_hu(ct, position)
    inside = np.isfinite(lumen)  # (N,)
    scores = {"centreline_covered": float(inside.mean())}
    if not inside.any():
        return scores
    position, tangent, radius, lumen = (x[inside] for x in (position, tangent, radius, lumen))
    contrast = lumen - shell_hu(ct, position, tangent, radius)
    low, high = lumen_range
    in_range = (lumen >= low) & (lumen <= high)
    for suffix, selected in calibres(radius).items():
        scores[f"centreline_in_range{suffix}"] = float(in_range[selected].mean())
        scores[f"lumen_hu{suffix}"] = float(lumen[selected].mean())
        finite = contrast[selected & np.isfinite(contrast)]
        scores[f"contrast_hu{suffix}"] = float(finite.mean()) if len(finite) else float("nan")
    return scores


def calibres(radius_mm: np.ndarray) -> dict[str, np.ndarray]:
    """{suffix of a metric's name: (N,) bool}: all points, without a suffix, and those whose radius
    (N,) is of each calibre. Without calibres that no point has.
    """
    radius = np.asarray(radius_mm)
    selected = {"": np.ones(len(radius), dtype=bool)}
    for name, (low, high) in CALIBRES_MM.items():
        selected[f"_{name}"] = (radius >= low) & (radius < high)
    return {suffix: points for suffix, points in selected.items() if points.any()}


def centreline_in_world(tokens: VesselTokens, condition: Volume) -> tuple[np.ndarray, np.ndarray]:
    """World position in mm (N, 3) and unit tangent (N, 3) of a condition's tokens."""
    # index = position / spacing + (shape - 1) / 2; a direction turns by the affine's unit columns.
    center = (np.array(condition.shape) - 1) / 2
    position = condition.to_world(np.asarray(tokens.position_mm) / condition.spacing + center)
    direction = condition.affine[:3, :3] / condition.spacing
    return position, np.asarray(tokens.tangent) @ direction.T


def sample_hu(ct: Volume, world_mm: np.ndarray) -> np.ndarray:
    """(..., 3) world mm -> (...) trilinear HU; nan beyond the outer faces of the voxels."""
    from scipy.ndimage import map_coordinates

    index = ct.to_index(world_mm)
    inside = ((index >= -0.5) & (index <= np.array(ct.shape) - 0.5)).all(-1)
    coordinates = np.moveaxis(index, -1, 0)
    values = map_coordinates(ct.array, coordinates, output=np.float64, order=1, mode="nearest")
    return np.where(inside, values, np.nan)


def circles(tangent: np.ndarray) -> np.ndarray:
    """(N, 3) unit tangents -> (RING_ANGLES, N, 3) unit vectors across them, at even angles."""
    # Two unit vectors (N, 3) across the tangent, from the coordinate axis least aligned with it.
    axis = np.eye(3)[np.abs(tangent).argmin(1)]
    normal = np.cross(tangent, axis)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    binormal = np.cross(tangent, normal)
    angle = np.linspace(0, 2 * np.pi, RING_ANGLES, endpoint=False)[:, None, None]
    return np.cos(angle) * normal + np.sin(angle) * binormal


def shell_hu(
    ct: Volume, position_mm: np.ndarray, tangent: np.ndarray, radius_mm: np.ndarray
) -> np.ndarray:
    """(N,) median HU on rings across the vessel, from 1.5 to 3 radii plus one voxel away.

    One voxel (its longest edge) of distance excludes the lumen's blurred edge from the shell of
    a thin vessel; rings, unlike balls, exclude the vessel's continuation. nan where all rings lie
    outside the CT.
    """
    # distance: (S, N) mm; rings: (S, A, N, 3) world mm.
    steps = np.linspace(1.5, 3.0, RING_STEPS)[:, None]
    distance = steps * radius_mm + ct.spacing.max()
    rings = position_mm + distance[:, None, :, None] * circles(tangent)
    values = sample_hu(ct, rings).reshape(-1, len(position_mm))
    median = np.full(len(position_mm), np.nan)
    covered = np.isfinite(values).any(0)
    median[covered] = np.nanmedian(values[:, covered], axis=0)
    return median
