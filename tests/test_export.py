"""Files of tubesynth export: the same voxels as their checkpoints, refused if damaged, by name."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from networks import randomize_zeros
from refusals import refused_command
from runs import lines, run
from test_release_0_1_0 import SCORES

from tubesynth import export, reconstruct, segment, synthesize, train
from tubesynth.build.checkpoint import MAIN_PHASES, Best, Checkpoint, PhaseState, Position
from tubesynth.build.networks import build_network, build_segmenter
from tubesynth.config import packaged
from tubesynth.config.loading import config_from_plain
from tubesynth.config.strict import to_plain
from tubesynth.inference.case_scores import trained_segmenter
from tubesynth.inference.segmenter import VesselSegmenter
from tubesynth.pipeline import Pipeline
from tubesynth.runtime.errors import InputError
from tubesynth.volume.cases import find_cases
from tubesynth.volume.files import read_labels, read_volume

FIXTURES = Path(__file__).parent / "fixtures" / "0.1.0"
FLOAT16_HU = 15  # 99 % of the voxels of a reconstruction or synthesis differ by at most this
FLOAT16_MOST_HU = 40  # where rounding changes the code of a latent vector


def untrained(config, module, **latents) -> Checkpoint:
    """A checkpoint of random weights; latents: latent_scale and autoencoder of stage 3."""
    optimizer = torch.optim.Adam(p for p in module.parameters() if p.requires_grad)
    phase = PhaseState(module.state_dict(), optimizer.state_dict(), {}, {})
    return Checkpoint(
        config, Position(), Best("loss", "min"), {MAIN_PHASES[config.stage]: phase}, **latents
    )


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """{stage: (checkpoint, its export)}; stages 1 and 2 were trained by version 0.1.0."""
    folder = tmp_path_factory.mktemp("exported")
    base = Checkpoint.load(FIXTURES / "stage_2.ckpt")
    torch.manual_seed(0)
    config = config_from_plain({**to_plain(base.config), "stage": 3}, "stage 3")
    network = build_network(config, 4, 4)
    randomize_zeros(network, 0.1)
    latents = dict(latent_scale=base.latent_scale, autoencoder=base.autoencoder)
    untrained(config, network, **latents).save(folder / "3.ckpt")
    settings = {"stage": "segmenter", "segmenter": {"channels": [4, 8]}}
    config = config_from_plain({**settings, "data": to_plain(base.config)["data"]}, "segmenter")
    untrained(config, build_segmenter(config)).save(folder / "segmenter.ckpt")
    checkpoints = {1: FIXTURES / "stage_1.ckpt", 2: FIXTURES / "stage_2.ckpt"}
    checkpoints |= {stage: folder / f"{stage}.ckpt" for stage in (3, "segmenter")}
    for stage, path in checkpoints.items():
        run(export, path, "--output", folder / f"{stage}.safetensors")
    return {s: (path, folder / f"{s}.safetensors") for s, path in checkpoints.items()}


@pytest.fixture
def models(exported, tmp_path, monkeypatch):
    """A folder of packaged models: heart-phantom and its segmenter."""
    folder = tmp_path / "packaged"
    folder.mkdir()
    shutil.copy(exported[2][1], folder / "heart-phantom.safetensors")
    shutil.copy(exported["segmenter"][1], folder / "heart-phantom-segmenter.safetensors")
    monkeypatch.setattr(packaged, "packaged_folder", lambda name: folder)
    return folder


@pytest.fixture(scope="module")
def case():
    """A CT and its label map."""
    return read_volume(FIXTURES / "2.img.nii.gz"), read_labels(FIXTURES / "2.label.nii.gz")


def outputs(path, stage, case) -> list[np.ndarray]:
    """The reconstruction of a case, and its synthesis where the model has one."""
    image, labels = case
    if stage == "segmenter":
        return [VesselSegmenter.load(path, torch.device("cpu"))(image).array]
    pipeline = Pipeline.load(path)
    volumes = [pipeline.reconstruct(image)]
    volumes += [pipeline.synthesize(labels, seed=5)] if stage > 1 else []
    return [volume.array.astype(int) for volume in volumes]


@pytest.mark.parametrize("stage", [1, 2, 3, "segmenter"])
def test_an_exported_model_gives_the_voxels_of_its_checkpoint(stage, exported, case):
    for expected, result in zip(*(outputs(p, stage, case) for p in exported[stage]), strict=True):
        assert np.array_equal(expected, result) and expected.std() > 0


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_float16_halves_the_weights_and_changes_few_hu(stage, exported, case, tmp_path):
    checkpoint, full = exported[stage]
    run(export, checkpoint, "--output", tmp_path / "half.safetensors", "--dtype", "float16")
    pairs = [outputs(path, stage, case) for path in (checkpoint, tmp_path / "half.safetensors")]
    for expected, result in zip(*pairs, strict=True):
        difference = np.abs(expected - result)
        assert np.percentile(difference, 99) <= FLOAT16_HU
        assert 0 < difference.max() <= FLOAT16_MOST_HU
    weights = Checkpoint.load(tmp_path / "half.safetensors").weights()
    assert all(tensor.dtype != torch.float16 for tensor in weights.values())
    assert (tmp_path / "half.safetensors").stat().st_size < 0.7 * full.stat().st_size


def test_the_bytes_of_an_export_are_the_same_every_time(exported, tmp_path):
    checkpoint, first = exported[2]
    for name in ("a", "b"):
        run(export, checkpoint, "--output", tmp_path / f"{name}.safetensors")
        assert (tmp_path / f"{name}.safetensors").read_bytes() == first.read_bytes()


def refused(path, tmp_path, capsys) -> str:
    """The line of the command that was given a file."""
    command = ["--model", path, "--output-dir", tmp_path / "out", "--unconditional"]
    return refused_command(lambda: run(synthesize, *command), capsys)


def test_every_flipped_bit_is_refused(exported, tmp_path):
    """200 random bits of the whole file, and 200 of its header."""
    content = exported[1][1].read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    random = np.random.default_rng(0)
    bits = [*random.integers(8 * len(content), size=200), *random.integers(8 * header, size=200)]
    path = tmp_path / "flipped.safetensors"
    for bit in map(int, bits):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="flipped.safetensors: "):
            Checkpoint.load(path)


def test_a_damaged_or_foreign_file_is_refused_in_one_line(exported, tmp_path, capsys):
    content = bytearray(exported[2][1].read_bytes())
    path = tmp_path / "a.safetensors"
    path.write_bytes(content[: len(content) // 2])
    assert f"{path}: not a readable tubesynth checkpoint" in refused(path, tmp_path, capsys)
    content[-1] ^= 1
    path.write_bytes(content)
    assert f"{path}: damaged: its contents do not have the SHA-256" in refused(
        path, tmp_path, capsys
    )
    safetensors.torch.save_file({"weight": torch.zeros(2)}, path, {"format": "pt"})
    assert f"{path}: not a tubesynth model (weights of another" in refused(path, tmp_path, capsys)


def test_a_wrong_output_or_average_is_refused(tmp_path):
    stage_2 = FIXTURES / "stage_2.ckpt"
    path = tmp_path / "model.safetensors"
    run(export, stage_2, "--output", path)
    with pytest.raises(InputError, match="--output .*: is the file that is read: choose another"):
        run(export, path, "--output", path)
    with pytest.raises(InputError, match="--output .*a.ckpt: give a name that ends with .safet"):
        run(export, stage_2, "--output", tmp_path / "a.ckpt")
    with pytest.raises(InputError, match="half-life of 7 steps"):
        run(export, stage_2, "--output", tmp_path / "a.safetensors", "--ema", 7)


def test_the_averaged_weights_are_exported(exported):
    checkpoint, path = exported[2]
    average = Checkpoint.load(checkpoint).phases["unet"].ema[10.0]
    (phase,) = Checkpoint.load(path).phases.values()
    assert phase.optimizer is None and not phase.ema
    assert all(torch.equal(phase.module[name], average[name]) for name in average)


def test_models_are_found_by_name(models, exported, case, tmp_path):
    images, labels = tmp_path / "images", tmp_path / "labels"
    for folder, kind in ((images, "img"), (labels, "label")):
        folder.mkdir()
        shutil.copy(FIXTURES / f"2.{kind}.nii.gz", folder)
    named = Pipeline.load("heart-phantom")
    assert named.digest == Pipeline.load(exported[2][0]).digest
    common = ["--model", "heart-phantom", "--output-dir", tmp_path / "out"]
    run(reconstruct, *common, "--input-dir", images)
    assert np.array_equal(
        read_volume(tmp_path / "out" / "2.img.nii.gz").array, named.reconstruct(case[0]).array
    )
    apply = ["apply", "--model", "heart-phantom", "--input-dir", images]
    run(segment, *apply, "--output-dir", tmp_path / "masks")
    assert find_cases(tmp_path / "masks").keys() == {"2"}
    assert trained_segmenter(Path("heart-phantom")).net is not None  # --segmenter of evaluate


def test_an_unknown_name_is_answered_with_the_nearest_or_all(models):
    with pytest.raises(InputError, match="hart-phantom: no such file.*did you mean heart-phantom"):
        Pipeline.load("hart-phantom")
    with pytest.raises(InputError, match="the models by name are heart-phantom$"):
        Pipeline.load("xyz")
    (models / "heart-phantom-segmenter.safetensors").unlink()
    with pytest.raises(InputError, match="train a segmenter first, or correct the path$"):
        Checkpoint.load("heart-phantom", "segmenter")


def last_position(run_dir) -> dict:
    return vars(Checkpoint.load(run_dir / "checkpoints" / "last.ckpt").position)


@pytest.mark.slow
def test_both_stages_train_on_from_a_named_model(models, workplace, tmp_path):
    """Weights are those of the file; step, schedule, optimizers and discriminator restart."""
    restart = ["train.epochs=1", "train.restart=[schedule,epochs,optimizers]"]
    resume = ["--resume", "heart-phantom", *restart]
    resume += [f"data.root={workplace / 'data'}", f"data.cache_dir={tmp_path / 'cache'}"]
    first = tmp_path / "s1"
    command = ["--config", FIXTURES / "s1.yml", "--run-dir", first, *resume]
    command.append("discriminator.channels=8")
    run(train, *command)
    start = dict(schedule_start=0, started_from="heart-phantom")
    assert last_position(first) == vars(Position(step=4, sample_index=4, **start))
    line = (first / "train.log").read_text().split("started from heart-phantom")[1].splitlines()[0]
    assert ": restored weights; restarted discriminator, schedule" in line
    assert "epochs, optimizers, best checkpoint" in line
    score = lines(first, "validation")[0]
    assert score["step"] == 0 and score["loss"] == pytest.approx(SCORES[1][8]["loss"], rel=1e-4)
    run(train, *command)  # the same run, and nothing left to do

    # stage 2 on the latents of the model's autoencoder, and of the one that was trained on
    for name, autoencoder in (("a", "heart-phantom"), ("b", first / "checkpoints" / "last.ckpt")):
        options = ["--config", FIXTURES / "s2.yml", "--run-dir", tmp_path / name]
        run(train, *options, *resume, f"latents.autoencoder={autoencoder}")
        assert last_position(tmp_path / name)["step"] == 4
