"""Stage 1 as published: losses and codebook equal to those recorded from the published code.

Weights and images are formulas (published.py). The published code got the same weights by name,
with MONAI 1.4, MONAI Generative 0.2.3 and torch 2.13 on a CPU.
"""

import math

import pytest
import torch
from published import PUBLISHED_LOSSES, WASSERSTEIN, filled_stage_1, stage_1_batch

from tubesynth.build.networks import build_phases
from tubesynth.config.loading import load_config
from tubesynth.config.schema import TrainConfig
from tubesynth.models.discriminator import PatchDiscriminator
from tubesynth.training.loop import learning_rate_factor

RECORDED = {"l1": 2.231864, "vessel_l1": 2.456385, "spectral": 7.726420, "commitment": 5.868260}


@pytest.mark.parametrize(
    ("changes", "generator", "discriminator"),
    [({}, 3.46505e-3, 2.537755e-3), (WASSERSTEIN, -1.124885e-3, 3.714662e-3)],
    ids=["least squares", "wasserstein"],
)
def test_the_terms_and_the_codebook_are_those_of_the_published_code(
    changes, generator, discriminator
):
    stage, batch = filled_stage_1(**{**PUBLISHED_LOSSES, **changes}), stage_1_batch()
    terms = stage.generator_loss(stage.autoencoder, batch)
    terms |= stage.discriminator_loss(stage.discriminator, batch)
    values = {name: term.item() for name, term in terms.items()}
    adversarial = {"generator": generator, "discriminator": discriminator}
    assert values == pytest.approx({**RECORDED, **adversarial}, rel=1e-5)
    codebook = stage.autoencoder.quantizer.codebook
    used = stage.autoencoder.quantizer.ema_count > 0
    assert used.sum() == 26
    assert codebook[used][0].tolist() == pytest.approx(
        [1.07757, 2.89867, 1.46350, 4.22208], abs=1e-4
    )
    assert codebook.abs().max().item() == pytest.approx(75627.65, rel=1e-5)  # an unused code


def test_the_published_learning_rate_is_warmed_up_and_falls_to_its_floor():
    train = TrainConfig(
        learning_rate=2e-5, learning_rate_min=2e-7, warmup_steps=10_000, warmup_start=1e-4
    )

    def rate(step: int, train: TrainConfig = train) -> float:
        return train.learning_rate * learning_rate_factor(step, 90_000, train)

    # Values of the published scheduler of 90,000 steps.
    expected = {0: 2e-9, 5_000: 1.0001e-5, 10_000: 2e-5, 50_000: 1.01e-5, 89_999: 2.000000076e-7}
    assert {step: rate(step) for step in expected} == pytest.approx(expected, rel=1e-6)
    assert rate(200_000) == pytest.approx(2e-7)


def test_the_published_phase_two_trains_with_the_floor():
    train = load_config("as_published/stage_1_3d_f4_full").train
    rates = [
        train.learning_rate * learning_rate_factor(step, 180_000, train) for step in (0, 90_000)
    ]
    assert rates == pytest.approx([2e-7, 2e-7])


@pytest.mark.parametrize("name", ["stage_1_3d_f4", "stage_1_3d_f4_full"])
def test_the_published_stage_1_has_the_published_number_of_weights(name):
    with torch.device("meta"):
        modules = build_phases(load_config(f"as_published/{name}"), None)
    sizes = {key: sum(p.numel() for p in module.parameters()) for key, module in modules.items()}
    codebook = 8192 * 8  # a buffer
    assert sizes["autoencoder"] + codebook == 5_603_209 and sizes["discriminator"] == 666_017


def test_the_published_discriminator_starts_from_normal_weights():
    torch.manual_seed(0)
    weights = dict(PatchDiscriminator(3, 32, 2, published=True).named_parameters())
    assert weights["layers.2.weight"].std().item() == pytest.approx(0.02, rel=0.02)
    assert weights["layers.3.weight"].mean().item() == pytest.approx(1, abs=0.02)
    assert math.isclose(weights["layers.8.weight"].std().item(), 0.02, rel_tol=0.05)
