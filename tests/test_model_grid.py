"""Training, inference and the segmenter see the same voxels, tokens and fields of one file."""

import nibabel as nib
import numpy as np
import pytest
import torch
from grids import oblique_affine

from tubesynth.build.preprocessing import preprocessing_of
from tubesynth.conditioning.conditions import case_conditions, conditions_of, conditions_to_device
from tubesynth.conditioning.model_grid import ModelGrid, hu_to_unit_image, pad_to_multiple
from tubesynth.conditioning.request import SampleRequest, collate_requests, place_request
from tubesynth.config.schema import DataConfig, SegmenterConfig, Stage1Config
from tubesynth.data.dataset import VolumeDataset, collate
from tubesynth.data.store import Store
from tubesynth.data.volumes import TokenSource
from tubesynth.inference.segmenter import VesselSegmenter
from tubesynth.training.inputs import to_device
from tubesynth.volume.cases import Case
from tubesynth.volume.files import read_labels, read_volume
from tubesynth.volume.vessels import VesselTokens

CPU = torch.device("cpu")
DATA = DataConfig(
    resolution=[16, 20, 12], spacing=[1.0, 1.0, 1.5], hu_window=[-900.0, 700.0], token_step_mm=1.0
)
STAGE_1 = Stage1Config(stage=1, data=DATA)


def sheared_affine() -> np.ndarray:
    affine = np.diag([0.9, 1.1, 1.4, 1.0])
    affine[0, 2] = 0.3
    return affine


FILES = {
    "int16 on the model's grid": (np.int16, np.diag([1.0, 1.0, 1.5, 1.0])),
    "int16 of another spacing": (np.int16, np.diag([0.8, 1.2, 1.3, 1.0])),
    "float32": (np.float32, np.diag([0.8, 1.2, 1.3, 1.0])),
    "float32 and oblique": (np.float32, oblique_affine([0.9, 1.1, 1.4], (0, 0, 17))),
    "int16 and sheared": (np.int16, sheared_affine()),
}


@pytest.fixture(params=FILES)
def case(request, tmp_path) -> Case:
    """HU beyond the window on both sides, fractions in float files, a vessel with a bend."""
    dtype, affine = FILES[request.param]
    rng = np.random.default_rng(0)
    image = rng.normal(0, 900, (18, 21, 13)).astype(dtype)
    label = rng.integers(0, 8, image.shape).astype(np.uint8)
    label[3:14, 10:12, 5:7] = label[12:14, 10:18, 5:7] = 8
    paths = tmp_path / "1.img.nii.gz", tmp_path / "1.label.nii.gz"
    for path, array in zip(paths, (image, label), strict=True):
        nib.save(nib.Nifti1Image(array, affine), path)
    return Case("1", *paths)


def training_set(case: Case, store: Store) -> VolumeDataset:
    return VolumeDataset(
        [case],
        preprocessing_of(STAGE_1),
        store,
        "persistent",
        tokens=TokenSource(8, DATA.token_step_mm),
    )


def test_the_cache_of_training_and_the_volumes_of_inference_have_the_same_bytes(case, tmp_path):
    arrays, _, affine = training_set(case, Store(tmp_path / "cache")).load(0)
    grid = ModelGrid(STAGE_1, CPU)
    image = grid.image(read_volume(case.image))
    label = grid.labels(read_labels(case.label), image=image)
    assert image.array.dtype == np.int16 and label.array.dtype == np.uint8
    assert image.array.tobytes() == np.array(arrays["image"]).tobytes()
    assert label.array.tobytes() == np.array(arrays["label"]).tobytes()
    assert np.array_equal(image.affine, affine) and np.array_equal(label.affine, affine)
    assert image.array.min() == -900 and image.array.max() <= 700
    # A label map by itself has the grid of its CT.
    assert np.array_equal(grid.labels(read_labels(case.label)).array, label.array)


def test_training_inference_and_segmenter_see_one_tensor(case, tmp_path):
    sample = training_set(case, Store(tmp_path / "cache")).sample(0)
    training = to_device(collate([sample]), DATA, CPU)["image"]
    ct = read_volume(case.image)
    grid = ModelGrid(STAGE_1, CPU)
    inputs = []

    class Recorder(torch.nn.Module):
        def forward(self, image):
            inputs.append(image)
            return image - 0.5

    VesselSegmenter(SegmenterConfig(stage="segmenter", data=DATA), Recorder(), CPU)(ct)
    assert training.dtype == torch.float32 and training.shape == (1, 1, 16, 20, 12)
    assert torch.equal(grid.unit_image(grid.image(ct)), training)
    assert torch.equal(inputs[0], training)


def test_training_and_inference_have_the_same_tokens_and_fields(case, tmp_path):
    sample = training_set(case, Store(tmp_path / "cache")).sample(0)
    tokens = VesselTokens(**sample["tokens"])
    assert len(tokens) > 5
    arrays = case_conditions(sample["label"], tokens, sample["spacing"], factor=4)
    training = conditions_of(conditions_to_device(collate([arrays]), CPU))
    grid = ModelGrid(STAGE_1, CPU)
    request = SampleRequest(read_labels(case.label), torch.Generator())
    placed = place_request(request, grid, with_tokens=True)
    inference = conditions_of(collate_requests([placed], 3, 4, with_vessels=True))
    assert torch.equal(training.labels, inference.labels)
    assert training.tokens.keys() == inference.tokens.keys()
    for name, values in training.tokens.items():
        torch.testing.assert_close(values, inference.tokens[name], atol=1e-4, rtol=0)
    assert training.fields.shape == (1, 2, 4, 5, 3)
    torch.testing.assert_close(training.fields, inference.fields, atol=1e-4, rtol=0)


def test_hu_become_the_unit_interval_and_augmented_values_are_clipped():
    hu = torch.tensor([-900, -500, 700], dtype=torch.int16).reshape(1, 1, 3).expand(2, 1, 3)
    intensity = torch.tensor([[1.0, 0.0], [2.0, -0.25]])
    unit = hu_to_unit_image(hu, DATA.hu_window, intensity)
    expected = torch.tensor([[[0.0, 0.25, 1.0]], [[0.0, 0.25, 1.0]]])
    torch.testing.assert_close(unit, expected)
    assert torch.equal(hu_to_unit_image(hu, DATA.hu_window)[0], unit[0])
    assert hu[0, 0, 0] == -900  # the input is not changed


def test_padding_repeats_the_far_edge_and_is_cropped_again():
    image = torch.arange(2 * 3 * 5.0).reshape(1, 1, 2, 3, 5)
    padded, crop = pad_to_multiple(image, 4)
    assert padded.shape == (1, 1, 4, 4, 8)
    assert torch.equal(padded[crop], image)
    assert torch.equal(padded[0, 0, 3, 3, 4:], image[0, 0, 1, 2, 4].expand(4))
