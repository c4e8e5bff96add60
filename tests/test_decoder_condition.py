"""The decoder's condition in inference: units, grids, dropped conditions, memory, base models."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import make_vqvae, randomize_zeros

from tubesynth.build.base_models import open_base_models, require_same_autoencoder
from tubesynth.build.checkpoint import AutoencoderState, Checkpoint, PhaseState, Position
from tubesynth.build.networks import build_autoencoder, build_network
from tubesynth.config.loading import config_from_plain
from tubesynth.config.schema import Stage1Config, Stage2Config
from tubesynth.models.scale import LatentScale
from tubesynth.pipeline import Pipeline
from tubesynth.runtime import log
from tubesynth.runtime.errors import InputError
from tubesynth.volume.grid import Volume
from tubesynth.volume.rasterize import condition_fields
from tubesynth.volume.vessels import VesselTokens

CPU = torch.device("cpu")
DATA = dict(resolution=[16, 16, 16], spacing=[2.0] * 3, token_step_mm=1.0)
SIZES = dict(channels=[4, 8], residual_channels=[4, 8], num_residual_layers=1, embedding_dim=4)
UNET = dict(channels=[8, 8], num_res_blocks=1, attention_levels=[], head_channels=8)
UNET |= dict(label_channels=[4, 4, 4], spade_hidden=4, vessel_fields=True)


def stage_1(decoder_condition: str, **sections) -> Stage1Config:
    model = dict(SIZES, quantizer="kl", decoder_condition=decoder_condition)
    config = config_from_plain(dict(stage=1, data=DATA, autoencoder=model, **sections), "s1")
    assert isinstance(config, Stage1Config)
    return config


def stage_2(stage: int = 2, **sections) -> Stage2Config:
    dropout = dict(label_dropout=0.1, vessel_dropout=0.1)
    plain = dict(stage=stage, latent_mode="flow", data=DATA, unet=UNET, flow=dropout)
    plain |= dict(sampling=dict(solver="euler", steps=1), **sections)
    config = config_from_plain(plain, "s2")
    assert isinstance(config, Stage2Config)
    return config


def label_map() -> Volume:
    """A vessel, class 8, of 24 mm along x, in class 1."""
    array = np.zeros((16, 16, 16), np.uint8)
    array[2:14, 4:12, 4:12] = 1
    array[2:14, 7:9, 7:9] = 8
    return Volume(array, np.diag([2.0, 2.0, 2.0, 1.0]))


def test_fields_at_image_resolution_are_in_mm_at_every_spacing():
    """A vessel of 0.5 mm along x: closeness 1 on its wall and 0 at 3 mm from it."""
    position = np.zeros((40, 3), np.float32)
    position[:, 0] = np.arange(40) - 19.5
    tangent = np.tile(np.float32([1, 0, 0]), (40, 1))
    along = np.arange(40, dtype=np.float32)
    radius = np.full(40, 0.5, np.float32)
    tokens = VesselTokens(position, radius, tangent, np.zeros(40, np.int32), along)
    for spacing in ((0.7, 0.7, 1.05), (2.0, 2.0, 2.0)):
        closeness, radius_mm = condition_fields(tokens, (9, 9, 9), spacing, factor=1)
        for y, z in ((4, 4), (5, 4), (4, 5), (0, 0)):
            distance_mm = np.hypot((y - 4) * spacing[1], (z - 4) * spacing[2]) - 0.5
            assert closeness[4, y, z] == pytest.approx(max(0, 1 - distance_mm / 3), abs=1e-5)
            assert radius_mm[4, y, z] == pytest.approx(0.5 * (distance_mm < 3))


def pipeline() -> Pipeline:
    """An untrained stage-2 model whose decoder is conditioned on vessels and labels."""
    torch.manual_seed(0)
    autoencoder, config = build_autoencoder(stage_1("labels")), stage_2()
    randomize_zeros(autoencoder.decoder, 0.1)
    unet = build_network(config, 4, 4)
    return Pipeline(config, autoencoder, unet, LatentScale(torch.zeros(4), torch.ones(4)), "", CPU)


def test_a_guidance_weight_of_0_drops_the_condition_of_the_decoder(monkeypatch):
    model, conditions = pipeline(), []
    decode = model.autoencoder.decode

    def recorded(latents, **options):
        conditions.append(options["condition"])
        return decode(latents, **options)

    monkeypatch.setattr(model.autoencoder, "decode", recorded)
    for weights in ({}, {"guidance_label": 0.0}, {"guidance_vessel": 0.0}):
        model.synthesize(label_map(), **weights)
    both, vessels, labels = conditions
    assert both.fields[:, 0].max() > 1 and (both.labels == 8).any()
    assert vessels.labels is None and torch.equal(vessels.fields, both.fields)
    assert labels.fields is None and torch.equal(labels.labels, both.labels)


def test_a_reconstruction_without_the_condition_of_the_decoder_says_so(caplog, monkeypatch):
    monkeypatch.setattr(log, "_warned", set())
    hu = np.random.default_rng(0).integers(-1000, 1000, (16, 16, 16), np.int16)
    model, image = pipeline(), Volume(hu, label_map().affine)
    for dropout, words in ((0.1, "far fainter"), (0.0, "condition_dropout 0")):
        model.condition_dropout = dropout
        caplog.clear()
        with caplog.at_level("WARNING", logger="tubesynth"):
            model.reconstruct(image, labels=label_map())
            assert not caplog.messages
            model.reconstruct(image)
        (message,) = caplog.messages
        assert words in message


@pytest.mark.parametrize("size", [(13, 16, 15), (16, 16, 16)])
def test_a_conditioned_reconstruction_of_any_size_is_tiled_as_the_whole(size):
    model = pipeline()
    random = np.random.default_rng(0)
    image = Volume(random.integers(-1000, 1000, size, np.int16), label_map().affine)
    x, y, z = size
    labels = Volume(label_map().array[:x, :y, :z], label_map().affine)
    options = dict(labels=labels, resolution=size)
    model.tile = None
    whole = model.reconstruct(image, **options).array.astype(int)
    assert whole.shape == size
    assert np.abs(whole - model.reconstruct(image, resolution=size).array).max() > 1
    model.tile = 8
    assert np.abs(whole - model.reconstruct(image, **options).array).max() <= 1


def test_tiles_are_chosen_with_the_memory_of_the_condition():
    """Its features are held three times, in float32."""
    nets = {kind: make_vqvae(decoder_condition=kind) for kind in ("none", "vessels", "labels")}
    for kind, channels in (("vessels", 3), ("labels", 7)):
        extra = nets[kind].bytes_per_voxel - nets["none"].bytes_per_voxel
        assert extra == 3 * 4 * channels


def saved(config: Stage1Config, path) -> Checkpoint:
    torch.manual_seed(0)
    phase = PhaseState(build_autoencoder(config).state_dict(), None, {}, {})
    Checkpoint(config, None, None, {"autoencoder": phase}).save(path)
    return Checkpoint.load(path)


def test_only_a_decoder_conditioned_on_labels_fixes_the_number_of_classes(tmp_path):
    names = dict(names=["background", "heart", "vessels"], vessel=2)
    for kind, expected in (("vessels", "labels.vessel 8"), ("labels", "number of classes 9")):
        path = tmp_path / f"{kind}.safetensors"
        saved(stage_1(kind), path)
        other = stage_2(labels=names, latents={"autoencoder": str(path)})
        assert expected in open_base_models(other).misfits[0]
    saved(stage_1("vessels", labels=dict(names, names=[*names["names"], "aorta"])), path)
    assert open_base_models(other).problems == []


def test_weights_alone_of_stage_3_need_the_autoencoder_of_their_frozen_base(tmp_path, caplog):
    """Those of stage 2 may start on another one of the same settings; no run resumes on it."""
    config = stage_1("vessels")
    trained_on, first = (saved(config, tmp_path / f"{n}.safetensors") for n in "ab")
    module = {n: w + 1 for n, w in first.trained_autoencoder.module.items()}
    state = AutoencoderState(config, "other", module)
    weights = Checkpoint(stage_2(), None, None, {}, autoencoder=state, path=Path("base"))
    with caplog.at_level("INFO", logger="tubesynth"):
        require_same_autoencoder(trained_on, weights)
        trained_on.position = Position(started_from="base")
        require_same_autoencoder(trained_on, weights)
    assert "only if that was trained on from the same weights" in caplog.text
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    for refused in (
        replace(weights, config=stage_2(stage=3)),
        replace(weights, position=Position()),
    ):
        with pytest.raises(InputError, match="trained on latents of autoencoder other"):
            require_same_autoencoder(trained_on, refused)
