"""Centreline scores on tubes whose lumen, course and surroundings are known."""

from types import SimpleNamespace

import numpy as np
import pytest
from grids import oblique_affine

from tubesynth.metrics.vessel import calibres, centreline_in_world, centreline_scores, sample_hu
from tubesynth.volume.grid import Volume, centered_affine

LUMEN, FAT, MUSCLE = 380.0, -80.0, 50.0


def tube_tokens(radius_mm, length_mm=30.0, direction=(1.0, 0.7, 0.4)):
    """Points every mm on a straight tube through the center of the condition's grid."""
    tangent = np.asarray(direction) / np.linalg.norm(direction)
    steps = np.arange(-length_mm / 2, length_mm / 2 + 0.5)
    return SimpleNamespace(
        position_mm=steps[:, None] * tangent,
        radius_mm=np.broadcast_to(np.asarray(radius_mm, float), len(steps)).copy(),
        tangent=np.broadcast_to(tangent, (len(steps), 3)),
    )


def tube_volume(tokens, affine, shape=(60, 56, 50), lumen=LUMEN, around=FAT):
    """A CT with a sharp tube around the tokens, on the grid that is also the condition's."""
    grid = Volume(np.full(shape, around, dtype=np.float32), affine)
    position, _ = centreline_in_world(tokens, grid)
    indices = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    distance = np.full(shape, np.inf)
    for point, radius in zip(position, tokens.radius_mm, strict=True):
        away = np.linalg.norm(grid.to_world(indices) - point, axis=-1)
        distance = np.minimum(distance, away / radius)
    grid.array[distance <= 1] = lumen
    return grid


AFFINES = [centered_affine((60, 56, 50), (0.7, 0.7, 1.05)), oblique_affine((0.7, 0.7, 1.05))]


@pytest.mark.parametrize("affine", AFFINES, ids=["straight", "oblique"])
def test_a_thick_tube_scores_one_and_has_its_own_lumen_hu_and_contrast(affine):
    tokens = tube_tokens(2.0)
    ct = tube_volume(tokens, affine)
    scores = centreline_scores(ct, tokens, ct)
    assert scores["centreline_in_range"] == 1.0
    assert scores["centreline_covered"] == 1.0
    assert scores["lumen_hu"] == pytest.approx(LUMEN, abs=2)
    assert scores["contrast_hu"] == pytest.approx(LUMEN - FAT, abs=2)


def test_an_erased_vessel_scores_zero():
    tokens = tube_tokens(2.0)
    erased = tube_volume(tokens, AFFINES[0], lumen=FAT)
    scores = centreline_scores(erased, tokens, erased)
    assert scores["centreline_in_range"] == 0.0
    assert scores["contrast_hu"] == pytest.approx(0, abs=1e-6)
    assert scores["lumen_hu"] == pytest.approx(FAT)


def test_half_a_vessel_scores_half():
    tokens = tube_tokens(2.0, direction=(1, 0, 0), length_mm=29)
    ct = tube_volume(tokens, AFFINES[0])
    ct.array[30:] = MUSCLE
    assert centreline_scores(ct, tokens, ct)["centreline_in_range"] == pytest.approx(0.5, abs=0.02)


def test_brightness_without_a_vessel_is_in_range_but_has_no_contrast():
    tokens = tube_tokens(1.0)
    flat = Volume(np.full((60, 56, 50), 350, dtype=np.int16), AFFINES[0])
    scores = centreline_scores(flat, tokens, flat)
    assert scores["centreline_in_range"] == 1.0
    assert scores["contrast_hu"] == pytest.approx(0, abs=1e-6)


def test_calcium_and_myocardium_are_out_of_the_lumen_range():
    tokens = tube_tokens(2.0)
    for lumen in (900, 130):
        ct = tube_volume(tokens, AFFINES[0], lumen=lumen)
        assert centreline_scores(ct, tokens, ct)["centreline_in_range"] < 0.05
        wide = centreline_scores(ct, tokens, ct, lumen_range=(100, 1000))
        assert wide["centreline_in_range"] == 1.0


def test_the_ct_may_lie_on_another_grid_than_the_condition():
    tokens = tube_tokens(2.0)
    condition = tube_volume(tokens, AFFINES[1])
    flipped = Volume(condition.array[::-1].copy(), condition.affine @ flip(condition.shape[0]))
    scores = centreline_scores(flipped, tokens, condition)
    assert scores == pytest.approx(centreline_scores(condition, tokens, condition))


def flip(n):
    matrix = np.diag([-1.0, 1, 1, 1])
    matrix[0, 3] = n - 1
    return matrix


def test_points_outside_the_ct_are_counted_and_not_scored():
    tokens = tube_tokens(2.0, direction=(1, 0, 0), length_mm=30)
    condition = tube_volume(tokens, AFFINES[0])
    cropped = Volume(condition.array[:30], condition.affine)
    scores = centreline_scores(cropped, tokens, condition)
    assert scores["centreline_covered"] == pytest.approx(0.5, abs=0.03)
    assert scores["centreline_in_range"] == 1.0


def test_calibre_is_the_radius_and_absent_classes_are_absent():
    radius = np.repeat([0.5, 1.49, 1.5, 2.9, 3.0, 4.5], 5)
    selected = calibres(radius)
    assert {k: int(v.sum()) for k, v in selected.items()} == {
        "": 30,
        "_lt1.5mm": 10,
        "_1.5to3mm": 10,
        "_gt3mm": 10,
    }
    tokens = tube_tokens(2.0)
    ct = tube_volume(tokens, AFFINES[0])
    scores = centreline_scores(ct, tokens, ct)
    assert scores["centreline_in_range_1.5to3mm"] == 1.0
    assert "centreline_in_range_lt1.5mm" not in scores


def test_a_condition_without_vessels_has_no_scores():
    empty = SimpleNamespace(
        position_mm=np.zeros((0, 3)), radius_mm=np.zeros(0), tangent=np.zeros((0, 3))
    )
    ct = Volume(np.zeros((8, 8, 8), dtype=np.int16), np.eye(4))
    assert centreline_scores(ct, empty, ct) == {}


def test_trilinear_sampling_reproduces_a_linear_field_through_the_affine():
    affine = oblique_affine((0.7, 0.9, 1.3))
    index = np.random.default_rng(0).uniform(0, 9, (50, 3))
    grid = np.stack(np.meshgrid(*[np.arange(10)] * 3, indexing="ij"), -1)
    ct = Volume((grid @ [3.0, -2.0, 5.0]).astype(np.float32), affine)
    values = sample_hu(ct, ct.to_world(index))
    assert values == pytest.approx(index @ [3.0, -2.0, 5.0], abs=1e-4)
    assert np.isnan(sample_hu(ct, ct.to_world(np.array([[-0.6, 5, 5]]))))
