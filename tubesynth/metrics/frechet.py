"""The Frechet distance between two sets of feature vectors, streamed, with what chance does to it.

d^2 = |m1 - m2|^2 + Tr(C1 + C2 - 2 (C1 C2)^(1/2)) (Dowson and Landau 1982; FID of Heusel et al.
2017 with any features). A set is never held: `Moments` keeps count, mean and scatter in float64 and
merges (Chan et al. 1979). Slices of one patient are not independent, so there is one `Moments` per
case, and all resampling is over cases: a replicate is a merge. A set is {case id: Moments} here.

Small sets look different because they are small: the distance is biased upwards, by far more than
its spread while cases are fewer than features, and neither the bootstrap's bias nor extrapolation
in 1/n removes most of that. So the plain distance comes with its interval, and beside it `halvings`
gives the real-against-real floor and the excess: the distance of half of the real cases to the
synthetic versions of the other half, minus that to the other half itself. Both have one size and so
one bias, and a perfect generator has an excess of 0 at any number of cases.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

REPLICATES = 200
ROUNDING = 1e-12  # of the traces: what is left of equal sets
# The bootstrap of longer features is done in the plane of their largest principal components.
MAX_BOOTSTRAP_DIM = 256


@dataclass
class Moments:
    """n vectors as n, their mean (D,) and the scatter (D, D): sum of (x - mean)(x - mean)^T."""

    n: float
    mean: np.ndarray
    scatter: np.ndarray

    @classmethod
    def of(cls, features) -> "Moments":
        """features: (N, D), array or tensor; summed in float64."""
        features = np.asarray(features, dtype=np.float64)
        mean = features.mean(0)
        centred = features - mean
        return cls(len(features), mean, centred.T @ centred)

    def add(self, features) -> None:
        """Take in (N, D) further vectors."""
        merged = merge([self, Moments.of(features)])
        self.n, self.mean, self.scatter = merged.n, merged.mean, merged.scatter

    @property
    def covariance(self) -> np.ndarray:
        """(D, D), unbiased (n - 1)."""
        return self.scatter / max(self.n - 1, 1)


def merge(parts, weights=None) -> Moments:
    """The moments of all parts together; a part of weight 2 counts twice, of weight 0 never."""
    weights = np.ones(len(parts)) if weights is None else np.asarray(weights, dtype=np.float64)
    counts = weights * np.array([part.n for part in parts])
    n = counts.sum()
    mean = counts @ np.stack([part.mean for part in parts]) / n
    scatter = np.zeros((len(mean), len(mean)))
    for part, weight in zip(parts, weights, strict=True):
        if weight:
            scatter += weight * part.scatter
    apart = np.stack([part.mean for part in parts]) - mean
    return Moments(n, mean, scatter + (apart * counts[:, None]).T @ apart)


def frechet_distance(mean1, covariance1, mean2, covariance2) -> float:
    """d^2 between two Gaussians; (D,), (D, D) each.

    Tr (C1 C2)^(1/2) is the sum of the singular values of C1^(1/2) C2^(1/2), with symmetric roots by
    eigenvalues: also exact for singular covariances, where the root of the product, which is not
    symmetric, is not (no jitter is added).
    """
    roots = [_root(c) for c in (covariance1, covariance2)]
    cross = np.linalg.svd(roots[0] @ roots[1], compute_uv=False).sum()
    shift = np.square(np.asarray(mean1, np.float64) - mean2).sum()
    size = np.trace(covariance1) + np.trace(covariance2)
    distance = float(shift + size - 2 * cross)
    return distance if distance > ROUNDING * size else 0.0


def frechet(a: Moments, b: Moments, scale=1.0) -> float:
    """d^2 between two sets; features are divided by `scale`, a number or (D,), first."""
    a, b = _scaled(a, scale), _scaled(b, scale)
    return frechet_distance(a.mean, a.covariance, b.mean, b.covariance)


def prepared(a: Mapping, b: Mapping, scale=1.0) -> tuple[dict, dict]:
    """Both sets in units of `scale` and sorted by case id, so that the order of adding is nothing.

    Features longer than MAX_BOOTSTRAP_DIM are projected onto that many principal components of all
    vectors: resampling 2048 features would take hours.
    """
    first, second = ({case: _scaled(s[case], scale) for case in sorted(s)} for s in (a, b))
    parts = [*first.values(), *second.values()]
    if len(parts[0].mean) <= MAX_BOOTSTRAP_DIM:
        return first, second
    basis = np.linalg.eigh(merge(parts).covariance)[1][:, -MAX_BOOTSTRAP_DIM:]
    return tuple(
        {k: Moments(m.n, m.mean @ basis, basis.T @ m.scatter @ basis) for k, m in s.items()}
        for s in (first, second)
    )


def bootstrap(first: dict, second: dict, seed=0, replicates=REPLICATES) -> np.ndarray:
    """(replicates,) distances between sets of cases drawn anew from `prepared` sets.

    (0,) where either has fewer than two cases.
    """
    if min(len(first), len(second)) < 2:
        return np.zeros(0)
    rng = np.random.default_rng([seed, len(first), len(second)])
    draws = draw_cases(list(first), list(second), replicates, rng)
    parts = list(first.values()), list(second.values())
    weights = zip(*draws, strict=True)
    return np.array([frechet(merge(parts[0], u), merge(parts[1], v)) for u, v in weights])


def interval(distance: float, replicates, n: int, lowest=0.0) -> dict:
    """STAT around a distance: the spread of the replicates about their own mean.

    Replicates are biased once more, so their quantiles are moved onto the estimate. std is the
    bootstrap's standard error; n counts cases.
    """
    if not len(replicates):
        return {"mean": distance, "std": None, "ci95": [None, None], "n": n}
    off = replicates - replicates.mean()
    low, high = (distance + float(q) for q in np.quantile(off, [0.025, 0.975]))
    ci95 = [max(low, lowest), max(high, lowest)]
    return {"mean": distance, "std": float(off.std(ddof=1)), "ci95": ci95, "n": n}


def halvings(real: dict, synthetic: dict | None, times: int, seed=0, resample=False):
    """(times, 2): distances of one random half of the real cases to the other half, and to as many
    synthetic cases (nan without any). Of `prepared` sets; (0, 2) below four real cases.

    Synthetic cases that are made from the other half's label maps stand in for it; none made from
    the first half's does. With `resample`, cases are drawn anew within each half.
    """
    ids, rows = list(real), []
    rng = np.random.default_rng([seed, len(ids), int(resample)])
    for _ in range(times if len(ids) >= 4 else 0):
        shuffled = [ids[i] for i in rng.permutation(len(ids))]
        half, other = shuffled[: len(ids) // 2], shuffled[len(ids) // 2 :]
        stand_in = []
        if synthetic is not None:
            free = [case for case in synthetic if case not in real]
            free = [free[i] for i in rng.permutation(len(free))]
            stand_in = [case for case in other if case in synthetic]
            other = [*stand_in, *(case for case in other if case not in synthetic)]
            stand_in = [*stand_in, *free][: len(other)]
            if len(stand_in) >= 2:
                other = other[: len(stand_in)]
        first, second = (
            _counts(len(x), 1, rng)[0] if resample else np.ones(len(x)) for x in (half, other)
        )
        near = merge([real[case] for case in half], first)
        row = [frechet(near, merge([real[case] for case in other], second)), np.nan]
        if len(stand_in) >= 2:
            row[1] = frechet(near, merge([synthetic[case] for case in stand_in], second))
        rows.append(row)
    return np.array(rows).reshape(-1, 2)


def draw_cases(first: list, second: list, replicates: int, rng):
    """How often each case is drawn: (replicates, cases) of either set, never one case alone.

    Ids in both lists are drawn together: the same patient is real in one and synthetic in the
    other, and what they share is no difference between the sets.
    """
    shared = [case for case in first if case in set(second)]
    only = [[case for case in ids if case not in set(shared)] for ids in (first, second)]
    pools = [_counts(len(pool), replicates, rng) for pool in (shared, *only)]
    draws = []
    for ids, own, counts in zip((first, second), only, pools[1:], strict=True):
        by_case = dict(zip([*shared, *own], np.hstack([pools[0], counts]).T, strict=True))
        draws.append(np.stack([by_case[case] for case in ids], axis=1))
    return draws


def _counts(n, replicates, rng) -> np.ndarray:
    """(replicates, n) multinomial; a draw of one case n times has no spread and is drawn again."""
    if n == 0:
        return np.zeros((replicates, 0))
    counts = rng.multinomial(n, np.full(n, 1 / n), size=replicates)
    while n > 2 and (alone := counts.max(1) == n).any():
        counts[alone] = rng.multinomial(n, np.full(n, 1 / n), size=int(alone.sum()))
    return counts.astype(np.float64)


def _scaled(m: Moments, scale) -> Moments:
    scale = np.broadcast_to(np.asarray(scale, dtype=np.float64), m.mean.shape)
    return Moments(m.n, m.mean / scale, m.scatter / np.outer(scale, scale))


def _root(covariance) -> np.ndarray:
    """The symmetric root; eigenvalues below rounding count as 0."""
    values, vectors = np.linalg.eigh(np.asarray(covariance, dtype=np.float64))
    values[values < len(values) * np.finfo(np.float64).eps * abs(values[-1])] = 0.0
    return (vectors * np.sqrt(values)) @ vectors.T
