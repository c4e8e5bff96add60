"""The Frechet distance against closed forms and scipy.linalg.sqrtm, streaming against one matrix,
bootstrap intervals and halvings of sets with a known difference."""

import numpy as np
import pytest

from tubesynth.metrics.bootstrap import interval, paired_case_counts
from tubesynth.metrics.frechet import (
    MAX_BOOTSTRAP_DIM,
    CaseMoments,
    bootstrap,
    case_moments,
    frechet_distance,
    gaussian,
    halvings,
)


def covariance(rng, d, rank=None):
    factor = rng.standard_normal((d, rank or 2 * d))
    return factor @ factor.T / d


def cases(rng, n, shift=0.0, d=12, slices=30, names="c"):
    """Features of n cases of correlated slices: each case has its own mean."""
    return {
        f"{names}{i}": 0.5 * rng.standard_normal(d) + shift + rng.standard_normal((slices, d))
        for i in range(n)
    }


def test_one_dimension_is_the_difference_of_means_and_of_deviations():
    first, second = (np.array([3.0]), np.array([[4.0]])), (np.array([1.0]), np.array([[25.0]]))
    assert frechet_distance(first, second) == pytest.approx(2**2 + (2 - 5) ** 2)


def test_commuting_covariances_have_the_closed_form_of_their_eigenvalues():
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    a, b = rng.uniform(0.1, 4, (2, 6))
    m = rng.standard_normal((2, 6))
    expected = ((m[0] - m[1]) ** 2).sum() + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    distance = frechet_distance((m[0], basis * a @ basis.T), (m[1], basis * b @ basis.T))
    assert distance == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("d", [2, 20, 80])
def test_general_covariances_agree_with_scipys_sqrtm(d):
    from scipy.linalg import sqrtm

    rng = np.random.default_rng(d)
    a, b, m = covariance(rng, d), covariance(rng, d), rng.standard_normal((2, d))
    expected = ((m[0] - m[1]) ** 2).sum() + np.trace(a + b - 2 * sqrtm(a @ b).real)
    assert frechet_distance((m[0], a), (m[1], b)) == pytest.approx(expected, rel=1e-9)


def test_singular_covariances_need_no_jitter():
    rng = np.random.default_rng(1)
    a = covariance(rng, 40, rank=5)
    zero = np.zeros(40)
    assert frechet_distance((zero, a), (zero, a)) == 0
    expected = np.trace(a) * (1 - 3) ** 2  # b = 9 a: (1 - 3)^2 of every eigenvalue
    assert frechet_distance((zero, a), (zero, 9 * a)) == pytest.approx(expected, rel=1e-10)


def test_pooled_moments_are_those_of_the_whole_matrix():
    rng = np.random.default_rng(2)
    # A large mean: sums of squares without centering would lose half of the digits.
    x = 1e6 + rng.standard_normal((500, 7)) @ covariance(rng, 7)
    chunks = {"a": x[:3], "b": x[3:200], "c": x[200:]}
    pooled = CaseMoments.of(chunks).pooled(["a", "b", "c"], np.ones(3))
    for mean, cov in (pooled, gaussian([*chunks.values()])):
        np.testing.assert_allclose(mean, x.mean(0), rtol=1e-14)
        np.testing.assert_allclose(cov, np.cov(x.T), rtol=1e-7, atol=1e-9)


def test_a_case_of_weight_two_counts_twice_and_of_zero_never():
    rng = np.random.default_rng(3)
    a, b = rng.standard_normal((2, 20, 4))
    weighted = CaseMoments.of({"a": a, "b": b}).pooled(["a", "b"], np.array([2.0, 0.0]))
    for value, expected in zip(weighted, gaussian([a, a]), strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-12)


def test_scale_divides_features():
    rng = np.random.default_rng(4)
    x = rng.standard_normal((200, 3)) * [1, 10, 100]
    by = np.array([1.0, 10, 100])
    for value, expected in zip(gaussian([x], by), gaussian([x / by]), strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-10)


def test_distance_of_two_large_samples_comes_near_that_of_their_gaussians():
    rng = np.random.default_rng(5)
    a = rng.standard_normal((20000, 4))
    b = 1 + 2 * rng.standard_normal((20000, 4))
    assert frechet_distance(gaussian([a]), gaussian([b])) == pytest.approx(4 * 1 + 4 * 1, rel=0.03)


def test_cases_of_both_sets_are_resampled_together():
    first, second = ["a", "b", "c", "x"], ["c", "b", "a", "y", "z"]
    u, v = paired_case_counts(first, second, 50, np.random.default_rng(0))
    np.testing.assert_array_equal(u[:, :3], v[:, [2, 1, 0]])
    assert (u.sum(1) == 4).all() and (v.sum(1) == 5).all()
    assert (v[:, 3] != 1).any()


def test_equal_sets_have_a_distance_of_0_whatever_cases_are_resampled():
    real = cases(np.random.default_rng(6), 6)
    first, second = case_moments(real, dict(reversed(real.items())), 1.0)
    assert (bootstrap(first, second) == 0).all()
    rows = halvings(first, second, 10)
    np.testing.assert_array_equal(rows[:, 0], rows[:, 1])


def test_few_cases_bias_the_distance_but_not_the_excess_over_the_negative_control():
    rng = np.random.default_rng(7)
    d, truth = 12, 12 * 0.4**2
    plain, excess, inside = [], [], 0
    for trial in range(12):
        sets = cases(rng, 6, d=d), cases(rng, 6, 0.4, d, names="s")
        first, second = case_moments(*sets, 1.0)
        plain.append(frechet_distance(*(gaussian([*s.values()]) for s in sets)))
        rows = halvings(first, second, 10, trial)
        excess.append((rows[:, 1] - rows[:, 0]).mean())
        resampled = np.diff(halvings(first, second, 60, trial, True))[:, 0]
        low, high = interval(excess[-1], resampled, 6, -np.inf)["ci95"]
        inside += low <= truth <= high
    assert np.mean(plain) > truth + 1
    assert np.mean(excess) == pytest.approx(truth, abs=0.6)
    assert inside >= 11


def test_an_interval_surrounds_its_estimate_and_never_goes_below_0():
    stat = interval(0.1, np.array([1.0, 1.5, 2.0]), 5)
    assert stat["mean"] == 0.1 and stat["ci95"][0] == 0 and stat["ci95"][1] > 0.1
    assert interval(0.1, np.zeros(0), 1)["ci95"] == [None, None]


def test_long_features_are_resampled_in_their_principal_components():
    rng = np.random.default_rng(8)
    basis = np.linalg.qr(rng.standard_normal((MAX_BOOTSTRAP_DIM + 44, 10)))[0]
    sets = []
    for shift in (0.0, 0.5):
        sets.append({f"{i}": (rng.standard_normal((40, 10)) + shift) @ basis.T for i in range(4)})
    moments = case_moments(*sets, 1.0)
    assert moments[0].means.shape == (4, MAX_BOOTSTRAP_DIM)
    projected = frechet_distance(*(m.pooled(m.cases, np.ones(4)) for m in moments))
    whole = frechet_distance(*(gaussian([*s.values()]) for s in sets))
    assert projected == pytest.approx(whole, rel=1e-6)
