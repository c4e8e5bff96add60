"""Images without label maps: both stages train on them and are sampled, and say what they lack."""

import json
import shutil

import numpy as np
import pytest
from conftest import AUTOENCODER, DATA, UNET
from runs import lines

from tubesynth import cache, evaluate, reconstruct, synthesize, train
from tubesynth.doctor import __main__ as doctor
from tubesynth.prepare import __main__ as prepare
from tubesynth.runtime.errors import InputError
from tubesynth.volume.files import read_volume

STAGE_1 = f"""
stage: 1
{DATA}
  crop: [16, 16, 16]
{AUTOENCODER}
train: {{{{epochs: 2, learning_rate: 5e-4, log_every: 1, panel_every: 2}}}}
"""


STAGE_2 = f"""
stage: 2
{DATA}
{UNET}
train: {{{{epochs: 2, learning_rate: 1e-3, log_every: 1, panel_every: 2}}}}
"""


@pytest.fixture
def images_alone(tmp_path, phantoms):
    """A folder with data/{training,validation}/images and s1.yml on it."""
    for split in ("training", "validation"):
        shutil.copytree(phantoms / split / "images", tmp_path / "data" / split / "images")
    text = STAGE_1.format(data=tmp_path / "data", cache=tmp_path / "cache")
    (tmp_path / "s1.yml").write_text(text)
    return tmp_path


def test_stage_1_trains_reconstructs_and_is_scored(images_alone, capsys):
    root, config = images_alone, ["--config", str(images_alone / "s1.yml")]
    doctor.main(config)
    text = " ".join(capsys.readouterr().out.split())
    assert "images only: nothing that needs vessels is scored" in text and "READY" in text
    cache.main(["build", *config])
    assert "6 built" in capsys.readouterr().out
    train.main([*config, "--run-dir", str(root / "s1")])
    log = (root / "s1" / "train.log").read_text()
    assert log.count("labels: none, images alone: nothing that needs vessels is scored") == 1
    scores = lines(root / "s1", "validation")
    assert scores[-1]["loss"] < scores[0]["loss"]
    assert not any(name.startswith("vessel") for row in scores for name in row)
    assert list((root / "s1" / "panels").glob("*.png"))
    images = str(root / "data" / "validation" / "images")
    model = str(root / "s1" / "checkpoints" / "last.ckpt")
    reconstruct.main(["--model", model, "--input-dir", images, "--output-dir", str(root / "r")])
    capsys.readouterr()
    options = ["--real", images, "--reconstruction", str(root / "r"), "--workers", "1"]
    evaluate.main([*options, "--output-dir", str(root / "scores"), "--no-distribution"])
    assert capsys.readouterr().out.count("Vessels are not scored: give --labels.") == 1
    metrics = json.loads((root / "scores" / "metrics.json").read_text())
    assert metrics["reconstruction"]["psnr"]["n"] == 2
    assert metrics["vessels"]["reconstruction"] == {}


def test_stage_2_trains_without_conditions_and_is_sampled(images_alone, phantoms, stage_1, capsys):
    root, config = images_alone, ["--config", str(images_alone / "s2.yml")]
    paths = dict(data=root / "data", cache=root / "cache", autoencoder=stage_1)
    (root / "s2.yml").write_text(STAGE_2.format(**paths))
    run = ["--run-dir", str(root / "s2")]
    with pytest.raises(InputError, match="or set unet.label_encoder=none to train on images alone"):
        train.main([*config, *run])
    config.append("unet.label_encoder=none")
    doctor.main(config)
    train.main([*config, *run])
    losses = [line["loss"] for line in lines(root / "s2", "validation")]
    assert losses[-1] < losses[0] and list((root / "s2" / "panels").glob("*.png"))
    common = ["--model", str(root / "s2" / "checkpoints" / "last.ckpt"), "--output-dir"]
    for name, options in (("a", ["--unconditional"]), ("b", []), ("c", ["--seed", "1"])):
        synthesize.main([*common, str(root / name), *options])  # what the model takes is known
    a, b, c = (read_volume(root / name / "unconditional_s0.img.nii.gz") for name in "abc")
    assert a.shape == (32, 32, 24) and np.allclose(a.spacing, 5.5)
    assert np.array_equal(a.array, b.array) and not np.array_equal(a.array, c.array)
    assert not (root / "a" / "labels").exists()
    labels = ["--input-dir", str(phantoms / "validation" / "labels")]
    with pytest.raises(InputError, match="this model was trained without label maps"):
        synthesize.main([*common, str(root / "d"), *labels])
    with pytest.raises(InputError, match="leave --guidance-label at 1"):
        synthesize.main([*common, str(root / "e"), "--guidance-label", "2"])


@pytest.mark.parametrize(
    ("setting", "remedy"),
    [
        ("losses.vessel_weight=5", "losses.vessel_weight=1"),
        ("train.best_score=vessel_psnr", "train.best_score=loss"),
    ],
)
def test_a_setting_that_needs_label_maps_is_named_with_the_remedy(
    images_alone, setting, remedy, capsys
):
    config = ["--config", str(images_alone / "s1.yml")]
    message = f"add them, or set {remedy} to train on images alone"
    with pytest.raises(InputError, match=f"labels: no such folder: .*{message}"):
        train.main([*config, "--run-dir", str(images_alone / "s1"), setting])
    assert not (images_alone / "s1").exists()
    with pytest.raises(SystemExit):
        doctor.main([*config, setting])
    assert message in " ".join(capsys.readouterr().out.split())


def test_label_maps_of_one_split_alone_are_an_error(images_alone, phantoms, capsys):
    folder = images_alone / "data" / "training" / "labels"
    shutil.copytree(phantoms / "training" / "labels", folder)
    config = ["--config", str(images_alone / "s1.yml")]
    with pytest.raises(InputError, match="validation/labels"):
        train.main([*config, "--run-dir", str(images_alone / "s1")])
    with pytest.raises(SystemExit):
        doctor.main(config)
    assert "validation/labels: no such folder" in " ".join(capsys.readouterr().out.split())


def test_prepare_splits_images_alone_and_a_second_run_writes_nothing(phantoms, tmp_path, capsys):
    for split in ("training", "validation"):
        shutil.copytree(phantoms / split / "images", tmp_path / "ct", dirs_exist_ok=True)
    options = ["--input-dir", str(tmp_path / "ct"), "--output-dir", str(tmp_path / "out")]
    options += ["--workers", "1"]
    for prepared in ("6 prepared now", "0 prepared now"):
        prepare.main(options)
        text = capsys.readouterr().out
        assert prepared in text and "no label maps: images alone are prepared" in text
    assert len(list((tmp_path / "out").glob("*/images/*.nii.gz"))) == 6
    assert not list((tmp_path / "out").glob("*/labels"))
    with pytest.raises(InputError, match="--crop-to-heart: .* has no label maps"):
        prepare.main([*options, "--crop-to-heart"])
