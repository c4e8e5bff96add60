"""The networks: published sizes, and invariants that a shape cannot show."""

import pytest
import torch
from networks import labelled_inputs, make_unet, make_vqvae, small_unet

from tubesynth.models.blocks import sinusoidal
from tubesynth.models.conditions import Conditions
from tubesynth.models.discriminator import PatchDiscriminator
from tubesynth.models.unet_encoder import TIME_SCALE


def number(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_sizes_are_the_published_ones():
    with torch.device("meta"):
        autoencoder, discriminator, unet = make_vqvae(), PatchDiscriminator(3, 32, 2), make_unet()
    codebook = autoencoder.quantizer.codebook.numel()
    assert (number(autoencoder) + codebook) / 1e6 == pytest.approx(5.60, abs=0.005)
    assert number(discriminator) / 1e6 == pytest.approx(0.67, abs=0.005)
    assert number(unet) / 1e6 == pytest.approx(238.5, rel=0.01)


@pytest.mark.parametrize("dim", [2, 3])
def test_a_voxel_of_the_autoencoder_depends_on_its_neighborhood_alone(dim):
    torch.manual_seed(0)
    net = (
        make_vqvae(dim, channels=(8, 8), residual_channels=(8, 8), codebook_size=16).double().eval()
    )
    image = torch.rand(1, 1, *[8] * (dim - 1), 96, dtype=torch.float64)
    changed = image.clone()
    changed[..., -1] += 1
    first, second = (net.decode(net.encode(x), quantize=False) for x in (image, changed))
    assert torch.equal(first[..., :24], second[..., :24])
    assert not torch.equal(first[..., -1], second[..., -1])


def test_the_signal_keeps_its_size_through_an_autoencoder_without_norms():
    torch.manual_seed(0)
    net = make_vqvae(codebook_size=16)
    latents = net.encode(torch.rand(1, 1, 32, 32, 32))
    assert 0.1 < latents.std() < 10
    out = net.decode(torch.randn_like(latents), quantize=False)
    assert 0.02 < out.std() < 1 and abs(out.mean() - 0.35) < 0.05


def test_time_embeddings_are_smooth_over_a_solvers_step_and_differ_between_steps():
    times = torch.linspace(0, 1, 501)
    features = sinusoidal(TIME_SCALE * times, 64, max_period=10 * TIME_SCALE)
    assert (features[1:] - features[:-1]).abs().max() < 0.21  # 0.002 apart: a fifth of a radian
    apart = (features[:, None] - features[None]).norm(dim=-1)
    far = (times[:, None] - times[None]).abs() > 0.019
    assert apart[far].min() > 1


def test_checkpointing_changes_no_gradient():
    def gradients(checkpointing):
        torch.manual_seed(0)
        net = make_vqvae(
            channels=(8, 8), residual_channels=(8, 8), codebook_size=16, checkpointing=checkpointing
        )
        torch.manual_seed(1)
        net(torch.rand(1, 1, 16, 16, 16))[0].square().mean().backward()
        return [parameter.grad for parameter in net.parameters()]

    for plain, recomputed in zip(gradients(False), gradients(True), strict=True):
        assert torch.equal(plain, recomputed)

    def unet_gradients(checkpointing):
        net = small_unet(checkpointing=checkpointing).train()
        torch.manual_seed(1)
        net(*labelled_inputs()).square().mean().backward()
        return [parameter.grad for parameter in net.parameters()]

    for plain, recomputed in zip(unet_gradients(False), unet_gradients(True), strict=True):
        torch.testing.assert_close(plain, recomputed)


@pytest.mark.parametrize("dim", [2, 3])
def test_the_unet_depends_on_time_spacing_and_labels(dim):
    net = small_unet(dim)
    x, t, spacing, conditions = labelled_inputs(dim)
    out = net(x, t, spacing, conditions)
    assert out.shape == x.shape
    for other in (
        net(x, t + 0.1, spacing, conditions),
        net(x, t, spacing * 1.5, conditions),
        net(x, t, spacing, Conditions((conditions.labels + 1) % 3)),
    ):
        assert (other - out).abs().max() > 1e-4


def test_conditions_computed_once_give_the_same_output():
    net = small_unet()
    x, t, spacing, conditions = labelled_inputs()
    prepared = net.cache_conditions(conditions, x.shape[2:], spacing)
    assert torch.equal(net(x, t, spacing, conditions), net(x, t, spacing, prepared))


def test_with_a_dropped_label_the_output_does_not_depend_on_the_label():
    net = small_unet()
    x, t, spacing, conditions = labelled_inputs()
    labels, drop = conditions.labels, torch.zeros(2)
    dropped = net(x, t, spacing, Conditions(labels, keep_label=drop))
    other = net(x, t, spacing, Conditions((labels + 1) % 3, keep_label=drop))
    assert torch.equal(dropped, other)
    half_dropped = net(x, t, spacing, Conditions(labels, keep_label=torch.tensor([1.0, 0.0])))
    torch.testing.assert_close(half_dropped[1], dropped[1])
    torch.testing.assert_close(half_dropped[0], net(x, t, spacing, conditions)[0])


def test_a_batch_equals_its_cases_one_by_one():
    net = small_unet()
    x, t, spacing, conditions = labelled_inputs(batch=3)
    together = net(x, t, spacing, conditions)
    for i in range(3):
        row = slice(i, i + 1)
        alone = net(x[row], t[row], spacing[row], Conditions(conditions.labels[row]))
        torch.testing.assert_close(together[row], alone, atol=1e-5, rtol=1e-4)


def test_odd_sizes_pass_through_the_unet():
    net = small_unet(channels=(16, 16, 16))
    x = torch.randn(1, 4, 7, 5, 6)
    labels = torch.zeros(1, 28, 20, 24, dtype=torch.uint8)
    assert net(x, torch.rand(1), torch.ones(1, 3), Conditions(labels)).shape == x.shape


def test_at_initialization_the_unet_returns_zero():
    net = make_unet(
        channels=(32, 32), attention_levels=(1,), label_channels=(8, 8, 8), spade_hidden=8
    )
    labels = torch.zeros(1, 16, 16, 16, dtype=torch.uint8)
    x = torch.randn(1, 8, 4, 4, 4)
    out = net(x, torch.rand(1), torch.ones(1, 3), Conditions(labels))
    assert out.abs().max() == 0
