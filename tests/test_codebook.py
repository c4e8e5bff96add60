"""The codebook: exact search, moving averages in closed form, revival, and ranks that agree."""

import pytest
import torch
import torch.multiprocessing as mp
from conftest import free_port

from tubesynth.models.quantizers import search
from tubesynth.models.quantizers.codebook import EmaQuantizer
from tubesynth.models.quantizers.search import nearest_code


def test_search_in_chunks_finds_the_codes_of_the_whole_distance_matrix(monkeypatch):
    vectors, codebook = torch.randn(1000, 8), torch.randn(300, 8)
    expected = torch.cdist(vectors.double(), codebook.double()).argmin(1)
    for pairs in (300, 4096, 1 << 22):
        monkeypatch.setitem(search.PAIRS_AT_A_TIME, "cpu", pairs)
        assert torch.equal(nearest_code(vectors, codebook), expected)


def test_a_code_is_the_moving_average_of_the_vectors_that_chose_it():
    layer = EmaQuantizer(2, 1, decay=0.5).train()
    layer.codebook.copy_(torch.tensor([[0.0], [10.0]]))
    layer.ema_sum.copy_(layer.codebook)
    layer.ema_count.fill_(1.0)
    layer.initialised.fill_(True)
    layer(torch.tensor([1.0, 3.0, 9.0]).reshape(1, 1, 3))
    # code 0: sum 0 -> (0 + 4) / 2 = 2, count 1 -> (1 + 2) / 2; code 1: (10 + 9) / 2 over 1
    torch.testing.assert_close(layer.codebook, torch.tensor([[2 / 1.5], [9.5]]))


def test_an_unused_code_stays_where_it_is():
    layer = EmaQuantizer(2, 1, decay=0.5).train()
    layer.codebook.copy_(torch.tensor([[0.0], [10.0]]))
    layer.ema_sum.copy_(layer.codebook)
    layer.ema_count.fill_(1.0)
    layer.initialised.fill_(True)
    for _ in range(200):
        layer(torch.zeros(1, 1, 4))
    assert layer.codebook[1].item() == pytest.approx(10.0, rel=1e-4)


def test_codes_start_from_the_data_and_dead_ones_return_to_it():
    torch.manual_seed(0)
    layer = EmaQuantizer(16, 2, decay=0.5, revive_after=3).train()
    layer(torch.randn(1, 2, 100) + 5)
    assert (layer.codebook.mean(0) - 5).abs().max() < 1
    for _ in range(5):
        layer(torch.randn(1, 2, 100) - 20)
    assert (layer.codebook.mean(0) + 20).abs().max() < 1


def test_the_gradient_passes_straight_through_and_commitment_pulls_to_the_code():
    layer = EmaQuantizer(4, 1, commitment=0.25).eval()
    layer.codebook.copy_(torch.tensor([[0.0], [1.0], [2.0], [3.0]]))
    latents = torch.tensor([0.2, 2.9]).reshape(1, 1, 2).requires_grad_()
    quantised, terms, indices = layer(latents)
    assert indices.tolist() == [[0, 3]]
    assert quantised.flatten().tolist() == [0.0, 3.0]
    assert terms["commitment"].item() == pytest.approx(0.25 * (0.04 + 0.01) / 2)
    (quantised.sum()).backward()
    assert latents.grad.flatten().tolist() == [1.0, 1.0]


def test_a_batch_with_nan_leaves_the_codebook_finite():
    layer = EmaQuantizer(4, 2, decay=0.5, revive_after=1).train()
    layer(torch.randn(1, 2, 50))
    bad = torch.randn(1, 2, 50)
    bad[0, 0, :10] = float("nan")
    layer(bad)
    assert layer.codebook.isfinite().all() and layer.ema_sum.isfinite().all()


def _rank(rank, port, results):
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2
    )
    halves = _halves()
    torch.manual_seed(rank)  # ranks draw differently, and must agree all the same
    layer = EmaQuantizer(16, 4, decay=0.5, revive_after=2).train()
    for half in halves:
        layer(half[rank : rank + 1])
    results[rank] = layer.codebook.clone()
    torch.distributed.destroy_process_group()


def _halves():
    random = torch.Generator().manual_seed(1)
    return [torch.randn(2, 4, 60, generator=random) + 3 * i for i in range(5)]


def test_two_ranks_hold_one_codebook():
    with mp.Manager() as manager:
        results = manager.dict()
        mp.spawn(_rank, (free_port(), results), nprocs=2)
        assert torch.equal(results[0], results[1])
        assert results[0].isfinite().all() and results[0].std() > 0
