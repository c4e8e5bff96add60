"""Any affine and shape: voxels keep their place in the world through files, axes and grids."""

from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from tubesynth.volume.grid import Volume, same_grid
from tubesynth.volume.nifti import check_affine, decode_nifti, encode_nifti, gzip_bytes, to_ras
from tubesynth.volume.resample import resample_image, resample_labels, target_grid

few = settings(max_examples=60, deadline=None, derandomize=True, database=None)


@st.composite
def affines(draw, most_shear=0.3):
    """(4, 4): any rotation and mirroring, axes in any order, 0.1 to 9 mm, a shear, any origin."""
    degrees = [draw(st.integers(-180, 180)) for _ in range(3)]
    columns = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    columns = columns[:, draw(st.permutations(range(3)))]
    columns = columns @ np.diag([draw(st.sampled_from([-1.0, 1.0])) for _ in range(3)])
    shear = np.eye(3)
    shear[0, 1] = draw(st.floats(-most_shear, most_shear))
    affine = np.eye(4)
    affine[:3, :3] = columns @ shear @ np.diag([draw(st.floats(0.1, 9)) for _ in range(3)])
    affine[:3, 3] = [draw(st.floats(-1000, 1000)) for _ in range(3)]
    return affine


shapes = st.tuples(*[st.integers(1, 6)] * 3)


def numbers(shape):
    return np.arange(np.prod(shape), dtype=np.int16).reshape(shape)


def world_of(array, affine):
    """{voxel value: its position in mm}."""
    index = np.argwhere(array >= 0)
    positions = index @ affine[:3, :3].T + affine[:3, 3]
    return dict(zip(array[tuple(index.T)].tolist(), positions, strict=True))


@few
@given(affines(), shapes)
def test_every_voxel_keeps_its_place_when_axes_are_turned_to_ras(affine, shape):
    array = numbers(shape)
    volume = to_ras(array, check_affine(affine, Path("a.nii")))
    before, after = world_of(array, affine), world_of(volume.array, volume.affine)
    assert before.keys() == after.keys()
    assert max(np.abs(before[v] - after[v]).max() for v in before) < 1e-5
    again = to_ras(volume.array, volume.affine)  # RAS+ stays as it is
    assert np.array_equal(again.array, volume.array) and np.allclose(again.affine, volume.affine)


@few
@given(affines(), shapes, st.booleans())
def test_a_nifti_file_keeps_every_voxel_and_its_place(affine, shape, is_packed):
    volume = to_ras(numbers(shape), affine)
    raw = encode_nifti(volume, np.int16)
    back = decode_nifti(gzip_bytes(raw) if is_packed else raw, Path("a.nii.gz"))
    assert np.array_equal(back.array, volume.array)
    assert same_grid(back, volume, tolerance_mm=1e-3)  # the header has float32


@few
@given(affines(), shapes, st.lists(st.floats(-50, 50), min_size=3, max_size=3))
def test_world_and_index_are_inverse(affine, shape, index):
    volume = to_ras(numbers(shape), affine)
    assert np.allclose(volume.to_index(volume.to_world(np.array(index))), index, atol=1e-6)


@few
@given(affines(0.0), shapes, st.tuples(*[st.floats(0.2, 9)] * 3), shapes)
def test_a_target_grid_has_the_spacing_and_the_center_of_its_volume(affine, shape, spacing, size):
    volume = to_ras(numbers(shape), affine)
    grid_shape, grid_affine = target_grid(volume, spacing, size)
    grid = Volume(np.zeros(grid_shape, np.int16), grid_affine)
    assert grid.shape == size and np.allclose(grid.spacing, spacing, rtol=2e-4)
    off = np.abs(volume.to_index(grid.center_mm) - volume.to_index(volume.center_mm))
    assert (off <= 0.5 + 1e-6).all()  # of a voxel, where the grid is laid on the voxels


@settings(few, max_examples=30)
@given(affines(), shapes)
def test_resampling_onto_its_own_grid_changes_nothing(affine, shape):
    volume = to_ras(numbers(shape), affine)
    image = resample_image(volume, volume.shape, volume.affine)
    assert np.allclose(image.array, volume.array, atol=1e-2)
    labels = Volume((volume.array % 9).astype(np.uint8), volume.affine)
    assert np.array_equal(resample_labels(labels, labels.shape, labels.affine).array, labels.array)


@settings(few, max_examples=30)
@given(affines(0.0), st.tuples(*[st.integers(4, 9)] * 3), st.tuples(*[st.integers(0, 3)] * 3))
def test_labels_on_a_shifted_grid_are_those_at_the_same_places(affine, shape, shift):
    volume = to_ras(numbers(shape), affine)
    labels = Volume((volume.array % 9).astype(np.uint8), volume.affine)
    moved = labels.affine.copy()
    moved[:3, 3] = labels.to_world(np.array(shift))
    x, y, z = shift
    expected = labels.array[x:, y:, z:]
    assert np.array_equal(resample_labels(labels, expected.shape, moved).array, expected)
