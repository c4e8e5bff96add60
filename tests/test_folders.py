"""Folders of images and label maps anywhere, by the names that the published configs have."""

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
