"""The headline score: how much of the real CT's vessels an image has, by calibre; noise has none.

At each centreline point both CTs are sampled on rings across the vessel. The medians of the rings,
minus the mean of the outer ones, are the point's profile q: contrast to the surroundings and radius
in one vector, averaged along the branch. The score of a point is

    s = <q, q_real> / max(|q|^2, |q_real|^2),

which is 1 for the real profile only, a for a times its contrast (1 / a above 1), lower for another
radius or place, and negative or 0 on average where an image has no vessel: noise, another patient,
a constant, blur. Half of a point's score is the lowest s of its neighborhood on the branch, so that
a break costs more than its length. A case's score is the mean of its points, at least 0.
"""

from collections.abc import Callable

import numpy as np

from tubesynth.metrics.vessel import calibres, centreline_in_world, circles, sample_hu
from tubesynth.volume.grid import Volume
from tubesynth.volume.vessels import VesselTokens

RINGS = 9  # from the centreline to REACH_MM, or two voxels, outside of the lumen
REACH_MM, BACKGROUND_MM = 3.0, 1.5  # outside of the lumen: the last ring, the first outer one
MEAN_REACH, BREAK_REACH = 2, 7  # neighbors on either side on a branch, which are at most 1 mm apart
# Points where the real CT has less are left out: partial volume or a chamber at the vessel's side
# hides them, and relative to little contrast the score would be that of noise. Noise of 25 HU in
# voxels of 0.7 mm has a standard deviation of 13 HU in a profile, 7 HU at 1.25, 4 HU at 2.1 mm.
MIN_CONTRAST_HU = 30.0
MIN_POINTS = 10  # of a calibre with a score: in 5 mm another patient's vessels match by chance


def vessel_match(
    ct: Volume, real: Volume, tokens: VesselTokens, condition: Volume
) -> dict[str, float]:
    """Scores in [0, 1] of a CT against the real CT along the centreline of their condition.

    vessel_match: mean over the points inside both CTs where the real CT has contrast;
    vessel_match_left_out: share of the points inside both where it has none. Each also by calibre,
    as a suffix. Fewer than MIN_POINTS points have no score; {} where no point is inside.
    """
    position, tangent = centreline_in_world(tokens, condition)
    if len(position) == 0:
        return {}
    radius = np.asarray(tokens.radius_mm, dtype=np.float64)
    voxel_mm = max(ct.spacing.max(), real.spacing.max())
    reach = radius + max(REACH_MM, 2 * voxel_mm)
    distance = np.linspace(0, 1, RINGS)[:, None] * reach  # (S, N) mm
    outer = distance >= radius + max(BACKGROUND_MM, voxel_mm)
    rings = [ring_medians(volume, position, tangent, distance) for volume in (ct, real)]
    inside = np.isfinite(rings).all((0, 1))  # (N,)
    branch, radius, outer = np.asarray(tokens.branch)[inside], radius[inside], outer[:, inside]
    q, q_real = (profiles(ring[:, inside], outer, branch) for ring in rings)
    visible = q_real[0] >= MIN_CONTRAST_HU
    size = np.maximum((q * q).sum(0), (q_real * q_real).sum(0))
    match = ((q * q_real).sum(0) / np.maximum(size, 1e-9))[visible]  # (V,) in [-1, 1]
    lowest = along_branch(match, branch[visible], BREAK_REACH, np.min, initial=1.0)
    score = np.full(len(radius), np.nan)
    score[visible] = (match + lowest) / 2
    scores = {}
    for suffix, selected in calibres(radius).items():
        scores[f"vessel_match_left_out{suffix}"] = float(1 - visible[selected].mean())
        if (scored := selected & visible).sum() >= MIN_POINTS:
            scores[f"vessel_match{suffix}"] = max(float(score[scored].mean()), 0.0)
    return scores


def ring_medians(
    ct: Volume, position_mm: np.ndarray, tangent: np.ndarray, distance_mm: np.ndarray
) -> np.ndarray:
    """(S, N) median HU of the rings at distance_mm (S, N); nan where a ring is outside the CT.

    The median is that of the vessel's own surroundings where a chamber touches less than half of
    the ring; a mean would see a bright structure beside the vessel as missing contrast.
    """
    points = position_mm + distance_mm[:, None, :, None] * circles(tangent)  # (S, A, N, 3)
    values = np.sort(sample_hu(ct, points), axis=1)  # nan last
    count = np.isfinite(values).sum(1, keepdims=True)  # (S, 1, N)
    pair = [np.take_along_axis(values, np.maximum(k, 0), 1) for k in ((count - 1) // 2, count // 2)]
    return np.where(count > 0, sum(pair) / 2, np.nan)[:, 0]


def profiles(rings_hu: np.ndarray, outer: np.ndarray, branch: np.ndarray) -> np.ndarray:
    """(S, N) HU relative to the mean of the outer rings (S, N) bool, averaged along the branch."""
    contrast = rings_hu - np.mean(rings_hu, axis=0, where=outer)
    return along_branch(contrast, branch, MEAN_REACH, np.mean)


def along_branch(
    values: np.ndarray, branch: np.ndarray, reach: int, reduce: Callable, **options
) -> np.ndarray:
    """(..., N) -> (..., N): reduce over each point and `reach` neighbors of its branch either
    side."""
    points = np.arange(len(branch))
    neighbor = points + np.arange(-reach, reach + 1)[:, None]  # (2 reach + 1, N)
    row = neighbor.clip(0, len(branch) - 1)
    joined = (branch[row] == branch) & (row == neighbor)
    return reduce(values[..., row], axis=-2, where=joined, **options)
