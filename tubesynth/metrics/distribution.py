"""Scores of a set of synthetic CTs as a sample of the distribution of real CTs.

    real = [volume_features(case_id, volume_hu, spacing) for ...]
    synthetic = [volume_features(case_id, volume_hu, spacing, sample) for ...]
    scores, control = distribution_scores(real, synthetic), negative_control(real)

n counts cases, not slices: a synthetic case has the id of its label map, and all samples of that
label map belong to it. `standardize` is that of the feature function (features.py).
"""

from collections.abc import Iterable, Mapping
from itertools import combinations, islice

import numpy as np
import torch

from tubesynth.metrics.bootstrap import bootstrap_mean, interval
from tubesynth.metrics.frechet import bootstrap, case_moments, frechet_distance, gaussian, halvings
from tubesynth.metrics.image import ms_ssim
from tubesynth.metrics.memorization import memorization_scores
from tubesynth.metrics.precision_recall import precision_and_recall
from tubesynth.metrics.summary import Stat
from tubesynth.metrics.volume_features import (
    SMALLEST_STD,
    SlicesByPlane,
    Volumes,
    check_comparable,
    feature_scale,
    sampled_slices,
    slices_by_case,
)
from tubesynth.volume.intensity import hu_to_unit

HALVINGS, RESAMPLED_HALVINGS, CONTROL_HALVES = 20, 100, 4  # numbers of random halvings


def distribution_scores(
    real: Volumes, synthetic: Volumes, training: Volumes = (), standardize: bool = True
) -> dict[str, Stat]:
    """{METRIC: Stat} of a synthetic set against a real one; {} where either is empty.

    frechet_axial, _coronal, _sagittal and their mean, frechet: squared distances as in FID, with
    the bias of small sets. frechet_excess: the distance without that bias (see frechet.py; absent
    below four real cases). precision, recall: see precision_recall.py. With a training set: the
    metrics of memorization.py. ci95 is a bootstrap over cases.
    """
    if not real or not synthetic:
        return {}
    check_comparable([*real, *synthetic])
    n = min(len({v.case for v in volumes}) for volumes in (real, synthetic))
    scores, distances, replicates, rows, resampled_rows = {}, [], [], [], []
    for plane in real[0].slices:
        slices = slices_by_case(real, plane), slices_by_case(synthetic, plane)
        scale = feature_scale([*slices[0].values()], standardize)
        distances.append(frechet_distance(*(gaussian([*s.values()], scale) for s in slices)))
        moments = case_moments(*slices, scale)
        replicates.append(bootstrap(*moments))
        scores[f"frechet_{plane}"] = interval(distances[-1], replicates[-1], n)
        rows.append(halvings(*moments, HALVINGS))
        resampled_rows.append(halvings(*moments, RESAMPLED_HALVINGS, resample=True))
    scores["frechet"] = interval(float(np.mean(distances)), np.mean(replicates, 0), n)
    # (planes, halvings, 2) -> (halvings,): distance to synthetic minus distance to real cases
    excess, spread = (np.diff(np.mean(r, 0))[:, 0] for r in (rows, resampled_rows))
    if len(excess) and not np.isnan(excess).any():
        spread = spread[: 0 if np.isnan(spread).any() else None]
        scores["frechet_excess"] = interval(float(excess.mean()), spread, n, lowest=-np.inf)
    sampled = sampled_slices(real)
    scales = _scales(sampled, standardize)
    scores |= precision_and_recall(sampled, sampled_slices(synthetic), scales)
    return scores | (memorization_scores(synthetic, real, training) if training else {})


def negative_control(real: Volumes, standardize: bool = True) -> dict[str, Stat]:
    """{METRIC: Stat} of one random half of the real cases against the other half.

    Means over halvings; std and ci95 are their spread; n is the size of a half. {} below four
    cases. Halves are smaller than the sets of `distribution_scores` and share no patient, so a good
    generator can have a smaller distance: frechet_excess compares at one size.
    """
    cases = sorted({v.case for v in real})
    n, values = len(cases) // 2, {}
    if n < 2:
        return {}
    for plane in real[0].slices:
        slices = slices_by_case(real, plane)
        scale = feature_scale([*slices.values()], standardize)
        moments, _ = case_moments(slices, slices, scale)
        values[f"frechet_{plane}"] = halvings(moments, None, HALVINGS)[:, 0]
    values["frechet"] = np.mean([*values.values()], axis=0)
    sampled, scores = sampled_slices(real), []
    scales = _scales(sampled, standardize)
    for k in range(CONTROL_HALVES):
        order = np.random.default_rng([0, 7, k]).permutation(cases)
        first, second = (
            {plane: {c: s[c] for c in sorted(half) if c in s} for plane, s in sampled.items()}
            for half in (order[:n], order[n:])
        )
        scores.append(precision_and_recall(first, second, scales))
    for metric in scores[0]:
        values[metric] = np.array([row[metric]["mean"] for row in scores])
    return {m: interval(float(v.mean()), v, n, lowest=-np.inf) for m, v in values.items()}


def distribution_notes(real: Volumes, synthetic: Volumes = ()) -> list[str]:
    """Notes on sets with fewer cases than features, whose distances are biased."""
    notes = []
    dim = next(iter(real[0].slices.values())).shape[1]
    for name, volumes in (("real", real), ("synthetic", synthetic)):
        n = len({v.case for v in volumes})
        if 0 < n < dim:
            notes.append(
                f"{n} {name} cases for {dim} features: Frechet distances are biased "
                "upwards by their small number; compare sets of one size, and read frechet_excess"
            )
    return notes


def sample_diversity(
    volumes_hu: Iterable[np.ndarray], window=(-1000.0, 1000.0), max_pairs: int = 3
) -> float | None:
    """MS-SSIM between samples of one label map, mean over the first max_pairs pairs.

    1: the sampler ignores its noise. None below two samples, or where a volume is too small.
    """
    units = (
        torch.as_tensor(hu_to_unit(torch.as_tensor(np.array(v)), window))[None, None]
        for v in volumes_hu
    )
    pairs = [ms_ssim(a, b, 1.0)[0] for a, b in islice(combinations(units, 2), max_pairs)]
    return float(np.mean(pairs)) if pairs and np.isfinite(pairs).all() else None


def diversity_scores(by_case: Mapping[str, float | None]) -> dict[str, Stat]:
    """{"diversity_ms_ssim": Stat} of the `sample_diversity` of each case; {} where all are None."""
    values = [by_case[case] for case in sorted(by_case) if by_case[case] is not None]
    return {"diversity_ms_ssim": bootstrap_mean(values, (0.0, 1.0))} if values else {}


def _scales(sampled: SlicesByPlane, standardize: bool) -> dict[str, np.ndarray | float]:
    """{plane: (D,)}: standard deviation of the sampled real slices; 1 without standardization."""
    if not standardize:
        return dict.fromkeys(sampled, 1.0)
    spreads = {plane: np.concatenate([*s.values()]).std(0) for plane, s in sampled.items()}
    return {plane: np.maximum(std, SMALLEST_STD) for plane, std in spreads.items()}
