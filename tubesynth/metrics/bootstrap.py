"""Bootstrap intervals over cases, not slices: slices and samples of one patient are dependent.

The generators have fixed seeds, so scores are reproducible.
"""

from collections.abc import Sequence

import numpy as np

from tubesynth.metrics.summary import Stat, stat

MEAN_REPLICATES = 1000


def bootstrap_mean(values: Sequence[float | None], bounds=(-np.inf, np.inf)) -> Stat:
    """Mean of one value per case, without None and nan; ci95 by quantiles of resampled means."""
    finite = np.array([v for v in values if v is not None and np.isfinite(v)], dtype=np.float64)
    n = len(finite)
    if n < 2:
        return stat(finite[0] if n else None, n)
    resampled = np.random.default_rng([0, n]).integers(0, n, (MEAN_REPLICATES, n))
    low, high = np.clip(np.quantile(finite[resampled].mean(1), [0.025, 0.975]), *bounds)
    return stat(finite.mean(), n, finite.std(ddof=1), low, high)


def interval(estimate: float, replicates: np.ndarray, n: int, lowest: float = 0.0) -> Stat:
    """Stat of an estimate from n cases, with the spread of its replicates about their own mean.

    Bootstrap replicates carry the bias of small sets twice, so their quantiles are shifted onto the
    estimate. std is the bootstrap's standard error. lowest: smallest possible value.
    """
    if not len(replicates):
        return stat(estimate, n)
    deviations = replicates - replicates.mean()
    low, high = np.maximum(estimate + np.quantile(deviations, [0.025, 0.975]), lowest)
    return stat(estimate, n, deviations.std(ddof=1), low, high)


def paired_case_counts(
    first: Sequence[str], second: Sequence[str], replicates: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """How often each case is resampled: (replicates, len(first)) and (replicates, len(second)).

    A case of both sets has the same count in both: it is one patient, real in one set and synthetic
    in the other, and the common anatomy must not count as a difference between the sets.
    """
    common = set(first) & set(second)
    groups = [[case for case in first if case in common]]
    groups += [[case for case in cases if case not in common] for cases in (first, second)]
    counts: dict[str, np.ndarray] = {}
    for group in groups:
        counts |= zip(group, case_counts(len(group), replicates, rng).T, strict=True)
    a, b = (np.stack([counts[case] for case in cases], axis=1) for cases in (first, second))
    return a, b


def case_counts(n: int, replicates: int, rng: np.random.Generator) -> np.ndarray:
    """(replicates, n) multinomial counts; replicates of one case alone are resampled again."""
    if n == 0:
        return np.zeros((replicates, 0))
    counts = rng.multinomial(n, np.full(n, 1 / n), size=replicates)
    while n > 2 and (single := counts.max(1) == n).any():
        counts[single] = rng.multinomial(n, np.full(n, 1 / n), size=int(single.sum()))
    return counts.astype(np.float64)
