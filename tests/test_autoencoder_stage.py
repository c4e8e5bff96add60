"""Stage 1 with every switch on: trained, resumed bit for bit, weighted, reconstructed, refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import make_vqvae, randomize_zeros
from ranks import on_two_ranks, train_on_two_ranks
from runs import lines
from test_perceptual import CONVOLUTIONS, WIDTHS
from test_train import assert_same_state, checkpoint_of

from tubesynth import export, reconstruct, synthesize, train
from tubesynth.build.checkpoint import Checkpoint, Position
from tubesynth.config.loading import load_config
from tubesynth.models.decoder_condition import DecoderCondition, space_to_depth
from tubesynth.pipeline import Pipeline
from tubesynth.runtime import log
from tubesynth.runtime.errors import InputError
from tubesynth.training.autoencoder import AutoencoderStage
from tubesynth.training.inputs import Volumes
from tubesynth.volume.cases import find_cases
from tubesynth.volume.digest import file_digest
from tubesynth.volume.files import read_labels, read_volume, write_volume
from tubesynth.volume.grid import Volume

CPU = torch.device("cpu")
SWITCHES = [
    "data.crop=[32,32,24]",
    "losses.l2=0.5",
    "losses.vessel_weight=10",
    "losses.adversarial=0.1",
    "losses.adversarial_objective=hinge",
    "losses.adversarial_weighting=adaptive",
    "losses.feature_matching=0.1",
    "autoencoder.decoder_condition=labels",
    "data.token_step_mm=5.5",
]


def changed(overrides: list[str], *changes: str) -> list[str]:
    """The overrides, each replaced by a change of the same key; a command takes a key once."""
    items = {item.split("=")[0]: item for item in (*overrides, *changes)}
    return list(items.values())


@pytest.fixture(scope="module")
def lpips(tmp_path_factory) -> list[str]:
    """The switch for LPIPS with random weights of the published layout in one file."""
    torch.manual_seed(0)
    kernels = ((11, 3), (5, 64), (3, 192), (3, 384), (3, 256))
    state = {f"lin{i}.model.1.weight": torch.rand(1, c, 1, 1) for i, c in enumerate(WIDTHS)}
    for index, width, (kernel, inputs) in zip(CONVOLUTIONS, WIDTHS, kernels, strict=True):
        weight = torch.randn(width, inputs, kernel, kernel) / (inputs * kernel**2) ** 0.5
        state |= {f"features.{index}.weight": weight, f"features.{index}.bias": torch.zeros(width)}
    path = tmp_path_factory.mktemp("weights") / "lpips.pth"
    torch.save(state, path)
    sizes = ["data.resolution=[32,32,32]", "data.crop=[32,32,32]"]
    weights = ["losses.perceptual=0.01", f"losses.perceptual_files=[{path}]"]
    return [*sizes, *weights, "losses.perceptual_slices=2"]


@pytest.fixture(scope="module")
def all_on(workplace, lpips, tmp_path_factory) -> Path:
    """A run of two epochs with every switch on and checkpointing."""
    run_dir = tmp_path_factory.mktemp("all_on")
    train.main(arguments(workplace, run_dir, *lpips))
    return run_dir


def arguments(workplace, run_dir, *more) -> list[str]:
    options = changed(SWITCHES, "train.checkpointing=true", *more)
    return ["--config", str(workplace / "s1.yml"), "--run-dir", str(run_dir), *options]


def test_every_term_is_trained_and_the_vessels_are_scored(all_on):
    rows, validation = lines(all_on, "training"), lines(all_on, "validation")
    terms = {"l1", "l2", "spectral", "commitment", "perceptual", "feature_matching", "generator"}
    assert terms <= rows[-1].keys() and all(np.isfinite(rows[-1][term]) for term in terms)
    assert validation[-1]["loss"] < validation[0]["loss"]
    first, last = validation[0], validation[-1]
    assert last["vessel_mae_hu"] < first["vessel_mae_hu"]
    assert last["vessel_psnr"] > first["vessel_psnr"]
    assert {"vessel_psnr_lt1.5mm", "vessel_psnr_1.5to3mm", "vessel_psnr_gt3mm"} <= last.keys()


def test_without_the_files_of_its_perceptual_loss_a_run_leaves_it_out(workplace):
    assert make_stage(workplace, "losses.perceptual=0.001").perceptual is None


def test_a_resumed_run_with_every_switch_on_is_the_uninterrupted_one(
    all_on, workplace, lpips, tmp_path
):
    half = all_on / "checkpoints" / "epoch_00001.ckpt"
    train.main(arguments(workplace, tmp_path, *lpips, "--resume", str(half)))
    finished = checkpoint_of(tmp_path)
    finished["position"]["started_from"] = None
    assert_same_state(checkpoint_of(all_on), finished)


def test_the_adaptive_weight_is_the_ratio_of_two_separate_gradients(workplace):
    """The gradients come from two backward passes through the whole model."""
    stage = make_stage(workplace, "losses.adversarial_weighting=adaptive", "losses.adversarial=0.3")
    batch = next(stage.batches(0, 4))
    last = stage.autoencoder.last_layer.weight
    stage.autoencoder.eval()  # the codebook does not change between the passes

    def gradient(loss) -> torch.Tensor:
        image = batch["image"]
        reconstruction = stage.autoencoder(image)[0]
        stage.autoencoder.zero_grad()
        loss(reconstruction, image).backward()
        return last.grad.clone()

    def generator(reconstruction, image):
        return (stage.discriminator(reconstruction) - 1).square().mean()

    def others(reconstruction, image):
        spectra = [
            torch.fft.fftn(x, dim=(2, 3, 4), norm="ortho").abs() for x in (reconstruction, image)
        ]
        return (reconstruction - image).abs().mean() + (spectra[0] - spectra[1]).square().mean()

    with torch.no_grad():
        value = generator(stage.autoencoder(batch["image"])[0], None)
    expected = 0.3 * value * gradient(others).norm() / (gradient(generator).norm() + 1e-6)
    loss = stage.generator_loss(stage.autoencoder, batch)["generator"]
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-4, atol=1e-7)


def make_stage(workplace, *overrides) -> AutoencoderStage:
    config = load_config(workplace / "s1.yml", list(overrides))
    volumes = Volumes.find(config)
    torch.manual_seed(0)
    return AutoencoderStage(config, volumes, Position(), torch.device("cpu"))


def adaptive_step(workplace, batch_size: int) -> dict[str, torch.Tensor]:
    """The adaptive weight and the gradient of this rank for sample indices 0 and 1."""
    changes = "losses.adversarial_objective=lsgan", f"data.batch_size={batch_size}"
    stage = make_stage(workplace, *changed(SWITCHES, *changes))
    quantizer = stage.autoencoder.quantizer.eval()  # rank 0 alone would start the codes
    quantizer.codebook.normal_()
    batch = next(stage.batches(0, 2))
    terms = stage.generator_loss(stage.phases[0].forward, batch)
    sum(terms.values()).backward()
    with torch.no_grad():
        unweighted = (stage.discriminator(batch["reconstruction"]) - 1).square().mean()
    gradients = [p.grad.flatten() for p in stage.autoencoder.parameters()]
    weight = terms["generator"].detach() / (0.1 * unweighted)
    return {"weight": weight, "gradient": torch.cat(gradients)}


def _adaptive_rank(rank: int, workplace: Path) -> dict:
    return adaptive_step(workplace, 1)


def test_two_ranks_have_the_adaptive_weight_of_one_rank_with_twice_the_batch(workplace, tmp_path):
    single_rank = adaptive_step(workplace, 2)
    ranks = on_two_ranks(tmp_path, _adaptive_rank, workplace)
    torch.testing.assert_close(ranks[0]["weight"], ranks[1]["weight"], rtol=1e-6, atol=0)
    torch.testing.assert_close(ranks[0]["weight"], single_rank["weight"], rtol=1e-4, atol=0)
    difference = ranks[0]["gradient"] - single_rank["gradient"]
    assert difference.norm() < 1e-4 * single_rank["gradient"].norm()


def test_voxels_near_the_mask_have_the_vessel_weight(workplace):
    """At 5.5 mm a voxel the margin is one voxel: the six neighbors."""
    from scipy.ndimage import binary_dilation

    stage = make_stage(workplace, "losses.vessel_weight=5", "data.crop=null", "losses.spectral=0")
    batch = next(stage.batches(0, 1))
    reconstruction = torch.rand(batch["image"].shape)
    error = (reconstruction - batch["image"]).abs()[0, 0].numpy()
    near = binary_dilation(batch["label"][0].numpy() == 8)
    assert 0 < near.mean() < 0.2
    weight = np.where(near, 5.0, 1.0)
    weighted_l1 = stage.reconstruction_terms(reconstruction, batch)["l1"].item()
    assert weighted_l1 == pytest.approx(np.average(error, weights=weight), rel=1e-5)


def test_a_collapsed_codebook_is_reported_once_with_a_remedy(workplace, capsys):
    """A layer of dead units encodes every cell alike, so revived codes are copies of one vector."""
    log.set_up()
    stage = make_stage(workplace, "autoencoder.revive_after=2", "data.batch_size=4")

    def messages(step: int, steps: int = 5) -> str:
        stage.position.step = step
        for batch in stage.batches(0, 4 * steps):
            with torch.no_grad():
                stage.generator_loss(stage.autoencoder, batch)
        stage.phases[0].statistics()
        return capsys.readouterr().err

    assert messages(500) == ""
    stage.autoencoder.encoder.blocks[-3][0].bias.data.fill_(-100.0)  # in front of a ReLU
    assert messages(50) == ""  # too early to judge
    line = messages(500)
    assert "step 500: the codebook has collapsed" in line and "train.learning_rate" in line
    assert messages(510) == ""


@pytest.mark.parametrize("dim", [2, 3])
def test_the_voxels_of_a_cell_become_channels(dim):
    image = torch.rand(2, 3, *(8, 12, 4)[:dim])
    cells = space_to_depth(image, 4)
    assert cells.shape == (2, 3 * 4**dim, *(2, 3, 1)[:dim])
    if dim == 2:
        for channel in range(48):
            feature, voxel = divmod(channel, 16)
            x, y = divmod(voxel, 4)
            assert torch.equal(cells[:, channel], image[:, feature, x::4, y::4])
    else:
        voxel = 64 * 2 + 16 * 3 + 4 * 1 + 2
        assert torch.equal(cells[:, voxel], image[:, 2, 3::4, 1::4, 2::4])


def conditioned_decoder(dim: int, decoder_condition: str, contrast_pool: bool = False):
    """An autoencoder whose condition has an effect, latents, and the anatomy of two images."""
    torch.manual_seed(0)
    sizes = dict(channels=(4, 8), residual_channels=(4, 8), num_residual_layers=1, codebook_size=16)
    condition = dict(decoder_condition=decoder_condition, contrast_pool=contrast_pool)
    net = make_vqvae(dim, **sizes, **condition).eval()
    latents = torch.randn(2, 8, *(6, 5, 7)[:dim])
    shape = [4 * n for n in latents.shape[2:]]
    fields, labels = torch.rand(2, 2, *shape), torch.randint(0, 9, (2, *shape), dtype=torch.uint8)
    return net, latents, DecoderCondition(fields, labels)


@pytest.mark.parametrize("contrast_pool", [False, True])
@pytest.mark.parametrize("decoder_condition", ["vessels", "labels"])
@pytest.mark.parametrize("dim", [2, 3])
def test_a_decoder_ignores_its_condition_at_initialization_and_decodes_tiles_as_the_whole(
    dim, decoder_condition, contrast_pool
):
    net, latents, condition = conditioned_decoder(dim, decoder_condition, contrast_pool)
    assert torch.equal(net.decode(latents, condition=condition), net.decode(latents))
    randomize_zeros(net.decoder, 0.1)
    whole = net.decode(latents, condition=condition)
    assert not torch.allclose(whole, net.decode(latents), atol=1e-3)
    tiled = net.decode(latents, tile=8, condition=condition)
    torch.testing.assert_close(tiled, whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("contrast_pool", [False, True])
def test_a_pooled_contrast_comes_from_cells_beyond_the_receptive_field(contrast_pool):
    net, latents, condition = conditioned_decoder(2, "vessels", contrast_pool)
    randomize_zeros(net.decoder, 0.1)
    latents = torch.randn(2, 8, 6 + net.decoder_halo, 5)
    fields = torch.rand(2, 2, *(4 * n for n in latents.shape[2:]))
    condition, far = DecoderCondition(fields), latents.clone()
    far[0, :, -1] += 1
    options = dict(quantize=False, condition=condition)
    results = (net.decode(each, **options)[:, :, :20] for each in (latents, far))
    difference = torch.subtract(*results).abs().amax((1, 2, 3))
    assert (difference[0] > 1e-4) == contrast_pool and difference[1] < 1e-6


@pytest.mark.parametrize("contrast_pool", [False, True])
def test_a_dropped_condition_equals_an_absent_one_row_by_row(contrast_pool):
    net, latents, condition = conditioned_decoder(3, "labels", contrast_pool)
    randomize_zeros(net.decoder, 0.1)
    keep = torch.tensor([1.0, 0.0])
    both = net.decode(latents, condition=condition)
    for dropped, absent in (
        (replace(condition, keep_fields=keep), replace(condition, fields=None)),
        (replace(condition, keep_labels=keep), replace(condition, labels=None)),
        (replace(condition, keep_fields=keep, keep_labels=keep), None),
    ):
        result, without = (net.decode(latents, condition=c) for c in (dropped, absent))
        torch.testing.assert_close(result[0], both[0])
        torch.testing.assert_close(result[1], without[1])
        assert not torch.allclose(result[1], both[1], atol=1e-3)


def test_latents_and_unconditioned_decoders_do_not_depend_on_the_anatomy():
    net, latents, condition = conditioned_decoder(3, "none")
    randomize_zeros(net.decoder, 0.1)
    assert torch.equal(net.decode(latents, condition=condition), net.decode(latents))
    vessels, _, _ = conditioned_decoder(3, "vessels")
    randomize_zeros(vessels.decoder, 0.1)
    other_labels = replace(condition, labels=condition.labels.flip(1))
    results = [vessels.decode(latents, condition=c) for c in (condition, other_labels)]
    assert torch.equal(*results)


def test_training_drops_fields_and_labels_independently_by_sample_index(workplace):
    dropout = "autoencoder.condition_dropout=0.3"
    stage = make_stage(workplace, *SWITCHES, dropout)
    keep = stage._keep_condition(list(range(400)))
    assert torch.equal(keep[7:9], stage._keep_condition([7, 8]))
    assert keep.mean(0).tolist() == pytest.approx([0.7, 0.7], abs=0.07)
    assert (keep[:, 0] * keep[:, 1]).mean().item() == pytest.approx(0.49, abs=0.07)


def test_the_condition_of_a_reconstruction_is_that_of_training(workplace):
    """The fields and labels that the decoder gets in a validation step and in Pipeline."""
    stage = make_stage(workplace, *SWITCHES)
    batch = stage.volumes.validation_batch(0, CPU)
    case = stage.volumes.validation[0]
    pipeline = Pipeline(stage.config, stage.autoencoder, None, None, "", CPU)
    labels, image = read_labels(case.label), read_volume(case.image)
    condition = pipeline.codec.place(image, labels, None, None).condition
    torch.testing.assert_close(condition.fields, batch["image_fields"])
    assert torch.equal(condition.labels, batch["label"])
    assert (batch["image_fields"][:, 0] > 1).any()  # inside of a vessel


def test_a_conditioned_decoder_reconstructs_with_and_without_label_maps(
    all_on, workplace, tmp_path
):
    validation = workplace / "data" / "validation"
    model = all_on / "checkpoints" / "last.ckpt"
    common = ["--model", str(model), "--input-dir", str(validation / "images")]
    reconstruct.main([*common, "--output-dir", str(tmp_path / "without")])
    common += ["--output-dir", str(tmp_path / "out")]
    (tmp_path / "few").mkdir()
    labels = find_cases(validation / "labels")
    name, path = next(iter(labels.items()))
    (tmp_path / "few" / path.name).write_bytes(path.read_bytes())
    with pytest.raises(InputError, match="no label map of case"):
        reconstruct.main([*common, "--labels", str(tmp_path / "few")])
    reconstruct.main([*common, "--labels", str(validation / "labels")])
    assert len(find_cases(tmp_path / "out")) == len(labels)
    # the same as through the Python API, with the tiles that do not change it
    pipeline = Pipeline.load(model, tile=8)
    image = read_volume(find_cases(validation / "images")[name])
    reconstruction = pipeline.reconstruct(image, labels=read_labels(path))
    written = read_volume(find_cases(tmp_path / "out")[name])
    assert np.abs(reconstruction.array.astype(int) - written.array).max() <= 1
    without = read_volume(find_cases(tmp_path / "without")[name])
    assert not np.array_equal(without.array, written.array)
    record = json.loads((tmp_path / "out" / f"{name}.json").read_text(encoding="utf-8"))
    assert record["settings"]["label_sha256"] == file_digest(path)
    # a label map of another scheme, through its translation
    label = read_labels(path)
    write_volume(tmp_path / "tens" / path.name, Volume(10 * label.array, label.affine), "uint8")
    (tmp_path / "one").mkdir()
    image_path = find_cases(validation / "images")[name]
    (tmp_path / "one" / image_path.name).write_bytes(image_path.read_bytes())
    options = ["--model", str(model), "--input-dir", str(tmp_path / "one")]
    options += ["--output-dir", str(tmp_path / "tens_out"), "--labels", str(tmp_path / "tens")]
    reconstruct.main([*options, "--label-map", *(f"{10 * k}={k}" for k in range(1, 9))])
    translated = read_volume(tmp_path / "tens_out" / f"{name}.img.nii.gz")
    assert np.array_equal(translated.array, written.array)


def test_a_label_map_that_does_not_fit_its_ct_is_named_or_refused(
    all_on, workplace, tmp_path, capsys
):
    validation = workplace / "data" / "validation"
    name, path = next(iter(find_cases(validation / "labels").items()))
    image, label = find_cases(validation / "images")[name], read_labels(path)

    def remarks(folder: str, array: np.ndarray, affine: np.ndarray = label.affine) -> str:
        write_volume(tmp_path / folder / path.name, Volume(array, affine), "uint8")
        options = ["--input-dir", str(tmp_path / "in"), "--output-dir", str(tmp_path / "out")]
        model = str(all_on / "checkpoints" / "last.ckpt")
        reconstruct.main([*options, "--model", model, "--labels", str(tmp_path / folder)])
        return capsys.readouterr().err

    bright = read_volume(image)
    lit = np.where(label.array == 8, 500, bright.array).astype(np.int16)  # also thin vessels
    write_volume(tmp_path / "in" / image.name, Volume(lit, bright.affine), "int16")
    assert "HU around them" not in remarks("own", label.array)
    odd = ["--input-dir", tmp_path / "in", "--output-dir", tmp_path / "odd", "--labels"]
    odd += [tmp_path / "own", "--resolution", 30, 29, 22]  # padded, then cut
    model = all_on / "checkpoints" / "last.ckpt"
    reconstruct.main([str(item) for item in (*odd, "--model", model)])
    assert read_volume(tmp_path / "odd" / f"{name}.img.nii.gz").shape == (30, 29, 22)
    capsys.readouterr()
    assert "no class 8 (coronary arteries) in the label map" in remarks("none", 0 * label.array)
    air = np.where(label.array == 8, 0, label.array)
    air[:2, :2, 2:8] = 8
    assert "or the label map of another image" in remarks("elsewhere", air)
    record = json.loads((tmp_path / "out" / f"{name}.json").read_text(encoding="utf-8"))
    assert "or the label map of another image" in record["unlike_training"][0]
    with pytest.raises(InputError, match="resample the label map onto the image's grid"):
        remarks("moved", label.array, label.affine + 5 * np.eye(4, k=3))
    with pytest.raises(InputError, match=rf"{path.name}: label values 10.*with --label-map"):
        remarks("tens", 10 * label.array)


def test_a_frozen_encoder_keeps_latents_and_codes_and_its_decoder_moves_into_stage_2(
    all_on, stage_1, stage_2, workplace, tmp_path
):
    start, early = stage_1, stage_1.with_name("epoch_00001.ckpt")
    options = ["--config", str(workplace / "s1.yml"), "train.frozen_encoder=true", "train.epochs=1"]
    with pytest.raises(InputError, match="frozen_encoder: needs a trained encoder: give --resume"):
        train.main([*options, "--run-dir", str(tmp_path / "new")])
    options += ["--resume", str(start), "--run-dir", str(tmp_path / "run")]
    with pytest.raises(InputError, match="frozen_encoder: True, .* add optimizers to train.rest"):
        train.main([*options, "train.restart=[epochs]"])
    train.main([*options, "train.restart=[epochs, optimizers]"])
    trained = tmp_path / "run" / "checkpoints" / "last.ckpt"
    before, after = (Checkpoint.load(path).weights() for path in (start, trained))
    changed_names = {name.split(".")[0] for name in before if not before[name].equal(after[name])}
    assert changed_names == {"decoder"}
    out = tmp_path / "moved.safetensors"
    export.main([str(stage_2), "--autoencoder", str(trained), "--output", str(out)])
    moved, base = Checkpoint.load(out), Checkpoint.load(stage_2)
    assert all(weight.equal(moved.weights()[name]) for name, weight in base.weights().items())
    assert all(w.equal(moved.autoencoder.module[name]) for name, w in after.items())
    label = read_labels(next(iter(find_cases(workplace / "data/validation/labels").values())))
    pipelines = [Pipeline.load(path) for path in (stage_2, out)]
    results = [pipeline.synthesize(label, seed=1) for pipeline in pipelines]
    assert not np.array_equal(*(result.array for result in results))
    assert pipelines[0].digest != pipelines[1].digest  # or its volumes would be finished ones
    conditioned = all_on / "checkpoints" / "last.ckpt"
    for other, reason in ((conditioned, "data.token_step_mm 5.5"), (early, "has another encoder")):
        with pytest.raises(InputError, match=reason):
            export.main([str(stage_2), "--autoencoder", str(other), "--output", str(out)])
    with pytest.raises(InputError, match="has no latents"):
        export.main([str(start), "--autoencoder", str(trained), "--output", str(out)])


def test_labels_for_a_model_that_takes_none_are_refused(stage_1, workplace, tmp_path):
    validation = workplace / "data" / "validation"
    options = ["--input-dir", str(validation / "images"), "--labels", str(validation / "labels")]
    with pytest.raises(InputError, match="--labels: the decoder of .* is not conditioned"):
        reconstruct.main(["--model", str(stage_1), "--output-dir", str(tmp_path), *options])


def test_stage_2_on_a_conditioned_decoder_trains_and_synthesizes(all_on, workplace, tmp_path):
    last = all_on / "checkpoints" / "last.ckpt"
    options = [f"latents.autoencoder={last}", "data.resolution=[32,32,32]", "train.epochs=1"]
    run_dir = tmp_path / "s2"
    options += ["train.panel_every=1"]
    command = ["--config", str(workplace / "s2.yml"), "--run-dir", str(run_dir), *options]
    with pytest.raises(InputError, match="data.token_step_mm 5.5, this config has None"):
        train.main(command)
    train.main([*command, "data.token_step_mm=5.5"])
    model, out = run_dir / "checkpoints" / "last.ckpt", tmp_path / "out"
    labels = workplace / "data" / "validation" / "labels"
    common = ["--model", str(model), "--output-dir", str(out)]
    synthesize.main([*common, "--input-dir", str(labels), "--steps", "1"])
    assert len(find_cases(out)) == 2


def test_two_ranks_train_with_every_switch_and_one_validation_case(workplace, tmp_path):
    """With DDP and gradient checkpointing; one of the ranks has no validation case."""
    shutil.copytree(workplace / "data", tmp_path / "data")
    for kind in ("images", "labels"):
        _, path = sorted(find_cases(tmp_path / "data" / "validation" / kind).items())[0]
        path.unlink()
    options = [f"data.root={tmp_path / 'data'}", "train.epochs=1"]
    run_dir = tmp_path / "run"
    train_on_two_ranks(tmp_path, *arguments(workplace, run_dir, *options))
    assert np.isfinite(lines(run_dir, "training")[-1]["generator"])
    validation = lines(run_dir, "validation")
    assert validation[-1]["loss"] < validation[0]["loss"]


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_every_switch_works_in_mixed_precision(precision, workplace, lpips, tmp_path):
    train.main(
        [*arguments(workplace, tmp_path, *lpips, "train.epochs=1"), "--precision", precision]
    )
    validation = lines(tmp_path, "validation")
    assert validation[-1]["loss"] < validation[0]["loss"]
    assert lines(tmp_path, "training")[-1]["generator"] != 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["losses.l1=0"], "losses.l1: 0, and so is losses.l2"),
        (["losses.feature_matching=1", "losses.adversarial=0"], "set losses.adversarial above 0"),
        (
            ["losses.perceptual=1", "losses.perceptual_files=[a]"],
            "data.crop or data.resolution has 16",
        ),
        (["losses.vessel_weight=0"], "losses.vessel_weight: 0.0: must be above 0"),
        (
            ["losses.adversarial_weighting=adaptive", "train.compile=true"],
            "losses.adversarial_weighting: adaptive .* train.compile=false",
        ),
        (["losses.spectral=-1"], "losses.spectral: -1.0: must be at least 0"),
        (["losses.adversarial_objective=wgan"], "losses.adversarial_objective"),
    ],
)
def test_contradicting_losses_are_refused_by_name(workplace, overrides, message):
    with pytest.raises(InputError, match=message) as caught:
        load_config(workplace / "s1.yml", overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("condition", ["none", "vessels"])
def test_vessels_are_traced_and_rendered_where_the_decoder_needs_them(condition, workplace):
    overrides = ["data.token_step_mm=2.0", f"autoencoder.decoder_condition={condition}"]
    volumes = Volumes.find(load_config(workplace / "s1.yml", overrides))
    sample = volumes.dataset(volumes.training).sample(0)
    needed = condition == "vessels"
    assert ("tokens" in sample) == ("image_fields" in sample) == needed
