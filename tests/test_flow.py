"""The flow's path and target in closed form (Lipman et al. 2023, eq. 22 and 23), its times, its
pairs, and weights on vessels.
"""

import itertools
import math
from statistics import NormalDist

import numpy as np
import pytest
import torch
from networks import make_flow

from tubesynth.config.schema import SamplingConfig
from tubesynth.generative.coupling import couple
from tubesynth.generative.flow import path, with_offset
from tubesynth.generative.objective import mean_error, published_vessel_weight, vessel_weight
from tubesynth.generative.times import shift_times, time_grid

UNIFORM = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000


def test_the_path_starts_at_noise_and_ends_at_data():
    noise, data = torch.randn(2, 4, 3, 3, 3), torch.randn(2, 4, 3, 3, 3)
    x, _ = path(noise, data, torch.zeros(2), sigma_min=0.01)
    torch.testing.assert_close(x, noise)
    x, _ = path(noise, data, torch.ones(2), sigma_min=0.01)
    torch.testing.assert_close(x, data + 0.01 * noise)


def test_the_velocity_is_the_derivative_of_the_path():
    noise, data = torch.randn(2, 8, dtype=torch.float64), torch.randn(2, 8, dtype=torch.float64)
    t = torch.tensor([0.2, 0.7], dtype=torch.float64)
    _, velocity = path(noise, data, t, sigma_min=0.05)
    before, _ = path(noise, data, t - 1e-4, sigma_min=0.05)
    after, _ = path(noise, data, t + 1e-4, sigma_min=0.05)
    torch.testing.assert_close((after - before) / 2e-4, velocity)


def test_the_true_velocity_has_no_loss_and_zero_has_the_mean_speed():
    noise, data, t = torch.randn(3, 5), torch.randn(3, 5), torch.rand(3)
    _, target = path(noise, data, t, 1e-5)
    assert make_flow().loss(lambda x, t: target, data, noise, t).abs().max() == 0
    for norm, power in (("l1", 1), ("l2", 2)):
        flow = make_flow(loss=norm)
        loss = flow.loss(lambda x, t: torch.zeros_like(x), data, noise, t)
        torch.testing.assert_close(loss, target.abs().pow(power).mean(1))


def test_logit_normal_times_have_the_density_of_the_paper():
    """Esser et al. 2024, eq. 19: normal in the logit, so quantiles are those of a normal."""
    mean, std = -0.4, 1.3
    flow = make_flow(time_sampling="logit_normal", time_mean=mean, time_std=std)
    t = flow.times(UNIFORM)
    logits = torch.log(t / (1 - t))
    assert logits.mean().item() == pytest.approx(mean, abs=1e-3)
    assert logits.std().item() == pytest.approx(std, rel=1e-3)
    for share in (0.1, 0.5, 0.9):
        expected = 1 / (1 + math.exp(-NormalDist(mean, std).inv_cdf(share)))
        assert torch.quantile(t, share).item() == pytest.approx(expected, abs=1e-4)
    assert flow.times(torch.zeros(1)).item() == 0  # the edge of torch.rand


def test_the_shift_is_the_papers_with_time_reversed():
    """Eq. 23: noise level n -> s n / (1 + (s - 1) n); shifts compose and 1 / s undoes s."""
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    for shift in (0.5, 1.0, 3.0):
        noise_level = shift * (1 - t) / (1 + (shift - 1) * (1 - t))
        torch.testing.assert_close(shift_times(t, shift), 1 - noise_level)
        torch.testing.assert_close(shift_times(shift_times(t, shift), 1 / shift), t)
    # The purpose: the mean of s^2 equal cells is then as noisy as one cell was before.
    shifted = shift_times(0.6, 3.0)
    assert 3 * shifted / (1 - shifted) == pytest.approx(0.6 / 0.4)
    assert time_grid(4) == [0, 0.25, 0.5, 0.75, 1]
    assert make_flow(time_shift=3.0).times(UNIFORM).mean() < 0.35


def test_coupling_finds_the_best_of_all_assignments():
    random = torch.Generator().manual_seed(0)
    noise = torch.randn(5, 2, 3, generator=random)
    data = torch.randn(5, 2, 3, generator=random)

    def cost(order):
        return (noise[list(order)] - data).square().sum().item()

    best = min(itertools.permutations(range(5)), key=cost)
    assert best != tuple(range(5))
    assert torch.equal(couple(noise, data), noise[list(best)])
    assert torch.equal(couple(data.flip(0), data), data)


def test_a_weighted_error_is_the_weighted_mean_and_does_not_change_a_flat_error():
    labels = torch.zeros(3, 8, 8, 4, dtype=torch.uint8)
    labels[0, 5, 2, 3] = 8  # one voxel: cell (1, 0, 0)
    labels[1, 2:6, 2:6, :] = 8  # four cells of four
    labels[2] = 7
    weight = vessel_weight(labels, vessel_class=8, factor=4, weight=10.0)
    assert weight.shape == (3, 1, 2, 2, 1)
    np.testing.assert_allclose(weight.flatten(1).mean(1), 1, rtol=1e-6)
    expected = torch.tensor([1.0, 1, 10, 1]) / 3.25
    torch.testing.assert_close(weight[0].flatten(), expected)
    torch.testing.assert_close(weight[1:], torch.ones(2, 1, 2, 2, 1))
    prediction, target = torch.randn(3, 6, 2, 2, 1), torch.zeros(3, 6, 2, 2, 1)
    error = mean_error(prediction, target, "l1", weight)
    torch.testing.assert_close(
        error[0], (prediction[0].abs().mean(0).flatten() * expected).sum() / 4
    )
    flat = mean_error(torch.ones_like(target), target, "l2", weight)
    torch.testing.assert_close(flat, torch.ones(3))


def test_published_weights_are_those_of_a_mask_dilated_twice_at_the_middles_of_the_cells():
    labels = torch.zeros(2, 8, 8, 8, dtype=torch.uint8)
    labels[0, 4, 2, 2] = 8  # two voxels from (2, 2, 2) and (6, 2, 2)
    labels[0, 3, 5, 7] = 8  # three steps from (2, 6, 6): too far, and diagonal
    weight = published_vessel_weight(labels, vessel_class=8, factor=4, weight=10.0)
    expected = torch.ones(2, 1, 2, 2, 2)
    expected[0, 0, :, 0, 0] = 10
    assert torch.equal(weight, expected)
    flat = torch.zeros(1, 4, 4, dtype=torch.uint8)
    flat[0, 0, 1] = 2  # one step from (1, 1), three from (1, 3) and (3, 1)
    weight = published_vessel_weight(flat, vessel_class=2, factor=2, weight=5.0)
    assert torch.equal(weight, torch.tensor([[[[5.0, 1], [1, 1]]]]))


def test_weights_on_vessels_work_in_two_dimensions():
    labels = torch.zeros(1, 4, 4, dtype=torch.uint8)
    labels[0, 0, 0] = 2
    weight = vessel_weight(labels, vessel_class=2, factor=2, weight=5.0)
    torch.testing.assert_close(weight, torch.tensor([[[[5.0, 1], [1, 1]]]]) / 2)


def test_the_flow_of_a_gaussian_is_sampled_exactly():
    """Data N(mu, s^2): the marginal velocity is known, and maps noise to mu + s noise."""
    mu, s = 2.0, 0.5

    def velocity(x, t):
        t = t.double().reshape(-1, 1)
        mean, deviation = t * mu, ((1 - t) ** 2 + t**2 * s**2).sqrt()
        growth = (t * s**2 - (1 - t)) / deviation**2
        return mu + growth * (x - mean)

    noise = torch.randn(4, 3, dtype=torch.float64)
    sampling = SamplingConfig(solver="rk4", steps=64)
    result, evaluations = make_flow(sigma_min=0).sample(velocity, noise, sampling, None)
    torch.testing.assert_close(result, mu + s * noise, atol=1e-6, rtol=0)
    assert evaluations == 4 * 64


def test_offset_noise_adds_a_normal_number_to_all_cells_of_a_channel():
    """Covariance of two cells: scale^2, and that of a cell with the mean, 2 scale n^-1/2."""
    white = torch.randn(40_000, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    noise = with_offset(white, 0.5)
    first, second = noise[:, :, 0, 0], noise[:, :, 3, 2]
    expected = 0.5**2 + 2 * 0.5 / 16**0.5
    assert (first * second).mean().item() == pytest.approx(expected, abs=0.02)
    assert first.square().mean().item() == pytest.approx(1 + expected, abs=0.02)
    assert (noise[:, 0] * noise[:, 1]).mean().item() == pytest.approx(0, abs=0.02)
    assert with_offset(white, 0.0) is white


def test_training_and_sampling_start_from_the_same_offset_noise():
    noise, data, t = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4), torch.rand(3)
    flow, start = make_flow(offset_noise=0.5), with_offset(noise, 0.5)
    x_t, target = path(start, data, t, 1e-5)
    points = []
    loss = flow.loss(lambda x, t: points.append(x) or target, data, noise, t)
    assert torch.equal(points[0], x_t) and loss.abs().max() == 0
    result, _ = flow.sample(lambda x, t: torch.zeros_like(x), noise, SamplingConfig(), None)
    assert torch.equal(result, start)
