"""ControlNet: no effect at initialization, a frozen base in training, samples from one file."""

import json

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from networks import ENCODER, LABELS, encoder_settings, labelled_inputs, randomize_zeros, small_unet
from refusals import refusal
from runs import lines

from tubesynth import synthesize, train
from tubesynth.build.base_models import require_base_models
from tubesynth.build.checkpoint import Checkpoint
from tubesynth.config.loading import load_config
from tubesynth.models.conditions import Conditions, rows_of
from tubesynth.models.controlnet import ControlledUNet, ControlNet
from tubesynth.pipeline import Pipeline
from tubesynth.runtime.errors import InputError
from tubesynth.volume.cases import find_cases
from tubesynth.volume.files import read_labels


def networks(dim=3, vessel_class=None, dropout=0.0):
    """A base without zero-initialized branches, and a fresh ControlNet on it."""
    base = small_unet(dim, dropout=dropout)
    classes = LABELS | {"num_classes": 3 if vessel_class is None else 2}
    controlnet = ControlNet(dim, **encoder_settings(dropout=dropout, **ENCODER, **classes))
    controlnet.copy_from(base)
    return base, ControlledUNet(base, controlnet, vessel_class).eval()


def trained_networks(vessel_class=None):
    """The same with random weights in place of the zero-initialized ones."""
    base, controlled = networks(vessel_class=vessel_class)
    randomize_zeros(controlled.controlnet, 0.2)
    return base, controlled


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_at_initialization_the_output_is_the_bases_bit_for_bit(dim, dtype):
    base, controlled = networks(dim)
    case = labelled_inputs(dim, size=7)
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        assert torch.equal(controlled(*case), base(*case))
    assert base(*case).abs().max() > 0.01


def test_the_control_copies_the_weights_of_the_bases_encoder():
    base, controlled = networks()
    copied = controlled.controlnet.state_dict()
    weights = base.state_dict()
    shared = [name for name in copied if name in weights]
    assert {name.split(".")[0] for name in shared} >= {"conv_in", "down", "middle_out"}
    for name in shared:
        assert torch.equal(copied[name], weights[name])
        assert copied[name].data_ptr() != weights[name].data_ptr()


def test_a_scale_of_0_is_the_base_and_of_1_the_full_control():
    base, controlled = trained_networks()
    case = labelled_inputs()
    full = controlled(*case)
    assert (full - base(*case)).abs().max() > 0.01
    controlled.scale = 0.0
    assert torch.equal(controlled(*case), base(*case))
    controlled.scale = 1.0
    assert torch.equal(controlled(*case), full)


def test_a_dropped_label_gives_the_output_of_the_base():
    base, controlled = trained_networks()
    x, t, spacing, conditions = labelled_inputs()
    conditions = Conditions(conditions.labels, keep_label=torch.tensor([0.0, 1.0]))
    out, alone = controlled(x, t, spacing, conditions), base(x, t, spacing, conditions)
    assert torch.equal(out[0], alone[0]) and not torch.equal(out[1], alone[1])
    assert torch.equal(controlled(x, t, spacing), base(x, t, spacing))


def test_a_control_by_vessels_depends_on_the_vessel_class_alone():
    base, controlled = trained_networks(vessel_class=2)
    x, t, spacing, conditions = labelled_inputs()
    labels = conditions.labels
    others = torch.where(labels == 2, labels, 1 - labels.clamp_max(1))  # 0 and 1 swapped
    assert not torch.equal(labels, others)

    def features(of):
        return controlled.cache_conditions(Conditions(of), x.shape[2:], spacing).features

    assert torch.equal(features(labels), features(others))
    assert not torch.equal(features(labels), features((labels + 1) % 3))


def test_cached_conditions_are_valid_at_every_time_and_for_every_row():
    _, controlled = trained_networks()
    x, t, spacing, conditions = labelled_inputs()
    conditions = Conditions(conditions.labels, keep_label=torch.tensor([0.0, 1.0]))
    prepared = controlled.cache_conditions(conditions, x.shape[2:], spacing)
    out = controlled(x, t, spacing, conditions)
    assert torch.equal(out, controlled(x, t, spacing, prepared))
    row = controlled(x[1:], t[1:], spacing[1:], rows_of(prepared, torch.tensor([1])))
    torch.testing.assert_close(row, out[1:], atol=1e-5, rtol=1e-4)


def test_the_control_attends_to_the_vessel_tokens():
    vessels = dict(vessel_attention="distance", vessel_levels=(1,), vessel_channels=16)
    sizes = {**ENCODER, "head_channels": 32, **vessels}
    base = small_unet(**sizes)
    controlnet = ControlNet(3, **encoder_settings(**sizes, **LABELS))
    controlnet.copy_from(base)
    controlled = ControlledUNet(base, controlnet, None).eval()
    x, t, spacing, conditions = labelled_inputs()
    tokens = {
        "position_mm": 5 * torch.randn(2, 7, 3),
        "radius_mm": torch.rand(2, 7) + 0.5,
        "tangent": torch.nn.functional.normalize(torch.randn(2, 7, 3), dim=2),
        "root_distance_mm": 10 * torch.rand(2, 7),
        "mask": torch.arange(7)[None] < torch.tensor([[7], [3]]),
    }
    conditions = Conditions(conditions.labels, tokens)
    assert torch.equal(controlled(x, t, spacing, conditions), base(x, t, spacing, conditions))
    randomize_zeros(controlled.controlnet, 0.2)

    def residuals(conditions):
        prepared = controlled.cache_conditions(conditions, x.shape[2:], spacing)
        return controlled.controlnet(x, t, spacing, prepared.features, prepared.control)

    mirrored = {**tokens, "position_mm": -tokens["position_mm"]}
    before, after = residuals(conditions), residuals(Conditions(conditions.labels, mirrored))
    assert not torch.equal(before[-1], after[-1])


def test_a_step_changes_the_control_and_never_the_base():
    base, controlled = networks(dropout=0.5)
    before = {name: value.clone() for name, value in base.state_dict().items()}
    controlled.train()
    assert controlled.controlnet.training and not base.training
    trainable = [p for p in controlled.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trainable, lr=1.0)
    case = labelled_inputs()
    losses = []
    for _ in range(3):
        seeds = torch.tensor([1, 2])
        loss = (controlled(*case, dropout_seeds=seeds) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    # First the zero convolutions, then through them the copy, then the encoder of the control.
    assert all(p.grad.abs().max() > 0 for p in controlled.controlnet.to_residuals.parameters())
    assert controlled.controlnet.control_encoder.layers[-1].weight.grad.abs().max() > 0
    assert losses[-1] < losses[0]
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())
    assert all(p.grad is None for p in base.parameters())


@pytest.fixture(scope="module")
def stage_3(workplace, stage_2):
    """last.ckpt of a stage-3 run of eight steps on stage_2."""
    text = (workplace / "s2.yml").read_text(encoding="utf-8").replace("stage: 2", "stage: 3")
    text += f"control: {{base: {stage_2}}}\n"
    (workplace / "s3.yml").write_text(text.replace("learning_rate: 1e-3", "learning_rate: 1e-2"))
    train.main(["--config", str(workplace / "s3.yml"), "--run-dir", str(workplace / "s3")])
    return workplace / "s3" / "checkpoints" / "last.ckpt"


def validation_losses(checkpoint):
    return [line["loss"] for line in lines(checkpoint.parent.parent, "validation")]


def load(path):
    return Checkpoint.load(path)


def test_training_starts_at_the_bases_loss_and_keeps_its_weights(stage_2, stage_3):
    losses = validation_losses(stage_3)
    assert losses[0] == validation_losses(stage_2)[-1]
    assert losses[-1] < losses[0]
    averaged, base = (load(path).weights() for path in (stage_3, stage_2))
    for name, value in base.items():
        assert torch.equal(averaged[f"base.{name}"], value)
    assert list((stage_3.parent.parent / "panels").glob("*.png"))


def test_one_copy_of_the_base_is_written(stage_2, stage_3):
    phase = load(stage_3).phases["unet"]
    name = "base.conv_in.weight"
    assert phase.weights()[name].data_ptr() == phase.module[name].data_ptr()


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(workplace, stage_3, tmp_path):
    half = stage_3.parent / "epoch_00001.ckpt"
    config = str(workplace / "s3.yml")
    train.main(["--config", config, "--run-dir", str(tmp_path), "--resume", str(half)])
    again = load(tmp_path / "checkpoints" / "last.ckpt").phases["unet"]
    done = load(stage_3).phases["unet"]
    for weights, others in (
        (done.module, again.module),
        (done.weights(), again.weights()),
    ):
        assert all(torch.equal(others[name], value) for name, value in weights.items())


def test_one_file_samples_with_a_scale_and_guidance(workplace, stage_2, stage_3, tmp_path):
    labels = read_labels(next(iter(find_cases(workplace / "data/validation/labels").values())))
    base, controlled = Pipeline.load(stage_2), Pipeline.load(stage_3)
    alone = base.synthesize(labels, seed=1).array
    assert np.array_equal(controlled.synthesize(labels, seed=1, control_scale=0.0).array, alone)
    full = controlled.synthesize(labels, seed=1)
    assert not np.array_equal(full.array, alone)
    assert np.array_equal(controlled.synthesize(labels, seed=1).array, full.array)
    guided = controlled.synthesize(labels, seed=1, guidance_label=3.0)
    assert not np.array_equal(guided.array, full.array)
    blank = controlled.synthesize(None, seed=1).array  # no labels, no control
    assert np.array_equal(blank, base.synthesize(None, seed=1).array)
    with pytest.raises(InputError, match="no ControlNet"):
        base.synthesize(labels, control_scale=0.5)

    common = ["--model", str(stage_3), "--control-scale", "0.5", "--output-dir", str(tmp_path)]
    synthesize.main(common)
    record = json.loads(sorted(tmp_path.glob("*.json"))[0].read_text(encoding="utf-8"))
    assert record["settings"]["control_scale"] == 0.5


def refused(*arguments) -> str:
    return refusal(lambda: train.main([str(argument) for argument in arguments]))


def test_a_base_that_does_not_fit_is_refused_by_name(workplace, stage_1, stage_3, tmp_path):
    config = ["--config", workplace / "s3.yml", "--run-dir", tmp_path / "run"]
    assert "control.base: not set" in refused(*config, "control.base=null")
    assert "none.ckpt" in refused(*config, "control.base=none.ckpt")
    assert "a checkpoint of stage 2 is needed" in refused(*config, f"control.base={stage_1}")
    line = refused(*config, "unet.channels=[16, 24]")
    assert "control.base" in line and "unet.channels [16, 16]" in line and "make them equal" in line
    line = refused(*config, "latent_mode=diffusion", "sampling.solver=ddim")
    assert "latent_mode flow" in line
    assert "flow.sigma_min" in refused(*config, "flow.sigma_min=0.1")


def test_a_resumed_run_needs_the_weights_of_its_base_not_its_path(
    workplace, stage_2, stage_3, tmp_path
):
    same = tmp_path / "same.ckpt"
    same.write_bytes(stage_2.read_bytes())
    config = load_config(workplace / "s3.yml", [f"control.base={same}"])
    models = require_base_models(config)
    resumed = train.checkpoint_to_resume(str(stage_3), tmp_path / "run", config, models)
    assert resumed and resumed.path == stage_3
    assert models.base
    models.base.weights()["conv_in.weight"] += 1  # the base at this path has been trained on
    with pytest.raises(InputError, match=r"control.base: .*same.ckpt has other weights \(conv_in"):
        train.checkpoint_to_resume(str(stage_3), tmp_path / "run", config, models)


def test_a_dry_run_names_the_frozen_networks_and_the_missing_checkpoint(capsys):
    config = str(REPOSITORY / "configs" / "stage_3_3d_f4_controlnet.yml")
    train.main(["--config", config, "--dry-run", "--stage", "3"])
    text = capsys.readouterr().out
    assert "(238.89 M)" in text and "(70.45 M)" in text
    assert "stage_2_3d_f4_lfm_base/checkpoints/last.ckpt: no such file" in text
