"""A scheme of four classes, in which the vessels are class 2, goes through every command."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import STAGE_1, STAGE_2

from tubesynth.config.labels import load_scheme
from tubesynth.phantom.anatomy import make_phantom
from tubesynth.pipeline import Pipeline
from tubesynth.volume.classes import NINE_CLASSES, numbered_classes
from tubesynth.volume.files import read_labels
from tubesynth.volume.vessels import extract_tokens

CHAMBERS = [NINE_CLASSES.sources[NINE_CLASSES.names[value]][0] for value in NINE_CLASSES.heart]
LABELS = {
    "names": ["background", "heart", "vessels", "aorta"],
    "vessel": 2,
    "heart": [1],
    "aorta": 3,
    "plausible_ml": {"heart": [5000, 9000]},
    "sources": {"heart": CHAMBERS},
}
NAMES = {"heart", "vessels", "aorta"}
SEED, RESOLUTION, SPACING = 7, (32, 32, 24), (5.5, 5.5, 5.5)
STAGE_1_OPTIONS = [
    "autoencoder.decoder_condition=labels",
    "data.token_step_mm=5.5",
    "train.panel_every=1",
]
STAGE_2_OPTIONS = [
    "unet.vessel_attention=distance",
    "unet.head_channels=16",
    "data.token_step_mm=5.5",
    "train.panel_every=1",
]


@dataclass
class Workplace:
    """The results of all commands, and the names in the legends of all their pictures."""

    folder: Path
    legends: list[set[str]]

    @property
    def validation(self) -> Path:
        return self.folder / "data" / "validation"

    def metrics(self) -> dict:
        return json.loads((self.folder / "scores" / "metrics.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Workplace:
    from tubesynth import evaluate, reconstruct, synthesize, train
    from tubesynth.phantom import __main__ as phantom
    from tubesynth.pictures import panel

    folder = tmp_path_factory.mktemp("four")
    result, legend = Workplace(folder, []), panel.class_legend

    def recorded(*arguments):
        entries = legend(*arguments)
        result.legends.append({entry.name for entry in entries})
        return entries

    def call(command, *arguments):
        command.main([str(item) for item in arguments])

    labels = f"\nlabels: {json.dumps(LABELS)}\n"
    (folder / "labels.yml").write_text(labels)
    stage_1 = folder / "s1" / "checkpoints" / "last.ckpt"
    stage_2 = folder / "s2" / "checkpoints" / "last.ckpt"
    paths = dict(data=folder / "data", cache=folder / "cache", autoencoder=stage_1)
    (folder / "s1.yml").write_text(STAGE_1.format(**paths) + labels)
    (folder / "s2.yml").write_text(STAGE_2.format(**paths) + labels)
    grid = ["--resolution", *RESOLUTION, "--spacing", *SPACING, "--seed", SEED]
    scheme = ["--config", folder / "labels.yml"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(panel, "class_legend", recorded)
        phantoms = ["--output-dir", folder / "data", "--cases", 3, "--validation-fraction", 0.34]
        call(phantom, *phantoms, *grid, *scheme)
        for stage, options in (("s1", STAGE_1_OPTIONS), ("s2", STAGE_2_OPTIONS)):
            config = ["--config", folder / f"{stage}.yml", "--run-dir", folder / stage]
            call(train, *config, "--epochs", 1, *options)
        images, maps = result.validation / "images", result.validation / "labels"
        outputs = ["--reconstruction", folder / "rec", "--synthesis", folder / "syn"]
        call(
            reconstruct,
            *("--input-dir", images, "--labels", maps, "--output-dir", folder / "rec"),
            *("--model", stage_1),
        )
        call(
            synthesize,
            *("--input-dir", maps, "--output-dir", folder / "syn", "--model", stage_2),
        )
        call(
            evaluate,
            *("--real", images, "--labels", maps, "--output-dir", folder / "scores"),
            *("--workers", 1, "--no-distribution", *outputs, *scheme),
        )
    return result


def findings(workplace, capsys, config: str) -> list[dict]:
    from tubesynth.doctor import __main__ as doctor

    data = ["--data", str(workplace.folder / "data"), "--json", "--workers", "1"]
    doctor.main(["--config", str(workplace.folder / config), *data])
    return json.loads(capsys.readouterr().out)["findings"]


@pytest.mark.slow
def test_phantoms_have_the_scheme_of_the_config(workplace):
    nine = make_phantom(SEED, 2, RESOLUTION, SPACING).labels.array
    stored = read_labels(workplace.validation / "labels" / "2.label.nii.gz").array
    expected = np.isin(nine, NINE_CLASSES.heart) + 2 * (nine == 8) + 3 * (nine == 6)
    assert np.array_equal(stored, expected) and set(np.unique(stored)) == {0, 1, 2, 3}


@pytest.mark.slow
@pytest.mark.parametrize("config", ["labels.yml", "s1.yml"])
def test_doctor_names_the_classes_of_the_scheme(workplace, capsys, config):
    matches = findings(workplace, capsys, config)
    assert not [finding for finding in matches if finding["level"] == "error"]
    (vessels,) = [finding["message"] for finding in matches if finding["rule"] == "vessels"]
    assert vessels.startswith("class 2 (vessels) in 3 of 3 label maps")
    sizes = {finding["message"] for finding in matches if finding["rule"] == "class_volume"}
    assert len(sizes) == 3 and all("class 1 (heart) has" in message for message in sizes)


@pytest.mark.slow
def test_legends_of_training_and_evaluation_have_the_names_of_the_scheme(workplace):
    assert len(workplace.legends) >= 3 and all(names <= NAMES for names in workplace.legends)
    assert {"vessels", "aorta"} <= set.union(*workplace.legends)


@pytest.mark.slow
def test_tokens_are_those_of_class_2(workplace):
    from tubesynth.config.loading import load_config
    from tubesynth.training.inputs import Volumes

    config = load_config(workplace.folder / "s2.yml", STAGE_2_OPTIONS)
    assert Volumes.find(config).tokens.settings["vessel_class"] == 2
    labels = read_labels(workplace.validation / "labels" / "2.label.nii.gz")
    pipeline = Pipeline.load(workplace.folder / "s2" / "checkpoints" / "last.ckpt", device="cpu")
    tokens = pipeline.trace(labels)
    expected = extract_tokens(labels.array == 2, labels.affine, 5.5)
    assert len(tokens) > 5 and np.array_equal(tokens.position_mm, expected.position_mm)
    assert pipeline.config.labels == load_scheme(workplace.folder / "labels.yml")


@pytest.mark.slow
def test_the_decoder_has_an_embedding_of_four_classes_and_the_vessels_of_class_2(workplace):
    pipeline = Pipeline.load(workplace.folder / "s1" / "checkpoints" / "last.ckpt", device="cpu")
    assert pipeline.autoencoder.condition.num_classes == 4
    labels = read_labels(workplace.validation / "labels" / "2.label.nii.gz")
    condition = pipeline.codec.place(labels, labels, None, None).condition
    closeness = condition.fields[0, 0].numpy()
    assert closeness[labels.array == 2].mean() > closeness[labels.array != 2].mean() + 0.5


@pytest.mark.slow
def test_vessel_scores_are_those_of_class_2(workplace):
    result = workplace.metrics()
    provenance = result["provenance"]
    assert (provenance["vessel_class"], provenance["aorta_class"]) == (2, 3)
    assert provenance["heart_classes"] == [1] and provenance["class_names"] == LABELS["names"]
    assert result["vessels"]["synthesis"]["centreline_in_range"]["n"] == 1
    assert "mae_hu_class2" in result["reconstruction"]
    assert "mae_hu_class4" not in result["reconstruction"]


@pytest.mark.slow
def test_samples_have_label_maps_of_the_scheme(workplace):
    labels = read_labels(workplace.folder / "syn" / "labels" / "2_s0.label.nii.gz")
    assert labels.array.max() == 3


@pytest.mark.slow
def test_the_run_stores_its_scheme_and_another_one_is_refused(workplace):
    from tubesynth.runtime.errors import InputError
    from tubesynth.train import main

    stored = yaml.safe_load((workplace.folder / "s2" / "config.yml").read_text(encoding="utf-8"))
    assert stored["labels"]["names"] == LABELS["names"] and stored["labels"]["vessel"] == 2
    command = ["--config", str(workplace.folder / "s1.yml"), "--run-dir", "unused"]
    with pytest.raises(InputError, match="data.num_classes: 9, but the section labels has 4"):
        main([*command, "data.num_classes=9"])


def test_classes_are_matched_by_source_by_name_or_not_at_all():
    by_name = numbered_classes(4, vessel=1)
    assert by_name.from_nine_classes() == {value: int(value == 8) for value in range(1, 9)}
    assert NINE_CLASSES.from_nine_classes() == {value: value for value in range(1, 9)}
    assert NINE_CLASSES.class_of("heart_ventricle_left") == 3
    assert NINE_CLASSES.class_of("spleen") == 0
