"""data.label_map: label maps of other schemes are read, cached, prepared and proposed alike."""

import json
import re

import numpy as np
import pytest
from grids import resampled

from tubesynth.config.labels import load_label_map, load_scheme
from tubesynth.config.loading import config_from_plain, load_config
from tubesynth.config.strict import dump, to_plain
from tubesynth.data.preprocessing import Preprocessing
from tubesynth.data.store import Store
from tubesynth.data.volumes import TokenSource, ensure_tokens, ensure_volume, volume_key
from tubesynth.doctor import __main__ as doctor
from tubesynth.doctor.label_schemes import propose
from tubesynth.prepare import __main__ as prepare
from tubesynth.runtime import log
from tubesynth.runtime.errors import InputError
from tubesynth.volume.cases import Case, pair_cases
from tubesynth.volume.classes import NINE_CLASSES, numbered_classes
from tubesynth.volume.files import read_labels, write_volume
from tubesynth.volume.grid import Volume

SEGMENTS = {value: 8 for value in range(1, 20)}
SHAPE = (40, 24, 24)


def segments(step: int = 1) -> np.ndarray:
    """A vessel along x in nineteen segments of two voxels, with the values step, 2 step, ..."""
    values = np.zeros(SHAPE, np.uint16)
    for value in range(1, 20):
        values[2 * value - 1 : 2 * value + 1, 11:14, 11:14] = step * value
    return values


def save(path, array, dtype=np.uint8):
    write_volume(path, Volume(array, np.diag([0.5, 0.5, 0.5, 1])), dtype)
    return path


def ct(seed: int = 0) -> np.ndarray:
    x, y, _ = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    hu = np.where(x**2 + y**2 < 0.8, 40, -1000) + np.where(segments() > 0, 360, 0)
    return hu + np.random.default_rng(seed).normal(0, 12, SHAPE)


def test_several_values_become_one_class_and_all_others_background(tmp_path, caplog, monkeypatch):
    path = save(tmp_path / "1.label.nrrd.nii.gz", segments(step=50), np.uint16)  # 50 to 950
    expected = 8 * (segments() > 1) - 5 * (segments() == 2)
    label_map = {50 * value: 8 for value in range(3, 20)} | {100: 3}
    classes = read_labels(path, label_map)
    assert classes.array.dtype == np.uint8 and np.array_equal(classes.array, expected)
    with pytest.raises(InputError, match=r"950 is above 255; .* data.label_map .*; several may"):
        read_labels(path)
    assert not read_labels(path, SEGMENTS).array.any()
    assert "all background: data.label_map has no class for its values (50, 100," in caplog.text
    caplog.clear()
    monkeypatch.setattr(log, "_warned", set())
    forgotten = {value: kind for value, kind in label_map.items() if value != 150}
    for _ in range(2):
        read_labels(path, forgotten)
    (line,) = caplog.messages  # once
    assert line.startswith("values that data.label_map does not list become background: 50 (")
    assert ", 150 (" in line and line.endswith(f" in {path}")


def test_the_config_keeps_the_label_map_with_whole_numbers_as_keys(tmp_path):
    file = tmp_path / "one.yml"
    file.write_text("stage: 1\ndata: {label_map: {1: 8, 51: 3}}\n")
    config = load_config(file)
    assert config.data.label_map == {1: 8, 51: 3}
    as_stored = json.loads(json.dumps(to_plain(config)))  # as in an exported model
    assert config_from_plain(as_stored, "model") == config
    (tmp_path / "two.yml").write_text(dump(config))
    assert load_config(tmp_path / "two.yml") == config
    assert load_config(file, ["data.label_map={7: 6}"]).data.label_map == {7: 6}
    assert load_label_map(file, NINE_CLASSES) == {1: 8, 51: 3}
    for text, message in (
        ("{1: 9}", "data.label_map: 1 becomes 9: choose a class from 0 to 8"),
        ("{a: 1}", "data.label_map: expected whole numbers with values"),
        ("{70000: 1}", "data.label_map: 70000: expected values from 0 to 65535"),
        ("[1, 8]", "data.label_map: expected names with values"),
    ):
        with pytest.raises(InputError, match=re.escape(message)):
            load_config(file, [f"data.label_map={text}"])


def test_cached_volumes_and_tokens_are_those_of_the_translated_label_map(tmp_path):
    image = save(tmp_path / "images/1.img.nii.gz", ct(), np.int16)
    save(tmp_path / "labels/1.label.nii.gz", segments())
    plain = Case("1", image, save(tmp_path / "classes/1.label.nii.gz", 8 * (segments() > 0)))
    (case,) = pair_cases(tmp_path / "images", tmp_path / "labels", SEGMENTS)
    grid, source = Preprocessing((32, 24, 24), (0.6, 0.5, 0.5)), TokenSource(8, 1.0)
    with pytest.raises(InputError, match="9, 10, .* outside the classes 0 to 8; give each value's"):
        resampled(Case("1", image, case.label), grid)
    store, results = Store(tmp_path / "cache"), []
    for each in (case, plain):
        volume, _ = ensure_volume(store, each, grid)
        tokens, _ = ensure_tokens(store, each, volume, source)
        results.append((volume.arrays()["label"], tokens.arrays()["position_mm"]))
    for translated, expected in zip(*results, strict=True):
        assert np.array_equal(translated, expected) and expected.any()
    other = Case("1", image, case.label, {**SEGMENTS, 19: 0})
    assert volume_key(store, other, grid) != volume_key(store, case, grid)


def prepared(tmp_path, *options) -> dict[str, np.ndarray]:
    command = ["--input-dir", tmp_path / "ASOCA", "--output-dir", tmp_path / "out", "--workers", 1]
    prepare.main([str(item) for item in (*command, *options)])
    paths = (tmp_path / "out").glob("*/labels/*.label.nii.gz")
    return {path.name.split(".")[0]: read_labels(path).array for path in paths}


@pytest.mark.parametrize("with_segments", [False, True])
def test_folders_of_asoca_are_prepared_and_segments_written_as_classes(tmp_path, with_segments):
    import SimpleITK as sitk

    values = segments() if with_segments else (segments() > 0).astype(np.uint8)
    for group in ("Normal", "Diseased"):
        for number in (1, 2):
            hu = ct(number + 2 * (group == "Normal")).astype(np.int16)
            for folder, array in (("CTCA", hu), ("Annotations", values)):
                path = tmp_path / "ASOCA" / group / folder / f"{group}_{number}.nrrd"
                path.parent.mkdir(parents=True, exist_ok=True)
                sitk.WriteImage(sitk.GetImageFromArray(array), path)
    options = []
    if with_segments:  # which ImageCAS and ASOCA do not have; then the folder has other settings
        with pytest.raises(InputError, match="label value 19; .* for --config, give each value's"):
            prepared(tmp_path)
        (tmp_path / "map.yml").write_text(f"data: {{label_map: {json.dumps(SEGMENTS)}}}\n")
        options = ["--config", tmp_path / "map.yml"]
        with pytest.raises(InputError, match="was prepared with label_map"):
            prepared(tmp_path, *options)
        (tmp_path / "out").rename(tmp_path / "first")
    labels = prepared(tmp_path, *options)
    assert sorted(labels) == ["Diseased_1", "Diseased_2", "Normal_1", "Normal_2"]
    for array in labels.values():
        assert (np.unique(array) == (0, 8)).all() and (array > 0).sum() == (values > 0).sum()
    assert len(list((tmp_path / "out").glob("*/images/*.img.nrrd"))) == 4
    findings = doctor.check_data(doctor.find_splits(tmp_path / "out"), doctor.Expected())
    assert not [f for f in findings if f.level == "error" or f.rule == "stored_values"]


HEART_ML = {1: 120, 2: 80, 3: 110, 4: 90, 5: 130, 6: 60, 7: 50}


@pytest.mark.parametrize(
    ("volumes_ml", "name", "label_map"),
    [
        ([{1: 4}, {1: 9}], "ImageCAS or ASOCA", {1: 8}),
        ([dict.fromkeys(range(1, 20), 0.2)], "coronary segments", SEGMENTS),
        ([{1: 3, 2: 2}, {1: 2}], "coronary segments", {1: 8, 2: 8}),
        (
            [{5: 900, 7: 60, 44: 120, 45: 80, 46: 110, 47: 90, 48: 130, 49: 50}],
            "TotalSegmentator 1",
            {7: 6, 44: 1, 45: 2, 46: 3, 47: 4, 48: 5, 49: 7},
        ),
        ([{5: 900, 7: 20, 44: 9, 46: 9, 51: 600, 52: 90, 116: 40}], "TotalSegmentator 2", {52: 6}),
        (
            [{205: 120, 420: 80, 500: 110, 550: 90, 600: 130, 820: 60, 850: 50}],
            "MM-WHS",
            {205: 1, 420: 2, 500: 3, 550: 4, 600: 5, 820: 6, 850: 7},
        ),
        ([HEART_ML | {8: 4}, HEART_ML], None, None),  # the nine classes
        ([HEART_ML | {8: 4, 9: 300}], None, None),  # a further class, of which nothing is known
        ([{8: 0.2}], None, None),
        ([{}], None, None),
    ],
)
def test_schemes_are_known_by_their_values_and_volumes(volumes_ml, name, label_map):
    proposal = propose(volumes_ml, NINE_CLASSES)
    assert proposal is None if name is None else (name in proposal[0] and proposal[1] == label_map)


def test_a_proposal_has_the_classes_of_the_scheme(tmp_path):
    (tmp_path / "two.yml").write_text("labels: {names: [background, aorta, vessels], vessel: 2}\n")
    volumes_ml = [{51: 600, 52: 90}]
    assert propose(volumes_ml, load_scheme(tmp_path / "two.yml")) == (
        "those of TotalSegmentator 2",
        {52: 1},
    )
    assert propose([{1: 4, 2: 3}], numbered_classes(3, 2)) is None
