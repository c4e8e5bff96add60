"""The weight-free features at known answers, and published networks where torchvision exists."""

import math
import sys

import numpy as np
import pytest
import torch
from networks import needs_torchvision, radimagenet_layout, random_resnet
from refusals import refusal
from scipy.ndimage import gaussian_filter

from tubesynth.metrics.features import FEATURE_NAMES, load_features, radiomic_features
from tubesynth.models.pretrained import PretrainedNetwork, load_network
from tubesynth.runtime.errors import InputError


def unit(hu):
    return (torch.as_tensor(np.asarray(hu)).float() + 1000) / 2000


def named(hu):
    """{name: value} of one slice (H, W) in HU."""
    values = radiomic_features(unit(hu)[None, None])[0]
    return dict(zip(FEATURE_NAMES, values.tolist(), strict=True))


def fat_with_vessel(radius=2.0, vessel=350.0, noise=5.0):
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:64, :64]
    hu = np.where(np.hypot(x - 32, y - 20) <= radius, vessel, -90.0)
    hu[40:] = 40.0
    return hu + rng.normal(0, noise, hu.shape)


def test_every_feature_has_a_name_and_depends_on_its_slice_alone():
    slices = unit(np.random.default_rng(0).normal(0, 300, (9, 1, 40, 33))).clamp(0, 1)
    features = radiomic_features(slices)
    assert features.shape == (9, len(FEATURE_NAMES)) == (9, 80)
    assert len(set(FEATURE_NAMES)) == 80
    assert features.isfinite().all()
    torch.testing.assert_close(features[4:5], radiomic_features(slices[4:5]), rtol=1e-4, atol=1e-4)


def test_a_constant_slice_has_its_intensity_and_no_structure():
    values = named(np.full((32, 32), -100.0))
    assert values["mean"] == pytest.approx(0.45, abs=0.004)  # bins of 8 HU
    assert values["quantile_50"] == pytest.approx(0.45, abs=0.004)
    assert values["std"] == 0
    assert values["share_below_-30hu"] == pytest.approx(1) and values["share_below_80hu"] == 0
    assert values["energy_h_1"] == pytest.approx(math.log(1 / 600**2), abs=0.01)
    assert values["thin_share_2"] == 0 and values["entropy_2"] == 0


def test_tissue_shares_are_roots_of_areas():
    hu = np.full((40, 40), -1000.0)
    hu[:10], hu[10:20] = -90, 40  # a quarter fat, a quarter muscle, half air
    values = named(hu)
    shares = [values[f"share_below_{e}hu"] ** 2 for e in (-700, -300, -30, 80, 180)]
    assert shares == pytest.approx([0.5, 0, 0.25, 0.25, 0], abs=1e-6)


def test_a_ramp_has_the_energy_of_its_slope_along_its_axis():
    ramp = np.tile(np.arange(-100, 60, 5.0)[:, None], (1, 32))  # 5 HU a pixel down the rows
    values = named(ramp)
    assert values["energy_h_1"] == pytest.approx(math.log((25 + 1) / 600**2), abs=0.01)
    assert values["energy_w_1"] == pytest.approx(math.log(1 / 600**2), abs=0.01)
    assert values["coherence_1"] == pytest.approx(25 / 26, abs=0.01)


def test_tophat_and_ridge_respond_to_a_vessel_and_not_to_a_wide_band():
    with_, without = named(fat_with_vessel()), named(fat_with_vessel(0.1, -90))
    for name in ("tophat_2", "thin_2", "ridge_rms_2", "blob_2"):
        assert with_[name] > without[name] + 0.3, name
    band = fat_with_vessel(0.1, -90)
    band[10:30] = 350
    assert named(band)["thin_share_2"] == 0 < 0.08 < with_["thin_share_2"]


def test_blur_lowers_and_noise_raises_the_fine_gradients_at_every_level():
    hu = fat_with_vessel(8, noise=15)
    blurred = [named(gaussian_filter(hu, s))["energy_h_1"] for s in (0, 0.5, 1, 2)]
    assert sorted(blurred, reverse=True) == blurred
    rng = np.random.default_rng(1)
    noisy = [named(hu + rng.normal(0, s, hu.shape))["noisy_1"] for s in (0, 10, 20, 40)]
    assert sorted(noisy) == noisy


def test_the_smallest_slices_work_and_smaller_ones_are_refused():
    assert radiomic_features(torch.rand(2, 1, 8, 9)).isfinite().all()
    with pytest.raises(ValueError, match="8 pixels or more"):
        radiomic_features(torch.rand(2, 1, 7, 30))


@needs_torchvision
def test_the_radimagenet_layout_loads_into_the_same_network(tmp_path):
    resnet = random_resnet()
    torch.save(radimagenet_layout(resnet), tmp_path / "ResNet50.pt")
    features = load_features(tmp_path / "ResNet50.pt")
    assert load_network(tmp_path / "ResNet50.pt").name == "RadImageNet ResNet-50"
    slices = torch.rand(2, 1, 50, 40)
    resized = torch.nn.functional.interpolate(slices, (224, 224), mode="bilinear")
    resnet.fc = torch.nn.Identity()
    with torch.no_grad():
        expected = resnet(2 * resized.expand(-1, 3, -1, -1) - 1)
    torch.testing.assert_close(features(slices), expected)
    assert expected.shape == (2, 2048) and expected.std() > 0 and not features.standardize


@needs_torchvision
def test_inception_layouts_are_distinguished(tmp_path):
    from torchvision.models import inception_v3

    network = inception_v3(weights=None, aux_logits=False, init_weights=False)
    state, maps = network.state_dict(), {}
    image = torch.rand(1, 1, 75, 75)
    for classes, name in ((1000, "Inception-v3"), (1008, "FID Inception-v3")):
        torch.save({**state, "fc.weight": torch.zeros(classes, 2048)}, tmp_path / "w.pt")
        loaded = load_network(tmp_path / "w.pt")
        assert loaded.name == name
        maps[name] = loaded.maps(image)
    assert not torch.allclose(maps["Inception-v3"], maps["FID Inception-v3"])
    torch.save(radimagenet_layout(network), tmp_path / "w.pt")
    listed = load_network(tmp_path / "w.pt")
    assert listed.name == "RadImageNet Inception-v3"
    assert torch.equal(listed.maps(image), maps["Inception-v3"])


def test_wrong_files_are_refused_in_one_line(tmp_path):
    path = tmp_path / "w.pt"
    with pytest.raises(InputError, match="no such weights file.*without trained weights"):
        load_features(path)
    path.write_bytes(b"not weights")
    with pytest.raises(InputError, match="not a file of plain weights"):
        load_features(path)
    torch.save({"weight": torch.zeros(3)}, path)
    with pytest.raises(InputError, match="neither a ResNet-50 nor an Inception-v3"):
        load_features(path)


def test_without_torchvision_the_error_names_the_extra(tmp_path, monkeypatch):
    for name in ("torchvision", "torchvision.models"):
        monkeypatch.setitem(sys.modules, name, None)
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / "w.pt")
    refusal(lambda: load_network(tmp_path / "w.pt"), "pip install 'tubesynth[pretrained]'")


@needs_torchvision
def test_wrong_weights_are_refused_in_one_line(tmp_path):
    path, state = tmp_path / "w.pt", random_resnet().state_dict()
    for change, message in (
        ({"layer3.2.conv2.weight": torch.zeros(3)}, "layer3.2.conv2.weight has shape (3,)"),
        ({"conv1.bias": torch.zeros(64)}, "is missing"),
    ):
        torch.save({**state, **change}, path)
        refusal(lambda: load_features(path), message)


def test_raw_features_are_of_slices_at_their_own_size_and_not_scaled():
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(3, 5, 3)
    network = PretrainedNetwork(layer, 16, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4), "a layer")
    slices = torch.rand(20, 1, 12, 9)
    expected = layer(slices.repeat(1, 3, 1, 1)).mean((2, 3)).detach()
    torch.testing.assert_close(network.raw_features(slices), expected)
    assert not torch.allclose(network.slice_features(slices), expected, atol=1e-2)
