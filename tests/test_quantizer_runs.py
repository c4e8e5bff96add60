"""Stage 1 trained with fixed levels and with the Gaussian: logs, exact resume, stage 2 on top."""

import numpy as np
import pytest
import torch
from runs import lines

from tubesynth.build.base_models import require_base_models
from tubesynth.config.loading import load_config
from tubesynth.models.quantizers import codebook
from tubesynth.pipeline import Pipeline
from tubesynth.train import main
from tubesynth.training.inputs import Volumes
from tubesynth.training.latents import encode_data_set
from tubesynth.volume.cases import find_cases
from tubesynth.volume.files import read_labels, read_volume

SETTINGS = {
    "fsq": ["autoencoder.embedding_dim=3", "autoencoder.fsq_levels=[8,5,4]"],
    "kl": ["autoencoder.kl_weight=1e-4"],
}
CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=list(SETTINGS))
def run(request, workplace):
    """(kind, run folder, command) of eight steps of stage 1."""
    kind = request.param
    folder = workplace / kind
    command = ["--config", str(workplace / "s1.yml"), "--logger", "none"]
    command += [f"autoencoder.quantizer={kind}", *SETTINGS[kind]]
    main([*command, "--run-dir", str(folder)])
    return kind, folder, command


def test_only_quantizers_with_codes_report_their_use(run, stage_1):
    kind, folder, _ = run
    for split in ("training", "validation"):
        for row in lines(folder, split):
            assert ("codebook_perplexity" in row) == ("codebook_used" in row) == (kind == "fsq")
            assert ("kl" in row) == (kind == "kl" and split == "training")
            assert "commitment" not in row
        if kind == "fsq":
            assert all(1 <= row["codebook_perplexity"] <= 160 for row in lines(folder, split))
    row = lines(stage_1.parent.parent, "training")[-1]
    assert 1 <= row["codebook_perplexity"] <= 32 * row["codebook_used"] + 1e-6
    assert row["commitment"] > 0


def test_the_validation_loss_falls(run):
    validation = lines(run[1], "validation")
    assert validation[-1]["loss"] < validation[0]["loss"]


def test_a_resumed_run_has_the_same_noise(run, tmp_path):
    _, folder, command = run
    half = folder / "checkpoints" / "epoch_00001.ckpt"
    main([*command, "--run-dir", str(tmp_path), "--resume", str(half)])
    first, second = (
        torch.load(path / "checkpoints" / "last.ckpt", weights_only=True)["phases"]["autoencoder"]
        for path in (folder, tmp_path)
    )
    for name, value in first["module"].items():
        assert torch.equal(value, second["module"][name]), name


def test_a_dry_run_names_the_quantizer(run, capsys):
    kind, _, command = run
    main([*command, "--dry-run"])
    descriptions = {
        "fsq": "fsq, 160 codes (8 x 5 x 4 levels)",
        "kl": "continuous latents (weight 0.0001)",
    }
    assert descriptions[kind] in capsys.readouterr().out


def test_stage_2_is_trained_on_the_latents_of_the_quantizer(run, workplace, tmp_path, monkeypatch):
    kind, folder, _ = run
    monkeypatch.setattr(codebook, "nearest_code", None)  # a call would fail
    autoencoder = folder / "checkpoints" / "last.ckpt"
    overrides = [f"latents.autoencoder={autoencoder}", "train.epochs=1"]
    config = load_config(workplace / "s2.yml", overrides)
    volumes = Volumes.find(config)
    latents = encode_data_set(config, volumes, require_base_models(config).autoencoder, CPU)
    net = latents.autoencoder
    image = volumes.validation_batch(0, CPU)["image"]
    encoded = net.encoder(image)[0]
    stored = torch.from_numpy(np.array(latents.validation.sample(0)["latent"])).float()
    if kind == "kl":
        expected = encoded[:4]  # the mean, without noise
    else:
        expected = net.quantizer.latents(encoded[None])[0]
        assert stored.min() >= -4 and stored.max() <= 3
    torch.testing.assert_close(stored, expected, atol=2e-3, rtol=2e-3)

    main(["--config", str(workplace / "s2.yml"), "--run-dir", str(tmp_path), *overrides])
    pipeline = Pipeline.load(tmp_path / "checkpoints" / "last.ckpt")
    labels = read_labels(next(iter(find_cases(workplace / "data/validation/labels").values())))
    volume = pipeline.synthesize(labels, seed=1)
    assert volume.shape == (32, 32, 24) and volume.array.std() > 0


def test_a_reconstruction_is_the_same_in_tiles(run, workplace):
    kind, folder, _ = run
    path = next(iter(find_cases(workplace / "data/validation/images").values()))
    whole, tiled = (
        Pipeline.load(folder / "checkpoints" / "last.ckpt", tile=tile)
        .reconstruct(read_volume(path), resolution=(31, 29, 23))
        .array.astype(int)
        for tile in (None, 8)
    )
    assert whole.shape == (31, 29, 23) and np.abs(tiled - whole).max() <= 1
