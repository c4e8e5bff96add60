"""Precision and recall in feature space by nearest neighbors (Kynkaanniemi et al. 2019).

A set is covered by balls around its slices. A ball reaches to the K-th nearest slice of ANOTHER
case, since adjacent slices of one patient are almost copies and would shrink the balls to nothing.
Precision is the share of synthetic slices in a ball of a real one, recall the share of real slices
in a ball of a synthetic one.
"""

from collections.abc import Mapping

import numpy as np
import torch

from tubesynth.metrics.bootstrap import bootstrap_mean
from tubesynth.metrics.summary import Stat
from tubesynth.metrics.volume_features import SlicesByPlane

K = 3
ROWS_AT_ONCE = 512  # of the distance matrix


def precision_and_recall(
    real: SlicesByPlane, synthetic: SlicesByPlane, scales: Mapping[str, np.ndarray | float]
) -> dict[str, Stat]:
    """{"precision": Stat, "recall": Stat}, means over planes; {} below two cases in either set.

    scales: (D,) divisor of the features of each plane. The interval resamples the cases whose
    slices are counted; the balls do not change.
    """
    shares: dict[str, dict[str, list[float]]] = {"precision": {}, "recall": {}}
    for plane, scale in scales.items():
        if min(len(real[plane]), len(synthetic[plane])) < 2:
            return {}
        vectors, cases = [], []  # (N, D), (N,) of the real and of the synthetic slices
        for slices in (real[plane], synthetic[plane]):
            stacked = np.concatenate([*slices.values()]) / scale
            vectors.append(torch.from_numpy(stacked.astype(np.float32)))
            cases.append(np.repeat([*slices], [len(x) for x in slices.values()]))
        for metric, queries, centers in (("precision", 1, 0), ("recall", 0, 1)):
            radius = radii(vectors[centers], cases[centers])
            is_covered = covered(vectors[queries], vectors[centers], radius)
            for case in np.unique(cases[queries]):
                shares[metric].setdefault(case, []).append(
                    is_covered[cases[queries] == case].mean()
                )
    return {
        metric: bootstrap_mean([float(np.mean(by_case[c])) for c in sorted(by_case)], (0.0, 1.0))
        for metric, by_case in shares.items()
    }


def radii(vectors: torch.Tensor, cases: np.ndarray) -> torch.Tensor:
    """(N,) distance of each vector (N, D) to its K-th nearest one of another case (N,)."""
    index = torch.as_tensor(np.unique(cases, return_inverse=True)[1])
    k = min(K, len(index) - int(torch.bincount(index).max()))
    result = []
    for rows, row_index in zip(vectors.split(ROWS_AT_ONCE), index.split(ROWS_AT_ONCE), strict=True):
        distances = torch.cdist(rows, vectors)
        distances[row_index[:, None] == index] = torch.inf
        result.append(distances.kthvalue(k, dim=1).values)
    return torch.cat(result)


def covered(vectors: torch.Tensor, centers: torch.Tensor, radius: torch.Tensor) -> np.ndarray:
    """(N,) bool: whether each vector lies in any of the balls."""
    chunks = [(torch.cdist(x, centers) <= radius).any(1) for x in vectors.split(ROWS_AT_ONCE)]
    return torch.cat(chunks).numpy()
