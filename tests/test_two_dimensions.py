"""Two-dimensional data (PNG) through both stages, reconstruction and synthesis."""

import json

import numpy as np
import pytest
from conftest import AUTOENCODER, UNET
from PIL import Image

from tubesynth import reconstruct, synthesize, train
from tubesynth.doctor import __main__ as doctor
from tubesynth.runtime.errors import InputError
from tubesynth.volume.files import read_volume, write_volume
from tubesynth.volume.grid import Volume

DATA = """
dim: 2
data:
  root: {root}/data
  cache_dir: {root}/cache
  resolution: [32, 32]
  spacing: [1.0, 1.0]
  hu_window: [0, 255]
  num_classes: 3
  num_workers: 0
"""
TRAIN = {
    1: "train: {{epochs: 10, learning_rate: 3e-3, log_every: 5, validate_every: 5}}",
    2: "train: {{epochs: 10, learning_rate: 1e-3, log_every: 5, validate_every: 5}}",
}


def write_discs(root):
    """Gray discs on black with a brighter core: classes 1 and 2."""
    column, row = np.meshgrid(np.arange(32), np.arange(32))
    for split, count in (("training", 6), ("validation", 2)):
        for kind in ("images", "labels"):
            (root / "data" / split / kind).mkdir(parents=True)
        for i in range(count):
            distance = np.hypot(column - 12 - i, row - 16)
            label = (distance < 9).astype(np.uint8) + (distance < 4)
            image = np.array([20, 120, 230], dtype=np.uint8)[label]
            folder = root / "data" / split
            Image.fromarray(image).save(folder / "images" / f"{i}.png")
            Image.fromarray(label.astype(np.uint8)).save(folder / "labels" / f"{i}.png")


def losses(run_dir):
    rows = map(json.loads, (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [row["loss"] for row in rows if row["split"] == "validation"]


@pytest.mark.slow
def test_pictures_train_both_stages_and_keep_their_world_position(tmp_path, capsys):
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
    assert "the model sees 32 x 32 voxels of 1 x 1 mm" in " ".join(capsys.readouterr().out.split())
    validation = tmp_path / "data" / "validation"
    model = str(tmp_path / "s2" / "checkpoints" / "last.ckpt")
    common = ["--model", model, "--output-dir"]
    reconstruct.main([*common, str(tmp_path / "r"), "--input-dir", str(validation / "images")])
    real = read_volume(validation / "images" / "0.png")
    result = read_volume(tmp_path / "r" / "0.img.nii.gz")
    assert result.shape == (32, 32, 1)
    np.testing.assert_allclose(result.center_mm, real.center_mm)
    assert np.corrcoef(result.array.ravel(), real.array.ravel())[0, 1] > 0.5
    synthesize.main([*common, str(tmp_path / "s"), "--input-dir", str(validation / "labels")])
    deep = Volume(np.zeros((32, 32, 9), np.int16), np.eye(4))
    write_volume(tmp_path / "deep" / "0.nii.gz", deep, "int16")
    with pytest.raises(InputError, match="32 x 32 x 9 voxels, but dim 2 takes one slice"):
        reconstruct.main([*common, str(tmp_path / "d"), "--input-dir", str(tmp_path / "deep")])
    assert read_volume(tmp_path / "s" / "1_s0.img.nii.gz").shape == (32, 32, 1)
