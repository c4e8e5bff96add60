"""Dropout by sample: its share, its scale, and its independence of batch, device and layer."""

import pytest
import torch

from tubesynth.models.dropout import SampleDropout, keep_mask, number_dropouts

SEEDS = torch.tensor([0, 1, 2**32 - 1])


def test_the_share_is_dropped_and_the_mean_is_kept():
    layer = SampleDropout(0.3).train()
    out = layer(torch.ones(3, 8, 16, 16, 16), SEEDS)
    assert torch.equal(out.unique(), torch.tensor([0, 1 / 0.7]))
    for row in out:
        assert (row == 0).double().mean().item() == pytest.approx(0.3, abs=0.01)
    x = torch.randn(3, 2, 4, 4)
    assert layer.eval()(x, None) is x and SampleDropout(0.0).train()(x, None) is x


def test_a_sample_has_one_mask_wherever_it_is_in_a_batch():
    masks = keep_mask(SEEDS, (4, 6, 6), 0.5)
    assert torch.equal(keep_mask(SEEDS[[2, 0]], (4, 6, 6), 0.5), masks[[2, 0]])
    assert torch.equal(keep_mask(SEEDS, (4, 6, 6), 0.0), torch.ones(3, 4, 6, 6).bool())


def test_masks_of_samples_layers_and_neighbors_are_independent():
    shape, layers = (32, 32, 32), torch.nn.ModuleList([SampleDropout(0.5) for _ in range(3)])
    number_dropouts(layers)
    x = torch.ones(2, *shape)
    masks = torch.cat([layer(x, torch.tensor([7, 8])) > 0 for layer in layers]).flatten(1).double()
    correlation = torch.corrcoef(masks) - torch.eye(6)
    assert correlation.abs().max() < 0.02  # 1 / sqrt(32768) is 0.0055
    steps = torch.stack([masks[0, :-64], *(masks[0, n : n - 64] for n in (1, 32, 63))])
    assert (torch.corrcoef(steps) - torch.eye(4)).abs().max() < 0.02


def test_a_network_that_is_trained_without_seeds_is_refused():
    with pytest.raises(ValueError, match="needs dropout_seeds"):
        SampleDropout(0.1).train()(torch.ones(1, 2, 3), None)
