"""The U-Net with vessels: every combination of conditions; a small model from data to volume."""

import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from networks import small_unet
from ranks import train_on_two_ranks
from test_train import assert_same_state, checkpoint_of

from tubesynth import synthesize
from tubesynth.build.base_models import require_base_models
from tubesynth.build.networks import build_unet
from tubesynth.conditioning.request import SampleRequest
from tubesynth.config.loading import load_config
from tubesynth.config.schema import SamplingConfig
from tubesynth.data.dataset import pad_tokens
from tubesynth.models.conditions import Conditions, rows_of
from tubesynth.pipeline import Pipeline, SampleOptions
from tubesynth.runtime.errors import InputError
from tubesynth.runtime.seeding import generator
from tubesynth.train import main
from tubesynth.volume.cases import find_cases
from tubesynth.volume.files import read_labels, read_volume, write_volume
from tubesynth.volume.grid import Volume
from tubesynth.volume.rasterize import condition_fields
from tubesynth.volume.vessels import VesselTokens

SPACING = 3.0
CPU = torch.device("cpu")


def vessel_unet(dim=3, **changes):
    """A U-Net that attends to the vessels on both levels and takes their fields."""
    vessels = dict(vessel_attention="distance", vessel_levels=(0, 1), vessel_channels=16)
    settings = dict(channels=(32, 32), head_channels=32, vessel_fields=True, **vessels)
    return small_unet(dim, **{**settings, **changes})


def line_of_tokens(count: int, seed: int = 0) -> VesselTokens:
    """A straight vessel through the middle."""
    random = np.random.default_rng(seed)
    direction = random.normal(size=3)
    direction /= np.linalg.norm(direction)
    along = np.arange(count) - (count - 1) / 2
    return VesselTokens(
        (along[:, None] * direction).astype(np.float32),
        np.full(count, 1.2, np.float32),
        np.tile(direction.astype(np.float32), (count, 1)),
        np.zeros(count, np.int32),
        (along + count / 2).astype(np.float32),
    )


def case_inputs(counts=(20, 9), size=8):
    """x, t, spacing and the conditions of a batch with `counts` tokens."""
    random = torch.Generator().manual_seed(3)
    batch, vessels = len(counts), [line_of_tokens(n, i) for i, n in enumerate(counts)]
    shape = (4 * size,) * 3
    fields = [condition_fields(v, shape, (SPACING,) * 3, 4) for v in vessels]
    conditions = Conditions(
        torch.randint(0, 3, (batch, *shape), dtype=torch.uint8, generator=random),
        pad_tokens([vars(v) for v in vessels]),
        torch.from_numpy(np.stack(fields)),
    )
    x = torch.randn(batch, 4, size, size, size, generator=random)
    return x, torch.rand(batch, generator=random), torch.full((batch, 3), SPACING), conditions


def with_changes(conditions: Conditions, **changes) -> Conditions:
    return Conditions(**{**vars(conditions), **changes})


def conditions_of(conditions: Conditions, rows: slice) -> Conditions:
    return Conditions(
        conditions.labels[rows],
        {name: values[rows] for name, values in conditions.tokens.items()},
        conditions.fields[rows],
    )


@torch.no_grad()
def test_every_condition_matters_and_every_combination_runs():
    net = vessel_unet()
    x, t, spacing, full = case_inputs()
    out = {}
    for labels in (True, False):
        for tokens in (True, False):
            for fields in (True, False):
                conditions = Conditions(
                    full.labels if labels else None,
                    full.tokens if tokens else None,
                    full.fields if fields else None,
                )
                out[labels, tokens, fields] = net(x, t, spacing, conditions)
    every = list(out.values())
    for i, output in enumerate(every):
        for other in every[:i]:
            assert (output - other).abs().max() > 1e-4
    assert torch.equal(out[False, False, False], net(x, t, spacing))


@torch.no_grad()
def test_cached_conditions_give_the_same_output_bit_for_bit():
    net = vessel_unet()
    x, t, spacing, full = case_inputs()
    prepared = net.cache_conditions(full, x.shape[2:], spacing)
    whole = net(x, t, spacing, full)
    assert torch.equal(whole, net(x, t, spacing, prepared))
    second = net(x[1:], t[1:], spacing[1:], rows_of(prepared, torch.tensor([1])))
    torch.testing.assert_close(second, whole[1:], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_batch_with_unequal_tokens_equals_its_cases_one_by_one():
    net = vessel_unet()
    x, t, spacing, full = case_inputs((0, 30, 4))
    together = net(x, t, spacing, full)
    for i, count in enumerate((0, 30, 4)):
        row = slice(i, i + 1)
        alone = conditions_of(full, row)
        cut = {name: values[:, : max(count, 1)] for name, values in alone.tokens.items()}
        expected = net(x[row], t[row], spacing[row], with_changes(alone, tokens=cut))
        torch.testing.assert_close(together[row], expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_dropped_conditions_equal_missing_ones():
    net = vessel_unet()
    x, t, spacing, full = case_inputs()
    keep, drop = torch.ones(2), torch.zeros(2)
    for dropped, missing in (
        (dict(keep_label=drop, keep_vessels=keep), Conditions(None, full.tokens, full.fields)),
        (dict(keep_label=keep, keep_vessels=drop), Conditions(full.labels)),
        (dict(keep_label=drop, keep_vessels=drop), Conditions()),
    ):
        without = net(x, t, spacing, with_changes(full, **dropped))
        torch.testing.assert_close(without, net(x, t, spacing, missing), atol=1e-5, rtol=1e-4)
    mixed = net(x, t, spacing, with_changes(full, keep_vessels=torch.tensor([1.0, 0.0])))
    torch.testing.assert_close(mixed[0], net(x, t, spacing, full)[0], atol=1e-5, rtol=1e-4)
    alone = net(x, t, spacing, Conditions(full.labels))[1]
    torch.testing.assert_close(mixed[1], alone, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_two_samples_from_one_noise_are_equal_where_the_network_has_dropout():
    net = vessel_unet(dropout=0.5)
    x, t, spacing, full = case_inputs()
    assert torch.equal(net(x, t, spacing, full), net(x, t, spacing, full))


@pytest.mark.parametrize("size", [(7, 5, 6), (12, 8, 4)])
@torch.no_grad()
def test_a_voxel_attends_most_to_the_token_in_its_cell_at_every_level(size):
    """The token lies in the middle of the voxel's cell."""
    net = vessel_unet(channels=(32, 32, 32), vessel_levels=(0, 1, 2))
    spacing = torch.tensor([[2.0, 3.0, 4.0]])
    extent_mm = torch.tensor(size) * 4 * spacing[0]
    coarse = tuple((n + 1) // 2 for n in size)
    for grid in (size, coarse):
        voxel = tuple(n - 1 for n in grid)
        # position of the voxel as a share of the extent, as resizing between levels has it
        share = torch.tensor([(i + 0.5) / n - 0.5 for i, n in zip(voxel, grid, strict=True)])
        tokens = pad_tokens([vars(line_of_tokens(1))])
        tokens["position_mm"][:] = share * extent_mm
        prepared = net.cache_conditions(Conditions(tokens=tokens), size, spacing)
        cached = prepared.decoder_vessels[-1] if grid == size else prepared.encoder_vessels[2]
        bias = cached.query_bias[0].float() @ cached.key[0, 0, 0, :14].float()
        assert bias.argmax() == np.ravel_multi_index(voxel, grid)
        assert bias.max().abs() < 1e-4


@pytest.mark.parametrize("half", [False, True])
def test_training_gives_every_parameter_a_gradient(half):
    net = vessel_unet(checkpointing=True).train()
    x, t, spacing, full = case_inputs()
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        out = net(x, t, spacing, full)
    out.float().square().mean().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_a_two_dimensional_unet_depends_on_the_vessels():
    net = vessel_unet(dim=2)
    x, spacing = torch.randn(1, 4, 8, 8), torch.full((1, 2), SPACING)
    vessels = line_of_tokens(12)
    fields = condition_fields(vessels, (32, 32, 1), (SPACING, SPACING, 1.0), 4)
    assert fields.shape == (2, 8, 8, 1)
    conditions = Conditions(
        tokens=pad_tokens([vars(vessels)]), fields=torch.from_numpy(fields[..., 0])[None]
    )
    with torch.no_grad():
        out = net(x, torch.rand(1), spacing, conditions)
        assert (out - net(x, torch.rand(1), spacing)).abs().max() > 1e-4


def test_a_vessel_thinner_than_a_cell_shows_in_the_fields():
    """A radius of 0.5 mm in cells of 12 mm; closeness is that of the cells' middles."""
    tokens = line_of_tokens(40)
    at = np.zeros((40, 3), np.float32)
    at[:, 0], at[:, 1] = np.arange(40) - 19.5, 2.0
    tokens = VesselTokens(at, np.full(40, 0.5, np.float32), *list(vars(tokens).values())[2:])
    closeness, radius = condition_fields(tokens, (32, 32, 32), (3.0, 3.0, 3.0), 4)
    assert closeness.shape == (8, 8, 8)
    # cells' middles lie at -6 and +6 mm: 4 and 8 mm from the vessel in y, 6 mm in z
    near, far = np.hypot(4, 6) - 0.5, np.hypot(8, 6) - 0.5
    np.testing.assert_allclose(closeness[4, 4, 4], 1 - near / 36, atol=1e-5)
    np.testing.assert_allclose(closeness[4, 3, 4], 1 - far / 36, atol=1e-5)
    assert (closeness[4, 0, 0], radius[4, 0, 0]) == (0, 0)  # out of reach
    np.testing.assert_allclose(radius[4, 4, 4], 0.5 / 12, atol=1e-5)


VESSELS = [
    "data.token_step_mm=4.0",
    "unet.head_channels=16",
    "unet.vessel_attention=distance",
    "unet.vessel_channels=16",
    "unet.vessel_levels=[0,1]",
    "unet.vessel_fields=true",
]


@pytest.fixture(scope="module")
def trained(workplace, stage_1, tmp_path_factory):
    """last.ckpt of a stage-2 run with vessels, both conditions dropped at random."""
    run_dir = tmp_path_factory.mktemp("vessels")
    options = ["flow.label_dropout=0.2", "flow.vessel_dropout=0.2", "data.batch_size=2"]
    config = ["--config", str(workplace / "s2.yml"), "--run-dir", str(run_dir)]
    main([*config, *VESSELS, *options])
    return run_dir / "checkpoints" / "last.ckpt"


def test_two_ranks_train_like_one_with_twice_the_batch(workplace, stage_1, tmp_path):
    """Each rank pads its own case, and one of the four cases has no vessels at all."""
    shutil.copytree(workplace / "data", tmp_path / "data")
    first = min(find_cases(tmp_path / "data" / "training" / "labels").values())
    label = read_labels(first)
    bare = np.where(label.array == 8, 0, label.array).astype(np.uint8)
    write_volume(first, Volume(bare, label.affine), "uint8")
    options = [*VESSELS, f"data.root={tmp_path / 'data'}", "train.validate_every=2"]
    options += ["flow.label_dropout=0.3", "flow.vessel_dropout=0.3"]
    config = ["--config", str(workplace / "s2.yml"), "--run-dir"]
    main([*config, str(tmp_path / "one"), *options, "data.batch_size=2"])
    train_on_two_ranks(tmp_path, *config, tmp_path / "two", *options)
    single, double = (
        checkpoint_of(tmp_path / run)["phases"]["unet"]["module"] for run in ("one", "two")
    )
    assert_same_state(single, double, tolerance=2e-4)


@pytest.fixture
def pipeline(trained):
    """Zero-initialized layers are nearly zero after eight steps: they get random weights."""
    loaded = Pipeline.load(trained)
    torch.manual_seed(0)
    for name, parameter in loaded.unet.named_parameters():
        if name.startswith(("label_encoder", "field_encoder")) or "vessels.to_out" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return loaded


@pytest.fixture(scope="module")
def labels(workplace):
    return read_labels(next(iter(find_cases(workplace / "data/validation/labels").values())))


def test_batches_hold_tokens_and_the_fields_rendered_from_them(workplace, stage_1):
    from tubesynth.training.inputs import Volumes
    from tubesynth.training.latents import encode_data_set

    config = load_config(workplace / "s2.yml", [*VESSELS, "data.batch_size=2"])
    volumes = Volumes.find(config)
    latents = encode_data_set(config, volumes, require_base_models(config).autoencoder, CPU)
    (batch, *_) = latents.batches(0, 2)
    assert batch["fields"].shape == (2, 2, 8, 8, 6)
    for i in range(2):
        count = int(batch["tokens"]["mask"][i].sum())
        names = ("position_mm", "radius_mm", "tangent", "branch", "root_distance_mm")
        tokens = VesselTokens(*(batch["tokens"][name][i, :count].numpy() for name in names))
        exact = condition_fields(tokens, (32, 32, 24), (5.5, 5.5, 5.5), 4)
        assert np.abs(batch["fields"][i].numpy() - exact).max() < 2e-3  # 16 bits


def test_the_same_seed_gives_the_same_volume_and_vessels_change_it(pipeline, labels):
    first = pipeline.synthesize(labels, seed=3)
    assert np.array_equal(first.array, pipeline.synthesize(labels, seed=3).array)
    tokens = pipeline.trace(labels)
    assert len(tokens) > 0
    # user vessels are rasterized into the label map, which does not change it a second time
    user = pipeline.sample(labels, generator(CPU, 3), vessels=tokens)
    again = pipeline.sample(user.labels, generator(CPU, 3), vessels=tokens)
    assert np.array_equal(user.volume.array, again.volume.array)
    assert (user.labels.array == 8).any()
    none = VesselTokens.from_array(np.zeros((0, 9)))
    without = pipeline.synthesize(labels, seed=3, vessels=none)
    assert not np.array_equal(first.array, without.array)


def test_a_model_without_vessel_condition_gets_user_vessels_in_its_label_map(stage_2, labels):
    sample = Pipeline.load(stage_2).sample(labels, generator(CPU, 3), vessels=line_of_tokens(40))
    user, traced = sample.labels.array == 8, labels.array == 8
    assert user.any() and not (user & traced).all() and user.sum() < traced.sum()


def test_user_centrelines_replace_the_vessels_of_the_label_map(trained, workplace, tmp_path):
    """The command synthesizes a case again if its centreline file has changed."""
    validation = workplace / "data" / "validation"
    centrelines = tmp_path / "centrelines"
    shutil.copytree(validation / "centrelines", centrelines)
    out = tmp_path / "out"
    common = ["--model", str(trained), "--input-dir", str(validation / "labels")]
    command = [*common, "--output-dir", str(out), "--solver", "euler", "--steps", "1"]
    with_centrelines = [*command, "--centrelines", str(centrelines)]

    def rewritten() -> set[str]:
        """Names of the CTs written since the last call, which sets all times of writing to 0."""
        paths = [path for path in out.glob("*.img.nii.gz") if path.stat().st_mtime_ns]
        for path in paths:
            os.utime(path, (0, 0))
        return {path.name for path in paths}

    synthesize.main(command)
    traced = rewritten()
    synthesize.main(with_centrelines)
    assert rewritten() == traced and traced
    edited = min(centrelines.iterdir())
    tree = json.loads(edited.read_text(encoding="utf-8"))
    for branch in tree["branches"]:
        branch["points"] = [[x, y + 20, z, 6 * r] for x, y, z, r in branch["points"]]
    edited.write_text(json.dumps(tree), encoding="utf-8")
    synthesize.main(with_centrelines)
    again = rewritten()
    user_map = read_labels(min((out / "labels").iterdir())).array == 8
    traced_map = read_labels(min((validation / "labels").iterdir())).array == 8
    assert user_map.sum() > 1.3 * traced_map.sum()  # vessels are six times as wide
    assert (user_map & traced_map).sum() < 0.3 * traced_map.sum()  # and 20 mm away
    case = edited.name.removesuffix(".centreline.json")
    assert again == {f"{case}_s0.img.nii.gz"}
    edited.unlink()
    with pytest.raises(InputError, match=f"no centreline of case {case}: add it"):
        synthesize.main(with_centrelines)
    with pytest.raises(InputError, match="--unconditional and --centrelines: give only one source"):
        alone = ["--model", str(trained), "--output-dir", str(out), "--unconditional"]
        synthesize.main([*alone, "--centrelines", str(centrelines)])


def test_a_label_map_without_vessels_is_synthesized(pipeline, labels):
    bare = Volume(np.where(labels.array == 8, 0, labels.array).astype(np.uint8), labels.affine)
    assert pipeline.synthesize(bare, seed=3).array.std() > 0


def test_guided_samples_follow_the_formula(pipeline, labels):
    """One Euler step from one noise: latents are linear in the velocity."""
    seen = {}

    def latents(w_l, w_v, **changes):
        def keep(latents, **_):
            seen["latents"] = latents
            return torch.zeros(1, 1, *(4 * n for n in latents.shape[2:]))

        pipeline.autoencoder.decode = keep
        euler = SamplingConfig(solver="euler", steps=1)
        pipeline.synthesize(
            labels,
            seed=3,
            guidance_label=w_l,
            guidance_vessel=w_v,
            sampling=replace(euler, **changes),
        )
        return seen["latents"]

    both, label, none = latents(1, 1), latents(1, 0), latents(0, 0)
    assert (both - label).abs().max() > 1e-3 and (label - none).abs().max() > 1e-3
    for w_l, w_v in ((2.0, 3.0), (3.0, 3.0), (1.0, 2.5), (0.0, 1.0)):
        expected = none + w_l * (label - none) + w_v * (both - label)
        torch.testing.assert_close(latents(w_l, w_v), expected, atol=1e-3, rtol=1e-3)
    later = latents(2.0, 3.0, guidance_interval=[0.5, 1.0])  # the only step is at 0
    torch.testing.assert_close(later, both, atol=1e-5, rtol=1e-5)
    for weights in ((2.0, 0.0), (0.0, 1.0), (0.0, 0.0)):
        later = latents(*weights, guidance_interval=[0.5, 1.0])
        torch.testing.assert_close(later, both, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_vessels_hidden_from_the_label_map_act_by_tokens_and_fields_alone():
    x, t, spacing, full = case_inputs()
    net = vessel_unet(hidden_class=2)
    bare = with_changes(full, labels=full.labels.masked_fill(full.labels == 2, 0))
    out = net(x, t, spacing, full)
    assert torch.equal(out, net(x, t, spacing, bare))
    assert not torch.allclose(out, net(x, t, spacing, with_changes(full, tokens=None)), atol=1e-4)
    assert not torch.allclose(out, net(x, t, spacing, with_changes(full, fields=None)), atol=1e-4)
    other = with_changes(full, labels=full.labels.masked_fill(full.labels == 1, 0))
    assert not torch.allclose(out, net(x, t, spacing, other), atol=1e-4)
    seeing = vessel_unet()
    assert not torch.equal(seeing(x, t, spacing, full), seeing(x, t, spacing, bare))
    path = REPOSITORY / "configs" / "demo" / "stage_2_crossattn.yml"
    for key, hidden in (("true", None), ("false", 8)):
        config = load_config(path, [f"unet.label_map_vessels={key}"])
        assert build_unet(config, 4, 4).hidden_class == hidden


WAYS = {
    "heun": (SamplingConfig(solver="heun", steps=3), 1e-4),
    # Its step sizes follow rounding, so results are equal to its tolerance only.
    "dopri5": (SamplingConfig(solver="dopri5", rtol=1e-3, atol=1e-5), 1e-2),
    "interval": (SamplingConfig(solver="dopri5", guidance_interval=[0.2, 0.7]), 1e-1),
}


@pytest.mark.parametrize("way", WAYS)
def test_cases_with_unequal_tokens_are_sampled_together_as_one_by_one(pipeline, labels, way):
    half, none = labels.array.copy(), labels.array.copy()
    half[:16][half[:16] == 8], none[none == 8] = 0, 0
    maps = [labels, *(Volume(array, labels.affine) for array in (half, none))]
    counts = [len(pipeline.trace(each)) for each in maps]
    assert counts[0] > counts[1] > counts[2] == 0
    sampling, tolerance = WAYS[way]
    options = SampleOptions(guidance_label=2.0, guidance_vessel=3.0, sampling=sampling)
    states: dict[int, list[float]] = {}

    together = pipeline.sample_batch(
        [SampleRequest(each, generator(CPU, 3, i)) for i, each in enumerate(maps)],
        options,
        callback=lambda index, t, volume: states.setdefault(index, []).append(t),
    )
    alone = [pipeline.sample(each, generator(CPU, 3, i), options) for i, each in enumerate(maps)]
    assert together[0].evaluations == max(sample.evaluations for sample in alone)
    for i, (sample, single) in enumerate(zip(together, alone, strict=True)):
        torch.testing.assert_close(sample.latents, single.latents, atol=tolerance, rtol=0)
        assert np.abs(sample.volume.array - single.volume.array.astype(int)).max() <= 2
        assert np.array_equal(sample.labels.array, single.labels.array)
        assert states[i][-1] == 1.0 and sorted(set(states[i])) == states[i]
    spread = torch.cat([sample.latents for sample in together])
    assert (spread[1:] - spread[:1]).abs().max() > 1


def test_samples_with_different_conditions_are_not_sampled_together(pipeline, labels):
    requests = [SampleRequest(label_map, generator(CPU, 3)) for label_map in (labels, None)]
    with pytest.raises(InputError, match="a batch of 2 samples"):
        pipeline.sample_batch(requests)
    blank = [SampleRequest(None, generator(CPU, i)) for i in (3, 4)]
    mixed = [SampleRequest(None, generator(CPU, 3), line_of_tokens(5)), blank[0]]
    with pytest.raises(InputError, match="a batch of 2 samples"):
        pipeline.sample_batch(mixed)
    both = pipeline.sample_batch(blank, SampleOptions(steps=1, solver="euler"))
    assert not np.array_equal(both[0].volume.array, both[1].volume.array)


def test_latents_and_images_that_are_not_finite_are_refused(trained, labels):
    broken = Pipeline.load(trained)
    hu = np.random.default_rng(0).integers(-1000, 1000, labels.shape, np.int16)
    noise = Volume(hu, labels.affine)
    with torch.no_grad():
        broken.unet.conv_out.bias[0] = float("nan")
    with pytest.raises(InputError, match="the generator of this model"):
        broken.synthesize(labels)
    with torch.no_grad():
        next(broken.autoencoder.encoder.parameters()).fill_(float("nan"))
    with pytest.raises(InputError, match="the encoder of this model"):
        broken.reconstruct(noise)
    with torch.no_grad():
        broken = Pipeline.load(trained)
        broken.autoencoder.last_layer.bias.fill_(float("nan"))
    for make in (lambda: broken.reconstruct(noise), lambda: broken.synthesize(labels, steps=1)):
        with pytest.raises(InputError, match="the decoder of this model"):
            make()


def test_another_size_than_trained_is_sampled(pipeline, labels):
    sample = pipeline.synthesize(labels, seed=3, resolution=(40, 24, 28), spacing=(5.0, 6.0, 5.5))
    assert sample.shape == (40, 24, 28) and sample.array.std() > 0


def test_the_command_takes_both_weights(trained, workplace, tmp_path):
    folder = workplace / "data" / "validation" / "labels"
    options = ["--model", str(trained), "--input-dir", str(folder), "--output-dir", str(tmp_path)]
    synthesize.main([*options, "--guidance-label", "2", "--guidance-vessel", "3", "--steps", "1"])
    assert len(list(tmp_path.glob("*.img.nii.gz"))) == 2
    for path in tmp_path.glob("*.img.nii.gz"):
        assert read_volume(path).shape == (32, 32, 24)


def test_guidance_terms_that_were_not_trained_are_refused(pipeline, labels, stage_2):
    config = pipeline.config
    flow = replace(config.flow, vessel_dropout=0.0)
    pipeline.config = replace(config, flow=flow)
    assert pipeline.synthesize(labels, steps=1).shape == (32, 32, 24)
    for options in (dict(guidance_vessel=2.0), dict(guidance_label=2.0)):
        with pytest.raises(InputError, match="flow.vessel_dropout"):
            pipeline.synthesize(labels, **options)
    pipeline.config = replace(config, flow=replace(flow, label_dropout=0.0))
    with pytest.raises(InputError, match="flow.label_dropout"):
        pipeline.synthesize(None)
    with pytest.raises(InputError, match="its only condition is a label map"):
        Pipeline.load(stage_2).synthesize(None, vessels=line_of_tokens(5))
    with pytest.raises(InputError, match="leave guidance_vessel at 1"):
        Pipeline.load(stage_2).synthesize(labels, guidance_vessel=2.0)
    with pytest.raises(InputError, match="guidance_label is 2, but the sample has no label map"):
        Pipeline.load(stage_2).synthesize(None, guidance_label=2.0)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("data.token_step_mm=null", "data.token_step_mm"),
        ("unet.vessel_levels=[3]", "unet.vessel_levels: level 3"),
        ("unet.head_channels=8", "14 channels"),
        ("flow.vessel_dropout=1.5", "flow.vessel_dropout"),
        ("sampling.guidance_interval=[0.6,0.2]", "sampling.guidance_interval"),
        ("unet.vessel_attention=near", "unet.vessel_attention"),
    ],
)
def test_wrong_values_are_named(workplace, change, named):
    others = [override for override in VESSELS if override.split("=")[0] != change.split("=")[0]]
    with pytest.raises(InputError, match=named.replace("[", r"\[")):
        load_config(workplace / "s2.yml", [*others, change])


@pytest.mark.parametrize("name", ["stage_2_3d_f4_lfm_crossattn.yml", "demo/stage_2_crossattn.yml"])
def test_the_configs_with_vessels_can_be_planned(name, capsys):
    main(["--config", str(REPOSITORY / "configs" / name), "--dry-run"])
    assert "vessel_attention: distance" in capsys.readouterr().out
