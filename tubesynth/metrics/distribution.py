"""Does a set of synthetic CTs look like a set of real ones? One accumulator a set, then the scores.

    real, synthetic = DistributionSet(), DistributionSet()
    for ...: real.add(case_id, volume_hu, spacing)
    for ...: synthetic.add(case_id, volume_hu, spacing, sample)
    scores, floor = distribution_scores(real, synthetic), distribution_floor(real)

Volumes are (X, Y, Z) in HU and of one spacing, since features count pixels. Cases are counted, not
slices: a synthetic case has the id of the label map it was made from, its samples belong to it.
"""

from itertools import combinations, islice

import numpy as np
import torch

from tubesynth.metrics.distribution_set import DistributionSet, check_comparable, grouped
from tubesynth.metrics.frechet import (
    Moments,
    bootstrap,
    frechet,
    halvings,
    interval,
    merge,
    prepared,
)
from tubesynth.metrics.image import ms_ssim
from tubesynth.metrics.manifold import bootstrap_mean, precision_and_recall
from tubesynth.metrics.memorisation import memorisation
from tubesynth.volume.intensity import hu_to_unit

__all__ = ["DistributionSet", "distribution_scores", "distribution_floor", "distribution_notes"]

HALVINGS, RESAMPLED_HALVINGS = 20, 100


def distribution_scores(real, synthetic, training=None, seed: int = 0) -> dict[str, dict]:
    """{METRIC: STAT} of a synthetic set against a real one; {} where either is empty.

    frechet_axial, _coronal, _sagittal and frechet, their mean: squared distances (as FID), plain.
    They hold the bias of small sets; frechet_excess does not: see frechet.py (left out below four
    real cases). precision, recall: see manifold.py. With a training set: nearest_training_image,
    nearest_training_features, copied: see memorisation.py. n counts cases; ci95 is a bootstrap over
    cases.
    """
    if not real.cases or not synthetic.cases:
        return {}
    check_comparable(real, synthetic)
    n = min(len(real.cases), len(synthetic.cases))
    scores, distances, replicates, excess, spread = {}, [], [], [], []
    for plane in real.planes:
        first, second, whole = _sets(real, synthetic, plane)
        distances.append(whole)
        replicates.append(bootstrap(first, second, seed))
        scores[f"frechet_{plane}"] = interval(whole, replicates[-1], n)
        excess.append(_excess(halvings(first, second, HALVINGS, seed)))
        spread.append(_excess(halvings(first, second, RESAMPLED_HALVINGS, seed, True)))
    scores["frechet"] = interval(float(np.mean(distances)), np.mean(replicates, axis=0), n)
    if excess[0].size:
        mean = float(np.mean(excess))
        scores["frechet_excess"] = interval(mean, np.mean(spread, axis=0), n, lowest=-np.inf)
    scores |= precision_and_recall(real, synthetic, seed)
    if training is not None and training.cases:
        scores |= memorisation(synthetic, real, training).statistics(seed)
    return scores


def distribution_floor(real, seed: int = 0) -> dict[str, dict]:
    """{METRIC: STAT} of real against real: two halves of the set, over many random halvings.

    The mean over halvings; std and ci95 are their spread; n counts the cases of one half. Below
    four cases: {}. Halves are smaller than the sets of `distribution_scores` and share no patient,
    so a good generator may well lie below: frechet_excess compares at one size.
    """
    if len(real.cases) < 4:
        return {}
    floor, planes = {}, []
    for plane in real.planes:
        first, _, _ = _sets(real, real, plane)
        planes.append(halvings(first, None, HALVINGS, seed)[:, 0])
        floor[f"frechet_{plane}"] = _spread(planes[-1], len(real.cases) // 2)
    floor["frechet"] = _spread(np.mean(planes, axis=0), len(real.cases) // 2)
    halves = [_halves(real, seed, k) for k in range(4)]
    rows = [precision_and_recall(a, b, seed, scale_of=real) for a, b in halves]
    for metric in rows[0]:
        values = np.array([row[metric]["mean"] for row in rows])
        floor[metric] = _spread(values, len(real.cases) // 2)
    return floor


def distribution_notes(real, synthetic=None) -> list[str]:
    """What a reader of the scores must know: few cases, cases that share moments."""
    sets = {"real": real, "synthetic": synthetic}
    notes = []
    for name, s in sets.items():
        if s is None or not s.cases:
            continue
        dim = len(next(iter(s.mean_features.values()))) // len(s.planes)
        if len(s.cases) < dim:
            notes.append(
                f"{len(s.cases)} {name} cases for {dim} features: Frechet distances are biased "
                "upwards by their small number; compare sets of one size, and read frechet_excess"
            )
        if s.groups is not None:
            notes.append(f"{name}: the bootstrap draws {s.groups} groups of cases, not cases")
    return notes


def sample_diversity(volumes_hu, window=(-1000.0, 1000.0), max_pairs: int = 6) -> float | None:
    """MS-SSIM between samples of one label map, mean over (the first max_pairs) pairs.

    1: the sampler ignores its noise. None below two samples, or where a volume is too small.
    """
    pairs = []
    for a, b in islice(combinations(volumes_hu, 2), max_pairs):
        a, b = (hu_to_unit(torch.as_tensor(np.asarray(v)), window)[None, None] for v in (a, b))
        pairs.append(ms_ssim(a, b, 1.0)[0])
    return float(np.mean(pairs)) if pairs and np.isfinite(pairs).all() else None


def diversity_statistics(by_case: dict[str, float | None], seed: int = 0) -> dict:
    """STAT of `sample_diversity` over cases, with a bootstrap interval."""
    return bootstrap_mean([by_case[case] for case in sorted(by_case)], seed, (0.0, 1.0))


def _sets(real, other, plane) -> tuple[dict, dict, float]:
    """Prepared sets (see frechet.py) and the distance of the whole features."""
    scale = real.scale(plane)
    sets = [s.moments[plane] for s in (real, other)]
    if real.groups != other.groups:  # draw like with like, so that pairs stay together
        groups = min(s.groups for s in (real, other) if s.groups is not None)
        sets = [_grouped_again(s, plane, groups) for s in (real, other)]
    a, b = (merge([cases[case] for case in sorted(cases)]) for cases in sets)
    return *prepared(*sets, scale), frechet(a, b, scale)


def _excess(rows) -> np.ndarray:
    return np.zeros(0) if np.isnan(rows).any() else rows[:, 1] - rows[:, 0]


def _halves(real, seed, k) -> tuple["DistributionSet", "DistributionSet"]:
    """Two sets with the sampled slices of a random half of the cases each."""
    order = np.random.default_rng([seed, 7, k]).permutation(sorted(real.cases))
    halves = order[: len(order) // 2], order[len(order) // 2 :]
    sets = []
    for half in halves:
        part = DistributionSet(real.feature_fn, real.planes)
        part.slices = {p: {c: s[c] for c in half if c in s} for p, s in real.slices.items()}
        sets.append(part)
    return tuple(sets)


def _spread(values, n) -> dict:
    low, high = (float(q) for q in np.quantile(values, [0.025, 0.975]))
    std = float(values.std(ddof=1))
    return {"mean": float(values.mean()), "std": std, "ci95": [low, high], "n": n}


def _grouped_again(s, plane, groups) -> dict[str, Moments]:
    return s.moments[plane] if s.groups is not None else grouped(s.moments[plane], groups)
