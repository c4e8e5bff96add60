"""SPADE with a hidden map shared by the norms of a level: equal to one per norm with kernels of 1,
cheaper, and trained, exported, guided and controlled like it.
"""

from dataclasses import replace

import pytest
import torch
from networks import labelled_inputs, small_unet
from test_vessel_conditions import VESSELS, case_inputs, vessel_unet

from tubesynth import export, train
from tubesynth.build.checkpoint import Checkpoint
from tubesynth.config.loading import load_config
from tubesynth.config.schema import AutoencoderConfig
from tubesynth.doctor.training_memory import estimate
from tubesynth.models.conditions import rows_of
from tubesynth.models.controlnet import ControlledUNet
from tubesynth.models.spade import Spade, hidden_layers
from tubesynth.models.unet_encoder import blocks_of
from tubesynth.pipeline import Pipeline
from tubesynth.runtime.errors import InputError
from tubesynth.volume.cases import find_cases
from tubesynth.volume.files import read_labels


def with_a_hidden_map_per_norm(net, dim: int):
    """The same network as one of `full`: kernels of 1 become kernels of 3 that are 0 around it."""
    full = small_unet(dim, channels=(16, 16, 16))
    weights = {name: w for name, w in net.state_dict().items() if "spade_hidden" not in name}
    for name, weight in weights.items():
        if "to_scale_shift.weight" in name:
            weights[name] = torch.nn.functional.pad(weight, [1] * (2 * dim))
    level = len(net.spade_hidden) - 1
    for i, block in enumerate(blocks_of(net.up)):
        for key, weight in net.spade_hidden[level].state_dict().items():
            weights |= {f"up.{i}.res.{norm}.shared.{key}": weight for norm in ("norm1", "norm2")}
        level -= "grow" in block
    full.load_state_dict(weights)
    return full


@pytest.mark.parametrize("dim", [2, 3])
def test_a_shared_hidden_map_equals_one_per_norm_with_its_weights(dim):
    net = small_unet(dim, channels=(16, 16, 16), spade="shared")
    full = with_a_hidden_map_per_norm(net, dim)
    case = labelled_inputs(dim, size=7)
    torch.testing.assert_close(net(*case), full(*case), atol=1e-5, rtol=1e-5)
    for network in (net, full):
        network(*case).square().mean().backward()
    of_norms = [m.shared for m in full.up.modules() if isinstance(m, Spade)]
    assert len(of_norms) == 2 * len(net.up)
    sums = sum(layers[0].weight.grad for layers in of_norms)
    shared = sum(layers[0].weight.grad for layers in net.spade_hidden)
    torch.testing.assert_close(shared, sums, atol=1e-6, rtol=1e-4)
    wanted, found = full.label_encoder.layers, net.label_encoder.layers
    torch.testing.assert_close(found[0].weight.grad, wanted[0].weight.grad, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("half", [False, True])
def test_training_gives_every_parameter_a_gradient(half):
    net = vessel_unet(checkpointing=True, spade="shared").train()
    x, t, spacing, full = case_inputs()
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        out = net(x, t, spacing, full)
    out.float().square().mean().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@torch.no_grad()
def test_conditions_are_cached_and_dropped_as_with_a_hidden_map_per_norm():
    net = vessel_unet(spade="shared")
    x, t, spacing, full = case_inputs()
    out = net(x, t, spacing, full)
    cached = net.cache_conditions(full, x.shape[2:], spacing)
    assert torch.equal(net(x, t, spacing, cached), out)
    row = net(x[1:], t[1:], spacing[1:], rows_of(cached, torch.tensor([1])))
    torch.testing.assert_close(row, out[1:], atol=1e-5, rtol=1e-4)
    for dropped in (replace(full, labels=None), replace(full, fields=None)):
        assert (net(x, t, spacing, dropped) - out).abs().max() > 1e-4
    mask = torch.tensor([1.0, 0.0])
    masked = net(x, t, spacing, replace(full, keep_label=mask, keep_vessels=mask))
    torch.testing.assert_close(masked[0], out[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(masked[1], net(x, t, spacing)[1], atol=1e-5, rtol=1e-4)


def test_the_initial_maps_are_as_large_as_those_of_a_hidden_map_per_norm():
    """He's initialization before the ReLU keeps the size of the label features."""
    torch.manual_seed(0)
    features = torch.randn(1, 64, 12, 12, 12)
    full = Spade(3, 32, 64, 128).modulation(features)
    shared = Spade(3, 32, None, 128).modulation(hidden_layers(3, 64, 128)(features))
    inside = (slice(None), slice(None), *[slice(2, -2)] * 3)
    assert shared[inside].std().item() == pytest.approx(full[inside].std().item(), rel=0.1)


def test_a_compiled_network_is_one_graph():
    net = vessel_unet(spade="shared").train()
    x, t, spacing, full = case_inputs()
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, t, spacing, full), net(x, t, spacing, full))


def test_the_published_sizes_take_38_percent_of_the_flops():
    """docs/gpu.md names them."""
    name, latents = "stage_2_3d_f4_lfm_base", AutoencoderConfig()
    full, shared = (
        estimate(load_config(name, [f"unet.spade={spade}"]), latents)
        for spade in ("full", "shared")
    )
    assert shared.parameters / 1e6 == pytest.approx(172.5, abs=0.05)
    assert shared.flops / full.flops == pytest.approx(0.38, abs=0.005)
    assert shared.training < full.training


def test_a_model_is_trained_exported_guided_and_controlled(workplace, stage_1, tmp_path):
    config = ["--config", str(workplace / "s2.yml"), "--run-dir", str(tmp_path / "s2")]
    dropouts = ["flow.label_dropout=0.2", "flow.vessel_dropout=0.2"]
    train.main([*config, *VESSELS, *dropouts, "unet.spade=shared", "train.epochs=1"])
    checkpoint = tmp_path / "s2" / "checkpoints" / "last.ckpt"
    trained = Checkpoint.load(checkpoint)
    assert trained.config.unet.spade == "shared"
    assert any("spade_hidden" in name for name in trained.weights())
    labels = read_labels(min(find_cases(workplace / "data" / "validation" / "labels").values()))
    export.main([str(checkpoint), "--output", str(tmp_path / "m.safetensors")])
    guided = dict(seed=1, steps=1, guidance_label=2.0, guidance_vessel=3.0)
    images = [
        Pipeline.load(model).synthesize(labels, **guided).array
        for model in (checkpoint, tmp_path / "m.safetensors")
    ]
    assert (images[0] == images[1]).all() and images[0].std() > 0
    text = (workplace / "s2.yml").read_text(encoding="utf-8").replace("stage: 2", "stage: 3")
    (tmp_path / "s3.yml").write_text(f"{text}control: {{base: {checkpoint}}}\n")
    config = ["--config", str(tmp_path / "s3.yml"), "--run-dir", str(tmp_path / "s3")]
    train.main([*config, *VESSELS, *dropouts, "unet.spade=shared", "train.epochs=1"])
    controlled = Pipeline.load(tmp_path / "s3" / "checkpoints" / "last.ckpt")
    assert isinstance(controlled.unet, ControlledUNet)
    weights = controlled.unet.base.state_dict()
    assert all(torch.equal(weights[name], w) for name, w in trained.weights().items())
    assert controlled.synthesize(labels, **guided).array.std() > 0
    with pytest.raises(InputError, match="unet.spade shared"):
        train.main([*config, *VESSELS, *dropouts, "unet.spade=full"])


def test_the_published_network_has_a_hidden_map_per_norm():
    with pytest.raises(InputError, match="unet.spade: shared: unet.architecture=published"):
        load_config("as_published/stage_2_3d_f4_lfm_base", ["unet.spade=shared"])
