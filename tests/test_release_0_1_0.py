"""Checkpoints of version 0.1.0 are read exactly: same voxels, and training resumes.

tests/fixtures/0.1.0 was written by that version and is never written again. Its image and label
map are case 2 of the phantoms of conftest.py at that version; the two expected volumes are those
that it reconstructed and synthesized (seed 0). The expected scores were those of its own resumed
runs until the contrast of the phantoms changed; since then they are those of the same runs on the
new phantoms.
"""

import shutil
from pathlib import Path

import numpy as np
import pytest
from runs import lines, run

from tubesynth import reconstruct, synthesize, train
from tubesynth.volume.files import read_volume

FIXTURES = Path(__file__).parent / "fixtures" / "0.1.0"
TOLERANCE_HU = 1  # equal on the CPU that wrote them; another CPU rounds differently

# Validation of the runs that 0.1.0 resumed from the fixtures to a third epoch, by stage.
SCORES = {
    1: {
        8: {"loss": 0.23226789757609367, "psnr": 12.864071805033161, "ssim": 0.08223036715943623},
        12: {"loss": 0.3276139125227928, "psnr": 9.958016447996803, "ssim": 0.08942860260123656},
    },
    2: {8: {"loss": 1.0715110540390014}, 12: {"loss": 1.0465944170951844}},
}


def assert_same_voxels(path: Path, expected: str) -> None:
    result, reference = read_volume(path), read_volume(FIXTURES / expected)
    np.testing.assert_allclose(result.affine, reference.affine, atol=1e-6)
    difference = result.array.astype(int) - reference.array.astype(int)
    assert result.array.dtype == np.int16 and np.abs(difference).max() <= TOLERANCE_HU


@pytest.mark.parametrize(
    ("command", "source", "model", "output", "expected"),
    [
        (reconstruct, "2.img.nii.gz", "stage_1.ckpt", "2.img.nii.gz", "2.reconstruction.nii.gz"),
        (synthesize, "2.label.nii.gz", "stage_2.ckpt", "2_s0.img.nii.gz", "2.synthesis.nii.gz"),
    ],
)
def test_a_checkpoint_of_0_1_0_gives_the_same_voxels(
    command, source, model, output, expected, tmp_path
):
    (tmp_path / "in").mkdir()
    shutil.copy(FIXTURES / source, tmp_path / "in")
    options = ["--input-dir", tmp_path / "in", "--output-dir", tmp_path / "out"]
    run(command, *options, "--model", FIXTURES / model)
    assert_same_voxels(tmp_path / "out" / output, expected)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2])
def test_a_run_of_0_1_0_resumes(stage, workplace, tmp_path, monkeypatch):
    """The configs name data, cache and stage_1.ckpt relative to the working folder."""
    for name in ("s1.yml", "s2.yml", "stage_1.ckpt", "stage_2.ckpt"):
        shutil.copy(FIXTURES / name, tmp_path)
    (tmp_path / "data").symlink_to(workplace / "data")
    monkeypatch.chdir(tmp_path)
    options = ["--config", f"s{stage}.yml", "--run-dir", "run", "train.epochs=3"]
    run(train, *options, "--resume", f"stage_{stage}.ckpt")
    scores = {line["step"]: line for line in lines(Path("run"), "validation")}
    assert scores.keys() == SCORES[stage].keys()
    for step, expected in SCORES[stage].items():
        assert {name: scores[step][name] for name in expected} == pytest.approx(expected, rel=1e-4)
