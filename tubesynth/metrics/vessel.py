"""Did the vessels of the condition come out in the CT? Scores along the condition's centreline.

HU is read by trilinear interpolation at the centreline points (VesselTokens: position_mm relative
to the middle of the condition's grid, radius_mm, unit tangent) through world coordinates, so the CT
may lie on another grid than the condition. The shell is sampled on rings across the vessel. Calibre
classes are of the token's radius, as their names say in mm.
"""

import numpy as np

from tubesynth.volume.grid import Volume

# Contrast-filled coronaries lie around 300-450 HU. Below 200 a voxel could as well be enhanced
# myocardium (80-160 HU) or a lumen lost in partial volume; above 600 it is calcium, bone or metal.
LUMEN_RANGE_HU = (200.0, 600.0)
CALIBRES_MM = {"lt1.5mm": (0.0, 1.5), "1.5to3mm": (1.5, 3.0), "gt3mm": (3.0, np.inf)}
RING_ANGLES, RING_STEPS = 12, 4


def centreline_scores(
    ct: Volume, tokens, condition: Volume, lumen_range=LUMEN_RANGE_HU
) -> dict[str, float]:
    """Scores of a CT (HU) against the centreline of its condition; {} where it has no vessels.

    centreline_in_range: share of points whose HU lies in lumen_range (ends included);
    lumen_hu: mean HU of the points; contrast_hu: mean difference between a point and the median of
    its shell, 1.5 to 3 radii plus one voxel away. Each again by calibre, as a suffix, where points
    of that calibre exist. centreline_covered: share of points inside the CT; others are not scored.
    """
    position, tangent = centreline_in_world(tokens, condition)
    radius = np.asarray(tokens.radius_mm, dtype=np.float64)
    if len(position) == 0:
        return {}
    lumen = sample_hu(ct, position)
    inside = np.isfinite(lumen)
    scores = {"centreline_covered": float(inside.mean())}
    if not inside.any():
        return scores
    position, tangent, radius, lumen = (x[inside] for x in (position, tangent, radius, lumen))
    contrast = lumen - shell_hu(ct, position, tangent, radius)
    low, high = lumen_range
    in_range = (lumen >= low) & (lumen <= high)
    everything = np.ones(len(lumen), dtype=bool)
    for suffix, chosen in {"": everything, **calibres(radius)}.items():
        if not chosen.any():
            continue
        scores[f"centreline_in_range{suffix}"] = float(in_range[chosen].mean())
        scores[f"lumen_hu{suffix}"] = float(lumen[chosen].mean())
        scores[f"contrast_hu{suffix}"] = _mean(contrast[chosen])
    return scores


def calibres(radius_mm) -> dict[str, np.ndarray]:
    """Suffix of a metric's name -> (N,) bool: the points whose lumen radius is of that class."""
    radius = np.asarray(radius_mm)
    return {
        f"_{name}": (radius >= low) & (radius < high) for name, (low, high) in CALIBRES_MM.items()
    }


def centreline_in_world(tokens, condition: Volume) -> tuple[np.ndarray, np.ndarray]:
    """World position in mm (N, 3) and unit tangent (N, 3) of a condition's tokens."""
    middle = (np.array(condition.shape) - 1) / 2
    position = condition.to_world(np.asarray(tokens.position_mm) / condition.spacing + middle)
    direction = condition.affine[:3, :3] / condition.spacing
    return position, np.asarray(tokens.tangent) @ direction.T


def sample_hu(ct: Volume, world_mm) -> np.ndarray:
    """(..., 3) world mm -> (...) trilinear HU; nan beyond the outer faces of the voxels."""
    from scipy.ndimage import map_coordinates

    index = ct.to_index(world_mm)
    inside = ((index >= -0.5) & (index <= np.array(ct.shape) - 0.5)).all(-1)
    coordinates = np.moveaxis(index, -1, 0)
    values = map_coordinates(ct.array, coordinates, output=np.float64, order=1, mode="nearest")
    return np.where(inside, values, np.nan)


def shell_hu(ct: Volume, position_mm, tangent, radius_mm) -> np.ndarray:
    """(N,) median HU on rings across the vessel, from 1.5 to 3 radii plus one voxel away.

    The voxel (the longest side) keeps the lumen's blurred edge out of thin vessels' shells; rings,
    not balls, keep the vessel's own continuation out. nan where the rings leave the CT.
    """
    # Any axis across the tangent will do: start from the coordinate axis least aligned with it.
    helper = np.eye(3)[np.abs(tangent).argmin(1)]
    across = np.cross(tangent, helper)
    across /= np.linalg.norm(across, axis=1, keepdims=True)
    other = np.cross(tangent, across)
    angle = np.linspace(0, 2 * np.pi, RING_ANGLES, endpoint=False)[:, None, None]
    circle = np.cos(angle) * across + np.sin(angle) * other
    steps = np.linspace(1.5, 3.0, RING_STEPS)[:, None]
    distance = steps * radius_mm + ct.spacing.max()
    rings = position_mm + distance[:, None, :, None] * circle
    values = sample_hu(ct, rings).reshape(-1, len(position_mm))
    median = np.full(len(position_mm), np.nan)
    known = np.isfinite(values).any(0)
    median[known] = np.nanmedian(values[:, known], axis=0)
    return median


def _mean(values) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")
