"""The published U-Net: sizes, and outputs equal to those recorded from the published code.

Weights and inputs are formulas (published.py). The published code got the same weights by name,
with MONAI 1.4 and torch 2.13 on a CPU; its fused attention was called without dropout.
"""

import pytest
import torch
from published import CHANNELS, SIDE, UNETS, filled_unet, noise_of, unet_config, vessel_tokens

from tubesynth.build.networks import build_phases
from tubesynth.build.objective import build_objective
from tubesynth.config.loading import load_config
from tubesynth.config.schema import AutoencoderConfig
from tubesynth.models.distance_bias import lattice
from tubesynth.models.transformer import Attention, VesselTransformer
from tubesynth.models.vessel_attention import LevelTokens
from tubesynth.models.vessel_tokens import PublishedTokenEncoder

# The L1 loss of the published code, and four values of its output evenly spaced.
RECORDED = {
    "base": (1.346565, [-0.19776, -0.08918, 0.02933, 0.26617]),
    "in two dimensions": (1.341436, [0.08234, 0.55887, -0.30928, 0.46859]),
    "diffusion": (1.062253, [-0.16425, 0.01779, -0.01148, 0.14927]),
    "no labels": (1.326826, [0.06405, -0.59029, -0.12559, 0.05599]),
    "sampled labels": (1.342269, [0.07759, 0.32923, -0.5817, 0.00546]),
    "cross-attention": (1.331323, [0.22255, -0.15753, 0.04425, 0.34634]),
}


@pytest.mark.parametrize("name", UNETS)
@torch.no_grad()
def test_the_published_layers_give_the_loss_and_output_of_the_published_code(name):
    unet, conditions, spacing = filled_unet(name)
    config = unet_config(name)
    objective = build_objective(config)
    shape = (1, CHANNELS, *(SIDE,) * config.dim)
    t = torch.tensor([0.3])  # timestep 699 of the diffusion

    def network(x, t):
        return unet(x, t, spacing, conditions)

    loss = objective.loss(network, noise_of(shape, 1), noise_of(shape, 2), t)
    output = network(noise_of(shape, 3), t).flatten()
    expected_loss, values = RECORDED[name]
    assert loss.item() == pytest.approx(expected_loss, abs=1e-4)
    assert output[:: len(output) // 4].tolist() == pytest.approx(values, abs=1e-4)


@pytest.mark.parametrize(
    "name, without_label_encoder",
    [
        ("stage_2_3d_f4_lfm_base", 238_530_440),
        ("stage_2_3d_f4_ddpm_base", 238_530_440),
        ("stage_2_3d_f4_lfm_crossattn", 249_098_056),
    ],
)
def test_the_published_configs_have_the_published_number_of_weights(name, without_label_encoder):
    with torch.device("meta"):
        config = load_config(f"as_published/{name}")
        unet = build_phases(config, AutoencoderConfig())["unet"]
    sizes = {key: weight.numel() for key, weight in unet.named_parameters()}
    of_encoder = sum(n for key, n in sizes.items() if key.startswith("label_encoder."))
    assert of_encoder == 865_312
    assert sum(sizes.values()) - of_encoder == without_label_encoder


@torch.no_grad()
def test_padding_and_a_case_without_tokens_have_no_effect_on_the_published_transformer():
    unet, conditions, spacing = filled_unet("cross-attention")
    x, t = noise_of((1, CHANNELS, *(SIDE,) * 3), 3), torch.tensor([0.3])
    tokens = conditions.tokens
    padded = {k: torch.cat([v, torch.full_like(v, 7)], dim=1) for k, v in tokens.items()}
    padded["mask"] = torch.cat([tokens["mask"], ~tokens["mask"]], dim=1)
    none = {**padded, "mask": torch.zeros_like(padded["mask"])}

    def output(tokens):
        return unet(x, t, spacing, conditions.__class__(conditions.labels, tokens))

    torch.testing.assert_close(output(padded), output(tokens), rtol=0, atol=1e-5)
    torch.testing.assert_close(output(none), output(None), rtol=0, atol=0)
    assert (output(none) - output(tokens)).abs().max() > 1e-3


@torch.no_grad()
def test_the_published_transformer_drops_attention_weights_in_training_alone():
    attention = Attention(8, 8, num_heads=1, dropout=0.25)
    for layer in (attention.to_query, attention.to_out):
        torch.nn.init.zeros_(layer.weight)
    attention.to_out.weight.copy_(torch.eye(8))
    attention.to_out.bias.zero_()
    attention.dropout.forward = lambda x, seeds: x
    x, key, value = torch.zeros(1, 64, 8), torch.zeros(1, 1, 400, 8), torch.ones(1, 1, 400, 8)
    torch.manual_seed(0)
    first = attention(x, key, value, None)
    torch.manual_seed(0)
    assert torch.equal(attention(x, key, value, None), first)
    # Of 400 equal weights a quarter is dropped, the others are 4 / 3 as large.
    assert first.mean().item() == pytest.approx(1, abs=0.02)
    assert first[..., 0].std().item() == pytest.approx((0.25 / 0.75 / 400) ** 0.5, rel=0.3)
    torch.testing.assert_close(attention.eval()(x, key, value, None), torch.ones(1, 64, 8))


@torch.no_grad()
def test_the_mended_distance_bias_is_minus_the_squared_distance_in_radii():
    torch.manual_seed(0)
    size, cell = (4, 4, 2), torch.tensor([[2.8, 2.8, 4.2]])
    layer = VesselTransformer(3, 96, 96, 97, distance=True, dropout=0.0).eval()
    tokens = PublishedTokenEncoder(3, 97)(
        vessel_tokens((16, 16, 8), cell[0] / 4), (16, 16, 8), cell / 4
    )
    cached = layer.cache_keys_values([layer], LevelTokens(tokens, size, cell))[0]
    attention, x = layer.cross_attention, torch.randn(1, 32, 96)
    voxels = lattice(size).float() * cell
    distance = torch.cdist(voxels, tokens.position_mm[0])
    bias = -(distance.square() / tokens.radius_mm[0] ** 2)
    key, value = attention.keys_values(tokens.features)
    query = attention.to_query(x)[:, None]
    expected = attention.to_out((query @ key.mT + bias).softmax(-1)[0] @ value[0])
    output = attention(x, cached.key, cached.value, None, cached.query_bias)
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
    assert bias.isfinite().all() and bias.min() < -100
