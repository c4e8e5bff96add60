"""Pictures (PNG) through both stages, reconstruction, synthesis and evaluation."""

import json

import numpy as np
import pytest
from conftest import AUTOENCODER, UNET
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from runs import lines

from tubesynth import evaluate, reconstruct, synthesize, train
from tubesynth.config.schema import Config, DataConfig
from tubesynth.doctor import __main__ as doctor
from tubesynth.inference.job import output_format
from tubesynth.runtime.errors import InputError
from tubesynth.volume.files import read_volume, write_volume
from tubesynth.volume.grid import Volume
from tubesynth.volume.png import AFFINE

DATA = """
dim: 2
data:
  root: {root}/data
  cache_dir: {root}/cache
  resolution: [32, 32]
  spacing: null
  hu_window: [0, 255]
  num_classes: 3
  num_workers: 0
"""
TRAIN = {
    1: "train: {{epochs: 10, learning_rate: 3e-3, log_every: 5, validate_every: 5}}",
    2: "train: {{epochs: 10, learning_rate: 1e-3, log_every: 5, validate_every: 5}}",
}


def write_discs(root):
    """Gray discs on black with a brighter core: classes 1 and 2; 40 x 36 pixels."""
    column, row = np.meshgrid(np.arange(40), np.arange(36))
    for split, count in (("training", 6), ("validation", 2)):
        for kind in ("images", "labels"):
            (root / "data" / split / kind).mkdir(parents=True)
        for i in range(count):
            distance = np.hypot(column - 12 - i, row - 14)  # above the middle
            label = (distance < 9).astype(np.uint8) + (distance < 4)
            image = np.array([20, 120, 230], dtype=np.uint8)[label]
            folder = root / "data" / split
            Image.fromarray(image).save(folder / "images" / f"{i}.png")
            Image.fromarray(label.astype(np.uint8)).save(folder / "labels" / f"{i}.png")


def losses(run_dir):
    return [line["loss"] for line in lines(run_dir, "validation")]


@pytest.mark.slow
def test_pictures_train_both_stages_and_come_out_as_pictures_in_their_place(tmp_path, capsys):
    write_discs(tmp_path)
    model = tmp_path / "s1" / "checkpoints" / "last.ckpt"
    for stage, network in ((1, AUTOENCODER), (2, UNET)):
        text = f"stage: {stage}\n{DATA}{network}{TRAIN[stage]}"
        (tmp_path / f"s{stage}.yml").write_text(text.format(root=tmp_path, autoencoder=model))
        options = ["--dim", "2", "--stage", str(stage), "--run-dir", str(tmp_path / f"s{stage}")]
        train.main(["--config", str(tmp_path / f"s{stage}.yml"), *options])
        validation_losses = losses(tmp_path / f"s{stage}")
        assert validation_losses[-1] < validation_losses[0]
        assert list((tmp_path / f"s{stage}" / "panels").glob("*.png"))

    with pytest.raises(SystemExit):  # doctor reports equal cases in training and validation
        doctor.main(["--config", str(tmp_path / "s1.yml")])
    text = " ".join(capsys.readouterr().out.split())
    assert "the model's grid has 32 x 32 voxels of a size that fits the image" in text
    images, labels = (tmp_path / "data" / "validation" / kind for kind in ("images", "labels"))
    model = str(tmp_path / "s2" / "checkpoints" / "last.ckpt")
    common = ["--model", model, "--output-dir"]
    reconstruct.main([*common, str(tmp_path / "r"), "--input-dir", str(images)])
    with Image.open(tmp_path / "r" / "0.img.png") as picture:
        assert picture.mode == "L" and picture.size == (32, 32)  # 8 bits of the window
    real, result = read_volume(images / "0.png"), read_volume(tmp_path / "r" / "0.img.png")
    np.testing.assert_allclose(result.center_mm, real.center_mm)
    np.testing.assert_allclose(result.spacing[:2], [40 / 32, 36 / 32])
    whole = [*common, str(tmp_path / "o"), "--input-dir", str(images), "--original-grid"]
    reconstruct.main(whole)
    result = read_volume(tmp_path / "o" / "0.img.png")
    assert np.corrcoef(result.array.ravel(), real.array.ravel())[0, 1] > 0.5

    synthesize.main([*common, str(tmp_path / "s"), "--input-dir", str(labels)])
    new, condition = (
        read_volume(tmp_path / "s" / name) for name in ("1_s0.img.png", "labels/1_s0.label.png")
    )
    assert new.shape == condition.shape == (32, 32, 1) and set(np.unique(condition.array)) == {
        *range(3)
    }
    np.testing.assert_allclose(new.affine, condition.affine)
    scored = ["--reconstruction", str(tmp_path / "r"), "--synthesis", str(tmp_path / "s")]
    scored += ["--real", str(images), "--labels", str(labels)]
    scored += ["--config", str(tmp_path / "s2.yml"), "--output-dir", str(tmp_path / "e")]
    evaluate.main([*scored, "--workers", "1", "--no-distribution"])
    assert "no vessel scores: vessels are scored by their HU" in capsys.readouterr().out
    metrics = json.loads((tmp_path / "e" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["reconstruction"]["psnr"]["n"] == metrics["synthesis"]["psnr"]["n"] == 2
    assert metrics["reconstruction"]["psnr"]["mean"] > 12
    assert metrics["provenance"]["hu_window"] == [0, 255]  # the range of a picture
    assert len(list((tmp_path / "e" / "panels").glob("*.png"))) == 2

    deep = Volume(np.zeros((32, 32, 9), np.int16), np.eye(4))
    write_volume(tmp_path / "deep" / "0.nii.gz", deep, "int16")
    with pytest.raises(InputError, match="32 x 32 x 9 voxels, but dim 2 takes one slice"):
        reconstruct.main([*common, str(tmp_path / "d"), "--input-dir", str(tmp_path / "deep")])


def test_a_picture_keeps_its_affine_and_the_smallest_type_that_holds_it(tmp_path):
    affine = np.diag([0.5, 0.25, 1.0, 1.0])
    affine[:2, 3] = 7.0, -3.5
    for highest, mode in ((255, "L"), (256, "I;16")):
        values = np.array([[0, highest], [9, 4]], np.int16)[..., None]
        Volume(values, affine).save(tmp_path / "1.png")
        with Image.open(tmp_path / "1.png") as picture:
            assert picture.mode == mode
        volume = Volume.from_file(tmp_path / "1.png")
        assert np.array_equal(volume.array, values) and np.array_equal(volume.affine, affine)
    with pytest.raises(InputError, match="a .png holds one slice of 8 or 16 bits"):
        Volume(values - 1, affine).save(tmp_path / "2.png")
    assert not (tmp_path / "2.png").exists()


@pytest.mark.parametrize("text", ["[]", "[[1, 2], 3]", "{", "[[0,0,0,0]]", "[" * 9999])
def test_a_damaged_affine_of_a_picture_is_named(tmp_path, text):
    info = PngInfo()
    info.add_text(AFFINE, text)
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "1.png", pnginfo=info)
    with pytest.raises(InputError, match="1.png: its text 'tubesynth affine' is no affine"):
        read_volume(tmp_path / "1.png")


@pytest.mark.parametrize(
    ("dim", "window", "expected"),
    [
        (3, [0, 255], (".nii.gz", "int16")),
        (2, [-1000, 1000], (".nii.gz", "int16")),
        (2, [0, 255], (".png", "uint8")),
        (2, [0, 4095], (".png", "uint16")),
    ],
)
def test_the_format_of_results_follows_from_dim_and_window(dim, window, expected):
    assert output_format(Config(stage=1, dim=dim, data=DataConfig(hu_window=window))) == expected
