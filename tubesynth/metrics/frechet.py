"""The Frechet distance between two sets of slice features, and its bias by the number of cases.

d^2 = |m1 - m2|^2 + Tr(C1 + C2 - 2 (C1 C2)^(1/2)) (Dowson and Landau 1982; FID of Heusel et al.
2017, with any features). All resampling is over cases: a replicate pools the moments of the cases.

The distance of small sets is biased upwards, by far more than its spread while cases are fewer than
features; neither the bootstrap nor extrapolation in 1/n removes most of that. `halvings` therefore
compares two distances of sets of equal size, whose biases are equal: from half of the real cases to
the other half (the negative control), and to the synthetic versions of that other half. The second
minus the first has the mean 0 for a perfect generator at any number of cases.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tubesynth.metrics.bootstrap import case_counts, paired_case_counts

Gaussian = tuple[np.ndarray, np.ndarray]  # mean (D,), covariance (D, D)

REPLICATES = 200
ROUNDING = 1e-12  # of the traces: below it a distance is 0
MAX_BOOTSTRAP_DIM = 256  # more features are projected on as many principal components


def gaussian(features: Collection[np.ndarray], scale: np.ndarray | float = 1.0) -> Gaussian:
    """Mean and covariance (divisor n - 1) of arrays (N_i, D), divided by `scale`, in float64."""
    n = sum(map(len, features))
    mean = np.sum([x.sum(0, dtype=np.float64) for x in features], 0) / n / scale
    scatter = np.zeros((len(mean), len(mean)))
    for x in features:
        centered = x / scale - mean
        scatter += centered.T @ centered
    return mean, scatter / max(n - 1, 1)


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """d^2 between two Gaussians.

    Tr (C1 C2)^(1/2) is the sum of the singular values of C1^(1/2) C2^(1/2) with symmetric roots,
    which is exact for singular covariances too; the root of the product C1 C2 is not.
    """
    cross = np.linalg.svd(_root(a[1]) @ _root(b[1]), compute_uv=False).sum()
    shift = np.square(a[0] - b[0]).sum()
    size = np.trace(a[1]) + np.trace(b[1])
    distance = float(shift + size - 2 * cross)
    return distance if distance > ROUNDING * size else 0.0


@dataclass(frozen=True)
class CaseMoments:
    """Per case (C of them): number of slices (C,), their mean (C, D), and the scatter (C, D, D),
    the sum of (x - mean)(x - mean)^T."""

    cases: list[str]
    counts: np.ndarray
    means: np.ndarray
    scatters: np.ndarray

    @classmethod
    def of(cls, features: Mapping[str, np.ndarray]) -> "CaseMoments":
        """features: {case id: (N, D)}; cases are sorted, so that their order changes nothing."""
        cases = sorted(features)
        gaussians = [gaussian([features[case]]) for case in cases]
        counts = np.array([len(features[case]) for case in cases], dtype=np.float64)
        means, covariances = (np.stack(arrays) for arrays in zip(*gaussians, strict=True))
        return cls(cases, counts, means, covariances * (counts - 1)[:, None, None])

    def pooled(self, cases: Sequence[str], weights: np.ndarray) -> Gaussian:
        """The Gaussian of some cases; weights (len(cases),): a case of weight 2 counts twice."""
        index = np.searchsorted(self.cases, cases)
        counts = weights * self.counts[index]
        n = counts.sum()
        # mean = sum_i n_i mean_i / n; scatter = sum_i w_i S_i + n_i (mean_i - mean)(...)^T
        mean = counts @ self.means[index] / n
        offsets = self.means[index] - mean
        scatter = np.tensordot(weights, self.scatters[index], 1) + (offsets.T * counts) @ offsets
        return mean, scatter / max(n - 1, 1)


def case_moments(
    real: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray], scale: np.ndarray | float
) -> tuple[CaseMoments, CaseMoments]:
    """Moments of two sets {case id: (N, D)}, divided by `scale` (D,).

    Above MAX_BOOTSTRAP_DIM features are projected onto the largest principal components of all
    vectors: to resample 2048 features would take hours.
    """
    arrays = [*real.values(), *other.values()]
    basis = None
    if arrays[0].shape[1] > MAX_BOOTSTRAP_DIM:
        basis = np.linalg.eigh(gaussian(arrays, scale)[1])[1][:, -MAX_BOOTSTRAP_DIM:]
    first, second = (
        {case: x / scale if basis is None else x / scale @ basis for case, x in features.items()}
        for features in (real, other)
    )
    return CaseMoments.of(first), CaseMoments.of(second)


def bootstrap(first: CaseMoments, second: CaseMoments, replicates: int = REPLICATES) -> np.ndarray:
    """(replicates,) distances between resampled sets; (0,) below two cases in either set."""
    if min(len(first.cases), len(second.cases)) < 2:
        return np.zeros(0)
    rng = np.random.default_rng([0, len(first.cases), len(second.cases)])
    counts = paired_case_counts(first.cases, second.cases, replicates, rng)
    return np.array(
        [
            frechet_distance(first.pooled(first.cases, a), second.pooled(second.cases, b))
            for a, b in zip(*counts, strict=True)
        ]
    )


def halvings(
    real: CaseMoments, synthetic: CaseMoments | None, times: int, seed=0, resample=False
) -> np.ndarray:
    """(times, 2): distances of a random half of the real cases to the other half, and to as many
    synthetic cases (nan below two); (0, 2) below four real cases.

    The synthetic cases are those of the other half's label maps, then those without a real CT: none
    has a label map of the first half. resample: cases are resampled within each half.
    """
    n, rows = len(real.cases), []
    rng = np.random.default_rng([seed, n, int(resample)])
    available = set(synthetic.cases) if synthetic else set()
    unpaired = sorted(available - set(real.cases))
    for _ in range(times if n >= 4 else 0):
        shuffled = rng.permutation(real.cases).tolist()
        half, other = shuffled[: n // 2], shuffled[n // 2 :]
        replacement: list[str] = []
        if synthetic is not None:
            extra = rng.permutation(unpaired).tolist()
            paired = [case for case in other if case in available]
            other = [*paired, *(case for case in other if case not in available)]
            replacement = [*paired, *extra][: len(other)]
            if len(replacement) >= 2:
                other = other[: len(replacement)]  # both distances have the same number of cases
        weights = [
            case_counts(len(ids), 1, rng)[0] if resample else np.ones(len(ids))
            for ids in (half, other)
        ]
        reference = real.pooled(half, weights[0])
        row = [frechet_distance(reference, real.pooled(other, weights[1])), np.nan]
        if synthetic is not None and len(replacement) >= 2:
            row[1] = frechet_distance(reference, synthetic.pooled(replacement, weights[1]))
        rows.append(row)
    return np.array(rows).reshape(-1, 2)


def _root(covariance: np.ndarray) -> np.ndarray:
    """The symmetric root of (D, D); eigenvalues below rounding count as 0."""
    values, vectors = np.linalg.eigh(covariance)
    values[values < len(values) * np.finfo(np.float64).eps * abs(values[-1])] = 0.0
    return (vectors * np.sqrt(values)) @ vectors.T
