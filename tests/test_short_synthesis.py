"""synthesize --cases: new phantoms with label map, centreline, CT and pictures."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tubesynth import export, synthesize
from tubesynth.runtime.errors import InputError
from tubesynth.volume.centreline_file import read_centreline
from tubesynth.volume.files import read_labels, read_volume

STAGE_2 = Path(__file__).parent / "fixtures" / "0.1.0" / "stage_2.ckpt"


def run(*arguments):
    synthesize.main([str(argument) for argument in arguments])


def test_an_exported_model_synthesizes_a_phantom_of_its_own(tmp_path, capsys):
    model, out = tmp_path / "model.safetensors", tmp_path / "out"
    export.main([str(STAGE_2), "--output", str(model)])
    run("--model", model, "--output-dir", out)
    name = "phantom_1_s0"
    image = read_volume(out / f"{name}.img.nii.gz")
    labels = read_labels(out / "labels" / f"{name}.label.nii.gz")
    assert image.shape == labels.shape == (32, 32, 24)
    assert np.allclose(image.affine, labels.affine)
    assert set(np.unique(labels.array)) == set(range(9))
    # The centrelines are those of the label map: most of their points lie in vessels.
    branches = read_centreline(out / "centrelines" / f"{name}.centreline.json")
    points = np.vstack([branch.points for branch in branches])
    index = np.rint(labels.to_index(points[:, :3])).astype(int)
    inside = ((index >= 0) & (index < labels.shape)).all(1)
    near = [
        (labels.array[tuple(slice(max(i - 1, 0), i + 2) for i in each)] == 8).any()
        for each in index[inside]
    ]
    assert np.mean(near) > 0.9
    panel = out / "panels" / f"{name}.png"
    assert f"picture   {panel}" in capsys.readouterr().out
    assert np.asarray(Image.open(panel)).std() > 10
    assert json.loads((out / f"{name}.json").read_text())["source"] is None

    # The same command resumes; the written files are the input of another synthesis.
    run("--model", model, "--output-dir", out)
    assert "0 volumes" in capsys.readouterr().out.splitlines()[-1]
    inputs = ["--input-dir", out / "labels", "--centrelines", out / "centrelines"]
    run("--model", model, "--output-dir", tmp_path / "again", *inputs)
    assert (tmp_path / "again" / f"{name}_s0.img.nii.gz").is_file()


def test_seed_and_case_decide_the_phantom(tmp_path):
    run("--model", STAGE_2, "--output-dir", tmp_path / "a", "--cases", 2, "--seed", 3)
    run("--model", STAGE_2, "--output-dir", tmp_path / "b", "--cases", 1, "--seed", 3)
    run("--model", STAGE_2, "--output-dir", tmp_path / "c", "--cases", 1, "--seed", 4)

    def labels(folder, case):
        path = tmp_path / folder / "labels" / f"phantom_{case}_s0.label.nii.gz"
        return read_labels(path).array

    assert np.array_equal(labels("a", 1), labels("b", 1))
    assert not np.array_equal(labels("a", 1), labels("a", 2))
    assert not np.array_equal(labels("a", 1), labels("c", 1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--cases", "2", "--unconditional"], "--unconditional and --cases: give only one"),
        (["--cases", "2", "--input-dir", "labels"], "--input-dir and --cases: give only one"),
        (["--cases", "2", "--centrelines", "c"], "--cases and --centrelines: give only one"),
        (["--cases", "1", "--label-map", "1=2"], "--label-map: phantoms have the classes"),
        (["--cases", "0"], "--cases 0: must be at least 1"),
        (["--cases", "1", "--resolution", "32", "32"], "resolution 32 32: expected 3 positive"),
        (
            ["--cases", "1", "--resolution", *("4096",) * 3],
            "resolution 4096 4096 4096: the volume alone takes 320 GiB of memory",
        ),
    ],
)
def test_a_second_source_of_label_maps_and_a_wrong_grid_are_refused(options, message, tmp_path):
    with pytest.raises(InputError, match=message):
        run("--model", STAGE_2, "--output-dir", tmp_path, *options)
