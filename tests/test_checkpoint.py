"""Checkpoints: typed contents that are checked when they are loaded; base models that must fit."""

import re
from functools import partial
from pathlib import Path

import pytest
import torch
from refusals import refusal

from tubesynth.build.base_models import open_base_models
from tubesynth.build.checkpoint import FORMATS, Best, Checkpoint
from tubesynth.config.loading import load_config
from tubesynth.doctor.config_rules import PlannedRun, weights
from tubesynth.doctor.findings import apply_rules
from tubesynth.train import main

FIXTURES = Path(__file__).parent / "fixtures" / "0.1.0"
STAGE_1, STAGE_2 = FIXTURES / "stage_1.ckpt", FIXTURES / "stage_2.ckpt"


def read(path) -> dict:
    return torch.load(path, weights_only=True)


def test_a_checkpoint_of_0_1_0_is_written_again_under_the_present_names(tmp_path):
    """The values are the same tensors, bit for bit."""
    Checkpoint.load(STAGE_2).save(tmp_path / "a.ckpt")
    old, new = read(STAGE_2), read(tmp_path / "a.ckpt")
    assert (old["format"], new["format"]) == (5, FORMATS[2])
    assert new["position"]["sample_index"] == old["position"]["draw"] == 8
    phase, old_phase = new["phases"]["unet"], old["phases"]["unet"]
    assert phase.keys() == {"module", "optimizer", "scaler", "ema", "swa"}
    pairs = [
        (phase["module"], old_phase["module"]),
        (phase["ema"][10.0], old_phase["ema"][10.0]),
        (new["autoencoder"]["module"], old["autoencoder"]["module"]),
        (new["latent_scale"], old["latent_scale"]),
        *zip(
            phase["optimizer"]["state"].values(),
            old_phase["optimiser"]["state"].values(),
            strict=True,
        ),
    ]
    for values, old_values in pairs:
        assert values.keys() == old_values.keys()
        assert all(torch.equal(values[name], old_values[name]) for name in values)
    assert new["autoencoder"]["digest"] == old["autoencoder"]["digest"]


def test_stage_2_stores_the_autoencoder_of_stage_1():
    first, second = (Checkpoint.load(path).trained_autoencoder for path in (STAGE_1, STAGE_2))
    assert first.digest == second.digest and first.config == second.config


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("position",), 3, "'position' is int"),
        (("position", "step"), "8", "'position.step' is str"),
        (("best", "name"), ..., "'best.name' is missing"),
        (("phases", "unet"), ..., "'phases.unet' is missing"),
        (("phases", "unet", "module", "conv_in.bias"), 1.0, "'phases.unet.module.conv_in.bias'"),
        (("phases", "unet", "ema"), ..., "'phases.unet.ema' is missing"),
        (("latent_scale",), ..., "'latent_scale' is missing"),
        (("autoencoder", "digest"), 3, "'autoencoder.digest' is int"),
        (("autoencoder", "config", "stage"), 2, "autoencoder.config: unknown key 'autoencoder'"),
        (("config", "unet", "heads"), 3, "unknown key 'unet.heads'"),
    ],
)
def test_contents_that_are_missing_or_mistyped_are_refused_with_file_and_key(
    keys, value, message, tmp_path
):
    contents = inner = read(STAGE_2)
    for key in keys[:-1]:
        inner = inner[key]
    if value is ...:
        del inner[keys[-1]]
    else:
        inner[keys[-1]] = value
    torch.save(contents, tmp_path / "a.ckpt")
    refusal(lambda: Checkpoint.load(tmp_path / "a.ckpt"), "a.ckpt: ", message)


def test_a_best_score_is_replaced_by_a_better_one_and_never_by_nan():
    best = Best("psnr", "max")
    steps = enumerate([20.0, float("nan"), 19.0, 21.0])
    assert [best.improved({"psnr": value}, step) for step, value in steps] == [1, 0, 0, 1]
    assert (best.value, best.step) == (21.0, 3)
    best = Best("loss", "min")
    assert [best.improved({"loss": float("nan")}, step) for step in (1, 2, 3)] == [0, 0, 0]
    assert best.step is None and best.ends_run(patience=3)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.hu_window=[-200,800]", "latents.autoencoder: .* was trained with data.hu_window"),
        ("data.resolution=[30,32,24]", "data.resolution: .* must be multiples of 4"),
        ("unet.label_channels=[8,8]", "unet.label_channels: .* give at least 3 widths"),
        ("latents.autoencoder=none.ckpt", "latents.autoencoder: none.ckpt: no such file"),
    ],
)
def test_training_doctor_and_a_dry_run_refuse_a_base_model_in_the_same_words(
    override, message, tmp_path
):
    path, overrides = str(FIXTURES / "s2.yml"), [override]
    if not override.startswith("latents.autoencoder="):
        overrides.append(f"latents.autoencoder={STAGE_1}")
    config = load_config(path, overrides)
    models = open_base_models(config)
    (problem,) = models.problems
    assert re.match(message, problem)
    errors = [f for f in apply_rules([weights], PlannedRun(config, [])) if f.level == "error"]
    assert [finding.message for finding in errors] == [problem]
    command = ["--config", path, "--run-dir", str(tmp_path / "run"), *overrides]
    for options in (command, [*command, "--dry-run"] if models.misfits else command):
        assert refusal(partial(main, options)) == problem
