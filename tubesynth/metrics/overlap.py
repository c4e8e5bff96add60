"""Does a vessel mask cover another one? Dice, clDice, centrelines found, radii kept.

Masks are (X, Y, Z) bool on one grid, spacing is (3,) mm. clDice is that of Shit et al. 2021
(arXiv:2003.07311) on hard skeletons: it counts length, so that a lost thin branch weighs as much as
a lost thick one of its length. Where one mask is empty all is 0, where both are it is nan.
"""

import numpy as np

from tubesynth.metrics.vessel import calibres
from tubesynth.volume.thinning import thin

LINE_SCORES = ("cldice", "centreline_recall", "centreline_precision")


def dice(found: np.ndarray, truth: np.ndarray) -> float:
    """2 |A and B| / (|A| + |B|)."""
    total = np.count_nonzero(found) + np.count_nonzero(truth)
    return 2 * np.count_nonzero(found & truth) / total if total else float("nan")


def centreline_overlap(found: np.ndarray, truth: np.ndarray, spacing) -> dict[str, float]:
    """Scores of the two masks' skeletons; see line_scores."""
    spacing = np.asarray(spacing, dtype=float)
    return line_scores(
        found, skeleton_of(found, spacing), truth, skeleton_of(truth, spacing), spacing
    )


def line_scores(
    found, found_line, truth, truth_line, spacing, truth_radius_mm=None
) -> dict[str, float]:
    """Scores of two masks and their skeletons, (N, 3) voxel indices.

    cldice: harmonic mean of the shares of each skeleton that lie inside the other mask;
    centreline_recall: share of the true skeleton within one voxel (the longest side) of the found
    skeleton, also by calibre where truth_radius_mm (N,) is given; centreline_precision: share of
    the found skeleton within one voxel of the true one.
    """
    from scipy.spatial import cKDTree

    if not len(found_line) and not len(truth_line):
        return dict.fromkeys(LINE_SCORES, float("nan"))
    parts = {"": np.ones(len(truth_line), dtype=bool)}
    if truth_radius_mm is not None:
        parts |= calibres(truth_radius_mm)
    if len(found_line) and len(truth_line):
        shares = truth[tuple(found_line.T)].mean(), found[tuple(truth_line.T)].mean()
        near = [
            cKDTree(b * spacing).query(a * spacing)[0] <= spacing.max() * 1.001
            for a, b in ((found_line, truth_line), (truth_line, found_line))
        ]
    else:
        shares, near = (0.0, 0.0), [np.zeros(1), np.zeros(len(truth_line) or 1)]
        parts = parts if len(truth_line) else {"": np.ones(1, dtype=bool)}
    return {
        "cldice": float(2 * shares[0] * shares[1] / sum(shares)) if sum(shares) else 0.0,
        "centreline_recall": float(near[1].mean()),
        "centreline_precision": float(near[0].mean()),
        **{
            f"centreline_recall{suffix}": float(near[1][chosen].mean())
            for suffix, chosen in parts.items()
            if suffix and chosen.any()
        },
    }


def skeleton_of(mask: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """(N, 3) indices of the voxels of the mask's skeleton."""
    cloud = thin(np.asarray(mask, dtype=bool), spacing)
    if cloud is None:
        return np.zeros((0, 3), dtype=int)
    middle = (np.array(mask.shape) - 1) / 2
    return np.rint(cloud.skeleton / spacing + middle).astype(int)


def radius_errors(found, truth, reach_mm: float = 1.5) -> dict[str, float]:
    """Radii of the found vessel tokens against the true ones, point by point.

    A true point is compared with the nearest found one within reach_mm; points with none are not
    scored here (centreline_recall counts them). radius_error_mm: mean absolute difference;
    radius_bias_mm: mean difference, negative where vessels came out thin; radius_ratio: mean of
    found over true. Each also by calibre of the true vessel. {} where nothing could be compared.
    """
    from scipy.spatial import cKDTree

    if not len(found.radius_mm) or not len(truth.radius_mm):
        return {}
    distance, near = cKDTree(found.position_mm).query(truth.position_mm)
    matched = distance <= reach_mm
    true_radius = np.asarray(truth.radius_mm, dtype=float)
    difference = np.asarray(found.radius_mm, dtype=float)[near] - true_radius
    scores = {}
    for suffix, chosen in {"": matched, **calibres(true_radius)}.items():
        chosen = chosen & matched
        if not chosen.any():
            continue
        scores[f"radius_error_mm{suffix}"] = float(np.abs(difference[chosen]).mean())
        scores[f"radius_bias_mm{suffix}"] = float(difference[chosen].mean())
        scores[f"radius_ratio{suffix}"] = float((1 + difference / true_radius)[chosen].mean())
    return scores
