"""python -m tubesynth.doctor: every rule names the file that breaks it, and no other."""

import json
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import REPOSITORY

from tubesynth.build.preprocessing import preprocessing_of
from tubesynth.config.loading import load_config
from tubesynth.data.preprocessing import Preprocessing
from tubesynth.doctor import __main__ as doctor
from tubesynth.doctor import config_rules
from tubesynth.doctor.case_rules import CASE_RULES, field_of_view
from tubesynth.doctor.facts import Expected, content_digest, measure, pieces
from tubesynth.doctor.findings import Finding
from tubesynth.doctor.set_rules import SET_RULES
from tubesynth.runtime.errors import InputError
from tubesynth.volume.cases import Case

SPACING = 4.0
SHAPE = (40, 40, 32)


def heart(case: int):
    """A clean case: chambers as blocks where they belong, two straight vessels, HU, RAS affine."""
    rng = np.random.default_rng(case)
    hu = np.full(SHAPE, -80.0)
    hu[:6] = hu[-6:] = -850
    label = np.zeros(SHAPE, np.uint8)
    # x to the patient's right: the left ventricle has the smaller x; the pulmonary artery is on top
    for value, x, z in ((1, 8, 2), (2, 14, 18), (3, 14, 2), (4, 26, 10), (5, 26, 2), (6, 20, 18)):
        label[x : x + 5, 8:22, z : z + 7] = value
    label[8:13, 8:22, 22:28] = 7
    label[18, 24, 4:28] = label[24, 24, 4 + case // 5 : 24 + case % 5] = 8
    for value, inside in enumerate((100, 300, 300, 150, 150, 350, 200, 350), start=1):
        hu[label == value] = inside
    hu += rng.normal(0, 10, SHAPE)
    affine = np.diag([SPACING, SPACING, SPACING, 1])
    affine[:3, 3] = -np.array(SHAPE) * SPACING / 2
    return np.rint(hu).astype(np.int16), label, affine


def save(path: Path, array, affine):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)


def put(root: Path, part: str, case, image=None, label=None, affine=None, label_affine=None):
    hu, classes, straight = heart(case if isinstance(case, int) else 0)
    affine = straight if affine is None else affine
    image, label = hu if image is None else image, classes if label is None else label
    save(root / part / "images" / f"{case}.img.nii.gz", image, affine)
    label_affine = affine if label_affine is None else label_affine
    save(root / part / "labels" / f"{case}.label.nii.gz", label, label_affine)


CONFIG = """stage: 1
data:
  root: {root}
  cache_dir: {root}/../cache
  resolution: [40, 40, 32]
  spacing: [4.0, 4.0, 4.0]
autoencoder: {{channels: [4, 4], residual_channels: [4, 4], embedding_dim: 2, codebook_size: 8}}
"""
STAGE_2 = """stage: 2
data: {{root: {root}, cache_dir: {root}/../cache, resolution: [40, 40, 32], spacing: [4, 4, 4]}}
latents: {{autoencoder: {autoencoder}}}
unet: {{channels: [8, 8], num_res_blocks: 1, attention_levels: [1], head_channels: 8}}
"""


@pytest.fixture
def data(tmp_path) -> Path:
    """Three clean cases, 1 and 2 for training and 3 for validation, and a config, one.yml."""
    root = tmp_path / "data"
    for case, part in ((1, "training"), (2, "training"), (3, "validation")):
        put(root, part, case)
    (tmp_path / "one.yml").write_text(CONFIG.format(root=root))
    return root


def expected(data: Path, *overrides: str) -> Expected:
    """The grid and classes of one.yml."""
    config = load_config(data.parent / "one.yml", list(overrides))
    return Expected(preprocessing_of(config), config.labels, for_training=True)


def look(data: Path, workers: int = 1):
    """The errors and warnings on a folder, as (level, rule, case, message)."""
    findings = doctor.check_data(doctor.find_splits(data), expected(data), workers)
    return [(f.level, f.rule, f.case, f.message) for f in findings if f.level != "info"]


def only(matches, level, rule, case):
    """The message of the only finding."""
    assert [(f[0], f[1], f[2]) for f in matches] == [(level, rule, case)], matches
    return matches[0][3]


def run_json(capsys, *arguments):
    """(exit code, the parsed output) of doctor --json, which prints nothing else."""
    code = 0
    try:
        doctor.main([*map(str, arguments), "--json", "--workers", "1"])
    except SystemExit as end:
        code = end.code
    out = capsys.readouterr().out
    result = json.loads(out)
    assert set(result) == {"ok", "findings"} and result["ok"] is (code == 0)
    for finding in result["findings"]:
        assert list(finding) == ["level", "rule", "case", "message"]
        assert finding["level"] in ("error", "warning", "info") and "\n" not in finding["message"]
    return code, result["findings"]


def test_a_clean_set_has_no_finding_above_info(data):
    assert look(data) == []


def test_phantoms_are_ok(workplace, capsys):
    code, findings = run_json(capsys, "--config", workplace / "s1.yml")
    assert code == 0 and not [f for f in findings if f["level"] == "error"]
    cases = [f["message"] for f in findings if f["rule"] == "cases"]
    assert cases == ["4 training and 2 validation cases, all with label maps"]


CONFIGS = sorted((REPOSITORY / "configs").rglob("*.yml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_published_config_is_checked_without_a_traceback(workplace, path, capsys):
    """The findings include the estimated time of training."""
    options = ["--config", str(path), "--data", str(workplace / "data"), "--quick", "--json"]
    with suppress(SystemExit):  # 2, where checkpoints are not there yet
        doctor.main([*options, "--workers", "1"])
    matches = json.loads(capsys.readouterr().out)["findings"]
    assert any("training takes about" in finding["message"] for finding in matches)


def test_unpaired_files_are_named_on_both_sides(data):
    (data / "training/labels/1.label.nii.gz").unlink()
    (data / "validation/images/3.img.nii.gz").rename(data / "validation/images/4.img.nii.gz")
    matches = [f[1:] for f in look(data) if f[1] == "pairs"]
    assert [(rule, case) for rule, case, _ in matches] == [("pairs", c) for c in ("1", "3", "4")]
    assert "1.img.nii.gz has no label map" in matches[0][2]
    assert "3.label.nii.gz has no image" in matches[1][2]


def test_one_id_twice_and_an_empty_folder_are_errors(data):
    (data / "training/images/1.copy.nii.gz").write_bytes(b"")
    for file in (data / "validation/images").iterdir():
        file.unlink()
    messages = [f[3] for f in look(data) if f[1] == "pairs"]
    assert any("case 1 has 2 files" in m for m in messages)
    assert any("holds no volumes" in m for m in messages)


def test_a_data_folder_without_splits_is_an_error(data, tmp_path):
    (data / "training").rename(tmp_path / "elsewhere")
    assert "elsewhere" not in str(look(data))
    (data / "validation/images").rename(data / "images")
    (data / "validation/labels").rename(data / "labels")
    (data / "validation").rmdir()
    assert "no training/ and validation/" in only(look(data), "error", "folders", None)


def test_a_damaged_file_is_an_error_and_the_others_are_checked(data):
    file = data / "training/images/1.img.nii.gz"
    file.write_bytes(file.read_bytes()[:-2000])
    label = data / "training/labels/2.label.nii.gz"
    label.write_bytes(b"no volume")
    matches = look(data)
    assert [f[:3] for f in matches] == [("error", "readable", c) for c in ("1", "2")]
    assert "1.img.nii.gz" in matches[0][3] and "2.label.nii.gz" in matches[1][3]


def test_labels_on_another_grid_are_an_error(data):
    shifted = heart(1)[2].copy()
    shifted[0, 3] += SPACING
    put(data, "training", 1, label_affine=shifted)
    assert "resample the label map" in only(look(data), "error", "same_grid", "1")


def test_a_spacing_in_micrometers_is_an_error(data):
    affine = heart(1)[2] @ np.diag([0.001, 0.001, 0.001, 1]) * 10
    put(data, "training", 1, affine=affine)
    rules = {f[1]: f for f in look(data)}
    assert rules["spacing"][0] == "error" and "0.04 x 0.04 x 0.04 mm" in rules["spacing"][3]


def test_a_header_without_orientation_is_a_warning(data):
    image = nib.Nifti1Image(heart(1)[0], None)
    image.header.set_zooms((SPACING,) * 3)
    image.set_sform(None, 0)
    image.set_qform(None, 0)
    nib.save(image, data / "training/images/1.img.nii.gz")
    affine = nib.load(data / "training/images/1.img.nii.gz").affine
    save(data / "training/labels/1.label.nii.gz", heart(1)[1], affine)
    for workers in (1, 2):
        matches = [f for f in look(data, workers) if f[1] == "read_warnings"]
        assert len(matches) == 1 and "left and right are a guess" in matches[0][3]


def test_a_header_of_two_places_is_a_warning_and_a_slice_an_error(data):
    image, _, affine = heart(1)
    for path in ("images/1.img.nii.gz", "labels/1.label.nii.gz"):
        file = nib.load(data / "training" / path)
        file.set_qform(affine, 1)
        file.set_sform(affine + 30 * np.eye(4, k=3), 1)
        nib.save(nib.Nifti1Image(file.get_fdata(), None, file.header), data / "training" / path)
    save(data / "training/images/2.img.nii.gz", image[:, :, :1], affine)
    matches = look(data)
    found = [message for *kind, message in matches if kind == ["warning", "read_warnings", "1"]]
    assert len(found) == 2 and all("30.0 mm apart" in message for message in found)
    others = [match for match in matches if match[3] not in found]
    assert "a picture" in only(others, "error", "readable", "2")


def test_a_tilted_and_a_sheared_volume_are_warnings(data):
    turn = np.eye(4)
    c, s = np.cos(np.radians(40)), np.sin(np.radians(40))
    turn[:2, :2] = [[c, -s], [s, c]]
    put(data, "training", 1, affine=turn @ heart(1)[2])
    shear = heart(2)[2].copy()
    shear[1, 2] = 0.1 * SPACING
    put(data, "training", 2, affine=shear)
    matches = [(f[2], f[3]) for f in look(data) if f[1] == "read_warnings"]
    assert [case for case, _ in matches] == ["1", "1", "2", "2"]  # the image and the label map
    assert "tilted by 40 degrees" in matches[0][1] and "gantry" in matches[2][1]


def test_a_mirrored_and_an_upturned_heart_are_warnings(data):
    hu, label, _ = heart(1)
    put(data, "training", 1, hu[::-1], label[::-1])
    hu, label, _ = heart(2)
    put(data, "training", 2, hu[:, :, ::-1], label[:, :, ::-1])
    matches = [f for f in look(data) if f[1] == "anatomy"]
    assert [f[2] for f in matches] == ["1", "2"]
    assert "mirrored" in matches[0][3] and "upside down" in matches[1][3]


HU = {
    "scaled": (
        lambda hu: ((hu + 1000) / 2000).astype(np.float32),
        "error",
        "scaled to a small range",
    ),
    "gray": (lambda hu: ((hu + 1000) / 8).clip(0, 255).astype(np.uint8), "error", "of 8 bits"),
    "offset": (lambda hu: (hu + 1024).clip(0).astype(np.uint16), "error", "intercept is missing"),
    "twice": (lambda hu: hu - 1024, "error", "subtracted twice"),
    "blank": (lambda hu: np.full_like(hu, -1000), "error", "every voxel is -1000"),
    "flat": (lambda hu: (hu / 100).astype(np.int16), "error", "small range"),
    "multiples": (lambda hu: (hu * 80.0).clip(-1024, 32767).astype(np.int16), "error", "multip"),
    "no air": (lambda hu: hu.clip(-100), "error", "clipped, "),
}


@pytest.mark.parametrize("kind", HU)
def test_images_that_are_not_in_hu_are_reported(data, kind):
    change, level, text = HU[kind]
    put(data, "training", 1, change(heart(1)[0]))
    matches = [f for f in look(data) if f[1] == "hu_range"]
    assert text in only(matches, level, "hu_range", "1")


def test_padding_below_air_is_reported_without_a_warning(data, capsys):
    hu = heart(1)[0]
    hu[:4] = -3024
    put(data, "training", 1, hu)
    assert look(data) == []
    _, findings = run_json(capsys, "--data", data)
    padding = [f for f in findings if f["rule"] == "hu_padding"]
    assert len(padding) == 1 and "10.0 % of voxels below -1024" in padding[0]["message"]


def test_numbers_below_air_that_are_no_hu_are_not_called_padding(data, capsys):
    put(data, "training", 1, 10 * heart(1)[0].astype(np.int32))
    _, findings = run_json(capsys, "--data", data)
    rules = [f["rule"] for f in findings if f["case"] == "1" and f["rule"].startswith("hu_")]
    assert rules == ["hu_range"]


def test_a_small_image_and_a_cut_off_heart_are_warnings(data):
    hu, label, affine = heart(1)
    put(data, "training", 1, hu[5:35, 5:30, 2:30], label[5:35, 5:30, 2:30])
    matches = look(data)
    share = 1 - 30 * 25 * 28 / np.prod(SHAPE)
    assert f"{100 * share:.0f} % of the model's" in only(matches, "warning", "field_of_view", "1")
    label = np.zeros((80, 40, 32), np.uint8)
    label[:, 20, 10:12] = 8  # half of it is in the middle 40
    facts = cut_off(label, data)
    assert facts.lost == pytest.approx(0.5) and facts.lost_vessel == pytest.approx(0.5)
    assert facts.cropped == pytest.approx(0.5) and facts.padded == pytest.approx(0, abs=1e-9)


def cut_off(label, data):
    image = np.tile(heart(1)[0], (2, 1, 1))
    put(data, "training", 9, image, label)
    path = data / "training"
    case = Case("9", path / "images/9.img.nii.gz", path / "labels/9.label.nii.gz")
    expected = Expected(Preprocessing(SHAPE, (SPACING,) * 3))
    facts = measure(case, "training", expected)
    ((_, message, _),) = field_of_view(facts, expected)
    assert "cuts off 50 % of the vessels" in message
    return facts


def test_label_values_that_are_no_class_are_an_error(data):
    label = heart(1)[1]
    label[0, 0, 0], label[0, 0, 1] = 9, 44
    put(data, "training", 1, label=label)
    assert "values 9, 44" in only(look(data), "error", "label_values", "1")


def test_an_empty_label_map_is_a_warning(data):
    put(data, "training", 1, label=np.zeros(SHAPE, np.uint8))
    assert "all background" in only(look(data), "warning", "label_values", "1")


def test_a_heart_of_impossible_size_is_a_warning(data):
    hu, label, _ = heart(1)
    label[2:38, 26:40, 1:31] = 6
    put(data, "training", 1, label=label)
    message = only(look(data), "warning", "class_volume", "1")
    volume = (label == 6).sum() * SPACING**3 / 1000
    assert f"class 6 (aorta) has {volume:.3g} ml" in message


def test_a_case_without_vessels_is_a_warning(data):
    label = heart(1)[1]
    label[label == 8] = 0
    put(data, "training", 1, label=label)
    assert "no vessels" in only(look(data), "warning", "vessels_present", "1")


def test_a_torn_tree_is_a_warning_with_the_number_of_pieces(data):
    label = heart(1)[1]
    label[18, 24, 6:26:4] = 0  # five cuts: seven pieces with the whole one
    put(data, "training", 1, label=label)
    assert "vessels in 7 pieces" in only(look(data), "warning", "vessel_pieces", "1")


def test_vessels_in_pieces_at_the_models_spacing_are_reported(data):
    """A slanted vessel, one voxel thin: larger voxels hit it in every other slice."""
    _, label, _ = heart(1)
    label[label == 8] = 0
    z = np.arange(4, 30)
    label[8 + z // 2, 24, z] = label[8 + z // 2, 25, z] = 8
    put(data, "training", 1, label=label)
    coarse = ["data.spacing=[8,8,8]", "data.resolution=[20,20,16]"]
    matches = doctor.check_data(doctor.find_splits(data), expected(data, *coarse))
    (messages,) = [f.message for f in matches if (f.rule, f.case) == ("vessels_on_the_grid", "1")]
    assert "vessels in 1 pieces become" in messages and "voxels of 8 x 8 x 8 mm" in messages


def test_pieces_touch_by_corners():
    mask = np.zeros((6, 6, 6), bool)
    mask[0, 0, 0] = mask[1, 1, 1] = mask[4, 4, 4] = True
    assert pieces(mask) == [2, 1] and pieces(np.zeros((3, 3, 3), bool)) == []


def test_the_label_map_of_another_image_has_no_contrast(data):
    hu, label, _ = heart(1)
    shifted = label.copy()
    shifted[shifted == 8] = 0
    shifted[15, 30, 4:28] = shifted[21, 30, 4:28] = 8
    put(data, "training", 1, hu, shifted)
    assert "HU around them" in only(look(data), "warning", "vessel_contrast", "1")


def test_one_image_under_two_ids_is_a_warning_and_across_the_splits_an_error(data):
    hu, label, affine = heart(1)
    put(data, "training", 7, hu.astype(np.float32), label)  # other bytes, the same numbers
    matches = {f[1]: f for f in look(data)}
    assert matches["duplicates"][0] == "warning" and matches["duplicates"][2] == "7"
    assert "duplicate_labels" not in matches  # that of a duplicate is no second finding
    put(data, "validation", 8, hu, label)
    level, _, _, message = {f[1]: f for f in look(data)}["duplicates"]
    assert level == "error" and "training and validation" in message


def test_the_digest_sees_numbers_and_shape():
    a = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    assert content_digest(a) == content_digest(np.asfortranarray(a.astype(np.float32)))
    assert content_digest(a) != content_digest(a.reshape(2, 4, 3))
    assert content_digest(a) != content_digest(a[::-1])


def test_one_label_map_for_two_images_is_a_warning(data):
    put(data, "training", 2, label=heart(1)[1])
    assert "different images" in only(look(data), "warning", "duplicate_labels", "2")


def test_one_id_in_both_splits_is_a_warning(data):
    hu, label, _ = heart(9)
    put(data, "validation", 1, hu, label)
    assert "one patient" in only(look(data), "warning", "same_id", "1")


def test_classes_that_are_absent_are_a_warning(data):
    for case, part in ((1, "training"), (2, "training"), (3, "validation")):
        label = heart(case)[1]
        label[label == 6] = 0
        if part == "training":
            label[label == 5] = 0
        put(data, part, case, label=label)
    matches = [f[3] for f in look(data) if f[1] == "absent_classes"]
    assert len(matches) == 2 and "class 6 (aorta)" in matches[0]
    assert "only validation holds class 5 (right ventricle)" in matches[1]


def test_for_imagecas_as_distributed_the_remedy_is_prepare(tmp_path):
    hu, label, affine = heart(1)
    save(tmp_path / "1.img.nii.gz", hu, affine)
    save(tmp_path / "1.label.nii.gz", (label == 8).astype(np.uint8), affine)
    matches = doctor.check_data(doctor.find_splits(tmp_path), Expected())
    messages = [finding.message for finding in matches if finding.rule == "absent_classes"]
    assert len(messages) == 1 and "tubesynth prepare" in messages[0]


def test_segments_are_listed_and_their_label_map_is_proposed_and_then_used(data, capsys):
    for case, part in ((1, "training"), (2, "training"), (3, "validation")):
        classes = heart(case)[1]
        label = np.where(classes == 8, 2 + np.arange(SHAPE[2]) // 3, 0).astype(np.uint8)  # 3 to 11
        put(data, part, case, label=label)
    (message,) = [f[3] for f in look(data) if f[1] == "stored_values"]
    assert "look like coronary segments" in message and "{3: 8, 4: 8, 5: 8" in message
    label_map = "data.label_map=" + re.search(r"{[^}]*}", message)[0]
    _, findings = run_json(capsys, "--config", data.parent / "one.yml", label_map)
    rows = [f["message"] for f in findings if f["rule"] == "stored_values"]
    assert len(rows) == 1 and rows[0].startswith("class 8 (coronary arteries): values 3 (")
    assert all(f", {value} (" in rows[0] for value in range(4, 12))
    assert not [f for f in findings if f["level"] == "error" and f["case"]]
    (vessels,) = [f["message"] for f in findings if f["rule"] == "vessels"]
    assert "class 8 (coronary arteries) in 3 of 3 label maps" in vessels


def test_a_class_unlike_the_other_cases_is_a_warning(data):
    for case in range(4, 12):
        put(data, "training", case)
    label = heart(4)[1]
    label[:, 22:28][heart(4)[1][:, 22:28] > 0] = 0
    label[18, 24, 4:12] = 8
    put(data, "training", 4, label=label)
    message = only(look(data), "warning", "volume_outlier", "4")
    assert f"has {8 * 0.064:.3g} ml" in message


def test_every_data_rule_has_a_test_in_this_file():
    text = Path(__file__).read_text(encoding="utf-8")
    overview = {"cases", "geometry", "intensities", "vessels"}
    for rule in [*CASE_RULES, *SET_RULES, *config_rules.RULES]:
        assert rule.__name__ in overview or f'"{rule.__name__}"' in text, rule.__name__


def test_findings_do_not_depend_on_the_workers(data):
    (data / "training/labels/1.label.nii.gz").write_bytes(b"no volume")
    splits = doctor.find_splits(data)
    single, double = (doctor.check_data(splits, expected(data), workers) for workers in (1, 2))
    assert single == double and any(finding.rule == "readable" for finding in single)


def test_quick_reads_a_few_cases_and_prints_their_number(data, monkeypatch):
    monkeypatch.setattr(doctor, "QUICK_CASES", 1)
    (data / "training/images/2.img.nii.gz").write_bytes(b"")
    matches = doctor.check_data(doctor.find_splits(data), Expected(), quick=True)
    assert not any(finding.rule == "readable" for finding in matches)
    assert "2 of them measured" in matches[0].message


def test_a_folder_of_images_without_splits_is_checked(tmp_path, capsys):
    hu, label, affine = heart(1)
    save(tmp_path / "plain/1.img.nii.gz", hu, affine)
    code, findings = run_json(capsys, "--data", tmp_path / "plain")
    assert code == 0 and any("images only" in f["message"] for f in findings)
    save(tmp_path / "raw/1-200/1.img.nii.gz", hu, affine)
    save(tmp_path / "raw/1-200/1.label.nii.gz", label, affine)
    save(tmp_path / "raw/201-400/201.img.nii.gz", hu, affine)
    code, findings = run_json(capsys, "--data", tmp_path / "raw")
    assert code == 2
    assert [(f["rule"], f["case"]) for f in findings if f["level"] == "error"] == [("pairs", "201")]


def machine(data: Path, rule: str, text: str, *overrides):
    """The only finding of a rule on the machine: (level, message)."""
    (data.parent / "two.yml").write_text(text)
    config = load_config(data.parent / "two.yml", list(overrides))
    chosen = [r for r in config_rules.RULES if r.__name__ == rule]
    matches = doctor.apply_rules(chosen, config_rules.PlannedRun(config, doctor.find_splits(data)))
    return [(finding.level, finding.message) for finding in matches]


def test_weights_that_are_missing_or_of_the_wrong_stage_are_errors(data, stage_1, stage_2):
    def weights(path, *overrides):
        return machine(data, "weights", STAGE_2.format(root=data, autoencoder=path), *overrides)

    (missing,) = weights(data / "no.ckpt")
    assert missing[0] == "error" and "train stage 1 first" in missing[1]
    (data / "text.pth").write_text("no weights")
    for path, problem in (("lpips", "no such weights file"), ("text", "not a file of plain")):
        files = f"[{data / path}.pth]"
        listed = f"stage: 1\nlosses: {{perceptual: 1, perceptual_files: {files}}}"
        ((level, message),) = machine(data, "weights", listed)
        assert level == "error" and message.startswith("losses.perceptual_files: ")
        assert problem in message
    (unset,) = weights("null")
    assert unset[0] == "error" and "not set" in unset[1]
    for path in (stage_1, stage_2):  # stage 2 contains its autoencoder
        (spacing,) = weights(path)
        assert spacing[0] == "warning" and "[5.5, 5.5, 5.5]" in spacing[1]
    assert weights(stage_1, "data.spacing=[5.5,5.5,5.5]") == []
    window, _ = weights(stage_1, "data.hu_window=[-200,800]")
    assert window[0] == "error" and "make them equal" in window[1]
    size, _ = weights(stage_1, "data.resolution=[40,42,32]")
    assert size[0] == "error" and "multiples of 4" in size[1]


def test_the_cache_must_fit_on_the_disk(data, monkeypatch):
    text = CONFIG.format(root=data)
    needed = 3 * 3 * np.prod(SHAPE)  # three cases of int16 and uint8
    ((level, message),) = machine(data, "disk", text)
    assert level == "info" and f": {needed / 1e3:.0f} kB;" in message

    def free(count):
        usage = type("Usage", (), {"free": count})
        monkeypatch.setattr(config_rules.shutil, "disk_usage", lambda folder: usage)
        return machine(data, "disk", text)[0]

    assert free(needed - 1)[0] == "error" and free(int(needed * 1.05))[0] == "warning"
    assert free(int(needed * 1.2))[0] == "info"


def test_cached_volumes_need_no_further_disk_space(data, monkeypatch):
    from tubesynth.cache import main as cache

    monkeypatch.setattr("tubesynth.volume.digest._SETTLED_SECONDS", -60)  # remember fresh files too

    text = CONFIG.format(root=data)
    cache(["build", "--config", str(data.parent / "one.yml"), "--workers", "1"])
    ((_, message),) = machine(data, "disk", text)
    size = 3 * 3 * np.prod(SHAPE)
    assert f": {size / 1e3:.0f} kB, {size / 1e3:.0f} kB of it built" in message


def test_checkpoints_must_fit_on_the_disk(data, monkeypatch):
    text = CONFIG.format(root=data)
    assert machine(data, "checkpoints", text)[0][0] == "info"
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(config_rules.shutil, "disk_usage", lambda folder: usage)
    assert machine(data, "checkpoints", text)[0][0] == "warning"


def test_memory_is_compared_with_the_device(data, monkeypatch):
    text = CONFIG.format(root=data)
    assert machine(data, "memory", text)[0][0] == "info"
    monkeypatch.setattr(config_rules, "_device_memory", lambda: ("the GPU", 1_000_000))
    ((level, message),) = machine(data, "memory", text)
    assert level == "warning" and message.endswith(
        "plan CONFIG --fit 0.001 names settings that fit"
    )
    monkeypatch.setattr(config_rules, "total_bytes", lambda: 300_000)
    matches = machine(data, "memory", text, "data.dataset_type=cache")
    assert "data.dataset_type=persistent" in matches[1][1]


def test_the_length_of_a_training_is_computed_from_its_steps(data):
    text = CONFIG.format(root=data)
    ((level, message),) = machine(data, "length", text, "train.epochs=3")
    steps, teraflops = re.match(r"(\d+) steps of (\S+) TFLOP: .* on one H100", message).groups()
    assert level == "info" and int(steps) == 6
    ((_, message),) = machine(data, "length", text, "train.epochs=3", "train.accumulate=2")
    doubled = re.match(r"3 steps of (\S+) TFLOP", message)[1]
    assert float(doubled) == pytest.approx(2 * float(teraflops), rel=0.01)


def test_a_machine_without_gpu_and_a_batch_without_cases_are_warnings(data, monkeypatch):
    text = CONFIG.format(root=data)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    ((level, message),) = machine(data, "device", text, "train.precision=16-mixed")
    assert level == "warning" and "no faster" in message
    ((level, message),) = machine(data, "split_sizes", text, "data.batch_size=4")
    assert level == "warning" and "only 2 cases" in message


def test_a_setting_that_the_run_does_not_read_is_a_warning(data):
    ((level, message),) = machine(data, "settings", "stage: 1\nlosses: {perceptual: 1}")
    assert level == "warning" and "THE PERCEPTUAL TERM IS LEFT OUT" in message


def test_the_screen_has_errors_first_and_a_verdict(data, capsys):
    for case in (1, 2):
        label = heart(case)[1]
        label[0, 0, 0] = 12
        put(data, "training", case, label=label)
    with pytest.raises(SystemExit) as end:
        doctor.main(["--config", str(data.parent / "one.yml"), "--workers", "1"])
    assert end.value.code == 2
    out = capsys.readouterr().out
    levels = [line.split()[0] for line in out.splitlines() if line[:2] == "  " and line[2] != " "]
    assert levels == sorted(levels, key=["error", "warning", "info"].index)
    assert out.count("label_values") == 2 and "NOT READY: 2 errors" in out.splitlines()[-1]
    assert f"{data}/training" not in out  # paths are relative to the data folder
    put(data, "training", 1)
    put(data, "training", 2)
    doctor.main(["--data", str(data), "--workers", "1"])
    assert "NO ERRORS" in capsys.readouterr().out.splitlines()[-1]


def test_the_verdict_counts_a_warning_of_many_cases_once():
    many = [Finding("warning", "vessel_pieces", str(case), "in 30 pieces") for case in range(7)]
    other = Finding("warning", "device", None, "no GPU")
    assert doctor.verdict([*many, other], True).startswith("READY, with 2 warnings:")
    assert doctor.verdict([*many[:2], other], True).startswith("READY, with 3 warnings:")


def test_each_kind_of_message_of_a_rule_has_its_own_line_and_count(tmp_path):
    """Kinds differ in more than the names of files and the numbers; each has its own remedy."""
    findings = []
    for number in range(5):
        for case, text in (
            (f"mr {number}", f"values 0 to {900 + number}: MR, give a CT in HU"),
            (f"clipped_{number}", f"{50 + number} % of voxels are -{160 + number}: set the window"),
        ):
            message = f"{tmp_path}/{case}.img.nii.gz: {text}"
            findings.append(Finding("error", "hu_range", case, message))
    findings.append(Finding("error", "hu_range", "flat", f"{tmp_path}/flat.png: constant"))
    text = doctor.screen(doctor.Diagnosis(findings, tmp_path, False), "heading")
    words = " ".join(text.split())
    assert "5 cases, such as mr 0: mr 0.img.nii.gz: values 0 to 900: MR, give a CT in HU" in words
    assert "(also mr 1, mr 2, mr 3, mr 4)" in words
    assert "5 cases, such as clipped_0: clipped_0.img.nii.gz: 50 % of voxels are -160" in words
    assert "(also clipped_1, clipped_2, clipped_3, clipped_4)" in words
    assert "case flat: flat.png: constant" in words
    assert words.count("hu_range") == 3 and "NOT READY: 3 errors, 0 warnings" in words


def test_a_wrong_config_and_a_missing_folder_are_findings_too(data, capsys):
    with pytest.raises(SystemExit):
        doctor.main(["--config", str(data.parent / "one.yml"), "data.rot=x"])
    assert "data.rot=x; no data\n" in capsys.readouterr().out
    code, findings = run_json(capsys, "--config", data.parent / "one.yml", "data.rot=x")
    assert code == 2 and findings[0]["rule"] == "config" and "data.root" in findings[0]["message"]
    code, findings = run_json(capsys, "--data", data / "no")
    assert code == 2 and findings[0]["rule"] == "folder"
    with pytest.raises(InputError, match="--config"):
        doctor.main([])


def test_the_command_ends_with_2_and_prints_json_alone(data):
    (data / "training/labels/1.label.nii.gz").unlink()
    command = [sys.executable, "-m", "tubesynth.doctor", "--data", str(data), "--json"]
    job = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert job.returncode == 2 and json.loads(job.stdout)["ok"] is False
    assert "Traceback" not in job.stderr


def test_real_ct_gets_sensible_findings(real_ct, tmp_path, capsys):
    for name in ("images", "labels"):
        (tmp_path / name).symlink_to((real_ct / name).resolve())
    code, findings = run_json(capsys, "--data", tmp_path)
    assert not [f for f in findings if f["rule"] in ("hu_range", "readable", "same_grid", "pairs")]
    errors = [(f["rule"], f["case"]) for f in findings if f["level"] == "error"]
    assert errors == [("label_values", case) for case in ("abdomen", "aorta", "lumbar")]
    padded = [f for f in findings if f["rule"] == "hu_padding" and f["case"] == "chest"]
    assert "-3024" in padded[0]["message"]
