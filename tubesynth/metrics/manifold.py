"""Precision and recall in feature space by nearest neighbours (Kynkaanniemi et al. 2019).

A set is covered by balls about its slices, of the distance to the K-th nearest slice of ANOTHER
case: neighbouring slices of one patient are near copies and would shrink the balls to nothing.
Precision: the share of synthetic slices in a ball of a real one; recall: the share of real slices
in a ball of a synthetic one. Slices are those that a DistributionSet has sampled, plane by plane.
"""

import numpy as np
import torch

K = 3
ROWS = 512  # of the distance matrix at once
REPLICATES = 1000
SMALLEST_STD = 1e-2


def precision_and_recall(real, synthetic, seed=0, scale_of=None) -> dict[str, dict]:
    """{"precision": STAT, "recall": STAT}, mean over planes; {} below two cases in either set.

    The interval draws the cases that are judged anew; the balls stay. Features are divided by
    their spread over the sampled real slices (of `scale_of`, another set, where given).
    """
    shares: dict[str, dict[str, list]] = {"precision": {}, "recall": {}}
    for plane in real.planes:
        sets = [s.slices[plane] for s in (real, synthetic)]
        if min(map(len, sets)) < 2:
            return {}
        scale = np.concatenate(list((scale_of or real).slices[plane].values())).std(0)
        scale = np.maximum(scale, SMALLEST_STD)
        if not getattr(real.feature_fn, "standardise", False):
            scale = np.ones_like(scale)
        (a, owner_a), (b, owner_b) = (_stacked(s, scale) for s in sets)
        for metric, judged, owner, balls, of in (
            ("precision", b, owner_b, a, owner_a),
            ("recall", a, owner_a, b, owner_b),
        ):
            inside = covered(judged, balls, radii(balls, of))
            for case in np.unique(owner):
                shares[metric].setdefault(case, []).append(inside[owner == case].mean())
    return {
        metric: bootstrap_mean([np.mean(by_case[c]) for c in sorted(by_case)], seed, (0.0, 1.0))
        for metric, by_case in shares.items()
    }


def radii(vectors: torch.Tensor, owner) -> torch.Tensor:
    """(N,) distance of each vector (N, D) to its K-th nearest of another owner (N,)."""
    owner = torch.as_tensor(np.unique(owner, return_inverse=True)[1])
    others = len(owner) - int(torch.bincount(owner).max())
    k, found = min(K, others), []
    for rows, mine in zip(vectors.split(ROWS), owner.split(ROWS), strict=True):
        distances = torch.cdist(rows, vectors)
        distances[mine[:, None] == owner] = torch.inf
        found.append(distances.kthvalue(k, dim=1).values)
    return torch.cat(found)


def covered(vectors: torch.Tensor, centres: torch.Tensor, radius: torch.Tensor) -> np.ndarray:
    """(N,) bool: does a vector lie in any of the balls?"""
    parts = [(torch.cdist(rows, centres) <= radius).any(1) for rows in vectors.split(ROWS)]
    return torch.cat(parts).numpy()


def bootstrap_mean(values, seed=0, bounds=(-np.inf, np.inf)) -> dict:
    """STAT of one value a case: ci95 by the quantiles of REPLICATES means of cases drawn anew."""
    values = np.array([v for v in values if v is not None and np.isfinite(v)], dtype=np.float64)
    n = len(values)
    if n < 2:
        mean = float(values[0]) if n else None
        return {"mean": mean, "std": None, "ci95": [None, None], "n": n}
    drawn = np.random.default_rng([seed, n]).integers(0, n, (REPLICATES, n))
    low, high = np.clip(np.quantile(values[drawn].mean(1), [0.025, 0.975]), *bounds)
    std = float(values.std(ddof=1))
    return {"mean": float(values.mean()), "std": std, "ci95": [float(low), float(high)], "n": n}


def _stacked(slices, scale) -> tuple[torch.Tensor, np.ndarray]:
    """((N, D), (N,) case ids) in the order of case ids."""
    cases = sorted(slices)
    vectors = np.concatenate([slices[case] for case in cases]) / scale
    owner = np.repeat(cases, [len(slices[case]) for case in cases])
    return torch.from_numpy(vectors.astype(np.float32)), owner
