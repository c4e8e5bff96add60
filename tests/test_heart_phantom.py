"""The packaged model heart-phantom: its files, and the coronaries of a patient it has not seen."""

import pytest
import torch

from tubesynth import Pipeline
from tubesynth.build.checkpoint import Checkpoint
from tubesynth.config.loading import load_config
from tubesynth.config.packaged import packaged_models
from tubesynth.inference.segmenter import VesselSegmenter
from tubesynth.metrics.overlap import dice
from tubesynth.metrics.vessel_match import vessel_match
from tubesynth.phantom.anatomy import make_phantom
from tubesynth.volume.vessels import extract_tokens

CPU = torch.device("cpu")
MAX_MB = 10  # half of what the weights take in 32 bits, and the ranges of their training


@pytest.fixture(scope="module")
def patient():
    """A phantom of another seed than those of the training data, on the model's grid."""
    return make_phantom(31, 1, (96, 96, 72), (1.25, 1.25, 1.25))


def test_the_packaged_files_are_small_and_their_configs_are_those_of_the_demo():
    files = [*packaged_models(2).values(), *packaged_models("segmenter").values()]
    assert len(files) == 2 and sum(path.stat().st_size for path in files) < MAX_MB * 1e6
    stored = Checkpoint.load("heart-phantom", 2)
    stage_1, stage_2 = load_config("demo/stage_1"), load_config("demo/stage_2")
    assert stored.config.unet == stage_2.unet and stored.config.flow == stage_2.flow
    assert stored.trained_autoencoder.config.autoencoder == stage_1.autoencoder


@pytest.mark.slow
def test_a_synthesis_has_the_coronaries_of_its_label_map_and_not_those_of_another(patient):
    pipeline = Pipeline.load("heart-phantom", device=CPU)
    other = make_phantom(32, 1, (96, 96, 72), (1.25, 1.25, 1.25))
    tokens = extract_tokens(patient.labels.array == 8, patient.labels.affine)
    own_score, other_score = (
        vessel_match(pipeline.synthesize(labels, seed=0), patient.image, tokens, patient.labels)[
            "vessel_match"
        ]
        for labels in (patient.labels, other.labels)
    )
    assert own_score > 0.5 and other_score < 0.1


@pytest.mark.slow
def test_the_segmenter_finds_the_coronaries_of_a_real_phantom(patient):
    mask = VesselSegmenter.load("heart-phantom", CPU)(patient.image)
    assert dice(mask.array > 0, patient.labels.array == 8) > 0.8


def test_the_decoder_keeps_contrast_where_it_gets_the_vessels(patient):
    pipeline = Pipeline.load("heart-phantom", device=CPU)
    tokens = extract_tokens(patient.labels.array == 8, patient.labels.affine)
    matches = [
        vessel_match(
            pipeline.reconstruct(patient.image, labels=labels),
            patient.image,
            tokens,
            patient.labels,
        )["vessel_match"]
        for labels in (patient.labels, None)
    ]
    assert matches[0] > 0.6 > matches[1]
