"""Fixed levels and the Gaussian: in closed form; and the properties of all quantizers."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from networks import make_vqvae
from torch.distributions import Normal, kl_divergence

from tubesynth.build.checkpoint import weights_digest
from tubesynth.models.quantizers.finite_scalar import DECAY, FiniteScalarQuantizer
from tubesynth.models.quantizers.gaussian import GaussianPosterior
from tubesynth.models.vqvae import VQVAE

ALL = [
    dict(quantizer="ema_vq", embedding_dim=3, codebook_size=16),
    dict(quantizer="fsq", embedding_dim=3, fsq_levels=(5, 4, 3)),
    dict(quantizer="kl", embedding_dim=3),
]
IDS = [settings["quantizer"] for settings in ALL]


def autoencoder(dim=2, **settings) -> VQVAE:
    torch.manual_seed(0)
    net = make_vqvae(
        dim, channels=(8, 8), residual_channels=(8, 8), num_residual_layers=1, **settings
    )
    if settings["quantizer"] == "ema_vq":
        net.quantizer.codebook.normal_()
    return net.eval()


def fsq(*levels) -> FiniteScalarQuantizer:
    """In evaluation mode, as for data of mean 0 and deviation 1."""
    return FiniteScalarQuantizer(levels).eval()


@pytest.mark.parametrize("levels", [3, 4, 5, 8, 16])
def test_a_rising_channel_takes_all_its_levels_in_order(levels):
    sweep = torch.linspace(-8, 8, 4001)
    quantized, terms, indices = fsq(levels)(sweep.view(1, 1, -1))
    values, where = quantized.flatten().unique(return_inverse=True)
    lowest = -(levels // 2)
    expected = torch.arange(lowest, lowest + levels) / (levels // 2)
    torch.testing.assert_close(values, expected)
    assert torch.equal(indices.flatten(), where) and where.diff().min() >= 0
    assert not terms


def test_levels_are_those_of_the_paper():
    """Odd: round((L - 1) / 2 tanh z). Even: half a level lower, shifted so that 0 stays 0."""
    z = torch.randn(1, 2, 500, dtype=torch.float64)
    latents = fsq(7, 8).latents(z).double()
    odd, even = 3 * torch.tanh(z[:, 0]), 3.5 * torch.tanh(z[:, 1] + math.atanh(1 / 7)) - 0.5
    torch.testing.assert_close(latents, torch.stack([odd, even], 1), atol=1e-5, rtol=1e-5)
    assert fsq(7, 8).latents(torch.zeros(1, 2, 1)).abs().max() < 1e-6


def test_every_combination_of_levels_has_its_own_index():
    levels = (5, 4, 3)
    layer = fsq(*levels)
    digits = np.array(list(product(*map(range, levels))))  # (60, 3), from 0 on
    latents = torch.from_numpy(digits - np.array(levels) // 2).float()
    # invert the bound; its ends lie at infinity
    even = torch.tensor(levels) % 2 == 0
    half_range = (torch.tensor(levels) - 1) / 2
    reached = ((latents + 0.5 * even) / half_range).clamp(-1 + 1e-6, 1 - 1e-6)
    encoded = torch.atanh(reached) - torch.atanh(0.5 * even / half_range)
    quantized, _, indices = layer(encoded.T[None])
    torch.testing.assert_close(quantized[0].T, latents / (torch.tensor(levels) // 2))
    assert indices[0].tolist() == list(np.ravel_multi_index(digits.T, levels, order="F"))
    assert sorted(indices[0].tolist()) == list(range(layer.num_codes))


def test_the_gradient_passes_the_rounding_and_not_the_bound():
    z = torch.randn(1, 1, 50, requires_grad=True)
    fsq(5)(z)[0].sum().backward()
    torch.testing.assert_close(z.grad, 1 - torch.tanh(z.detach()).square())  # 2 tanh(z) / 2


def test_latents_beyond_the_bounds_get_the_outermost_level():
    beyond = torch.tensor([-9.0, -1.4, 1.6, 9.0]).view(1, 1, 4).expand(1, 2, 4)
    assert fsq(5, 4).quantize(beyond).tolist() == [[[-1.0, -0.5, 1.0, 1.0], [-1.0, -0.5, 0.5, 0.5]]]


def test_a_step_with_nan_has_indices_that_can_be_counted():
    encoded = torch.tensor([float("nan"), 0.0, float("inf")]).view(1, 1, 3)
    assert fsq(5)(encoded)[2].tolist() == [[2, 2, 4]]


def test_data_of_any_scale_uses_nearly_all_combinations_evenly():
    """Deviations of 0.01 and 40, far from 0: unscaled, the first has one level."""
    random = torch.Generator().manual_seed(0)
    scale, offset = (
        torch.tensor([0.01, 40.0]).view(1, 2, 1),
        torch.tensor([2.0, -90.0]).view(1, 2, 1),
    )
    encoded = scale * torch.randn(4, 2, 20000, generator=random) + offset
    layer = FiniteScalarQuantizer((8, 5)).train()
    share = torch.bincount(layer(encoded)[2].flatten(), minlength=40) / 80000
    assert (share > 0).all() and torch.special.entr(share).sum().exp() > 0.9 * 40
    unscaled = fsq(8, 5)(encoded)[2]
    assert len(unscaled.unique()) <= 5
    assert torch.equal(layer.eval()(encoded)[2], layer(encoded)[2])
    assert torch.equal(layer.quantize(layer.latents(encoded)), layer(encoded)[0])


def test_mean_and_deviation_follow_in_training_alone_and_past_nan():
    layer = FiniteScalarQuantizer((8, 5)).train()
    first = torch.randn(2, 2, 500) * 3 + 1
    layer(first)
    flat = first.movedim(1, 0).flatten(1)
    torch.testing.assert_close(layer.mean, flat.mean(1))
    torch.testing.assert_close(layer.deviation, flat.std(1, correction=0))
    layer(first + 2)
    torch.testing.assert_close(layer.mean, flat.mean(1) + 2 * (1 - DECAY))
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    layer(torch.full((1, 2, 3), float("nan")))
    layer.eval()(first - 7)
    for name, value in layer.state_dict().items():
        assert torch.equal(value, before[name]), name
    broken = first.clone()
    broken[0, 1, :10] = float("inf")
    layer.train()(broken)
    assert all(value.isfinite().all() for value in layer.state_dict().values())


def test_other_levels_have_another_digest():
    digests = {
        weights_digest(FiniteScalarQuantizer(levels).state_dict())
        for levels in ((8, 6, 5), (8, 5, 6), (7, 5, 5))
    }
    assert len(digests) == 3


def test_the_divergence_is_that_of_torch_in_nats_a_cell():
    encoded = torch.randn(2, 6, 4, 5)
    mean, log_variance = encoded.chunk(2, 1)
    posterior = Normal(mean, (log_variance / 2).exp())
    expected = kl_divergence(posterior, Normal(0.0, 1.0)).sum(1).mean()
    terms = GaussianPosterior(3, kl_weight=0.25)(encoded)[1]
    assert terms["kl"].item() == pytest.approx(0.25 * expected.item(), rel=1e-5)


def test_training_samples_the_posterior_by_the_global_seed_and_evaluation_takes_its_mean():
    layer = GaussianPosterior(1, kl_weight=1e-6).train()
    encoded = torch.tensor([3.0, 2 * math.log(0.5)]).view(1, 2, 1).expand(1, 2, 20000)

    def sample(seed):
        torch.manual_seed(seed)
        return layer(encoded)[0]

    assert torch.equal(sample(1), sample(1)) and not torch.equal(sample(1), sample(2))
    assert sample(1).mean().item() == pytest.approx(3.0, abs=0.02)
    assert sample(1).std().item() == pytest.approx(0.5, rel=0.02)
    assert layer.eval()(encoded)[0].unique().tolist() == [3.0]
    assert layer.latents(encoded).unique().tolist() == [3.0]


def test_the_gradient_reaches_mean_and_variance():
    encoded = torch.zeros(1, 2, 1000, requires_grad=True)
    torch.manual_seed(0)
    sample = GaussianPosterior(1, kl_weight=0.0).train()(encoded)[0]
    sample.square().mean().backward()
    # d E[(mu + sigma e)^2] / d log sigma^2 = sigma^2 = 1; d / d mu = 2 mu = 0
    assert encoded.grad[0, 1].sum().item() == pytest.approx(1.0, abs=0.1)
    assert encoded.grad[0, 0].sum().item() == pytest.approx(0.0, abs=0.1)


@pytest.mark.parametrize("settings", ALL, ids=IDS)
def test_decoding_what_was_encoded_is_the_forward_pass(settings):
    net = autoencoder(**settings)
    image = torch.rand(2, 1, 16, 24)
    with torch.no_grad():
        latents = net.encode(image)
        assert latents.shape == (2, 3, 4, 6)
        forward, _, indices = net(image)
        torch.testing.assert_close(net.decode(latents), forward, atol=1e-6, rtol=0)
    if net.quantizer.num_codes is None:
        assert indices is None
    else:
        assert indices.shape == (2, 4, 6)
        assert 0 <= indices.min() and indices.max() < net.quantizer.num_codes


@pytest.mark.parametrize("settings", ALL, ids=IDS)
def test_every_parameter_is_trained(settings):
    net = autoencoder(**settings).train()
    for parameter in net.parameters():  # zero-initialized: earlier layers would get no gradient
        if parameter.abs().max() == 0:
            torch.nn.init.normal_(parameter, std=0.1)
    image = torch.rand(1, 1, 16, 16)
    reconstruction, terms, _ = net(image)
    ((reconstruction - image).square().mean() + sum(terms.values())).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("settings", ALL, ids=IDS)
def test_latents_under_bfloat16_are_those_of_32_bits_to_its_precision(settings):
    net = autoencoder(**settings)
    image = torch.rand(1, 1, 16, 16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        rough = net.encode(image).float()
        assert net.decode(rough).isfinite().all()
    torch.testing.assert_close(rough, net.encode(image).detach(), atol=0.05, rtol=0.05)
