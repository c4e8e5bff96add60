"""Flow with all its switches, and diffusion: trained, resumed, sampled, refused by name."""

import json

import numpy as np
import pytest
import torch
from runs import lines, run

from tubesynth import synthesize, train
from tubesynth.pipeline import Pipeline, SampleOptions
from tubesynth.runtime.errors import InputError
from tubesynth.volume.cases import find_cases
from tubesynth.volume.files import read_labels

DIFFUSION = [
    "latent_mode=diffusion",
    "diffusion={schedule: cosine, prediction: v, zero_terminal_snr: true, vessel_weight: 10,"
    " label_dropout: 0.1}",
    "sampling={solver: ddpm, steps: 5}",
]


def validation_losses(run_dir):
    return [line["loss"] for line in lines(run_dir, "validation")]


@pytest.fixture(scope="module")
def diffused(workplace, stage_1):
    """last.ckpt of a diffusion run of twelve steps."""
    run_dir = workplace / "diffusion"
    options = ["--config", workplace / "s2.yml", "--run-dir", run_dir, "--epochs", 3]
    run(train, *options, *DIFFUSION)
    return run_dir / "checkpoints" / "last.ckpt"


def test_diffusion_trains_and_resumes_bit_for_bit(workplace, diffused, tmp_path):
    run_dir = diffused.parent.parent
    losses = validation_losses(run_dir)
    assert losses[-1] < losses[0]
    assert "v" in lines(run_dir, "training")[-1] and list((run_dir / "panels").glob("*.png"))
    half = run_dir / "checkpoints" / "epoch_00002.ckpt"
    options = ["--config", workplace / "s2.yml", "--run-dir", tmp_path, "--epochs", 3]
    run(train, *options, "--resume", half, *DIFFUSION)
    first, second = (
        torch.load(path, weights_only=True)["phases"]["unet"]["module"]
        for path in (diffused, tmp_path / "checkpoints" / "last.ckpt")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_diffusion_samples_the_same_bytes_and_counts_its_evaluations(workplace, diffused, tmp_path):
    common = ["--model", diffused, "--seed", 2, "--latent-mode", "diffusion"]
    for name in ("one", "two"):
        run(synthesize, *common, "--output-dir", tmp_path / name)
    files = sorted((tmp_path / "one").glob("*.img.nii.gz"))
    assert len(files) == 2
    for path in files:
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
    record = json.loads(sorted((tmp_path / "one").glob("*.json"))[0].read_text(encoding="utf-8"))
    assert record["evaluations"] == 5

    pipeline = Pipeline.load(diffused)
    labels = read_labels(next(iter(find_cases(workplace / "data/validation/labels").values())))
    ancestral = pipeline.synthesize(labels, seed=1)
    ddim = pipeline.synthesize(labels, seed=1, solver="ddim")
    assert np.array_equal(ddim.array, pipeline.synthesize(labels, seed=1, solver="ddim").array)
    assert not np.array_equal(ancestral.array, ddim.array)
    pipeline.synthesize(labels, seed=1, guidance_label=2.0)  # trained with label dropout


def test_a_solver_of_the_other_latent_mode_is_refused(workplace, diffused, stage_2, tmp_path):
    out = ["--output-dir", tmp_path / "out"]
    with pytest.raises(InputError, match="sampling.solver: heun .* diffusion .*ddpm, ddim"):
        run(synthesize, "--model", diffused, "--solver", "heun", *out)
    with pytest.raises(InputError, match="sampling.solver: ddim .* flow .*euler"):
        run(synthesize, "--model", stage_2, "--solver", "ddim", *out)
    with pytest.raises(InputError, match="sampling.steps: 2000"):
        run(synthesize, "--model", diffused, "--steps", 2000, *out)
    with pytest.raises(InputError, match="--latent-mode flow"):
        run(synthesize, "--model", diffused, "--latent-mode", "flow", *out)
    assert not list((tmp_path / "out").glob("*.nii.gz"))


def test_a_flow_with_all_its_switches_trains(workplace, stage_1, tmp_path):
    run(
        train,
        *("--config", workplace / "s2.yml", "--run-dir", tmp_path, "--epochs", 6),
        *("data.batch_size=2", "flow.coupling=optimal_transport", "flow.vessel_weight=10"),
        *("flow.time_sampling=logit_normal", "flow.time_shift=0.5", "flow.loss=l2"),
        "sampling.solver=midpoint",
        "sampling.time_grid=[0, 0.2, 1]",
    )
    losses = validation_losses(tmp_path)
    assert losses[-1] < losses[0]
    pipeline = Pipeline.load(tmp_path / "checkpoints" / "last.ckpt")
    labels = read_labels(next(iter(find_cases(workplace / "data/validation/labels").values())))
    random = torch.Generator().manual_seed(0)
    assert pipeline.sample(labels, random).evaluations == 4
    options = SampleOptions(steps=3)  # in place of the grid
    assert pipeline.sample(labels, random, options).evaluations == 6
