"""What holds on a GPU: CUDA_VISIBLE_DEVICES=0 python -m pytest tests/gpu -n 0.

TF32 has 10 bits, so that results are compared to a hundredth.
"""

import pytest
import torch
from parts.synthesis import ball, random_pipeline, random_vessels

from tubesynth.config.loading import load_config
from tubesynth.models.quantizers.codebook import EmaQuantizer
from tubesynth.models.vessel_attention import LevelTokens, VesselAttention
from tubesynth.models.vessel_tokens import EncodedTokens
from tubesynth.pipeline import Pipeline
from tubesynth.training.random_step import random_step

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
GPU, CPU = torch.device("cuda"), torch.device("cpu")
TINY = ["data.resolution=[32, 32, 24]", "data.crop=null"]


@pytest.mark.parametrize("precision", ["32", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize(
    "name", ["stage_1", "stage_2_crossattn", "stage_2_diffusion", "stage_3_controlnet"]
)
def test_two_steps_in_every_precision_change_every_weight_and_stay_finite(name, precision):
    config = load_config(f"demo/{name}", [*TINY, f"train.precision={precision}"])
    step, stage = random_step(config, GPU, 20)
    before = {n: p.clone() for n, p in stage.phases[0].module.named_parameters()}
    step()
    step()
    for weight, parameter in stage.phases[0].module.named_parameters():
        assert parameter.device.type == "cuda" and parameter.isfinite().all()
        if parameter.requires_grad and parameter.grad is not None and parameter.grad.any():
            assert not torch.equal(parameter, before[weight]), weight


@pytest.mark.parametrize("name", ["demo/stage_2_crossattn", "heart_phantom/stage_2"])
def test_a_synthesis_with_random_weights_is_that_of_the_cpu(name):
    config = load_config(name, TINY)
    labels, vessels = ball(config), random_vessels(config, 50)
    on_gpu, on_cpu = (
        random_pipeline(config, device, "32").synthesize(labels, vessels=vessels, steps=2)
        for device in (GPU, CPU)
    )
    difference = abs(on_gpu.array.astype(float) - on_cpu.array.astype(float))
    assert difference.mean() < 1.0  # HU


def test_heart_phantom_makes_the_ct_of_the_cpu():
    volumes = []
    for device in (GPU, CPU):
        pipeline = Pipeline.load("heart-phantom", device=device)
        labels = ball(pipeline.config)
        volumes.append(pipeline.synthesize(labels, seed=3, steps=2).array.astype(float))
    assert abs(volumes[0] - volumes[1]).mean() < 5.0  # HU


@pytest.mark.parametrize("distance", [True, False])
def test_vessel_attention_is_that_of_the_cpu(distance):
    torch.manual_seed(0)
    position_mm = 40 * torch.rand(1, 50, 3) - 20
    mask = torch.ones(1, 50, dtype=torch.bool)
    tokens = EncodedTokens(torch.randn(1, 50, 32), position_mm, torch.ones(1, 50), mask)
    layer, x = VesselAttention(3, 32, 16, 32, distance), torch.randn(1, 32, 6, 6, 4)
    results = []
    for device in (CPU, GPU):
        moved = EncodedTokens(*(value.to(device) for value in vars(tokens).values()))
        cell_mm = torch.full((1, 3), 4.0, device=device)
        layer = layer.to(device)
        cached = layer.cache_keys_values([layer], LevelTokens(moved, (6, 6, 4), cell_mm))[0]
        results.append(layer(x.to(device), cached).cpu())
    torch.testing.assert_close(*results, rtol=1e-2, atol=1e-2)


def test_the_codebook_finds_the_codes_of_the_cpu():
    torch.manual_seed(0)
    quantizer = EmaQuantizer(512, 8, commitment=0.25, decay=0.5, revive_after=0).eval()
    latents = torch.randn(1, 8, 16, 16, 8)
    codes = [quantizer.to(device)(latents.to(device))[2].cpu() for device in (CPU, GPU)]
    assert (codes[0] == codes[1]).double().mean() > 0.99
