"""The codebook: exact search, moving averages in closed form, revival, and ranks that agree."""

import math
import time

import pytest
import torch
from networks import make_ema_quantizer, make_vqvae
from parts.measure import PeakMemory
from ranks import on_two_ranks
from torch import Tensor

from tubesynth.models.quantizers import codebook, search
from tubesynth.models.quantizers.codebook import EmaQuantizer
from tubesynth.models.quantizers.finite_scalar import FiniteScalarQuantizer
from tubesynth.models.quantizers.search import nearest_code
from tubesynth.training.codebook import CodebookUsage


@pytest.mark.parametrize("codes", [1, 5, 128, 300, 8192])
def test_the_search_agrees_with_the_whole_distance_matrix(codes, monkeypatch):
    vectors, codebook = torch.randn(500, 8), torch.randn(codes, 8)
    distances = torch.cdist(vectors.double(), codebook.double())
    for pairs in (1, 4096, 1 << 20):  # a vector at a time, a few, all
        monkeypatch.setitem(search.PAIRS_AT_A_TIME, "cpu", pairs)
        indices = nearest_code(vectors, codebook)
        assert torch.equal(indices, distances.argmin(1))


def test_of_equally_near_codes_the_first_is_taken():
    codebook = torch.full((400, 2), 9.0)
    codebook[[77, 130, 131, 399]] = torch.tensor([1.0, 0.0])  # in three blocks, the last shorter
    codebook[[200, 398]] = torch.tensor([-1.0, 0.0])
    vectors = torch.tensor([[1.0, 0.0], [-3.0, 0.0], [0.0, 0.0]])
    assert nearest_code(vectors, codebook).tolist() == [77, 200, 77]


def test_the_index_of_a_vector_that_is_not_finite_is_a_valid_code():
    extreme = torch.tensor([float("nan"), float("inf"), -float("inf"), 3e38])
    indices = nearest_code(extreme[:, None].expand(4, 3), torch.randn(130, 3))
    assert indices.min() >= 0 and indices.max() < 130


def test_the_search_needs_little_memory():
    vectors, codebook = torch.randn(16384, 8), torch.randn(8192, 8)  # 537 MB if whole
    with PeakMemory() as idle:
        time.sleep(0.05)
    if idle.peak_mb is None:
        pytest.skip("no /proc/self/smaps_rollup")
    with PeakMemory() as busy:
        nearest_code(vectors, codebook)
    assert busy.peak_mb - idle.peak_mb < 64


def test_only_decoding_searches_for_codes(monkeypatch):
    calls = []

    def counted(vectors, codes):
        calls.append(len(vectors))
        return nearest_code(vectors, codes)

    monkeypatch.setattr(codebook, "nearest_code", counted)
    net = make_vqvae(2, channels=(8, 8), residual_channels=(8, 8), codebook_size=16).eval()
    latents = net.encode(torch.rand(1, 1, 16, 16))
    net.encode(torch.rand(1, 1, 16, 16), tile=8)
    assert calls == []
    net.decode(latents)
    assert calls == [16]


def codes_at_0_and_10() -> EmaQuantizer:
    """A decay of a half, and a count of 1 for each of the two codes."""
    layer = make_ema_quantizer(2, 1, decay=0.5).train()
    layer.codebook.copy_(torch.tensor([[0.0], [10.0]]))
    layer.ema_sum.copy_(layer.codebook)
    layer.ema_count.fill_(1.0)
    layer.initialised.fill_(True)
    return layer


def test_a_code_is_the_moving_average_of_the_vectors_that_chose_it():
    layer = codes_at_0_and_10()
    layer(torch.tensor([1.0, 3.0, 9.0]).reshape(1, 1, 3))
    # code 0: sum 0 -> (0 + 4) / 2 = 2, count 1 -> (1 + 2) / 2; code 1: (10 + 9) / 2 over 1
    torch.testing.assert_close(layer.codebook, torch.tensor([[2 / 1.5], [9.5]]))


def test_codes_are_revived_from_finite_vectors_alone():
    """Two codes are used and six are replaced, by one of the two finite vectors of three."""
    torch.manual_seed(0)
    quantizer = make_ema_quantizer(8, 2, revive_after=1)
    quantizer(torch.randn(1, 2, 2, 1, 1))
    vectors = torch.tensor([[5.0, 6.0], [math.nan, 1.0], [7.0, 8.0]])
    quantizer(vectors.T.reshape(1, 2, 3, 1, 1))
    near = torch.cdist(quantizer.codebook, vectors[[0, 2]]).amin(1) < 0.1
    assert near.sum() >= 6 and quantizer.codebook.isfinite().all()


def test_an_unused_code_stays_where_it_is():
    layer = codes_at_0_and_10()
    for _ in range(200):
        layer(torch.zeros(1, 1, 4))
    assert layer.codebook[1].item() == pytest.approx(10.0, rel=1e-4)


def test_codes_start_from_the_data_and_dead_ones_return_to_it():
    torch.manual_seed(0)
    layer = make_ema_quantizer(16, 2, decay=0.5, revive_after=3).train()
    layer(torch.randn(1, 2, 100) + 5)
    assert (layer.codebook.mean(0) - 5).abs().max() < 1
    for _ in range(5):
        layer(torch.randn(1, 2, 100) - 20)
    assert (layer.codebook.mean(0) + 20).abs().max() < 1


def test_the_gradient_passes_straight_through_and_commitment_pulls_to_the_code():
    layer = make_ema_quantizer(4, 1, commitment=0.25).eval()
    layer.codebook.copy_(torch.tensor([[0.0], [1.0], [2.0], [3.0]]))
    latents = torch.tensor([0.2, 2.9]).reshape(1, 1, 2).requires_grad_()
    quantized, terms, indices = layer(latents)
    assert indices.tolist() == [[0, 3]]
    assert quantized.flatten().tolist() == [0.0, 3.0]
    assert terms["commitment"].item() == pytest.approx(0.25 * (0.04 + 0.01) / 2)
    (quantized.sum()).backward()
    assert latents.grad.flatten().tolist() == [1.0, 1.0]


def test_a_batch_with_nan_leaves_the_codebook_finite():
    layer = make_ema_quantizer(4, 2, decay=0.5, revive_after=1).train()
    layer(torch.randn(1, 2, 50))
    bad = torch.randn(1, 2, 50)
    bad[0, 0, :10] = float("nan")
    layer(bad)
    assert layer.codebook.isfinite().all() and layer.ema_sum.isfinite().all()


def test_decoding_does_not_change_the_codebook():
    layer = make_ema_quantizer(16, 4, revive_after=1).train()
    layer(torch.randn(1, 4, 60))
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    layer.quantize(torch.randn(1, 4, 60) + 5)
    for name, value in layer.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize(
    ("indices", "used", "perplexity"),
    [([3, 3, 3, 3], 0.25, 1.0), ([0, 1, 2, 3], 1.0, 4.0), ([0, 0, 0, 1], 0.5, 4 / 27**0.25)],
)
def test_usage_and_perplexity_in_closed_form(indices, used, perplexity):
    usage = CodebookUsage(4, torch.device("cpu"))
    usage.add(torch.tensor(indices).view(1, 2, 2))
    assert usage.scores() == pytest.approx(
        {"codebook_used": used, "codebook_perplexity": perplexity}
    )
    usage.add(torch.tensor([2]))  # the counts were reset
    assert usage.scores()["codebook_perplexity"] == pytest.approx(1.0)


STEPS = 5


def _batches():
    """(2, D, cells) of each step: a row for each of two ranks; the mean of the data drifts."""
    random = torch.Generator().manual_seed(1)
    return [torch.randn(2, 4, 60, generator=random) + 3 * i for i in range(STEPS)]


def _trained(batches, revive_after: int, start: Tensor | None):
    """The state of a quantizer after these batches, with the use of its codes."""
    layer = make_ema_quantizer(16, 4, decay=0.5, revive_after=revive_after).train()
    usage = CodebookUsage(16, torch.device("cpu"))
    if start is not None:
        layer.codebook.copy_(start)
        layer.ema_sum.copy_(start)
        layer.ema_count.fill_(1.0)
        layer.initialised.fill_(True)
    for batch in batches:
        usage.add(layer(batch)[2])
    return {**layer.state_dict(), **usage.scores()}


def _scaled(batches):
    """Fixed levels after these batches: the mean and deviation that they follow."""
    layer = FiniteScalarQuantizer((8, 5, 5, 5)).train()
    for batch in batches:
        layer(batch)
    return layer.state_dict()


def _codes():
    return torch.randn(16, 4, generator=torch.Generator().manual_seed(2)) * 4


def _states(rank):
    batches = [batch[rank : rank + 1] for batch in _batches()]
    torch.manual_seed(rank)  # the ranks' random numbers differ, and the codebooks must agree
    return {
        "revived": _trained(batches, revive_after=2, start=None),
        "plain": _trained(batches, revive_after=0, start=_codes()),
        "fsq": _scaled(batches),
    }


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    return on_two_ranks(tmp_path_factory.mktemp("ranks"), _states)


def assert_equal_state(first: dict, second: dict):
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], atol=0, rtol=0, msg=name)


def test_two_ranks_revive_the_same_codes_to_the_same_places(two_ranks):
    first, second = (states["revived"] for states in two_ranks)
    assert_equal_state(first, second)
    # Without revival, codes that the drifting data left behind would lie near 0.
    left_behind = _trained(_batches(), 0, None)["codebook"].mean(1).min()
    assert left_behind < 2 < first["codebook"].mean(1).min()


def test_two_ranks_train_the_codebook_of_one_rank_with_both_halves(two_ranks):
    for kind, whole in (("plain", _trained(_batches(), 0, _codes())), ("fsq", _scaled(_batches()))):
        for rank in (0, 1):
            for name, value in two_ranks[rank][kind].items():
                torch.testing.assert_close(value, whole[name], msg=name)
