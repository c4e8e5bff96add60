"""Folders of images and label maps anywhere, by the names that the published configs have."""

import gzip
import json
import shutil

import pytest

from tubesynth import train
from tubesynth.config.loading import load_config
from tubesynth.doctor import __main__ as doctor
from tubesynth.runtime.errors import InputError
from tubesynth.training.inputs import Volumes

NAMES = {"image": "cta", "label": "annotation"}


@pytest.fixture
def elsewhere(workplace, tmp_path) -> list[str]:
    """key=value items: tmp_path/cta/training and so on; data.root is no folder."""
    items = [f"data.root={tmp_path / 'nowhere'}"]
    for kind, name in NAMES.items():
        for split, short in (("training", "train"), ("validation", "val")):
            folder = tmp_path / name / split
            shutil.copytree(workplace / "data" / split / f"{kind}s", folder)
            items.append(f"data.{kind}_{short}_dir={folder}")
    return items


def test_cases_are_found_in_folders_anywhere(workplace, elsewhere, capsys):
    config = ["--config", str(workplace / "s1.yml")]
    cases, of_root = (
        Volumes.find(load_config(config[1], overrides)) for overrides in (elsewhere, [])
    )
    for split in ("training", "validation"):
        found, expected = getattr(cases, split), getattr(of_root, split)
        assert [case.id for case in found] == [case.id for case in expected]
        for kind, attribute in (("cta", "image"), ("annotation", "label")):
            assert all(getattr(case, attribute).parts[-3:-1] == (kind, split) for case in found)
    train.main([*config, "--dry-run", *elsewhere])
    assert "4 (4 cases, 1 a step and process)" in capsys.readouterr().out
    doctor.main([*config, *elsewhere])
    text = capsys.readouterr().out
    words = " ".join(text.split())  # lines are wrapped, by the length of the paths in them
    assert "4 training and 2 validation cases, all with label maps" in words and "READY" in words


def test_without_label_folders_the_images_are_alone_and_a_wrong_folder_is_an_error(
    workplace, elsewhere
):
    images = [item for item in elsewhere if not item.startswith("data.label")]
    config = str(workplace / "s1.yml")
    assert not Volumes.find(load_config(config, images)).has_labels
    with pytest.raises(InputError, match="data.label_train_dir: this config needs label maps"):
        Volumes.find(load_config(config, [*images, "losses.vessel_weight=2"]))
    wrong = [item.replace("/annotation", "/anotation") for item in elsewhere]
    with pytest.raises(InputError, match="anotation/training: no such folder"):
        Volumes.find(load_config(config, wrong))
    with pytest.raises(InputError, match="data.label_train_dir, label_val_dir: give both"):
        load_config(config, elsewhere[:-1])


def test_an_image_in_both_splits_is_named_by_train_a_dry_run_and_doctor(
    workplace, tmp_path, capsys, monkeypatch
):
    """Of all images, which have one size as raw files, a copy and a link are found."""
    monkeypatch.setattr("tubesynth.training.run.run_stage", lambda *arguments: None)
    data = tmp_path / "data"
    for path in sorted((workplace / "data").glob("*/*/*.nii.gz")):
        raw = data / path.relative_to(workplace / "data").with_suffix("")
        raw.parent.mkdir(parents=True, exist_ok=True)
        raw.write_bytes(gzip.decompress(path.read_bytes()))
    images = sorted((data / "training" / "images").iterdir())
    assert len({path.stat().st_size for path in images}) == 1
    command = ["--config", str(workplace / "s1.yml"), f"data.root={data}"]
    command.append(f"data.cache_dir={tmp_path / 'cache'}")

    def warnings() -> list[str]:
        train.main([*command, "--run-dir", str(tmp_path / "run")])
        lines = [x for x in capsys.readouterr().err.splitlines() if "one image in" in x]
        train.main([*command, "--dry-run"])
        planned = [x for x in capsys.readouterr().out.splitlines() if "one image in" in x]
        assert len(lines) == len(planned)
        assert all(a.split("warning: ")[1] == b[28:] for a, b in zip(lines, planned, strict=True))
        return lines

    assert warnings() == []
    validation = data / "validation"
    label = next((validation / "labels").iterdir())
    copies = [validation / "images" / name for name in ("x.nii", "y.nii")]
    shutil.copy(images[0], copies[0])
    copies[1].symlink_to(images[1])
    for name in ("x.nii", "y.nii"):
        shutil.copy(label, validation / "labels" / name)
    (line,) = warnings()
    pair = f"{images[0]} = {copies[0]}: one image in training and validation"
    assert pair in line and "(and 1 more): VALIDATION SCORES ARE INVALID" in line
    with pytest.raises(SystemExit):
        doctor.main([*command, "--json"])
    findings = json.loads(capsys.readouterr().out)["findings"]
    messages = [each["message"] for each in findings if each["rule"] == "duplicates"]
    assert len(messages) == 2 and messages[0].startswith(pair)
