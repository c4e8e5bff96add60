"""Distances of synthetic CTs to the nearest training CT, and the share that are copies of one.

The image distance is 1 - correlation of thumbnails over the cells that are body in the training
set; noise, sharpness and contrast hardly change it. The feature distance is the root mean square
difference of a volume's mean features, in units of their spread over training volumes; a shift or a
mirror image hardly changes it. The distances of real validation cases, which no model was trained
on, occur by chance: they give the threshold below which a synthetic CT counts as a copy.
"""

import math
from collections.abc import Sequence

import numpy as np

from tubesynth.metrics.bootstrap import bootstrap_mean
from tubesynth.metrics.summary import Stat
from tubesynth.metrics.volume_features import VolumeFeatures, Volumes
from tubesynth.runtime.errors import InputError

BODY = 0.05  # smallest mean thumbnail over training volumes of a cell that is body
SMALLEST_STD = 1e-3
FALSE_ALARMS = 1 / 1000  # share of real unseen cases that fall below the threshold
MIN_FOR_SPREAD = 5  # validation cases; fewer give no standard deviation
IDENTICAL = 1e-6  # a validation case this near to a training case is a training case
DISTANCES = ("nearest_training_image", "nearest_training_features")


def memorization_scores(synthetic: Volumes, real: Volumes, training: Volumes) -> dict[str, Stat]:
    """{METRIC: Stat}: both distances, and copied, the share of cases below a threshold (absent
    where no validation case gives one)."""
    distances, _ = nearest_training(synthetic, training)
    values: dict[str, np.ndarray] = dict(zip(DISTANCES, distances.T, strict=True))
    limits = thresholds(real, training)
    if limits is not None:
        values["copied"] = (distances < limits).any(1).astype(float)
    cases = np.array([volume.case for volume in synthetic])
    return {  # samples of one case are averaged first
        metric: bootstrap_mean([v[cases == c].mean() for c in np.unique(cases)], (0.0, np.inf))
        for metric, v in values.items()
    }


def thresholds(real: Volumes, training: Volumes) -> np.ndarray | None:
    """(2,): the threshold of each distance by the real cases outside the training set, or None."""
    training_cases = {volume.case for volume in training}
    unseen = [volume for volume in real if volume.case not in training_cases]
    if not unseen:
        return None
    distances, _ = nearest_training(unseen, training)
    distances = distances[distances.min(1) >= IDENTICAL]
    return np.array([threshold(column) for column in distances.T]) if len(distances) else None


def nearest_training(volumes: Volumes, training: Volumes) -> tuple[np.ndarray, np.ndarray]:
    """Distances (N, 2) of N volumes to the nearest training volume by image and by features, and
    the indices (N, 2) of those training volumes."""
    shapes = {v.thumbnail.shape for v in (*volumes, *training)}
    if len(shapes) > 1 or volumes[0].slices.keys() != training[0].slices.keys():
        raise InputError(
            "volumes of different sizes cannot be compared with the training CTs; crop or pad them"
        )
    # image distance (N, M) = 1 - correlation of thumbnails (N, cells), (M, cells)
    a, b = (
        np.stack([v.thumbnail.ravel() for v in s]).astype(np.float64) for s in (volumes, training)
    )
    body = b.mean(0) > BODY
    if body.sum() < 2:
        body[:] = True
    image = 1 - _unit_rows(a[:, body]) @ _unit_rows(b[:, body]).T
    # feature distance (N, M) = sqrt(mean((a - b)^2 / spread^2)) of mean features (planes D,)
    a, b = (np.stack([_mean_features(v) for v in s]) for s in (volumes, training))
    spread = np.maximum(b.std(0), SMALLEST_STD)
    features = np.stack([np.sqrt(np.square((b - row) / spread).mean(1)) for row in a])
    matrices = np.stack([image, features], axis=1).clip(min=0)  # (N, 2, M)
    return matrices.min(2), matrices.argmin(2)


def threshold(distances: Sequence[float] | np.ndarray) -> float:
    """The distance that a new real case falls below with probability FALSE_ALARMS.

    distances: those of the validation cases. Student's prediction limit of their logarithms, at
    most the smallest distance; a third of the smallest where there are fewer than MIN_FOR_SPREAD.
    """
    smallest, n = float(min(distances)), len(distances)
    if n < MIN_FOR_SPREAD:
        return smallest / 3
    from scipy.special import stdtrit

    # limit = mean + t_{n-1}(FALSE_ALARMS) std sqrt(1 + 1/n)
    logs = np.log(distances)
    limit = logs.mean() + stdtrit(n - 1, FALSE_ALARMS) * logs.std(ddof=1) * math.sqrt(1 + 1 / n)
    return min(smallest, float(np.exp(limit)))


def _mean_features(volume: VolumeFeatures) -> np.ndarray:
    """(planes D,): means over the sampled slices of each plane."""
    return np.concatenate([x.mean(0, np.float64) for x in volume.sampled().slices.values()])


def _unit_rows(x: np.ndarray) -> np.ndarray:
    """Rows (N, cells) of mean 0 and length 1."""
    x = x - x.mean(1, keepdims=True)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
