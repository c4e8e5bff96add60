"""Is a synthetic CT a training case over again? Distance to the nearest one, against real unseen
CTs.

Two distances: of the image, 1 - correlation of thumbnails (THUMBNAIL cells of the mean HU between
air and contrast, over the cells that are body in the training set), which noise, sharpness and
contrast hardly change; and of the features, the root mean square difference of a volume's mean
features in units of their spread over training cases, which a shift or a mirror hardly changes.
Real validation cases, which no model has seen, say how near chance comes: a volume nearer than
they ever would (`threshold`) is flagged.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch

from tubesynth.metrics.manifold import bootstrap_mean
from tubesynth.runtime.errors import InputError

THUMBNAIL = (24, 24, 24)
RANGE_HU = (-200.0, 500.0)
BODY = 0.05  # of the range, in the mean over training cases
SMALLEST_STD = 1e-3
ONE_IN = 1000  # real unseen cases are flagged by chance
MIN_FOR_SPREAD = 5
SAME = 1e-6  # a validation case that near is a training case: no measure of chance
DISTANCES = ("nearest_training_image", "nearest_training_features")


@dataclass(frozen=True)
class Memorisation:
    """rows: one a synthetic volume: case, sample, source, the two distances, the nearest training
    case of each (`..._case`), and copied. thresholds: by distance, None where no validation case
    gives one. floor: STAT of the validation cases' distances. leaked: validation cases that are
    in the training set."""

    rows: list[dict]
    thresholds: dict[str, float | None]
    floor: dict[str, dict]
    leaked: list[str]

    def statistics(self, seed=0) -> dict[str, dict]:
        """{METRIC: STAT} over cases: both distances, and `copied`, the share that is flagged."""
        return _statistics(self.rows, (*DISTANCES, "copied"), seed)


def memorisation(synthetic, real, training) -> Memorisation:
    """Of DistributionSets; `real` are validation cases (None or empty: no threshold, no flags)."""
    rows = _distances(synthetic, training, "synthesis")
    unseen, leaked = [], []
    for row in _distances(real, training, "real") if real is not None and real.cases else []:
        known = row["case"] in training.cases or min(row[d] for d in DISTANCES) < SAME
        (leaked if known else unseen).append(row["case"] if known else row)
    thresholds = {d: threshold([row[d] for row in unseen]) for d in DISTANCES}
    for row in rows:
        near = [row[d] < limit for d, limit in thresholds.items() if limit is not None]
        row["copied"] = float(any(near)) if near else None
    return Memorisation(rows, thresholds, _statistics(unseen, DISTANCES, 0), sorted(set(leaked)))


def threshold(distances) -> float | None:
    """What a fresh case falls below once in ONE_IN, by the distances of validation cases.

    Student's prediction limit of the logarithms (honest with few cases), at most the smallest
    distance seen; below MIN_FOR_SPREAD cases, which show no spread, a third of the smallest.
    """
    if not distances:
        return None
    smallest, n = min(distances), len(distances)
    if n < MIN_FOR_SPREAD:
        return smallest / 3
    from scipy.special import stdtrit

    logs = np.log(distances)
    limit = logs.mean() + stdtrit(n - 1, 1 / ONE_IN) * logs.std(ddof=1) * math.sqrt(1 + 1 / n)
    return min(smallest, float(np.exp(limit)))


def thumbnail(volume_hu) -> np.ndarray:
    """(X, Y, Z) in HU -> (24, 24, 24) float32 in [0, 1]; of a 2D image (24, 24, 1)."""
    array = torch.from_numpy(np.array(volume_hu, dtype=np.float32))
    low, high = RANGE_HU
    unit = array.sub_(low).mul_(1 / (high - low)).clamp_(0, 1)
    cells = tuple(min(n, size) for n, size in zip(THUMBNAIL, unit.shape, strict=True))
    return torch.nn.functional.adaptive_avg_pool3d(unit[None], cells)[0].numpy()


def _distances(volumes, training, source) -> list[dict]:
    keys, known = sorted(volumes.thumbnails), sorted(training.thumbnails)
    cells = {t.shape for s in (volumes, training) for t in s.thumbnails.values()}
    if len(cells) > 1 or volumes.planes != training.planes:
        raise InputError(
            "volumes of different sizes cannot be compared with the training CTs; crop or pad them"
        )
    a, b = (
        np.stack([s.thumbnails[key] for key in order]).reshape(len(order), -1).astype(np.float64)
        for s, order in ((volumes, keys), (training, known))
    )
    body = b.mean(0) > BODY
    if body.sum() < 2:
        body[:] = True
    image = 1 - _normalised(a[:, body]) @ _normalised(b[:, body]).T
    a, b = (
        np.stack([s.mean_features[key] for key in order]).astype(np.float64)
        for s, order in ((volumes, keys), (training, known))
    )
    spread = np.maximum(b.std(0), SMALLEST_STD)
    features = np.stack([np.sqrt(np.square((b - row) / spread).mean(1)) for row in a])
    rows = []
    for i, (case, sample) in enumerate(keys):
        row = {"case": case, "sample": sample, "source": source}
        for name, matrix in zip(DISTANCES, (image, features), strict=True):
            nearest = int(matrix[i].argmin())
            row[name] = max(float(matrix[i, nearest]), 0.0)
            row[f"{name}_case"] = known[nearest][0]
        rows.append(row)
    return rows


def _normalised(x) -> np.ndarray:
    x = x - x.mean(1, keepdims=True)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def _statistics(rows, metrics, seed) -> dict[str, dict]:
    """Samples of one case are averaged first."""
    result = {}
    for metric in metrics:
        by_case: dict[str, list[float]] = {}
        for row in rows:
            if row[metric] is not None:
                by_case.setdefault(row["case"], []).append(row[metric])
        if by_case:
            values = [float(np.mean(by_case[case])) for case in sorted(by_case)]
            result[metric] = bootstrap_mean(values, seed, (0.0, np.inf))
    return result
