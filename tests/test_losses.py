"""Losses against independent formulas."""

import math

import numpy as np
import pytest
import torch

from tubesynth.losses.autoencoder import (
    adaptive_weight,
    feature_matching_loss,
    hinge_discriminator_loss,
    hinge_generator_loss,
    l1_loss,
    l2_loss,
    lsgan_discriminator_loss,
    lsgan_generator_loss,
    perceptual_loss,
    region_weights,
    spectral_loss,
    take_slices,
)
from tubesynth.models.discriminator import PatchDiscriminator


@pytest.mark.parametrize("shape", [(2, 1, 8, 6, 4), (1, 1, 7, 6, 5), (2, 1, 9, 8)])
def test_spectral_loss_is_that_of_the_whole_spectrum(shape):
    a, b = np.random.default_rng(0).random((2, *shape)).astype(np.float32)
    axes = tuple(range(2, len(shape)))
    amplitudes = [np.abs(np.fft.fftn(x, axes=axes, norm="ortho")) for x in (a, b)]
    expected = np.mean((amplitudes[0] - amplitudes[1]) ** 2)
    loss = spectral_loss(torch.from_numpy(a), torch.from_numpy(b))
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_spectral_loss_does_not_change_with_a_shift():
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


def test_hinge_gan_values():
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-2.0, 0.0, 0.5])
    assert hinge_generator_loss(fake).item() == pytest.approx(0.5)
    # reals below 1 by 0, 0.5 and 2; fakes above -1 by 0, 1 and 1.5
    assert hinge_discriminator_loss(real, fake).item() == pytest.approx((2.5 / 3 + 2.5 / 3) / 2)


def test_feature_matching_is_the_sum_of_the_layers_mean_absolute_differences():
    fake = [torch.tensor([[1.0, -1.0]]), torch.tensor([[[3.0]]])]
    real = [torch.tensor([[0.0, 1.0]]), torch.tensor([[[1.0]]])]
    assert feature_matching_loss(fake, real).item() == pytest.approx((1 + 2) / 2 + 2)


def test_the_discriminators_features_are_what_its_layers_compute():
    torch.manual_seed(0)
    net, image = PatchDiscriminator(3, channels=4, num_layers=2), torch.rand(1, 1, 16, 16, 16)
    features, scores = net.features(image)
    x = image
    for number, layer in enumerate(net.layers):
        x = layer(x)
        if number in (1, 4, 7):
            assert torch.equal(features[(1, 4, 7).index(number)], x)
    assert len(features) == 3 and torch.equal(scores, net(image))


def test_the_adaptive_weight_is_the_ratio_of_the_norms_and_has_no_gradient():
    a, b = torch.tensor([3.0, 4.0], requires_grad=True), torch.tensor([[0.0, 2.0]])
    weight = adaptive_weight(a, b)
    assert weight.item() == pytest.approx(2.5) and not weight.requires_grad
    assert adaptive_weight(a, torch.zeros(2)).item() == 1e4
    overflown = torch.tensor([math.inf, 1.0])  # both, while the scaler of 16 bits probes
    assert adaptive_weight(overflown, overflown).item() == 0


def test_region_weights_have_mean_1_in_every_case_and_the_configured_ratio():
    region = torch.zeros(3, 4, 5, 6, dtype=torch.bool)
    region[0, 1, 2:4, 3] = True
    region[1] = True
    weight = region_weights(region, 10.0)
    assert weight.shape == (3, 1, 4, 5, 6)
    torch.testing.assert_close(weight.mean((1, 2, 3, 4)), torch.ones(3))
    assert (weight[0].max() / weight[0].min()).item() == pytest.approx(10)
    assert weight[0, 0, 1, 2, 3].item() == pytest.approx(10 * 120 / (118 + 20))
    assert torch.equal(weight[1], torch.ones(1, 4, 5, 6))  # nothing but vessel, and none at all
    assert torch.equal(weight[2], torch.ones(1, 4, 5, 6))


@pytest.mark.parametrize(("loss", "power"), [(l1_loss, 1), (l2_loss, 2)])
def test_weighted_pixel_losses_are_weighted_means(loss, power):
    rng = np.random.default_rng(0)
    a, b, w = rng.random((3, 2, 1, 4, 5)).astype(np.float32)
    weighted = loss(*(torch.from_numpy(x) for x in (a, b, w)))
    assert weighted.item() == pytest.approx(np.mean(w * np.abs(a - b) ** power), rel=1e-5)
    plain = loss(*(torch.from_numpy(x) for x in (a, b)))
    assert plain.item() == pytest.approx(np.mean(np.abs(a - b) ** power), rel=1e-5)


def test_slices_of_each_axis_are_the_volumes_own():
    volume = torch.arange(2 * 3 * 4 * 5.0).view(2, 1, 3, 4, 5)
    chosen = torch.tensor([[1, 2], [0, 3]])
    taken = take_slices(volume, 1, chosen)
    assert taken.shape == (4, 1, 3, 5)
    for row, (case, index) in enumerate([(0, 1), (0, 2), (1, 0), (1, 3)]):
        assert torch.equal(taken[row, 0], volume[case, 0, :, index])


def test_the_perceptual_loss_sums_the_planes_mean_distances():
    image, reference = torch.rand(2, 1, 4, 5, 6), torch.rand(2, 1, 4, 5, 6)
    slices = [torch.tensor([[0, 2], [1, 3]]), torch.tensor([[4], [0]]), torch.tensor([[5], [2]])]

    def distance(a, b):
        return (a - b).square().sum((1, 2, 3))

    squares = (image - reference).square()[:, 0]
    expected = (squares[0, 0] + squares[0, 2] + squares[1, 1] + squares[1, 3]).sum() / 4
    expected += (squares[0, :, 4] + squares[1, :, 0]).sum() / 2
    expected += (squares[0, :, :, 5] + squares[1, :, :, 2]).sum() / 2
    torch.testing.assert_close(perceptual_loss(distance, image, reference, slices), expected)
    flat = perceptual_loss(distance, image[..., 0], reference[..., 0])
    torch.testing.assert_close(flat, squares[..., 0].sum() / 2)
