"""The scores of the published code: values that MONAI 1.4 and lpips 0.1.4 gave on these tensors."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_evaluate import evaluate, heart_and_vessel, write

from tubesynth import reconstruct, synthesize
from tubesynth.evaluate import main
from tubesynth.inference.options import precision_option
from tubesynth.metrics.published import (
    frechet_as_published,
    lpips_scores,
    similarity_as_published,
)
from tubesynth.models.perceptual import Lpips
from tubesynth.runtime.errors import InputError


def pair(*shape):
    """Two smooth images in [0, 1]."""
    grids = np.meshgrid(*map(np.arange, shape), indexing="ij")
    phase = sum((0.31 + 0.17 * i) * grid for i, grid in enumerate(grids))
    a = 0.5 + 0.3 * np.sin(phase) + 0.2 * np.cos(0.05 * grids[0] * grids[1])
    b = np.clip(a + 0.1 * np.sin(1.7 * phase) + 0.03, 0, 1)
    return torch.from_numpy(a).float(), torch.from_numpy(b).float()


def wave(shape, scale):
    number = int(np.prod(shape))
    return (scale * torch.sin(0.7 * torch.arange(number).double())).float().reshape(shape)


@pytest.fixture(scope="module")
def network():
    """LPIPS with weights by a formula."""
    network = Lpips().eval()
    state = network.state_dict()
    for name, weight in state.items():
        inputs = int(np.prod(weight.shape[1:]))
        values = wave(weight.shape, (2 / inputs) ** 0.5 if weight.ndim > 1 else 0.1)
        state[name] = values.abs() if name.startswith("heads") else values
    network.load_state_dict(state)
    return network


@pytest.mark.parametrize(
    ("shape", "ssim", "ms_ssim"),
    [
        ((64, 70, 65), 0.9432003498, 0.9856224656),
        ((128, 64, 80), 0.9433337450, 0.9857815504),
        ((96, 81), 0.9396468401, 0.9743296504),
    ],
)
def test_ssim_and_ms_ssim_have_a_window_of_4(shape, ssim, ms_ssim):
    scores = similarity_as_published(*pair(*shape))
    expected = {"ssim_as_published": ssim, "ms_ssim_as_published": ms_ssim}
    assert scores == pytest.approx(expected, abs=1e-5)


def test_an_image_below_64_voxels_has_no_ms_ssim():
    """The published code raises there."""
    assert list(similarity_as_published(*pair(63, 64, 64))) == ["ssim_as_published"]


@pytest.mark.parametrize(
    ("shape", "lpips"), [((40, 36, 33), 0.0502631962), ((64, 48), 0.041935946)]
)
def test_lpips_is_a_sum_over_planes_of_unscaled_images(shape, lpips, network):
    real, other = pair(*shape)
    if real.ndim == 2:  # y upwards
        real, other = real.flip(1), other.flip(1)
    scores = lpips_scores(real, other, network, as_published=True)
    assert scores["lpips_as_published"] == pytest.approx(lpips, abs=1e-5)
    planes = 3 if len(shape) == 3 else 1
    scaled = lpips_scores((real + 1) / 2, (other + 1) / 2, network, as_published=False)
    assert scaled == pytest.approx({"lpips": lpips / planes}, abs=1e-5)


def test_the_frechet_distance_is_that_of_all_slices():
    i, j = np.meshgrid(np.arange(40), np.arange(6), indexing="ij")
    real = np.sin(1.3 * i + 2.1 * j + 0.1 * i * j)
    other = np.cos(0.9 * i * (j + 1)) + 0.2 * j

    def volumes(slices):
        halves = {"a": slices[:15], "b": slices[15:]}
        return [SimpleNamespace(case=c, sample=0, slices={"axial": x}) for c, x in halves.items()]

    (stat,) = frechet_as_published(volumes(real), volumes(other)).values()
    assert stat["mean"] == pytest.approx(3.7921087391, abs=1e-5) and stat["n"] == 2


@pytest.fixture
def published_folders(tmp_path):
    """The layout of the published code, and the same files in the layout of this one."""
    hu, labels = heart_and_vessel(1)
    noisy = hu + np.random.default_rng(1).normal(0, 20, hu.shape)
    autoencoder, generator = tmp_path / "vae" / "1", tmp_path / "lfm" / "1-synth"
    for root in (tmp_path / "real", autoencoder, generator):
        write(root, "1.img", hu)
    for root in (tmp_path / "labels", generator):
        write(root, "1.label", labels, "uint8")
    write(tmp_path / "reconstruction", "1.img", noisy)
    write(autoencoder, "1.img-rec", noisy)
    for sample in (1, 2):
        synthesis = np.where(labels == 8, -80.0, noisy) if sample == 2 else noisy
        write(tmp_path / "synthesis", f"1_s{sample}.img", synthesis)
        write(generator, f"{sample}-synth", synthesis)
    return tmp_path


def test_the_published_layout_and_flags_have_the_scores_of_this_ones(published_folders, network):
    root = published_folders
    names = ("real", "labels", "reconstruction", "synthesis")
    expected = evaluate(root, *names, extra=["--no-distribution"])
    torch.save({f"features.{k}": v for k, v in network.features.state_dict().items()}, root / "a")
    torch.save({f"lin{i}.model.1.weight": w for i, w in enumerate(network.heads)}, root / "b")
    flags = ["--reconstruction-dir", root / "vae", "--synthesis-dir", root / "lfm"]
    flags += ["--num-workers", 1, "--output-dir", root / "out", "--no-distribution"]
    main([str(flag) for flag in [*flags, "--as-published", "--lpips", root / "a", root / "b"]])
    result = json.loads((root / "out" / "metrics.json").read_text())
    for source in ("reconstruction", "synthesis"):
        added = {"lpips", "lpips_as_published", "ssim_as_published"}
        assert result[source].keys() - expected[source].keys() == added
        assert {k: v for k, v in result[source].items() if k not in added} == expected[source]
        assert result["vessels"][source] == expected["vessels"][source]
    assert result["verdict"] == expected["verdict"]
    definitions = " ".join(result["provenance"]["definitions"])
    assert all(metric in definitions for metric in added)
    write(
        root / "synthesis" / "labels", "1.label", heart_and_vessel(1)[1], "uint8"
    )  # of synthesize
    with pytest.raises(InputError, match="--synthesis is scored against its condition"):
        main(["--synthesis", str(root / "synthesis"), "--output-dir", str(root / "out")])
    (root / "lfm" / "1-synth" / "1.label.nii.gz").unlink()
    main([str(flag) for flag in flags])
    alone = json.loads((root / "out" / "metrics.json").read_text())
    assert alone["synthesis"]["psnr"] == result["synthesis"]["psnr"]
    assert alone["vessels"]["synthesis"] == {}


def test_flags_of_the_published_scripts_are_those_of_the_commands():
    common = ["--model", "m", "--output-dir", "out"]
    args = synthesize.parse([*common, "--label-dir", "maps", "--amp", "--latent-mode", "flow"])
    assert (args.input_dir, precision_option(args)) == (Path("maps"), "16-mixed")
    assert synthesize.parse(common).precision == "auto"
    assert reconstruct.parse([*common, "--input-dir", "cts", "--label-dir", "maps"]).labels.name
