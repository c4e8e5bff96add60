"""data.spacing as null and as a range: each case has a spacing of its own, on the true grid."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import AUTOENCODER, DATA, UNET
from grids import resampled
from networks import make_flow, make_unet

from tubesynth import cache, synthesize, train
from tubesynth.build.base_models import require_base_models
from tubesynth.build.preprocessing import preprocessing_of
from tubesynth.config.loading import load_config
from tubesynth.data.dataset import VolumeDataset
from tubesynth.data.preprocessing import Preprocessing, SpacingRange
from tubesynth.data.store import Store
from tubesynth.data.volumes import TokenSource, build_volumes
from tubesynth.models.conditions import Conditions
from tubesynth.pipeline import Pipeline
from tubesynth.runtime.errors import InputError
from tubesynth.training.inputs import Volumes
from tubesynth.training.latents import encode_data_set
from tubesynth.volume.cases import Case, find_cases, pair_cases
from tubesynth.volume.files import read_labels, read_volume, write_volume
from tubesynth.volume.grid import Volume, spacing_of

RANGE = SpacingRange((4.0, 4.0, 4.0), (6.0, 6.0, 7.0), num_spacings=3, seed=5)
GRID = Preprocessing((32, 32, 24), RANGE)


@pytest.fixture(scope="module")
def cases(phantoms) -> list[Case]:
    return pair_cases(phantoms / "training" / "images", phantoms / "training" / "labels")


def test_a_spacing_is_drawn_for_each_sample_from_seed_and_sample_index_alone(cases, tmp_path):
    options = dict(seed=2, tokens=TokenSource(8, 5.5))
    store = Store(tmp_path)
    modes = [VolumeDataset(cases, GRID, store, m, **options) for m in ("persistent", "default")]
    spacings = []
    for index in range(8):
        stored, fresh = (dataset[index] for dataset in modes)
        assert torch.equal(stored["image"], fresh["image"])
        spacing = stored["spacing"].numpy()
        case = next(case for case in cases if case.id == stored["case"])
        drawn = [RANGE.of_case(case.id, draw) for draw in range(3)]
        assert min(np.abs(np.array(drawn) - spacing).max(axis=1)) < 1e-5
        share = (spacing - RANGE.low) / np.subtract(RANGE.high, RANGE.low)
        assert 0 <= share[0] <= 1 and np.allclose(share, share[0], atol=1e-3)
        spacings.append(tuple(spacing.tolist()))
        # tokens are in mm: they lie on the vessels of the label map at its own spacing
        index = stored["tokens"]["position_mm"].numpy() / spacing + (np.array([32, 32, 24]) - 1) / 2
        inside = ((index > 0) & (index < [31, 31, 23])).all(axis=1)
        near = [stored["label"][tuple(np.rint(i).astype(int))] == 8 for i in index[inside]]
        assert np.mean(near) > 0.8
    assert len(set(spacings)) > 4
    assert len(list(store.entries("volumes"))) <= len(cases) * 3


def test_the_cache_holds_a_case_at_each_of_its_spacings(cases, tmp_path):
    store = Store(tmp_path)
    assert build_volumes(store, cases, GRID, workers=1).built == 12
    assert build_volumes(store, cases, GRID, workers=1).built == 0
    spacings = {tuple(spacing_of(e.meta["affine"]).round(4)) for e in store.entries("volumes")}
    assert spacings == {RANGE.of_case(case.id, draw) for case in cases for draw in range(3)}
    fixed = replace(GRID, spacing=(5.5, 5.5, 5.5))
    assert build_volumes(store, cases, fixed, workers=1).built == 4


def boxed(case: Case, folder, box) -> Case:
    """A case cut out of another; every voxel keeps its place in the world."""
    paths = folder / "images" / f"{case.id}.nii.gz", folder / "labels" / f"{case.id}.nii.gz"
    volumes = read_volume(case.image), read_labels(case.label)
    for path, volume, dtype in zip(paths, volumes, ("int16", "uint8"), strict=True):
        affine = volume.affine.copy()
        affine[:3, 3] = volume.to_world(np.array([side.start for side in box]))
        write_volume(path, Volume(volume.array[box], affine), dtype)
    return Case(case.id, *paths)


def test_null_fits_the_whole_image_into_the_resolution(cases, tmp_path):
    box = (slice(2, 30), slice(4, 28), slice(0, 22))  # 28 x 24 x 22 voxels of 5.5 mm
    case = boxed(cases[0], tmp_path, box)
    arrays, affine = resampled(case, replace(GRID, spacing=None))
    image, labels = read_volume(case.image), read_labels(case.label)
    assert np.allclose(spacing_of(affine), 5.5 * np.array([28, 24, 22]) / [32, 32, 24])
    grid = Volume(arrays["label"], affine)
    for corner in ((-0.5, -0.5, -0.5), (31.5, 31.5, 23.5)):  # the same extent in the world
        source = np.where(np.array(corner) < 0, -0.5, np.array(image.shape) - 0.5)
        assert np.allclose(grid.to_world(np.array(corner)), image.to_world(source), atol=1e-3)
    for value in np.unique(labels.array)[1:]:  # each structure stays where it was
        centers = [
            volume.to_world(np.argwhere(volume.array == value).mean(axis=0))
            for volume in (grid, labels)
        ]
        assert np.linalg.norm(np.subtract(*centers)) < 5.5


STAGES = {
    1: f"stage: 1\n{DATA}\n{AUTOENCODER}\ntrain: {{{{epochs: 1}}}}\n",
    2: f"stage: 2\n{DATA}\n{UNET}\nflow: {{{{label_dropout: 0.1}}}}\ntrain: {{{{epochs: 1}}}}\n",
}


def test_with_null_results_have_the_place_and_spacing_of_their_inputs(cases, phantoms, tmp_path):
    boxes = [(slice(2, 30), slice(4, 28), slice(0, 22)), (slice(0, 32), slice(0, 32), slice(2, 24))]
    for split in ("training", "validation"):
        folder = phantoms / split
        for i, case in enumerate(pair_cases(folder / "images", folder / "labels")):
            boxed(case, tmp_path / "data" / split, boxes[i % 2])
    last = tmp_path / "s1" / "checkpoints" / "last.ckpt"
    paths = dict(data=tmp_path / "data", cache=tmp_path / "cache", autoencoder=last)
    for stage, text in STAGES.items():
        text = text.format(**paths).replace("[5.5, 5.5, 5.5]", "null")
        (tmp_path / f"s{stage}.yml").write_text(text)
        options = ["--config", str(tmp_path / f"s{stage}.yml"), "data.batch_size=2"]
        train.main([*options, "--run-dir", str(tmp_path / f"s{stage}")])
    model = str(tmp_path / "s2" / "checkpoints" / "last.ckpt")
    labels = tmp_path / "data" / "validation" / "labels"
    results = {}
    for batch in (1, 2):  # two spacings in one batch
        out = tmp_path / f"out{batch}"
        options = ["--model", model, "--input-dir", str(labels), "--batch-size", str(batch)]
        synthesize.main([*options, "--output-dir", str(out)])
        results[batch] = [read_volume(out / f"{c}_s0.img.nii.gz") for c in find_cases(labels)]
    sources = [read_labels(path) for path in find_cases(labels).values()]
    for source, single, batched in zip(sources, *results.values(), strict=True):
        assert single.shape == (32, 32, 24) and np.allclose(single.center_mm, source.center_mm)
        extent_mm = np.array(single.shape) * single.spacing
        assert np.allclose(extent_mm, np.array(source.shape) * source.spacing, atol=1e-3)
        assert np.abs(single.array - batched.array.astype(int)).max() <= 1
    with pytest.raises(InputError, match=r"--spacing is not known without a label map"):
        unconditional = ["--model", model, "--unconditional"]
        synthesize.main([*unconditional, "--output-dir", str(tmp_path / "out3")])
    with_spacing = [*unconditional, "--spacing", "5", "5", "6"]
    synthesize.main([*with_spacing, "--output-dir", str(tmp_path / "out3")])
    result = read_volume(tmp_path / "out3" / "unconditional_s0.img.nii.gz")
    assert np.allclose(result.spacing, [5, 5, 6])


def test_latents_are_stored_for_each_drawn_spacing_and_kept_by_prune(workplace, stage_1, capsys):
    overrides = ["data.spacing=[[5,5,5],[6,6,7]]", "data.spacing_draws=2", "latents.variants=2"]
    overrides += ["data.augment.flip=1", f"data.cache_dir={workplace / 'range'}"]
    config = load_config(workplace / "s2.yml", overrides)
    autoencoder = require_base_models(config).autoencoder
    latents = encode_data_set(config, Volumes.find(config), autoencoder, torch.device("cpu"))
    drawn = preprocessing_of(config).spacing
    for index, case in enumerate(latents.training.case_ids):
        samples = [latents.training.sample(index, variant) for variant in range(4)]
        for variant, sample in enumerate(samples):
            assert np.allclose(sample["spacing"], drawn.of_case(case, variant % 2), atol=1e-4)
        assert not np.array_equal(samples[0]["latent"], samples[2]["latent"])  # augmented
    assert len(latents.validation.keys[0]) == 1
    batch = next(latents.batches(0, 1))
    assert batch["spacing"].shape == (1, 3) and 5 <= batch["spacing"].min() <= 6
    low, high = {
        key: row[1:3]
        for key, row in zip(latents.conditions.keys, latents.conditions.numbers, strict=True)
    }["spacing_mm/voxels/z"]
    assert 5 <= low < high <= 7
    cache.main(["prune", "--config", str(workplace / "s2.yml"), *overrides])
    assert "0 entries" in capsys.readouterr().out


def test_a_model_of_a_range_makes_volumes_of_its_middle_or_of_the_asked_spacing(stage_1):
    pipeline = Pipeline.load(stage_1)
    data = replace(pipeline.config.data, spacing=[[4.0, 4.0, 4.0], [6.0, 6.0, 7.0]])
    pipeline.config = replace(pipeline.config, data=data)
    hu = np.random.default_rng(0).integers(-1000, 1000, (30, 30, 30), np.int16)
    volume = Volume(hu, np.diag([3.0, 3.0, 3.0, 1.0]))
    assert np.allclose(pipeline.reconstruct(volume).spacing, [5.0, 5.0, 5.5])
    assert np.allclose(pipeline.reconstruct(volume, spacing=(4, 4, 6)).spacing, [4, 4, 6])


def test_drawn_spacings_cover_the_range_evenly():
    spacings = np.array([RANGE.of_case(f"case{i}", i % 3)[0] for i in range(600)])
    assert abs(spacings.mean() - 5) < 0.1 and spacings.min() < 4.05 and spacings.max() > 5.95
    assert RANGE.of_case("7", 0) == RANGE.of_case("7", 0) != RANGE.of_case("7", 1)


def discs(count: int, spacing_mm: float, random: torch.Generator):
    """Discs with an edge of 1 mm in 8 x 8 voxels: images, the label maps of the discs, spacings."""
    axis = torch.arange(8) - 3.5
    x, y = (torch.rand(2, count, 1, 1, generator=random) - 0.5) * 2
    radius = 2 + torch.rand(count, 1, 1, generator=random)
    depth = radius - torch.hypot(axis[:, None] - x, axis - y)  # voxels from the edge inwards
    image = torch.tanh(depth * spacing_mm)[:, None]
    return image, (depth > 0).to(torch.uint8), torch.full((count, 2), spacing_mm)


def generator_of(spacings: tuple[float, ...]) -> torch.nn.Module:
    """A tiny U-Net trained on discs at these spacings in turn, as many steps for any number."""
    torch.manual_seed(0)
    settings = dict(in_channels=1, channels=(16,), num_res_blocks=1, attention_levels=())
    settings |= dict(num_classes=2, label_channels=(8, 8, 8), label_factor=1, spade_hidden=8)
    net, flow = make_unet(2, head_channels=16, **settings), make_flow(loss="l2")
    optimizer, random = torch.optim.Adam(net.parameters(), 5e-3), torch.Generator().manual_seed(1)
    for step in range(80):
        data, labels, spacing = discs(8, spacings[step % len(spacings)], random)
        noise, t = torch.randn(data.shape, generator=random), torch.rand(8, generator=random)
        conditions = Conditions(labels)
        loss = flow.loss(lambda x, t: net(x, t, spacing, conditions), data, noise, t).mean()  # noqa: B023
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval()


@torch.no_grad()
def sample_errors(net: torch.nn.Module, spacing_mm: float) -> tuple[float, float]:
    """Of eight samples against the discs: the mean error, and that of the steepest slope."""
    random = torch.Generator().manual_seed(9)
    data, labels, spacing = discs(8, spacing_mm, random)
    x, conditions = torch.randn(data.shape, generator=random), Conditions(labels)
    for step in range(8):
        x = x + net(x, torch.full((8,), step / 8), spacing, conditions) / 8
    slopes = [image.diff(dim=-1).abs().amax((1, 2, 3)).mean() for image in (x, data)]
    return float((x - data).abs().mean()), float(abs(slopes[0] - slopes[1]))


def test_a_model_of_two_spacings_has_sharper_edges_at_each_than_one_of_the_other_spacing():
    both, fine, coarse = (generator_of(spacings) for spacings in ((0.5, 2.0), (0.5,), (2.0,)))
    for spacing_mm, other in ((0.5, coarse), (2.0, fine)):
        errors = zip(sample_errors(both, spacing_mm), sample_errors(other, spacing_mm), strict=True)
        for error_of_both, error_of_other in errors:
            assert error_of_both < 0.7 * error_of_other
