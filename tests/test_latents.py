"""Latents for stage 2: their keys, scale, variants and tokens."""

import numpy as np
import pytest
import torch

from tubesynth.build.base_models import require_base_models
from tubesynth.build.checkpoint import Checkpoint
from tubesynth.config.loading import load_config
from tubesynth.data.latents import LatentDataset
from tubesynth.data.store import Store
from tubesynth.data.volumes import LATENTS
from tubesynth.models.scale import LatentScale
from tubesynth.runtime.errors import InputError
from tubesynth.training.inputs import Volumes
from tubesynth.training.latents import EncodedSplits, LatentEncoder, encode_data_set

CPU = torch.device("cpu")


def encoded(workplace, *overrides) -> EncodedSplits:
    config = load_config(workplace / "s2.yml", list(overrides))
    autoencoder = require_base_models(config).autoencoder
    return encode_data_set(config, volumes_of(config), autoencoder, CPU)


def volumes_of(config) -> Volumes:
    return Volumes.find(config)


def test_latents_are_those_of_the_encoder_in_16_bits(workplace, stage_1):
    latents = encoded(workplace)
    image = volumes_of(latents.config).validation_batch(0, CPU)["image"]
    expected = latents.autoencoder.encode(image)[0]
    stored = torch.from_numpy(np.array(latents.validation.sample(0)["latent"]))
    assert stored.dtype == torch.float16 and stored.shape == (4, 8, 8, 6)
    torch.testing.assert_close(stored.float(), expected, atol=2e-3, rtol=2e-3)


def test_latents_are_scaled_by_the_moments_of_all_training_latents(workplace, stage_1):
    latents = encoded(workplace)
    every = torch.stack(
        [torch.from_numpy(np.array(latents.training.sample(i)["latent"])) for i in range(4)]
    ).double()
    channels = every.movedim(1, 0).flatten(1)
    torch.testing.assert_close(latents.scale.mean, channels.mean(1).float(), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(
        latents.scale.std, channels.std(1, correction=0).float(), atol=1e-3, rtol=1e-2
    )
    normalized = latents.scale.normalize(every.float())
    assert normalized.mean().abs() < 0.01 and abs(normalized.std() - 1) < 0.02
    torch.testing.assert_close(latents.scale.restore(normalized), every.float())


def test_a_fixed_scale_takes_the_place_of_the_measured_one(stage_1, workplace):
    latents = encoded(workplace, "latents.mean=0.1", "latents.scaling_factor=2")
    x = torch.randn(1, latents.autoencoder.embedding_dim, 2, 2, 2)
    torch.testing.assert_close(latents.scale.normalize(x), (x - 0.1) * 2)
    torch.testing.assert_close(latents.scale.restore((x - 0.1) * 2), x)


def test_moments_give_mean_and_deviation():
    values = torch.randn(3, 1000, dtype=torch.float64) * 2 + 5
    scale = LatentScale.from_moments(1000, values.sum(1), values.square().sum(1))
    torch.testing.assert_close(scale.mean, values.mean(1).float())
    torch.testing.assert_close(scale.std, values.std(1, correction=0).float())


def keys(latents) -> list:
    return [
        key
        for dataset in (latents.training, latents.validation)
        for row in dataset.keys
        for key in row
    ]


def test_another_autoencoder_or_spacing_is_a_miss_and_another_learning_rate_a_hit(
    workplace, stage_1, tmp_path
):
    first = encoded(workplace)
    assert keys(encoded(workplace, "train.learning_rate=0.1", "seed=9")) == keys(first)
    assert not set(keys(encoded(workplace, "data.spacing=[6,6,6]"))) & set(keys(first))
    assert not set(keys(encoded(workplace, "data.token_step_mm=1.0"))) & set(keys(first))
    checkpoint, other = Checkpoint.load(stage_1), tmp_path / "other.ckpt"
    checkpoint.weights()["encoder.blocks.0.0.bias"][0] += 1e-3
    checkpoint.save(other)
    assert not set(keys(encoded(workplace, f"latents.autoencoder={other}"))) & set(keys(first))


def test_a_second_run_encodes_nothing(workplace, stage_1, monkeypatch):
    encoded(workplace)
    monkeypatch.setattr(LatentEncoder, "_encode_case", None)  # a call would fail
    assert len(encoded(workplace).training) == 4


def test_variants_are_augmented_together_with_label_and_tokens(workplace, stage_1):
    """Every axis is flipped: the latents of a variant are those of the flipped image."""
    overrides = ["data.token_step_mm=2.0", "data.augment.flip=1.0", "latents.variants=2"]
    latents = encoded(workplace, *overrides)
    plain, flipped = latents.training.sample(0, 0), latents.training.sample(0, 1)
    assert np.array_equal(np.array(plain["label"])[::-1, ::-1, ::-1], flipped["label"])
    np.testing.assert_allclose(
        plain["tokens"]["position_mm"], -flipped["tokens"]["position_mm"], atol=1e-4
    )
    volumes = volumes_of(latents.config)
    image = volumes.dataset(volumes.training).sample(0)["image"]
    unit = (torch.from_numpy(np.array(image)).float() + 1000) / 2000
    expected = latents.autoencoder.encode(unit.flip(1, 2, 3)[None])[0]
    stored = torch.from_numpy(np.array(flipped["latent"])).float()
    torch.testing.assert_close(stored, expected, atol=2e-3, rtol=2e-3)
    variants = [
        np.array_equal(latents.training.view(i)["label"], plain["label"]) for i in range(40)
    ]
    assert 0 < sum(variants) < 40


def test_batches_pad_tokens_of_unequal_number(workplace, stage_1):
    latents = encoded(workplace, "data.token_step_mm=2.0", "data.batch_size=4")
    counts = sorted(len(latents.training.sample(i)["tokens"]["radius_mm"]) for i in range(4))
    assert counts[0] < counts[-1]
    (batch,) = latents.batches(0, 4)
    mask = batch["tokens"]["mask"]
    assert mask.shape == (4, counts[-1])
    assert sorted(mask.sum(1).tolist()) == counts


@pytest.mark.parametrize("damage", ["cut", "bit"])
def test_a_damaged_entry_is_named(damage, workplace, stage_1):
    latents = encoded(workplace, "data.spacing=[5.4,5.4,5.4]")
    latents.training.store = Store(latents.training.store.root)  # as of a new process
    entry = latents.training.store.open(LATENTS, latents.training.keys[0][0])
    content = bytearray(entry.path.read_bytes())
    content[entry.starts["latent"]] ^= 1
    entry.path.write_bytes(content if damage == "bit" else content[:-10])
    for read in (lambda: latents.training.sample(0), latents.training.moments):
        with pytest.raises(InputError, match=f"case {entry.meta['case']} .* start the run again"):
            read()
    again = encoded(workplace, "data.spacing=[5.4,5.4,5.4]")
    assert isinstance(again.training, LatentDataset) and again.training.sample(0)["latent"].any()
