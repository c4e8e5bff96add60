"""The flow's path and target in closed form (Lipman et al. 2023, eq. 22 and 23)."""

import torch

from tubesynth.generative.flow import matching_loss, path


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
    assert matching_loss(lambda x, t: target, data, noise, t, 1e-5).abs().max() == 0
    for norm, power in (("l1", 1), ("l2", 2)):
        loss = matching_loss(lambda x, t: torch.zeros_like(x), data, noise, t, 1e-5, norm)
        torch.testing.assert_close(loss, target.abs().pow(power).mean(1))
