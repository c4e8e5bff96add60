"""Resampling against SimpleITK and SciPy, and positions in the world."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from grids import oblique_affine
from scipy import ndimage

from tubesynth.volume.files import read_labels, read_volume
from tubesynth.volume.grid import Volume, centered_affine, same_grid, shear_of
from tubesynth.volume.resample import resample_image, resample_labels, target_grid

REAL = Path(__file__).parents[2] / "shared" / "real"
ORDERS = [(1, 1, 1), (-1, 1, 1), (1, -1, -1)]


def blobs(shape, seed=0, sigma=1.5):
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.standard_normal(shape), sigma)
    return (smooth / smooth.std() * 300).astype(np.float32)


def by_simpleitk(volume, shape, affine, interpolator, fill):
    """The reference: world coordinates in LPS, through the image geometry of ITK."""

    def geometry(image, grid):
        lps = np.diag([-1, -1, 1, 1]) @ grid
        spacing = np.linalg.norm(lps[:3, :3], axis=0)
        image.SetSpacing(spacing)
        image.SetDirection((lps[:3, :3] / spacing).ravel())
        image.SetOrigin(lps[:3, 3])
        return image

    source = geometry(sitk.GetImageFromArray(np.ascontiguousarray(volume.array.T)), volume.affine)
    target = geometry(sitk.Image([int(n) for n in shape], sitk.sitkUInt8), affine)
    result = sitk.Resample(source, target, sitk.Transform(), interpolator, float(fill))
    return sitk.GetArrayFromImage(result).T


@pytest.mark.parametrize("oblique", [False, True])
@pytest.mark.parametrize("spacing", [(0.7, 0.7, 1.05), (0.3, 2.0, 0.9)])
def test_image_agrees_with_simpleitk_within_2_hu(oblique, spacing):
    shape = (40, 37, 29)
    source_spacing = np.array([0.5, 0.6, 0.8])
    affine = centered_affine(shape, source_spacing)
    if oblique:
        affine = oblique_affine(source_spacing)
    volume = Volume(blobs(shape), affine)
    shape, affine = target_grid(volume, spacing, (32, 24, 20))
    result = resample_image(volume, shape, affine, fill=-1000).array
    expected = by_simpleitk(volume, shape, affine, sitk.sitkBSpline, -1000)
    expected = np.where(
        expected == -1000, -1000, expected.clip(volume.array.min(), volume.array.max())
    )
    assert np.mean((result == -1000) == (expected == -1000)) == 1
    assert np.abs(result - expected).max() < 0.1


def test_labels_agree_with_simpleitk_on_every_voxel():
    volume = Volume(
        (blobs((50, 40, 30)) > 100).astype(np.uint8) * 7,
        centered_affine((50, 40, 30), [0.5, 0.5, 1]),
    )
    shape, affine = target_grid(volume, (0.7, 0.7, 1.05), (64, 48, 24))
    result = resample_labels(volume, shape, affine)
    expected = by_simpleitk(volume, shape, affine, sitk.sitkNearestNeighbor, 0)
    assert result.array.dtype == np.uint8
    assert np.mean(result.array == expected) == 1
    assert set(np.unique(result.array)) == {0, 7}


def test_rotated_target_grid_goes_through_simpleitk_and_agrees_with_it():
    volume = Volume(blobs((24, 24, 24)), centered_affine((24, 24, 24), [1, 1, 1]))
    affine = oblique_affine([1.0, 1.1, 0.9], (10, 5, 20))
    affine[:3, 3] = -10, -8, -9
    result = resample_image(volume, (20, 20, 20), affine).array
    expected = by_simpleitk(volume, (20, 20, 20), affine, sitk.sitkBSpline, -1000)
    low, high = volume.array.min(), volume.array.max()
    expected = np.where(expected == -1000, -1000, expected.clip(low, high))
    assert (expected != -1000).mean() > 0.5
    assert np.abs(result - expected).max() < 0.1


@pytest.mark.parametrize("shear", [0.0, 0.3])
def test_a_bright_voxel_keeps_its_world_position_with_an_oblique_affine(shear):
    shape, spacing = (40, 44, 36), np.array([0.5, 0.6, 0.9])
    affine = oblique_affine(spacing)
    affine[:3, 2] += shear * affine[:3, 1]  # gantry tilt
    array = np.full(shape, -1000, np.int16)
    array[13, 30, 21] = 1000
    array = ndimage.gaussian_filter(array.astype(np.float32), 1.2)
    volume = Volume(array, affine)
    grid = target_grid(volume, (0.7, 0.7, 1.05), (40, 44, 40))
    resampled = resample_image(volume, *grid)
    weights = (resampled.array + 1000).clip(0)
    index = np.array(ndimage.center_of_mass(weights))
    off_mm = np.linalg.norm(resampled.to_world(index) - volume.to_world([13, 30, 21]))
    assert off_mm < 0.5 * 0.7
    assert shear_of(resampled.affine) < 1e-12  # so that a qform places it as the sform does
    assert np.allclose(resampled.center_mm, volume.center_mm, atol=1e-9)
    if not shear:
        directions = affine[:3, :3] / volume.spacing
        assert np.allclose(resampled.affine[:3, :3] / resampled.spacing, directions, atol=1e-12)


def test_target_grid_has_the_same_center_and_the_requested_spacing():
    volume = Volume(np.zeros((31, 20, 11)), oblique_affine([0.4, 0.4, 0.6]))
    shape, affine = target_grid(volume, (0.7, 0.7, 1.05), (16, 32, 8))
    grid = Volume(np.zeros(shape), affine)
    assert np.allclose(grid.center_mm, volume.center_mm, atol=1e-9)
    assert np.allclose(grid.spacing, (0.7, 0.7, 1.05))


def test_data_at_its_spacing_is_cropped_and_padded_without_any_change():
    volume = Volume(blobs((31, 20, 12)), centered_affine((31, 20, 12), [0.7, 0.7, 1.05]))
    once = resample_image(volume, *target_grid(volume, (0.7, 0.7, 1.05), (24, 24, 13)))
    inside = once.array[:, 2:22, :]
    assert np.abs(inside[:, :, 1:] - volume.array[3:27]).max() < 1e-3 or (
        np.abs(inside[:, :, :12] - volume.array[3:27]).max() < 1e-3
    )
    twice = resample_image(once, *target_grid(once, (0.7, 0.7, 1.05), (24, 24, 13)))
    assert np.array_equal(once.array, twice.array)
    assert same_grid(once, twice)


def test_a_step_does_not_ring_beyond_the_input_and_outside_is_padding():
    array = np.zeros((20, 20, 20), np.int16)
    array[10:] = 1000
    volume = Volume(array, centered_affine(array.shape, [1, 1, 1]))
    out = resample_image(volume, *target_grid(volume, (0.45, 0.45, 0.45), (80, 40, 40))).array
    inside = out[18:62]
    assert inside.min() == 0 and inside.max() == 1000
    assert (out[:16] == -1000).all() and (out[-16:] == -1000).all()


WINDOW = (-1000.0, 1000.0)


@pytest.mark.parametrize("outlier, tissue", [(-3024, -1000), (3071, 40), (-32768, 40)])
@pytest.mark.parametrize("turned", [False, True])
def test_what_lies_outside_of_the_window_does_not_ring_into_tissue(outlier, tissue, turned):
    spacing = np.array([0.35, 0.35, 0.5])
    array = np.full((60, 60, 30), tissue, np.int16)
    array[28:33, 26:34] = outlier
    volume = Volume(array, centered_affine(array.shape, spacing))
    shape, affine = target_grid(volume, (0.7, 0.7, 1.0), (24, 24, 10))
    if turned:
        affine[:3, :3] = oblique_affine([0.7, 0.7, 1.0], (9, 0, 30))[:3, :3]
    result = resample_image(volume, shape, affine, window=WINDOW)
    clipped = Volume(array.clip(*WINDOW), volume.affine)
    assert np.array_equal(result.array, resample_image(clipped, shape, affine).array)
    outside = Volume((array == outlier).astype(np.float32), volume.affine)
    beside = np.abs(resample_image(outside, shape, affine).array) < 0.1
    step = abs(np.clip(outlier, *WINDOW) - tissue)
    assert np.abs(result.array[beside] - tissue).max() <= 0.1 * step + 1e-3


@pytest.mark.parametrize("turned", [False, True])
def test_a_low_pass_before_larger_voxels_averages_noise_and_keeps_means(turned):
    rng = np.random.default_rng(0)
    array = np.rint(rng.normal(40, 20, (120, 120, 90))).astype(np.int16)
    volume = Volume(array, centered_affine(array.shape, [0.35, 0.35, 0.5]))
    shape, affine = target_grid(volume, (2.1, 2.1, 2.1), (16, 16, 16))
    if turned:
        affine[:3, :3] = oblique_affine([2.1, 2.1, 2.1], (9, 0, 30))[:3, :3]
    plain, smooth = (
        resample_image(volume, shape, affine, np.nan, WINDOW, antialias=is_on).array
        for is_on in (False, True)
    )
    assert np.nanstd(plain) > 10 and np.nanstd(smooth) < 1.5
    assert abs(np.nanmean(smooth) - 40) < 0.5
    same = resample_image(volume, *target_grid(volume, volume.spacing, (40, 40, 40)), -1000, WINDOW)
    again = resample_image(same, same.shape, same.affine, -1000, WINDOW, antialias=True)
    assert np.abs(again.array - same.array).max() < 1e-2  # nothing to average where voxels stay


def test_a_smooth_volume_survives_a_round_trip_to_a_finer_grid():
    volume = Volume(blobs((40, 40, 40), sigma=3), centered_affine((40, 40, 40), [1, 1, 1]))
    fine = resample_image(volume, *target_grid(volume, (0.7, 0.7, 0.7), (64, 64, 64)))
    back = resample_image(fine, volume.shape, volume.affine)
    core = (slice(4, -4),) * 3
    assert np.abs(back.array[core] - volume.array[core]).mean() < 1


@pytest.mark.parametrize("n", [1, 2, 3])
def test_axes_of_one_to_three_voxels_resample_like_scipy(n):
    array = blobs((n, 12, 12))
    volume = Volume(array, centered_affine(array.shape, [1, 1, 1]))
    shape, affine = target_grid(volume, (1, 0.6, 0.6), (n, 16, 16))
    result = resample_image(volume, shape, affine).array
    line = (12 - 1) / 2 + (np.arange(16) - 7.5) * 0.6
    points = np.meshgrid(np.arange(n), line, line, indexing="ij")
    expected = ndimage.map_coordinates(array.astype(np.float64), points, order=3, mode="mirror")
    assert np.abs(result - expected.clip(array.min(), array.max())).max() < 0.05


@pytest.mark.parametrize("flips", ORDERS)
def test_flipped_and_read_only_views_resample_as_their_copies_do(flips):
    array = blobs((20, 18, 16))[:: flips[0], :: flips[1], :: flips[2]]
    array.flags.writeable = False
    affine = centered_affine(array.shape, [0.5, 0.5, 0.5])
    view, copy = Volume(array, affine), Volume(np.ascontiguousarray(array), affine)
    grid = target_grid(view, (0.7, 0.7, 0.7), (12, 12, 12))
    assert np.array_equal(resample_image(view, *grid).array, resample_image(copy, *grid).array)


@pytest.mark.skipif(not REAL.is_dir(), reason="no real CT beside the repository")
@pytest.mark.parametrize("case", ["heart", "abdomen", "lumbar", "chest"])
def test_real_ct_agrees_with_simpleitk(case):
    image = read_volume(next((REAL / "images").glob(f"{case}.*")))
    label = read_labels(next((REAL / "labels").glob(f"{case}.*")))
    assert same_grid(image, label)
    # at this spacing no sample lies half-way between two voxels, where rounding noise decides
    shape, affine = target_grid(image, (1.37, 1.37, 2.11), (64, 64, 48))
    result = resample_image(image, shape, affine).array
    expected = by_simpleitk(
        Volume(image.array.astype(np.float32), image.affine), shape, affine, sitk.sitkBSpline, -5000
    )
    inside = expected != -5000
    expected = expected.clip(image.array.min(), image.array.max())
    assert np.abs(result - expected)[inside].mean() < 0.1
    labels = resample_labels(label, shape, affine).array
    by_itk = by_simpleitk(label, shape, affine, sitk.sitkNearestNeighbor, 0)
    assert np.mean(labels == by_itk) > 0.999
