"""Cross-attention to vessel tokens against the explicit bias in every precision; no tokens."""

import pytest
import torch

from tubesynth.models.distance_bias import (
    bias_channels,
    constant_channels,
    key_channels,
    lattice,
    query_channels,
)
from tubesynth.models.vessel_attention import LevelTokens, VesselAttention
from tubesynth.models.vessel_tokens import EncodedTokens, TokenEncoder, no_tokens

SIZE, FIELD_MM = (24, 20, 12), 180.0
CELL = torch.tensor([[FIELD_MM / n for n in SIZE]])
SCALES = torch.tensor([0.7, 1.0, 3.0])


def scattered(count=400, seed=0):
    """Tokens anywhere in the field of view, half of them within a few mm of a voxel's center."""
    random = torch.Generator().manual_seed(seed)
    anywhere = FIELD_MM * (torch.rand(count // 2, 3, generator=random) - 0.5)
    voxels = lattice(SIZE).float() * CELL
    chosen = torch.randint(len(voxels), (count - count // 2,), generator=random)
    near = voxels[chosen] + 1.5 * torch.randn(count - count // 2, 3, generator=random)
    radius = 0.5 + 1.5 * torch.rand(count, generator=random)
    return torch.cat([anywhere, near])[None], radius[None]


def explicit_bias(position_mm, radius_mm, scale, size=SIZE, cell=CELL):
    """-d^2 / (2 (s r)^2) in float64 by differences: (B, heads, N, T)."""
    voxels = lattice(size) * cell.double()[:, None]
    square = (voxels[:, :, None] - position_mm.double()[:, None]).square().sum(-1)[:, None]
    width = scale.double().reshape(-1, 1, 1) * radius_mm.double()[:, None, None]
    return -square / (2 * width.square())


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float32", 1e-5), ("float16", 2e-3), ("bfloat16", 0.05)]
)
def test_the_channels_make_the_explicit_bias(dtype, tolerance):
    dtype = getattr(torch, dtype)
    position, radius = scattered()
    mask = torch.ones_like(radius, dtype=torch.bool)
    query = query_channels(SIZE, CELL, dtype)
    key = key_channels(position, radius, SCALES, mask, CELL, dtype)
    assert query.shape[-1] == key.shape[-1] == bias_channels(3) == 14
    assert query.isfinite().all() and key.isfinite().all()
    score = query.float()[:, None] @ key.float().transpose(-1, -2)
    exact = explicit_bias(position, radius, SCALES)
    matters = exact > -20
    assert matters.sum() > 1000
    assert (score - exact)[matters].abs().max() < tolerance
    assert score[~matters].max() < -20 + 100 * tolerance


def test_a_constant_bias_is_the_same_for_every_voxel():
    for bias in (torch.tensor([0.0, -3.217, 17.3]), torch.tensor([1e-3])):
        query = query_channels((5, 4), torch.tensor([[3.0, 7.0]]), torch.bfloat16)
        key = constant_channels(bias, 2, torch.bfloat16)
        score = query.float() @ key.float().T
        torch.testing.assert_close(score, bias.expand_as(score), rtol=1e-5, atol=1e-6)


def test_the_scale_has_the_gradient_of_the_explicit_bias():
    position, radius = scattered(50)
    mask = torch.ones_like(radius, dtype=torch.bool)
    value = torch.randn(1, 2, 50, 8, generator=torch.Generator().manual_seed(1)).double()
    gradients = []
    for explicit in (True, False):
        scale = torch.tensor([2.0, 6.0], requires_grad=True)
        if explicit:
            score = explicit_bias(position, radius, scale)
        else:
            key = key_channels(position, radius, scale, mask, CELL, torch.float32).double()
            query = query_channels(SIZE, CELL, torch.float32).double()
            score = query[:, None] @ key.transpose(-1, -2)
        out = torch.nn.functional.pad(score, (0, 1)).softmax(-1)[..., :-1] @ value
        out.sin().square().mean().backward()
        gradients.append(scale.grad)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-7)


def layer(distance=True, dim=3, channels=64, head=32) -> VesselAttention:
    torch.manual_seed(0)
    net = VesselAttention(dim, channels, head, 24, distance)
    with torch.no_grad():  # zero-initialized ends would hide everything
        net.to_out.weight.normal_(0, 0.2)
        net.null_key.normal_()
        net.null_value.normal_()
        net.null_bias.copy_(torch.linspace(-3, 1, net.num_heads))
    return net


def encoded(count, batch=1, seed=0) -> EncodedTokens:
    position, radius = scattered(count, seed)
    random = torch.Generator().manual_seed(seed)
    features = torch.randn(batch, count, 24, generator=random)
    mask = torch.ones(batch, count, dtype=torch.bool)
    return EncodedTokens(features, position.expand(batch, -1, -1), radius.expand(batch, -1), mask)


def explicit_attention(net, x, tokens, cell=CELL):
    """The layer's output by a softmax over the explicit bias, in float64."""
    heads, content = net.num_heads, net.content
    size = x.shape[2:]
    cached = net.cache_keys_values([net], LevelTokens(tokens, size, cell))[
        0
    ]  # for the voxels' own position only
    voxels = net.norm(x).flatten(2).transpose(1, 2)
    query = net.to_query(voxels) + cached.query_position

    def split(values):
        return values.double().unflatten(2, (heads, -1)).transpose(1, 2)

    key, value = split(net.to_key(tokens.features)), split(net.to_value(tokens.features))
    score = split(query) @ key.transpose(-1, -2) / content**0.5
    if net.distance:
        score = score + explicit_bias(
            tokens.position_mm, tokens.radius_mm, net.log_scale.exp(), size, cell
        )
    score = score.masked_fill(~tokens.mask[:, None, None], float("-inf"))
    null = split(query) @ net.null_key.double()[None, :, :, None]
    null = null + net.null_bias.double()[:, None, None]
    weight = torch.cat([score, null], dim=-1).softmax(-1)
    out = weight @ torch.cat([value, net.null_value.double()[None, :, None]], dim=2)
    out = out.transpose(1, 2).flatten(2) @ net.to_out.weight.double().T + net.to_out.bias
    return x + out.transpose(1, 2).reshape(x.shape)


@pytest.mark.parametrize("distance", [True, False])
@pytest.mark.parametrize("count", [0, 1, 300])
def test_the_layer_is_attention_with_the_explicit_bias(distance, count):
    net, tokens = layer(distance), encoded(count)
    x = torch.randn(1, 64, *SIZE, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        out = net(x, net.cache_keys_values([net], LevelTokens(tokens, SIZE, CELL))[0])
        exact = explicit_attention(net, x, tokens)
    assert (out - x).abs().max() > 0.1
    assert (out - exact).abs().max() < 1e-5


@pytest.mark.parametrize("distance", [True, False])
def test_the_layers_of_a_level_share_what_is_the_same_and_no_more(distance):
    nets, tokens = [layer(distance), layer(distance)], encoded(40)
    with torch.no_grad():
        for parameter in nets[1].parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
        alone = [net.cache_keys_values([net], LevelTokens(tokens, SIZE, CELL))[0] for net in nets]
        together = VesselAttention.cache_keys_values(nets, LevelTokens(tokens, SIZE, CELL))
    assert together[0].query_bias is together[1].query_bias
    for one, other in zip(alone, together, strict=True):
        assert all(torch.equal(value, vars(other)[name]) for name, value in vars(one).items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_keeps_the_bias(dtype):
    """The error of 16 bits is that of the layer without a bias; a lost bias would be a change of
    the order of the signal itself."""
    x = torch.randn(1, 64, *SIZE, generator=torch.Generator().manual_seed(5))
    errors = {}
    for distance in (True, False):
        net, tokens = layer(distance), encoded(300)
        with torch.no_grad():
            exact = explicit_attention(net, x, tokens) - x
            with torch.autocast("cpu", dtype):
                out = net(x, net.cache_keys_values([net], LevelTokens(tokens, SIZE, CELL))[0]) - x
        errors[distance] = ((out - exact).square().mean() / exact.square().mean()).sqrt()
    assert errors[True] < 2 * errors[False] < 0.1


@pytest.mark.parametrize("distance", [True, False])
def test_a_batch_with_unequal_numbers_of_tokens_equals_its_cases_alone(distance):
    """Padding is never attended to."""
    net, counts = layer(distance), (0, 7, 40)
    tokens = encoded(40, batch=3)
    mask = torch.arange(40) < torch.tensor(counts)[:, None]
    together = EncodedTokens(tokens.features, tokens.position_mm, tokens.radius_mm, mask)
    x = torch.randn(3, 64, *SIZE)
    with torch.no_grad():
        out = net(
            x, net.cache_keys_values([net], LevelTokens(together, SIZE, CELL.expand(3, -1)))[0]
        )
        for i, count in enumerate(counts):
            alone = EncodedTokens(
                tokens.features[i : i + 1, :count],
                tokens.position_mm[i : i + 1, :count],
                tokens.radius_mm[i : i + 1, :count],
                mask[i : i + 1, :count],
            )
            expected = net(
                x[i : i + 1], net.cache_keys_values([net], LevelTokens(alone, SIZE, CELL))[0]
            )
            torch.testing.assert_close(out[i : i + 1], expected, atol=2e-6, rtol=1e-5)


def test_a_voxel_far_from_every_vessel_attends_to_the_null_token_alone():
    net = layer()
    tokens = EncodedTokens(
        torch.randn(1, 1, 24),
        (lattice(SIZE)[0] * CELL).float()[None],  # the voxel in one corner
        torch.tensor([[0.5]]),
        torch.ones(1, 1, dtype=torch.bool),
    )
    x = torch.randn(1, 64, *SIZE)
    with torch.no_grad():
        net.log_scale.zero_()
        out = net(x, net.cache_keys_values([net], LevelTokens(tokens, SIZE, CELL))[0])
        none = net(x, net.cache_keys_values([net], LevelTokens(encoded(0), SIZE, CELL))[0])
    assert torch.equal(out[..., 12:, 10:, 6:], none[..., 12:, 10:, 6:])
    assert not torch.equal(out, none)


def test_no_stored_tensor_has_voxels_by_tokens_elements():
    """Neither the cached tensors nor those saved by autograd have voxels x tokens elements."""
    net, tokens = layer(), encoded(2000)
    x = torch.randn(1, 64, *SIZE, requires_grad=True)
    largest = 0

    def pack(tensor):
        nonlocal largest
        largest = max(largest, tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        net(x, net.cache_keys_values([net], LevelTokens(tokens, SIZE, CELL))[0]).sum().backward()
    voxels = SIZE[0] * SIZE[1] * SIZE[2]
    assert 0 < largest < voxels * 2000 / 20
    assert net.log_scale.grad.abs().max() > 0


def test_a_dropped_case_and_a_case_without_tokens_are_encoded_alike():
    torch.manual_seed(0)
    encoder = TokenEncoder(3, 24)
    tokens, grid = no_tokens(2, "cpu"), (SIZE, torch.ones(2, 3))
    assert encoder(tokens, *grid).features.shape == (2, 0, 24)
    position, radius = scattered(10)
    tokens = {
        "position_mm": position.expand(2, -1, -1),
        "radius_mm": radius.expand(2, -1) * 0,  # a radius of zero is no division by zero
        "tangent": torch.zeros(2, 10, 3),
        "root_distance_mm": torch.linspace(0, 300, 10).expand(2, -1),
        "mask": torch.ones(2, 10, dtype=torch.bool),
    }
    result = encoder(tokens, *grid)
    repeated = result.repeat_cases(4, torch.tensor([1.0, 0.0, 0.0, 1.0]))
    assert repeated.mask.sum(1).tolist() == [10, 0, 0, 10]
    assert torch.equal(repeated.features, torch.cat([result.features] * 2))
    assert result.features.isfinite().all() and result.radius_mm.min() > 0
    # positions 1 mm apart have different features anywhere
    shifted = encoder({**tokens, "position_mm": tokens["position_mm"] + 1.0}, *grid)
    assert (shifted.features - result.features).abs().amax(-1).min() > 1e-3
