"""LPIPS and RadImageNet's ResNet-50 as losses: published layouts, values by hand, refusals."""

import os
import pickle

import pytest
import torch
import torch.nn.functional as F
from networks import needs_torchvision, radimagenet_layout, random_resnet
from refusals import refusal

from tubesynth.config.schema import AutoencoderLossConfig
from tubesynth.models.perceptual import alexnet_features, load_perceptual
from tubesynth.runtime import log
from tubesynth.training.perceptual import Perceptual

WIDTHS = (64, 192, 384, 256, 256)
CONVOLUTIONS = (0, 3, 6, 8, 10)  # of torchvision's alexnet().features


@pytest.fixture(scope="module")
def alexnet():
    """torchvision's layout: features and the classifier, which is not read."""
    torch.manual_seed(0)
    kernels = ((11, 3), (5, 64), (3, 192), (3, 384), (3, 256))
    state = {"classifier.6.bias": torch.zeros(1000)}
    for index, width, (kernel, inputs) in zip(CONVOLUTIONS, WIDTHS, kernels, strict=True):
        weight = torch.randn(width, inputs, kernel, kernel) / (inputs * kernel**2) ** 0.5
        state[f"features.{index}.weight"] = weight
        state[f"features.{index}.bias"] = 0.1 * torch.randn(width)
    return state


@pytest.fixture(scope="module")
def heads():
    """LPIPS's alex.pth: five 1 x 1 convolutions with weights that are not negative."""
    torch.manual_seed(1)
    return {f"lin{i}.model.1.weight": torch.rand(1, c, 1, 1) for i, c in enumerate(WIDTHS)}


@pytest.fixture
def lpips_files(alexnet, heads, tmp_path):
    paths = [str(tmp_path / name) for name in ("alexnet.pth", "alex.pth")]
    torch.save(alexnet, paths[0])
    torch.save(heads, paths[1])
    return paths


def lpips_by_hand(image, reference, alexnet, heads):
    """Zhang et al. 2018, eq. 1, layer by layer, in 64 bits."""
    shift, scale = ([-0.030, -0.088, -0.188], [0.458, 0.448, 0.450])
    maps = []
    for picture in (image, reference):
        x = torch.cat([(2 * picture - 1 - s) / c for s, c in zip(shift, scale, strict=True)], 1)
        layers = []
        for number, index in enumerate(CONVOLUTIONS):
            weight, bias = (alexnet[f"features.{index}.{n}"].double() for n in ("weight", "bias"))
            if number in (1, 2):
                x = F.max_pool2d(x, 3, stride=2)
            stride, padding = (4, 2) if number == 0 else (1, 2 if number == 1 else 1)
            x = F.conv2d(x, weight, bias, stride, padding).relu()
            layers.append(x / x.norm(dim=1, keepdim=True).clamp_min(1e-10))
        maps.append(layers)
    total = 0
    for i, (a, b) in enumerate(zip(*maps, strict=True)):
        weight = heads[f"lin{i}.model.1.weight"][0].double()
        total = total + ((a - b) ** 2 * weight).sum(1).mean((1, 2))
    return total


def test_lpips_is_the_published_formula(lpips_files, alexnet, heads):
    torch.manual_seed(2)
    image, reference = torch.rand(2, 2, 1, 40, 33)
    expected = lpips_by_hand(image.double(), reference.double(), alexnet, heads)
    distance = load_perceptual(lpips_files)
    torch.testing.assert_close(distance(image, reference), expected.float(), rtol=1e-4, atol=1e-6)
    assert expected.min() > 0.01 and distance(image, image).abs().max() == 0
    assert not any(parameter.requires_grad for parameter in distance.parameters())


def test_the_whole_modules_state_dict_is_read_too(lpips_files, alexnet, heads, tmp_path):
    whole = dict(heads, **{f"lins.{k[3:]}": v for k, v in heads.items()})
    whole["scaling_layer.shift"] = torch.zeros(1, 3, 1, 1)
    for number, index in enumerate(CONVOLUTIONS, start=1):
        for name in ("weight", "bias"):
            whole[f"net.slice{number}.{index}.{name}"] = alexnet[f"features.{index}.{name}"]
    torch.save(whole, tmp_path / "lpips.pth")
    image, reference = torch.rand(2, 1, 1, 31, 31)
    from_files, from_module = (
        load_perceptual(files) for files in (lpips_files, [str(tmp_path / "lpips.pth")])
    )
    assert torch.equal(from_files(image, reference), from_module(image, reference))


def test_features_that_are_all_0_have_a_finite_gradient(lpips_files, alexnet):
    torch.save({k: torch.zeros_like(v) for k, v in alexnet.items()}, lpips_files[0])
    image = torch.rand(1, 1, 32, 32, requires_grad=True)
    load_perceptual(lpips_files)(image, torch.rand(1, 1, 32, 32)).sum().backward()
    assert image.grad.isfinite().all()


@needs_torchvision
def test_the_radimagenet_loss_compares_the_last_feature_maps(tmp_path):
    network = random_resnet()
    torch.save(radimagenet_layout(network), tmp_path / "ResNet50.pt")
    distance = load_perceptual([str(tmp_path / "ResNet50.pt")])
    image, reference = torch.rand(2, 2, 1, 64, 40)
    with torch.no_grad():
        layers = torch.nn.Sequential(*list(network.children())[:-2])
        maps = [layers(2 * x.expand(-1, 3, -1, -1) - 1) for x in (image, reference)]
        value = distance(image, reference)
    # |a - b|^2 of unit vectors is 2 - 2 cos
    cosine = F.cosine_similarity(maps[0].double(), maps[1].double(), dim=1)
    torch.testing.assert_close(value, (2 - 2 * cosine).mean((1, 2)).float(), rtol=1e-4, atol=1e-6)
    assert distance.name == "RadImageNet ResNet-50" and value.min() > 0


def test_wrong_files_are_refused_in_one_line(lpips_files, heads, tmp_path):
    refusal(lambda: load_perceptual([str(tmp_path / "nowhere.pth")]), "no such weights file")
    for content in (b"", b".", b"hello", os.urandom(300), pickle.dumps({"a": 1}, 2)[:9]):
        (tmp_path / "other.pth").write_bytes(content)
        refusal(lambda: load_perceptual([str(tmp_path / "other.pth")]), "not a file of plain")
    refusal(lambda: load_perceptual(lpips_files[1:]), "alex.pth: lacks AlexNet's convolutions")
    refusal(lambda: load_perceptual(lpips_files[:1]), "alexnet.pth: lacks LPIPS's heads")
    torch.save(dict(heads, **{"lin2.model.1.weight": torch.zeros(1, 3, 1, 1)}), lpips_files[1])
    refusal(
        lambda: load_perceptual(lpips_files), "heads.2 has shape (1, 3, 1, 1), not (1, 384, 1, 1)"
    )
    torch.save({"weight": torch.zeros(3)}, lpips_files[0])
    refusal(lambda: load_perceptual(lpips_files[:1]), "neither a ResNet-50")


def slices_of(sample_indices, files, **changes):
    losses = AutoencoderLossConfig(perceptual=1.0, perceptual_files=files, **changes)
    perceptual = Perceptual(losses, 5, torch.device("cpu"))
    return perceptual.slices((40, 36, 3), sample_indices, torch.device("cpu"))


def test_slices_depend_on_the_sample_index_alone(lpips_files, capsys):
    log.set_up()
    together = slices_of([7, 8], lpips_files, perceptual_slices=4)
    assert [tuple(axis.shape) for axis in together] == [(2, 4), (2, 4), (2, 3)]
    for axis, alone in zip(together, slices_of([8], lpips_files, perceptual_slices=4), strict=True):
        assert torch.equal(axis[1], alone[0])
        assert len(set(alone[0].tolist())) == alone.shape[1]  # none twice
    assert not torch.equal(together[0][0], together[0][1])
    line = capsys.readouterr().err.splitlines()[0]
    assert "LPIPS (AlexNet)" in line and len(line.rpartition("sha256 ")[2]) == 64


def test_a_share_of_the_slices_and_the_published_range_of_lpips(lpips_files):
    axes = slices_of([3, 4], lpips_files, perceptual_slices=0.5)
    assert [tuple(axis.shape) for axis in axes] == [(2, 20), (2, 18), (2, 1)]
    image, reference = torch.rand(2, 3, 1, 32, 32)
    published = load_perceptual(lpips_files, rescale=False)
    distance = load_perceptual(lpips_files)(image, reference)
    torch.testing.assert_close(published(2 * image - 1, 2 * reference - 1), distance)


def test_even_slices_are_the_middles_of_equal_parts(lpips_files):
    axes = slices_of([0], lpips_files, perceptual_slices=4, perceptual_slicing="even")
    assert [axis.tolist() for axis in axes] == [[[5, 15, 25, 35]], [[4, 13, 22, 31]], [[0, 1, 2]]]


def test_alexnet_has_the_published_number_of_parameters():
    count = sum(p.numel() for p in alexnet_features().parameters())
    assert count == 2_469_696  # without its classifier
