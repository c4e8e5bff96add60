"""Agreement of two vessel masks: Dice, clDice, centreline recall and precision, radii.

Masks are (X, Y, Z) bool on one grid, spacing is (3,) mm. clDice is that of Shit et al. 2021
(arXiv:2003.07311) on hard skeletons: it counts length, so a missing thin branch weighs as much as a
missing thick branch of its length. Where one mask is empty every score is 0, where both are it is
nan.
"""

import numpy as np

from tubesynth.metrics.vessel import calibres
from tubesynth.volume.polyline import point_tree
from tubesynth.volume.thinning import fill_cavities, thin
from tubesynth.volume.vessels import VesselTokens

LINE_SCORES = ("cldice", "centreline_recall", "centreline_precision")
MAX_BRANCHES = 8  # that meet at one point
REACH_MM = 1.5  # between points whose radii are compared


def dice(predicted: np.ndarray, true: np.ndarray) -> float:
    """2 |A and B| / (|A| + |B|)."""
    total = np.count_nonzero(predicted) + np.count_nonzero(true)
    return 2 * np.count_nonzero(predicted & true) / total if total else float("nan")


def centreline_overlap(
    predicted: np.ndarray, true: np.ndarray, spacing: np.ndarray
) -> dict[str, float]:
    """Scores of the skeletons of two masks; see line_scores."""
    spacing = np.asarray(spacing, dtype=float)
    lines = skeleton_of(predicted, spacing), skeleton_of(true, spacing)
    return line_scores(predicted, lines[0], true, lines[1], spacing)


def line_scores(
    predicted: np.ndarray,
    predicted_line: np.ndarray,
    true: np.ndarray,
    true_line: np.ndarray,
    spacing: np.ndarray,
    true_radius_mm: np.ndarray | None = None,
) -> dict[str, float]:
    """Scores of two masks and their skeletons, (N, 3) voxel indices.

    cldice: harmonic mean of the shares of each skeleton that lie inside the other mask;
    centreline_recall: share of the true skeleton within one voxel (the longest edge) of the
    predicted one, also by calibre with true_radius_mm (N,); centreline_precision: share of the
    predicted skeleton within one voxel of the true one. A skeleton runs through closed cavities of
    its mask, which therefore count as inside.
    """
    if not len(predicted_line) and not len(true_line):
        return dict.fromkeys(LINE_SCORES, float("nan"))
    # Topology precision: predicted skeleton in the true mask. Topology sensitivity: the reverse.
    precision = sensitivity = 0.0
    matched = np.zeros(len(predicted_line), bool), np.zeros(len(true_line), bool)
    if len(predicted_line) and len(true_line):
        precision = float(fill_cavities(true)[tuple(predicted_line.T)].mean())
        sensitivity = float(fill_cavities(predicted)[tuple(true_line.T)].mean())
        matched = (
            near_line(predicted_line, true_line, spacing),
            near_line(true_line, predicted_line, spacing),
        )
    total = precision + sensitivity
    scores = {
        "cldice": 2 * precision * sensitivity / total if total else 0.0,
        "centreline_recall": float(matched[1].mean()) if len(true_line) else 0.0,
        "centreline_precision": float(matched[0].mean()) if len(predicted_line) else 0.0,
    }
    if true_radius_mm is not None:
        for suffix, selected in calibres(true_radius_mm).items():
            scores[f"centreline_recall{suffix}"] = float(matched[1][selected].mean())
    return scores


def near_line(points: np.ndarray, line: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """(N,) bool: points (N, 3) at most one voxel (its longest edge) from a line's points (M, 3)."""
    distance_mm, _ = point_tree(line * spacing).query(points * spacing)
    return distance_mm <= spacing.max() * 1.001  # a neighbor along that edge counts


def skeleton_of(mask: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """(N, 3) voxel indices of the mask's skeleton."""
    cloud = thin(np.asarray(mask, dtype=bool), spacing)
    if cloud is None:
        return np.zeros((0, 3), dtype=int)
    center = (np.array(mask.shape) - 1) / 2
    return np.rint(cloud.skeleton / spacing + center).astype(int)


def radius_errors(predicted: VesselTokens, true: VesselTokens) -> dict[str, float]:
    """Radii of the predicted vessel tokens against the true ones, point by point.

    A true point is compared with the nearest predicted one within REACH_MM, at a junction, where
    the branches' first points coincide, with that of the most similar radius; points without one
    are not scored here (centreline_recall counts them). radius_error_mm: mean absolute difference;
    radius_bias_mm: mean difference, negative where vessels are too thin; radius_ratio: mean of
    predicted over true. Each also by calibre of the true vessel; {} without a pair of points.
    """
    if not len(predicted.radius_mm) or not len(true.radius_mm):
        return {}
    neighbors = min(MAX_BRANCHES, len(predicted.radius_mm))
    found = point_tree(predicted.position_mm).query(true.position_mm, k=neighbors)
    distance_mm, nearest = (np.reshape(each, (-1, neighbors)) for each in found)  # (N, K) each
    matched = distance_mm[:, 0] <= REACH_MM
    true_radius = np.asarray(true.radius_mm, dtype=float)
    differences = np.asarray(predicted.radius_mm, dtype=float)[nearest] - true_radius[:, None]
    farther = distance_mm > distance_mm[:, :1] + 1e-6
    choice = np.where(farther, np.inf, np.abs(differences)).argmin(axis=1)
    difference = np.take_along_axis(differences, choice[:, None], axis=1)[:, 0]
    scores = {}
    for suffix, calibre in calibres(true_radius).items():
        selected = calibre & matched
        if not selected.any():
            continue
        scores[f"radius_error_mm{suffix}"] = float(np.abs(difference[selected]).mean())
        scores[f"radius_bias_mm{suffix}"] = float(difference[selected].mean())
        scores[f"radius_ratio{suffix}"] = float((1 + difference / true_radius)[selected].mean())
    return scores
