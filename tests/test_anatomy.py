"""Label maps unlike the training are named before a CT is made of them; ordinary ones are not."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from odd_conditions import described, odd_conditions

from tubesynth import Pipeline, synthesize
from tubesynth.build.checkpoint import Checkpoint
from tubesynth.inference.comparison import warn_of
from tubesynth.runtime.errors import InputError
from tubesynth.volume.anatomy import Comparison, Ranges
from tubesynth.volume.cases import find_cases
from tubesynth.volume.files import read_labels, write_volume
from tubesynth.volume.grid import Volume


@pytest.fixture(scope="module")
def label_maps(phantoms):
    return {
        split: [read_labels(path) for path in find_cases(phantoms / split / "labels").values()]
        for split in ("training", "validation")
    }


def test_ordinary_label_maps_are_not_named_and_odd_ones_are(label_maps):
    ranges = Ranges.of(map(described, label_maps["training"]))
    first, second = label_maps["validation"]
    for labels in (first, second):
        assert ranges.compare(described(labels)) == Comparison([], False)
    odd = dict(odd_conditions(first, second))
    silent = [name for name, found in odd.items() if not ranges.compare(found).unusual]
    assert not set(silent) - {"centrelines of another patient", "no myocardium"}
    assert [name for name, found in odd.items() if ranges.compare(found).is_empty] == ["empty"]


def test_a_structure_that_no_or_not_every_training_case_had(label_maps):
    rows = [described(labels) for labels in label_maps["training"]]
    del rows[0]["ml/aorta"]
    ranges = Ranges.of(rows)
    without = described(label_maps["validation"][0])
    del without["ml/aorta"]
    assert ranges.compare(without).unusual == []
    without["ml/pacemaker"] = 1.0
    assert ranges.compare(without).unusual == [
        "pacemaker: in the label map, but 0 of 4 training label maps have it"
    ]


def test_synthesize_names_what_is_unusual_and_refuses_an_empty_label_map(
    workplace, stage_2, tmp_path, capsys
):
    """The checkpoint of stage 2 has the ranges; the sidecar has the lines."""
    conditions = Checkpoint.load(stage_2).conditions
    assert conditions is not None and conditions.total == 4
    case, path = next(iter(find_cases(workplace / "data" / "validation" / "labels").items()))
    folder, out = tmp_path / "labels", tmp_path / "out"
    folder.mkdir()
    shutil.copy(path, folder / f"{case}.label.nii.gz")
    labels = read_labels(path)
    mirrored = Volume(np.ascontiguousarray(labels.array[::-1]), labels.affine)
    write_volume(folder / "mirrored.label.nii.gz", mirrored, "uint8")
    options = ["--model", str(stage_2), "--input-dir", str(folder), "--output-dir", str(out)]
    synthesize.main(options)
    lines = capsys.readouterr().err.splitlines()
    assert any("case mirrored: " in line and "in training" in line for line in lines)
    coarse = Volume(labels.array[:, :, ::3], labels.affine @ np.diag([1, 1, 3, 1]))
    pipeline = Pipeline.load(stage_2)
    assert pipeline.compare_with_training(labels).unusual == []
    (line,) = [x for x in pipeline.compare_with_training(coarse).unusual if "voxels of" in x]
    assert line.startswith(f"voxels of {coarse.spacing[2]:.3g} mm, where the model's are ")
    sidecars = {
        name: json.loads((out / f"{name}_s0.json").read_text()) for name in (case, "mirrored")
    }
    assert sidecars[case]["unlike_training"] == [] and sidecars["mirrored"]["unlike_training"]
    write_volume(folder / "blank.label.nii.gz", Volume(labels.array * 0, labels.affine), "uint8")
    with pytest.raises(InputError, match="case blank: its label map has none of the structures"):
        synthesize.main(options)
    assert not (out / "blank_s0.img.nii.gz").exists()
    synthesize.main([*options, "--force"])
    assert (out / "blank_s0.img.nii.gz").exists()


def test_ranges_survive_the_checkpoint_and_wrong_ones_are_refused(stage_2, tmp_path):
    checkpoint = Checkpoint.load(stage_2)
    alone = checkpoint.weights_alone()
    alone.save(tmp_path / "model.safetensors")
    loaded, original = Checkpoint.load(tmp_path / "model.safetensors").conditions, alone.conditions
    assert loaded is not None and original is not None
    assert loaded == original
    for key, wrong in (("keys", ["ml"]), ("numbers", [[1.0]])):
        damaged = replace(alone, conditions=replace(original, **{key: wrong}))
        damaged.save(tmp_path / "damaged.safetensors")
        with pytest.raises(InputError, match=f"conditions.{key}"):
            Checkpoint.load(tmp_path / "damaged.safetensors")


def test_what_many_label_maps_share_is_one_line(capsys):
    """Cases that differ in the same point, by other numbers, have one line with all their names."""
    unusual = {str(case): [f"aorta: {case}.5 ml; 80 to 90 in training"] for case in range(5)}
    warn_of({**unusual, "a": ["no myocardium, which all of 4 training label maps have"]})
    first, second = capsys.readouterr().err.splitlines()
    assert "5 cases, such as 0: aorta: 0.5 ml; 80 to 90 in training (also 1, 2, 3, 4)" in first
    assert second.endswith("case a: no myocardium, which all of 4 training label maps have")
