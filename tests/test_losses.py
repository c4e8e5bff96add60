"""Losses against independent formulas."""

import numpy as np
import pytest
import torch

from tubesynth.losses import lsgan_discriminator_loss, lsgan_generator_loss, spectral_loss


@pytest.mark.parametrize("shape", [(2, 1, 8, 6, 4), (1, 1, 7, 6, 5), (2, 1, 9, 8)])
def test_spectral_loss_is_that_of_the_whole_spectrum(shape):
    a, b = np.random.default_rng(0).random((2, *shape)).astype(np.float32)
    axes = tuple(range(2, len(shape)))
    amplitudes = [np.abs(np.fft.fftn(x, axes=axes, norm="ortho")) for x in (a, b)]
    expected = np.mean((amplitudes[0] - amplitudes[1]) ** 2)
    found = spectral_loss(torch.from_numpy(a), torch.from_numpy(b))
    assert found.item() == pytest.approx(expected, rel=1e-4)


def test_spectral_loss_ignores_where_a_thing_lies():
    image = torch.rand(1, 1, 8, 8, 8)
    assert spectral_loss(image, image.roll(3, dims=2)).item() < 1e-10


def test_spectral_loss_has_finite_gradients_for_equal_and_empty_images():
    image = torch.zeros(1, 1, 8, 8, 8, requires_grad=True)
    spectral_loss(image, torch.zeros(1, 1, 8, 8, 8)).backward()
    assert image.grad.isfinite().all()


def test_least_squares_gan_values():
    real, fake = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 0.5])
    assert lsgan_generator_loss(fake).item() == pytest.approx((1 + 0.25) / 2)
    assert lsgan_discriminator_loss(real, fake).item() == pytest.approx((0.5 + 0.125) / 2)
    assert lsgan_discriminator_loss(torch.ones(3), torch.zeros(3)).item() == 0
