"""Cases to batches: a sample index is one sample, in every mode and for any number of workers."""

import os
import pickle
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from grids import resampled

from tubesynth.data.augment import Augmentation
from tubesynth.data.dataset import VolumeDataset, collate, pad_tokens
from tubesynth.data.entry import will_need
from tubesynth.data.loader import Loader
from tubesynth.data.preprocessing import Preprocessing, preprocess_labels
from tubesynth.data.sampler import RankBatchSampler, case_of_sample
from tubesynth.data.store import Store
from tubesynth.data.volumes import TokenSource
from tubesynth.runtime.errors import InputError
from tubesynth.volume.cases import Case, pair_cases
from tubesynth.volume.files import read_volume
from tubesynth.volume.vessels import VesselTokens, place_tokens

REAL = Path(__file__).parents[2] / "shared" / "real"
GRID = Preprocessing((16, 16, 12), (1.0, 1.0, 1.5))
ALL = Augmentation(flip=0.5, rotate90=0.5, intensity=0.5)


class VoxelTokens(TokenSource):
    """Tokens at the voxels of the class: every transform must keep them at these voxels."""

    def trace(self, labels):
        placed = preprocess_labels(labels, GRID)
        index = np.argwhere(placed.array == self.vessel_class)[:200]
        table = np.zeros((len(index), 9))
        table[:, :3] = (index - (np.array(placed.shape) - 1) / 2) * placed.spacing
        table[:, 3] = 0.1
        tokens = VesselTokens.from_array(table)
        return place_tokens(tokens, placed, labels.shape, labels.affine)


TOKENS = VoxelTokens(8, 1.0)


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for i in range(5):
        rng = np.random.default_rng(i)
        shape = (18 + i, 15, 14)
        image = rng.integers(-1300, 1300, shape).astype(np.int16)
        label = rng.choice(9, shape, p=[0.6, *[0.05] * 8]).astype(np.uint8)
        label[label == 8] = 0 if i == 4 else 8  # the last case has no vessels
        affine = np.diag([-0.87, 1.13, 1.31, 1])  # no sample half-way between voxels
        for kind, array in (("img", image), ("label", label)):
            folder = root / {"img": "images", "label": "labels"}[kind]
            folder.mkdir(exist_ok=True)
            nib.save(nib.Nifti1Image(array, affine), folder / f"{i}.{kind}.nii.gz")
    return pair_cases(root / "images", root / "labels")


def same(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    return a == b


# ---- samples


def test_samples_are_equal_on_the_fly_from_memory_and_from_disk(cases, tmp_path):
    options = dict(seed=3, crop=(12, 12, 12), augmentation=ALL, tokens=TOKENS)
    fly, memory, disk = (
        VolumeDataset(cases, GRID, Store(tmp_path), mode, **options)
        for mode in ("default", "cache", "persistent")
    )
    for index in range(12):
        sample = fly[index]
        assert same(sample, memory[index])
        assert same(sample, disk[index])
        assert same(sample, disk[index])  # built, and then read


def test_a_sample_is_small_typed_and_contiguous(cases):
    sample = VolumeDataset(cases, GRID, seed=1, augmentation=ALL, tokens=TOKENS)[2]
    assert sample["image"].dtype == torch.int16 and sample["image"].shape == (1, 16, 16, 12)
    assert sample["label"].dtype == torch.uint8 and sample["label"].shape == (16, 16, 12)
    assert sample["image"].is_contiguous() and sample["label"].is_contiguous()
    assert np.allclose(sample["spacing"], (1, 1, 1.5))
    assert sample["intensity"].shape == (2,) and sample["intensity"].dtype == torch.float32
    assert -1000 <= sample["image"].min() and sample["image"].max() <= 1000


def test_the_same_index_is_the_same_sample_and_another_index_of_the_case_is_not(cases):
    dataset = VolumeDataset(cases, GRID, seed=1, crop=(8, 8, 8), augmentation=ALL)
    again = VolumeDataset(cases, GRID, seed=1, crop=(8, 8, 8), augmentation=ALL)
    other_seed = VolumeDataset(cases, GRID, seed=2, crop=(8, 8, 8), augmentation=ALL)
    assert same(dataset[7], again[7])
    assert not torch.equal(dataset[7]["image"], other_seed[7]["image"])
    of_one_case = [i for i in range(15) if dataset[i]["case"] == "2"]
    assert len(of_one_case) == 3
    crops = [dataset[i]["image"] for i in of_one_case]
    assert not torch.equal(crops[0], crops[1])


@pytest.mark.parametrize("convention", ["per_axis", "published"])
def test_image_label_tokens_and_fields_of_a_sample_show_the_same_vessels(cases, convention):
    augmentation = replace(ALL, convention=convention)
    dataset = VolumeDataset(
        cases, GRID, seed=5, crop=(12, 12, 10), augmentation=augmentation, tokens=TOKENS
    )
    whole = VolumeDataset(cases, GRID, seed=5)
    sides = set()
    for i in range(20):
        sample = dataset[i]
        labels, position = sample["label"].numpy(), sample["tokens"]["position_mm"].numpy()
        index = position / sample["spacing"].numpy() + (np.array(labels.shape) - 1) / 2
        index = np.rint(index).astype(int)
        assert sample["image_fields"].shape == (2, *labels.shape)
        inside = ((index >= 0) & (index < labels.shape)).all(axis=1)
        assert (labels[tuple(index[inside].T)] == 8).all()
        if sample["case"] == "4":
            assert len(position) == 0 and not (labels == 8).any()
        else:
            assert inside.sum() > 0
            closeness = sample["image_fields"][0].numpy()
            assert closeness[tuple(index[inside].T)].min() > closeness[labels != 8].mean()
        pairs = np.stack([labels.ravel(), sample["image"].numpy().ravel()])
        reference = whole.sample([c.id for c in cases].index(sample["case"]))
        paired = {
            tuple(p) for p in np.stack([reference["label"], reference["image"][0]]).reshape(2, -1).T
        }
        assert {tuple(p) for p in pairs.T} <= paired
        sides.add((labels.shape, tuple(sample["spacing"].tolist())))
    if convention == "published":  # turns exchange the sides with their spacings
        assert {((12, 10, 12), (1, 1.5, 1)), ((10, 12, 12), (1.5, 1, 1))} < sides
    else:
        assert sides == {((12, 12, 10), (1, 1, 1.5))}


def test_image_and_label_land_on_the_images_grid_as_simpleitk_resamples_them(cases):
    arrays, affine = resampled(cases[0], GRID)
    source = sitk.ReadImage(str(cases[0].label))
    target = sitk.Image([16, 16, 12], sitk.sitkUInt8)
    lps = np.diag([-1, -1, 1, 1]) @ affine
    target.SetOrigin(lps[:3, 3])
    target.SetSpacing((1, 1, 1.5))
    target.SetDirection((lps[:3, :3] / [1, 1, 1.5]).ravel())
    labels = sitk.GetArrayFromImage(
        sitk.Resample(source, target, sitk.Transform(), sitk.sitkNearestNeighbor, 0)
    ).T
    assert np.mean(labels == arrays["label"]) > 0.999
    middle = read_volume(cases[0].image).center_mm
    assert np.allclose(affine[:3, :3] @ [7.5, 7.5, 5.5] + affine[:3, 3], middle, atol=1e-4)


def test_a_missing_or_cut_entry_is_built_again_while_reading(cases, tmp_path):
    dataset = VolumeDataset(cases, GRID, Store(tmp_path), "persistent")
    before = dataset[0]
    for entry in list(dataset.store.entries("volumes")):
        entry.path.write_bytes(b"cut")
    assert same(dataset[0], before)


def bytes_read_from_disk():
    with open("/proc/self/io") as stream:
        return next(int(line.split()[1]) for line in stream if line.startswith("read_bytes"))


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="no account of disk reads")
def test_a_crop_does_not_read_the_whole_volume_from_the_disk(tmp_path):
    shape, start, size = (96, 128, 128), (30, 40, 10), (32, 32, 32)
    array = np.random.default_rng(0).integers(0, 99, shape).astype(np.int16)
    entry, _ = Store(tmp_path).ensure("things", "k", lambda: ({"image": array}, {}), {})
    read = []
    for advised in (False, True):
        with open(entry.path, "rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        before, mapped = bytes_read_from_disk(), entry.arrays()["image"]
        if advised:
            will_need(mapped, start, size)
        box = tuple(slice(s, s + n) for s, n in zip(start, size, strict=True))
        assert np.array_equal(mapped[box], array[box])
        read.append(bytes_read_from_disk() - before)
    if read[0] == 0:
        pytest.skip("a file system without a disk below it")
    # 32 of 96 slabs, a quarter of each, in whole pages
    assert read[1] < 0.15 * array.nbytes < read[0]


def test_samples_of_two_dimensional_cases_have_no_third_axis(tmp_path):
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 255, (20, 24)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "1.png")
    grid = Preprocessing((16, 20), (1, 1), (0, 255))
    dataset = VolumeDataset([Case("1", tmp_path / "1.png")], grid, crop=(8, 12), dim=2)
    assert dataset[0]["image"].shape == (1, 8, 12)
    whole = VolumeDataset([Case("1", tmp_path / "1.png")], grid, dim=2)[0]
    assert torch.equal(whole["image"][0], torch.from_numpy(pixels[::-1].T[4:20].copy()).short())


def test_a_data_set_without_cases_is_refused():
    with pytest.raises(InputError, match="data.root"):
        VolumeDataset([], GRID)


def test_label_outside_the_classes_or_on_another_grid_is_refused_by_name(cases, tmp_path):
    with pytest.raises(InputError, match=r"0.label.nii.gz.*0 to 4"):
        resampled(cases[0], replace(GRID, num_classes=5))
    with pytest.raises(InputError, match=r"1.label.nii.gz.*0.img.nii.gz"):
        resampled(Case("0", cases[0].image, cases[1].label), GRID)


# ---- batches


@pytest.mark.parametrize("workers", [0, 2, 8])
def test_batches_do_not_depend_on_the_number_of_workers(cases, tmp_path, workers):
    options = dict(seed=2, crop=(10, 10, 10), augmentation=ALL, tokens=TOKENS)
    dataset = VolumeDataset(cases, GRID, Store(tmp_path), "persistent", **options)
    batches = list(Loader(dataset, RankBatchSampler(0, 30, batch_size=3), num_workers=workers))
    assert len(batches) == 10 and batches[1]["sample_index"].tolist() == [3, 4, 5]
    for number, batch in enumerate(batches):
        expected = collate([dataset.view(index) for index in range(3 * number, 3 * number + 3)])
        assert same(batch, expected)
        for row in range(3):
            assert torch.equal(batch["image"][row], dataset[3 * number + row]["image"])


def test_processes_of_torchs_own_loader_give_the_same_samples(cases, tmp_path):
    options = dict(seed=2, crop=(10, 10, 10), augmentation=ALL, tokens=TOKENS)
    dataset = VolumeDataset(cases, GRID, Store(tmp_path), "persistent", **options)
    samples = torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=2)
    assert all(same(sample, dataset[index]) for index, sample in enumerate(samples))


WITHOUT_READERS = """
import pickle, sys
for name in ("nibabel", "SimpleITK", "scipy", "skimage", "PIL", "matplotlib"):
    sys.modules[name] = None  # an import of it fails
from tubesynth.data.dataset import VolumeDataset
from tubesynth.data.store import Store
cases, grid, root = pickle.load(open(sys.argv[1], "rb"))
dataset = VolumeDataset(cases, grid, Store(root), "persistent", crop=(8, 8, 8))
print(sum(int(dataset[index]["image"].sum()) for index in range(5)))
"""


def test_a_built_cache_is_read_without_any_reader_of_images(cases, tmp_path):
    store = Store(tmp_path / "cache")
    dataset = VolumeDataset(cases, GRID, store, "persistent", crop=(8, 8, 8))
    expected = sum(int(dataset[index]["image"].sum()) for index in range(5))
    with open(tmp_path / "job", "wb") as stream:
        pickle.dump((cases, GRID, store.root), stream)
    job = [sys.executable, "-c", WITHOUT_READERS, str(tmp_path / "job")]
    assert int(subprocess.run(job, capture_output=True, text=True, check=True).stdout) == expected


def test_leaving_a_loader_early_ends_its_threads_and_an_error_reaches_the_caller(cases):
    before = set(threading.enumerate())
    for batch in Loader(VolumeDataset(cases, GRID), RankBatchSampler(0, 50, 1), num_workers=4):
        assert batch["sample_index"].tolist() == [0]
        break
    assert set(threading.enumerate()) <= before
    wrong = VolumeDataset(cases, replace(GRID, num_classes=5))
    with pytest.raises(InputError, match="data.label_map"):
        list(Loader(wrong, RankBatchSampler(0, 5, 1), num_workers=2))
    assert set(threading.enumerate()) <= before


def test_tokens_are_padded_with_a_mask_and_a_case_without_any_is_legal():
    many = {"position_mm": np.ones((3, 3), np.float32), "radius_mm": np.ones(3, np.float32)}
    none = {"position_mm": np.ones((0, 3), np.float32), "radius_mm": np.ones(0, np.float32)}
    padded = pad_tokens([many, none])
    assert padded["position_mm"].shape == (2, 3, 3)
    assert padded["mask"].tolist() == [[True] * 3, [False] * 3]
    assert padded["position_mm"][1].abs().sum() == 0
    assert pad_tokens([none])["mask"].tolist() == [[False]]


# ---- the order of sample indices


def test_every_epoch_takes_each_case_once_in_an_order_of_its_own():
    orders = [[case_of_sample(i, 10, seed=4) for i in range(e * 10, e * 10 + 10)] for e in range(5)]
    assert all(sorted(order) == list(range(10)) for order in orders)
    assert len({tuple(order) for order in orders}) == 5


def test_two_ranks_have_together_the_samples_of_one_rank():
    alone = list(RankBatchSampler(0, 25, batch_size=4))
    ranks = [list(RankBatchSampler(0, 25, batch_size=2, rank=r, world=2)) for r in range(2)]
    assert len(ranks[0]) == len(ranks[1]) == len(alone) == 6
    assert [a + b for a, b in zip(*ranks, strict=True)] == alone
    assert alone[0] == [0, 1, 2, 3]


def test_a_resumed_run_has_exactly_the_remaining_batches(cases):
    options = dict(seed=9, crop=(8, 8, 8), augmentation=ALL)
    run = list(Loader(VolumeDataset(cases, GRID, **options), RankBatchSampler(0, 14, 2)))
    resumed = list(Loader(VolumeDataset(cases, GRID, **options), RankBatchSampler(6, 14, 2)))
    assert len(resumed) == 4
    assert all(same(a, b) for a, b in zip(run[3:], resumed, strict=True))


@pytest.mark.parametrize("world, rank, expected", [(1, 0, [[0, 1], [2, 3]]), (2, 1, [[2, 3]])])
def test_indices_that_fill_no_step_of_all_ranks_are_left_out(world, rank, expected):
    sampler = RankBatchSampler(0, 5, 2, rank, world)
    assert list(sampler) == expected and len(sampler) == len(expected)


@pytest.mark.skipif(not REAL.is_dir(), reason="no real CT beside the repository")
def test_real_ct_is_cropped_inside_the_body_with_its_labels(tmp_path):
    cases = [c for c in pair_cases(REAL / "images", REAL / "labels") if c.id in ("heart", "lumbar")]
    grid = Preprocessing((64, 64, 48), (1.5, 1.5, 1.5), num_classes=118)
    dataset = VolumeDataset(cases, grid, Store(tmp_path), "persistent", crop=(32, 32, 32))
    for index in range(4):
        sample = dataset[index]
        assert sample["image"].shape == (1, 32, 32, 32)
        assert -1000 <= sample["image"].min() < sample["image"].max() <= 1000
    heart = VolumeDataset(cases, grid).sample([case.id for case in cases].index("heart"))
    aorta = heart["image"][0][heart["label"] == 3]
    assert heart["case"] == "heart" and 200 < aorta.mean() < 600  # contrast in the true lumen
