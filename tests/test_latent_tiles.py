"""The generator in overlapping tiles: weights, conditions of a tile, noise, memory, seams."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import encoder_settings, randomize_zeros, small_unet, with_autograd_norms
from torch import nn

from tubesynth import synthesize
from tubesynth.build.networks import build_autoencoder, build_network
from tubesynth.config.schema import DataConfig, SamplingConfig, Stage1Config, Stage2Config
from tubesynth.generative.guidance import guidance_terms
from tubesynth.inference import sampling
from tubesynth.inference.sampling import guided_velocity
from tubesynth.models import blended_tiles as tiles_module
from tubesynth.models.blended_tiles import Tile, blended_tiles
from tubesynth.models.conditions import Conditions
from tubesynth.models.controlnet import ControlledUNet, ControlNet
from tubesynth.models.scale import LatentScale
from tubesynth.models.spade import Spade
from tubesynth.models.transformer import VesselTransformer
from tubesynth.models.vessel_attention import LevelTokens, VesselAttention
from tubesynth.models.vessel_tokens import EncodedTokens
from tubesynth.models.window import Window
from tubesynth.phantom.anatomy import make_phantom
from tubesynth.pipeline import Pipeline, SampleOptions
from tubesynth.runtime.errors import InputError
from tubesynth.volume.files import write_volume
from tubesynth.volume.grid import Volume

CPU = torch.device("cpu")
STAGE_2 = Path(__file__).parent / "fixtures" / "0.1.0" / "stage_2.ckpt"


@pytest.mark.parametrize(("side", "multiple"), [(16, 2), (64, 8), (8, 1), (4, 2)])
def test_the_weights_of_all_tiles_sum_to_1_in_every_cell(side, multiple):
    for n in range(1, 4 * side):
        size, total = (n, side + 3), torch.zeros(n, side + 3)
        for tile in blended_tiles(size, side, multiple, CPU):
            assert tile.weight.shape == tile.window.shape and max(tile.window.shape) <= side
            assert all(axis.start % multiple == 0 for axis in tile.window.box)
            assert tile.weight.min() >= 0
            tile.window.crop(total).add_(tile.weight)
        torch.testing.assert_close(total, torch.ones(size))


def test_a_tile_counts_for_nothing_at_its_borders_within_the_grid_and_fully_at_those_of_the_grid():
    (first, second, third) = blended_tiles((160,), 64, 8, CPU)
    assert first.weight[0] == 1 and third.weight[-1] == 1
    for weight in (first.weight[-4:], second.weight[:4], second.weight[-4:], third.weight[:4]):
        assert torch.equal(weight, torch.zeros(4))
    steps = second.weight.diff().abs().max()
    assert 0 < steps < 0.2  # a smooth ramp


def without_norms(net: nn.Module) -> nn.Module:
    """Without attention and norms, whose outputs depend on the whole grid."""
    for module in net.modules():
        if isinstance(module, Spade):
            module.norm = nn.Identity()
        for name in ("norm1", "norm2", "norm_out"):
            if isinstance(getattr(module, name, None), nn.GroupNorm):
                setattr(module, name, nn.Identity())
        if hasattr(module, "middle_attention"):
            module.middle_attention = None
    return net


SIDE, GRID, RADIUS = 64, (96, 128), 26  # cells; RADIUS bounds the receptive field


def convolutions(controlled: bool) -> nn.Module:
    """A two-dimensional U-Net, its SPADE and fields, and a ControlNet, of convolutions alone."""
    sizes = dict(channels=(8, 8), attention_levels=(), head_channels=8, label_channels=(4, 4, 4))
    unet = small_unet(2, **sizes, vessel_fields=True, spade_hidden=4)
    if controlled:
        settings = dict(in_channels=4, num_classes=3, num_res_blocks=1, label_factor=4)
        controlnet = ControlNet(2, **{**encoder_settings(), **sizes, **settings})
        randomize_zeros(controlnet, 0.1)
        unet = ControlledUNet(unet, controlnet, None).eval()
    return without_norms(unet)


def velocity_of(net, tile: int | None, weights=(2.0, 1.5), grid=GRID, cases=2) -> torch.Tensor:
    """The guided velocity of random noise under random label maps and fields."""
    random = torch.Generator().manual_seed(1)
    labels = torch.randint(0, 3, (cases, *[4 * n for n in grid]), generator=random)
    fields = torch.rand((cases, 2, *grid), generator=random)
    conditions = Conditions(labels.to(torch.uint8), None, fields)
    x, t = torch.randn((cases, 4, *grid), generator=random), torch.full((cases,), 0.3)
    spacing = torch.full((cases, 2), 0.7)
    terms = guidance_terms(*weights)
    velocity = guided_velocity(net, conditions, terms, grid, spacing, (0.0, 1.0), tile)
    with torch.no_grad():
        return velocity(x, t)


@pytest.mark.parametrize("controlled", [False, True], ids=["unet", "controlnet"])
def test_tiles_equal_the_whole_where_the_receptive_field_permits(controlled, monkeypatch):
    """Label map, fields, ControlNet and guidance terms of each tile are those of its place."""
    with_autograd_norms(monkeypatch)  # which take Identity for a norm
    net = convolutions(controlled)
    whole, tiled = velocity_of(net, None), velocity_of(net, SIDE)
    assert whole.std() > 1e-3
    near = torch.zeros(GRID, dtype=torch.bool)  # within the radius of a border, where it counts
    for tile in blended_tiles(GRID, SIDE, net.multiple, CPU):
        inner = torch.ones(tile.window.shape, dtype=torch.bool)
        for axis, (box, n) in enumerate(zip(tile.window.box, GRID, strict=True)):
            length = box.stop - box.start
            if box.start > 0:
                inner.narrow(axis, 0, RADIUS).fill_(False)
            if box.stop < n:
                inner.narrow(axis, length - RADIUS, RADIUS).fill_(False)
        tile.window.crop(near).logical_or_(~inner & (tile.weight > 0))
    assert 0.1 < near.float().mean() < 0.9
    difference = (tiled - whole).abs().amax((0, 1))
    assert difference[~near].max() < 1e-5 * whole.abs().max()
    assert difference[near].max() > 1e-4 * whole.abs().max()
    # With a margin as wide as the receptive field, everywhere.
    monkeypatch.setattr(tiles_module, "MARGIN", RADIUS / SIDE)
    whole, tiled = (velocity_of(net, tile, grid=(72, 72)) for tile in (None, SIDE))
    assert (tiled - whole).abs().max() < 1e-5 * whole.abs().max()


def test_one_tile_that_covers_the_grid_is_the_whole_bit_for_bit():
    net = small_unet(2)
    whole = velocity_of(net, None, weights=(1.0, None))
    assert torch.equal(velocity_of(net, 128, weights=(1.0, None)), whole)
    assert not torch.equal(velocity_of(net, 64, weights=(1.0, None)), whole)


@pytest.mark.parametrize("layer", [VesselAttention, VesselTransformer], ids=lambda t: t.__name__)
def test_the_vessel_attention_of_a_window_is_that_of_its_place_in_the_whole(layer):
    torch.manual_seed(0)
    options = {"dropout": 0.0} if layer is VesselTransformer else {}
    net = layer(3, 64, 32, 24, distance=True, **options).eval()
    position = 20 * (torch.rand(1, 50, 3) - 0.5)
    mask = torch.ones(1, 50, dtype=torch.bool)
    tokens = EncodedTokens(torch.randn(1, 50, 24), position, torch.rand(1, 50) + 0.5, mask)
    size, cell_mm = (10, 8, 6), torch.tensor([[2.0, 2.5, 3.0]])
    window = Window(size, (slice(4, 10), slice(0, 4), slice(2, 6)))
    whole, part = (
        net.cache_keys_values([net], LevelTokens(tokens, grid, cell_mm))[0]
        for grid in (size, window)
    )
    for name in ("query_position", "query_bias"):
        on_grid = getattr(whole, name).unflatten(1, size).movedim(-1, 1)
        expected = window.crop(on_grid).flatten(2).transpose(1, 2)
        torch.testing.assert_close(getattr(part, name), expected)
    assert torch.equal(part.key, whole.key) and torch.equal(part.value, whole.value)


@pytest.mark.parametrize(("free", "expected"), [(2**40, 6), (0, 18)])
def test_features_are_cached_where_the_memory_allows_and_computed_again_where_not(
    free, expected, monkeypatch
):
    monkeypatch.setattr(sampling, "free_bytes", lambda device: free)
    net, calls = small_unet(2), []
    cache_conditions = type(net).cache_conditions

    def counted(self, *arguments):
        calls.append(1)
        return cache_conditions(self, *arguments)

    monkeypatch.setattr(type(net), "cache_conditions", counted)
    random = torch.Generator().manual_seed(1)
    conditions = Conditions(torch.zeros((1, *[4 * n for n in GRID]), dtype=torch.uint8))
    arguments = (guidance_terms(1.0, None), GRID, torch.ones(1, 2), (0.0, 1.0), SIDE)
    velocity = guided_velocity(net, conditions, *arguments)
    x, t = torch.randn((1, 4, *GRID), generator=random), torch.zeros(1)
    with torch.no_grad():
        results = [velocity(x, t) for _ in range(3)]
    assert len(blended_tiles(GRID, SIDE, net.multiple, CPU)) == 6 and len(calls) == expected
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("mode", ["flow", "diffusion"])
def test_the_noise_is_that_of_the_whole_grid(mode):
    """An untrained network predicts 0, so a sample is made of its noise alone."""
    data = DataConfig(resolution=[48, 32, 16], spacing=[2.0] * 3)
    solver = SamplingConfig(solver="ddpm" if mode == "diffusion" else "euler", steps=3)
    config = Stage2Config(stage=2, latent_mode=mode, data=data, sampling=solver)
    unet = replace(config.unet, channels=[16, 16], attention_levels=[1], head_channels=16)
    config = replace(config, unet=replace(unet, vessel_attention="off", vessel_fields=False))
    autoencoder = build_autoencoder(Stage1Config(stage=1, data=data))
    scale = LatentScale(torch.zeros(8), torch.ones(8))
    model = Pipeline(config, autoencoder, build_network(config, 8, 4), scale, "", CPU)
    labels = Volume(np.zeros((48, 32, 16), np.uint8), np.diag([2.0, 2, 2, 1]))

    def latents(tile: int | None) -> torch.Tensor:
        random = torch.Generator().manual_seed(3)
        return model.sample(labels, random, SampleOptions(latent_tile=tile)).latents

    whole = latents(None)
    assert whole.std() > 0.1
    torch.testing.assert_close(latents(8), whole, atol=1e-6, rtol=0)


def test_a_side_that_is_no_multiple_of_the_coarsest_cell_is_refused(tmp_path):
    model = Pipeline.load(STAGE_2, device=CPU)
    for side in (0, 3, 2, -4, 8.0, "auto"):
        with pytest.raises(
            InputError, match=f"^latent_tile is {side}: give a multiple of 2 from 4"
        ):
            model.synthesize(None, latent_tile=side)
    command = ["--model", str(STAGE_2), "--output-dir", str(tmp_path), "--cases", "1"]
    command += ["--latent-tile", "3"]
    with pytest.raises(InputError, match="^--latent-tile is 3: give a multiple of 2"):
        synthesize.main(command)


def test_the_side_is_a_setting_of_the_volumes(tmp_path, capsys):
    labels = Volume(np.random.default_rng(0).integers(0, 9, (32, 32, 24), np.uint8), np.eye(4))
    write_volume(tmp_path / "labels" / "a.nii.gz", labels, "uint8")
    command = ["--model", str(STAGE_2), "--input-dir", str(tmp_path / "labels"), "--steps", "1"]
    command += ["--output-dir", str(tmp_path / "out")]
    images = {}
    for side in ("4", "4", "", "6"):
        synthesize.main([*command, *(["--latent-tile", side] if side else [])])
        settings = json.loads((tmp_path / "out" / "a_s0.json").read_text())["settings"]
        assert settings.get("latent_tile", "") == (int(side) if side else "")
        images[side] = (tmp_path / "out" / "a_s0.img.nii.gz").read_bytes()
    outputs = [line for line in capsys.readouterr().out.splitlines() if " s each" in line]
    assert ["0 volumes" in line for line in outputs] == [False, True, False, False]
    assert len(set(images.values())) == 3


def tiles_apart(size, side, multiple, device) -> list[Tile]:
    """Tiles beside each other, in place of blended_tiles."""
    axes = [[slice(first, min(first + side, n)) for first in range(0, n, side)] for n in size]
    return [Tile(Window(size, box), torch.ones(())) for box in itertools.product(*axes)]


def border_share(hu: np.ndarray, tiles, side: int) -> float:
    """The mean step of HU over the borders of tiles within the volume over that of other planes.

    tiles: blended_tiles or tiles_apart, for cells of four voxels.
    """
    at_borders, inner = [], []
    for axis, n in enumerate(hu.shape):
        across = np.abs(np.diff(hu.astype(float), axis=axis))
        steps = across.mean(tuple(other for other in range(3) if other != axis))
        boxes = [tile.window.box[0] for tile in tiles((n // 4,), side, 2, CPU)]
        cells = {box.start for box in boxes[1:]} | {box.stop for box in boxes[:-1]}
        borders = [4 * cell - 1 for cell in cells]
        at_borders += list(steps[borders])
        inner += list(np.delete(steps, borders))
    return float(np.mean(at_borders) / np.mean(inner))


@pytest.mark.slow
def test_tiles_leave_no_seams_in_a_volume_of_the_packaged_model(monkeypatch):
    """A grid of 36 x 24 x 18 cells; tiles without overlap leave seams."""
    model, shape = Pipeline.load("heart-phantom", device=CPU), (144, 96, 72)
    labels = make_phantom(31, 1, shape, (1.25, 1.25, 1.25)).labels
    shares = []
    for tiles, side in ((blended_tiles, 16), (tiles_apart, 12)):
        monkeypatch.setattr(sampling, "blended_tiles", tiles)
        volume = model.synthesize(labels, steps=3, resolution=shape, latent_tile=side)
        shares.append(border_share(volume.array, tiles, side))
    assert shares[0] <= 1.05 and shares[1] > 2, shares
