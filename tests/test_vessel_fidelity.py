"""Fidelity near the vessels, on tubes of known radius, contrast and error."""

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt

from tubesynth.metrics.vessel_fidelity import (
    VesselSurroundings,
    mean_fidelity,
    vessel_fidelity,
)

SPACING = np.array([0.5, 0.5, 0.6])
WIDE, THIN = 2.2, 1.0  # radii in mm
FAT, LUMEN = -100.0, 400.0


@pytest.fixture(scope="module")
def scene():
    """Two straight vessels along z: (mask, wide, thin, real CT in HU)."""
    x, y = np.meshgrid(np.arange(64) * 0.5, np.arange(40) * 0.5, indexing="ij")
    wide, thin = (np.hypot(x - at, y - 10) <= r for at, r in ((8, WIDE), (24, THIN)))
    masks = [np.repeat(mask[..., None], 30, axis=2) for mask in (wide, thin)]
    mask = masks[0] | masks[1]
    return mask, *masks, np.where(mask, LUMEN, FAT).astype(np.float32)


def test_contrast_and_error_are_those_of_each_calibre(scene):
    mask, wide, thin, real = scene
    surroundings = VesselSurroundings.of(mask, SPACING)
    reconstructed = real.copy()
    reconstructed[wide] -= 100  # contrast 500 -> 400
    reconstructed[thin] -= 250  # contrast 500 -> 250
    row = vessel_fidelity(real, reconstructed, surroundings, 2000.0)
    scores = mean_fidelity([row])
    assert scores["vessel_contrast_kept_1.5to3mm"] == pytest.approx(0.8, abs=1e-6)
    assert scores["vessel_contrast_kept_lt1.5mm"] == pytest.approx(0.5, abs=1e-6)
    assert "vessel_contrast_kept_gt3mm" not in scores
    for tube, off, suffix in ((wide, 100, "_1.5to3mm"), (thin, 250, "_lt1.5mm")):
        share = tube.sum() / (distance_transform_edt(~tube, SPACING) <= 1.5).sum()
        assert scores[f"vessel_mae_hu{suffix}"] == pytest.approx(off * share, rel=1e-5)
        expected = 10 * np.log10(2000**2 / (off**2 * share))
        assert scores[f"vessel_psnr{suffix}"] == pytest.approx(expected, abs=1e-3)


def test_the_region_is_the_distance_transform_at_the_margin(scene):
    mask, *_ = scene
    surroundings = VesselSurroundings.of(mask, SPACING)
    near = distance_transform_edt(~mask, SPACING) <= 1.5
    assert np.array_equal(surroundings.index, np.flatnonzero(near))
    # Voxels far from the vessels do not count.
    real = scene[3]
    reconstructed = np.where(near, real, 0).astype(np.float32)
    assert vessel_fidelity(real, reconstructed, surroundings, 2000.0)["vessel_mae_hu"] == 0


def test_a_coarse_grid_has_a_margin_of_one_voxel():
    mask = np.zeros((12, 12, 12), dtype=bool)
    mask[6, 6, 2:10] = True
    surroundings = VesselSurroundings.of(mask, (4.0, 4.0, 4.0))
    assert len(surroundings.index) == 8 * 5 + 2


def test_cases_without_vessels_are_not_in_the_means(scene):
    mask, wide, _, real = scene
    assert VesselSurroundings.of(np.zeros_like(mask), SPACING) is None
    assert mean_fidelity([]) == {}
    only_wide = VesselSurroundings.of(wide, SPACING)
    both = VesselSurroundings.of(mask, SPACING)
    rows = [
        vessel_fidelity(real, real + off, at, 2000.0) for off, at in ((10, both), (30, only_wide))
    ]
    scores = mean_fidelity(rows)
    assert scores["vessel_mae_hu"] == pytest.approx(20)
    assert scores["vessel_mae_hu_lt1.5mm"] == pytest.approx(10)
    assert scores["vessel_contrast_kept"] == pytest.approx(1)


def test_a_picture_is_a_volume_of_one_slice():
    mask = np.zeros((40, 40, 1), dtype=bool)
    mask[18:21, 5:35] = True
    real = np.where(mask, 300.0, 0.0).astype(np.float32)
    surroundings = VesselSurroundings.of(mask, (1.0, 1.0, 1.0))
    reconstructed = (real * 0.5).astype(np.float32)
    assert mean_fidelity([vessel_fidelity(real, reconstructed, surroundings, 1000.0)])[
        "vessel_contrast_kept"
    ] == pytest.approx(0.5)
