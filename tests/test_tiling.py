"""Tiled encoding and decoding equal the whole; the halo is the receptive field, no more."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from networks import make_vqvae

from tubesynth.conditioning.model_grid import ModelGrid
from tubesynth.config.schema import DataConfig, Stage1Config
from tubesynth.models.quantizers.codebook import EmaQuantizer
from tubesynth.models.tiling import largest_tile, run_tiled
from tubesynth.pipeline import Pipeline
from tubesynth.volume.grid import Volume


def network(dim=3, residuals=1, levels=2, **quantizer):
    torch.manual_seed(0)
    sizes = dict(channels=(8, 12, 8)[:levels], residual_channels=(8, 8, 8)[:levels])
    quantizer = quantizer or dict(codebook_size=64)
    net = make_vqvae(dim, num_residual_layers=residuals, **quantizer, **sizes).eval()
    for parameter in net.parameters():  # zero-initialized residual branches must contribute
        if parameter.abs().max() == 0:
            torch.nn.init.normal_(parameter, std=0.1)
    if isinstance(net.quantizer, EmaQuantizer):
        net.quantizer.codebook.normal_()
    return net


@pytest.mark.parametrize(("residuals", "levels"), [(1, 2), (2, 2), (1, 3)])
def test_tiled_equals_whole(residuals, levels):
    net = network(residuals=residuals, levels=levels)
    image = torch.rand(1, 1, 56, 24, 40)
    with torch.no_grad():
        latents = net.encode(image)
        torch.testing.assert_close(net.encode(image, tile=16), latents, atol=1e-5, rtol=1e-5)
        whole = net.decode(latents)
        torch.testing.assert_close(net.decode(latents, tile=16), whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "quantizer",
    [
        dict(quantizer="ema_vq", codebook_size=64),
        dict(quantizer="fsq", embedding_dim=3, fsq_levels=(8, 6, 5)),
        dict(quantizer="kl", embedding_dim=3),
    ],
    ids=lambda settings: settings["quantizer"],
)
@pytest.mark.parametrize("size", [(47, 18, 29), (33, 50)])
def test_odd_sizes_are_reconstructed_tiled_as_whole(size, quantizer, monkeypatch):
    """Before rounding to HU; the codes of ema_vq are far apart, so rounding picks no other code."""
    monkeypatch.setattr(ModelGrid, "volume", lambda self, image, affine: image)
    net, dim = network(len(size), **quantizer), len(size)
    data = DataConfig(resolution=list(size), spacing=[1.0] * dim)
    config = Stage1Config(stage=1, dim=dim, data=data)
    shape = size if dim == 3 else (*size, 1)
    volume = Volume(np.random.default_rng(0).integers(-1000, 1000, shape, np.int16), np.eye(4))

    def reconstructed(tile):
        device = torch.device("cpu")
        return Pipeline(config, net, None, None, "", device, tile=tile).reconstruct(volume)

    whole = reconstructed(None)
    assert whole.shape == (1, 1, *size) and whole.std() > 1e-3
    torch.testing.assert_close(reconstructed(16), whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("residuals", "levels"), [(1, 2), (2, 2), (1, 3)])
def test_the_halo_is_the_receptive_field(residuals, levels, monkeypatch):
    """The farthest input that changes an output lies at the border of the halo, within one cell."""
    monkeypatch.setattr(torch.nn.ReLU, "forward", lambda self, x: x)  # no path may be dead
    net = network(2, residuals, levels).double()
    length, factor = 512, net.factor
    with torch.no_grad():
        image = torch.rand(1, 1, factor, length, dtype=torch.float64)
        middle = length // 2
        changed = image.clone()
        changed[..., middle:] += 1  # everything from the middle on
        difference = (net.encode(image) - net.encode(changed)).abs().amax((0, 1, 2))
        touched = difference.nonzero().min().item() * factor
        reach = middle - (touched + factor) + 1  # voxels beyond the cell's end
        assert net.encoder_halo - factor < reach <= net.encoder_halo

        latents = torch.rand(1, 8, 1, length // factor, dtype=torch.float64)
        middle = latents.shape[-1] // 2
        changed = latents.clone()
        changed[..., middle:] += 1
        first, second = (net.decode(x, quantize=False) for x in (latents, changed))
        touched = (first - second).abs().amax((0, 1, 2)).nonzero().min().item()
        reach = middle - math.ceil((touched + 1) / factor) + 1  # cells beyond the voxel's tile
        assert reach == net.decoder_halo


def test_tiles_smaller_than_the_volume_cover_it_once():
    x = torch.rand(2, 3, 10, 7, 5)
    assert torch.equal(run_tiled(lambda t: t, x, 4, 2, Fraction(1)), x)
    doubled = run_tiled(lambda t: t.repeat_interleave(2, 2), x[..., 0, 0], 4, 0, Fraction(2))
    assert torch.equal(doubled, x[..., 0, 0].repeat_interleave(2, 2))


def test_the_tile_is_chosen_to_fit():
    assert largest_tile((64, 64, 32), halo=8, multiple=4, budget=64 * 64 * 32) is None
    tile = largest_tile((64, 64, 64), halo=8, multiple=4, budget=50**3)
    assert tile == 32 and (tile + 16) ** 3 <= 50**3
    assert largest_tile((64, 64, 64), halo=8, multiple=4, budget=1) == 8
