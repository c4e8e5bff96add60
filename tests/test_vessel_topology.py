"""Overlap, topology and radius scores of vessels whose cuts, loops and thickness are known."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tubesynth.metrics.overlap import centreline_overlap, dice, radius_errors
from tubesynth.metrics.topology import betti_errors, betti_numbers
from tubesynth.volume.grid import centered_affine
from tubesynth.volume.vessels import extract_tokens

SHAPE = (64, 40, 40)
SPACING = np.array([0.5, 0.5, 0.5])


def tube(radius_mm, start=6, stop=58, y=20, z=20):
    """A straight tube along x."""
    _, j, k = np.meshgrid(*map(np.arange, SHAPE), indexing="ij")
    mask = ((j - y) ** 2 + (k - z) ** 2) * 0.25 <= radius_mm**2
    mask[:start], mask[stop:] = False, False
    return mask


def ring(shape=(40, 40, 20), large=12, small=4):
    x, y, z = (g - (n - 1) / 2 for g, n in zip(np.indices(shape), shape, strict=True))
    return (np.hypot(x, y) - large) ** 2 + z**2 < small**2


def test_betti_numbers_of_a_ball_a_hollow_ball_two_boxes_and_a_ring():
    ball = np.zeros((20, 20, 20), dtype=bool)
    ball[5:15, 5:15, 5:15] = True
    hollow = ball.copy()
    hollow[8:12, 8:12, 8:12] = False
    two = ball.copy()
    two[10] = False
    assert betti_numbers(np.zeros_like(ball)) == (0, 0, 0)
    assert betti_numbers(ball) == (1, 0, 0)
    assert betti_numbers(hollow) == (1, 0, 1)
    assert betti_numbers(two) == (2, 0, 0)
    assert betti_numbers(ring()) == (1, 1, 0)


def test_voxels_that_share_a_corner_are_connected_as_in_thinning():
    mask = np.zeros((4, 4, 4), dtype=bool)
    mask[1, 1, 1] = mask[2, 2, 2] = True
    assert betti_numbers(mask) == (1, 0, 0)


def test_cutting_a_vessel_changes_betti0_by_one_and_opening_a_ring_betti1_by_one():
    whole = tube(1.5)
    cut = whole.copy()
    cut[30:33] = False
    errors = betti_errors(betti_numbers(cut), betti_numbers(whole))
    assert errors == {"betti0_error": 1, "betti1_error": 0}
    closed = ring()
    opened = closed.copy()
    opened[18:22, :20] = False
    errors = betti_errors(betti_numbers(opened), betti_numbers(closed))
    assert errors == {"betti0_error": 0, "betti1_error": 1}


def hollow_tube():
    """Closed at both ends: its wall is two voxels thick."""
    mask = tube(4.0)
    mask[8:56] &= ~tube(3.0)[8:56]
    return mask


@settings(max_examples=40, deadline=None)
@given(arrays(bool, (7, 6, 5)) | st.just(hollow_tube()) | st.just(hollow_tube()[:, 20:]))
def test_every_score_of_a_mask_with_itself_is_its_optimum(mask):
    scores = centreline_overlap(mask, mask, SPACING) | {"dice": dice(mask, mask)}
    optimum = 1.0 if mask.any() else math.nan
    assert scores == pytest.approx(dict.fromkeys(scores, optimum), nan_ok=True)
    assert set(betti_errors(betti_numbers(mask), betti_numbers(mask)).values()) == {0}
    tokens = extract_tokens(mask, centered_affine(mask.shape, SPACING))
    errors = {k: v for k, v in radius_errors(tokens, tokens).items() if "ratio" not in k}
    assert errors == dict.fromkeys(errors, 0.0)


def test_identical_masks_overlap_fully_and_distant_ones_not_at_all():
    a, b = tube(1.5, y=12), tube(1.5, y=30)
    assert dice(a, a) == 1.0 and dice(a, b) == 0.0
    names = ("cldice", "centreline_recall", "centreline_precision")
    assert centreline_overlap(a, a, SPACING) == dict.fromkeys(names, 1.0)
    assert centreline_overlap(a, b, SPACING) == dict.fromkeys(names, 0.0)
    assert centreline_overlap(np.zeros_like(a), b, SPACING) == dict.fromkeys(names, 0.0)
    assert math.isnan(dice(np.zeros_like(a), np.zeros_like(a)))


def test_half_a_vessel_has_half_the_recall_full_precision_and_two_thirds_of_cldice():
    scores = centreline_overlap(tube(1.5, stop=32), tube(1.5), SPACING)
    assert scores["centreline_recall"] == pytest.approx(0.5, abs=0.04)
    assert scores["centreline_precision"] == 1.0
    assert scores["cldice"] == pytest.approx(2 / 3, abs=0.04)


def test_cldice_ignores_thickness_and_dice_does_not():
    thick, thin = tube(2.0), tube(1.0)
    assert dice(thin, thick) < 0.45
    assert centreline_overlap(thin, thick, SPACING)["cldice"] > 0.95


def test_a_shift_of_two_voxels_is_no_longer_the_same_centreline():
    whole = tube(1.5)
    near = centreline_overlap(np.roll(whole, 1, axis=1), whole, SPACING)
    far = centreline_overlap(np.roll(whole, 2, axis=1), whole, SPACING)
    assert near["centreline_recall"] == 1.0
    assert far["centreline_recall"] < 0.1


def test_thinning_by_30_percent_shows_as_30_percent_of_the_radius():
    affine = centered_affine(SHAPE, SPACING)
    truth = extract_tokens(tube(3.0), affine)
    predicted = extract_tokens(tube(2.1), affine)
    scores = radius_errors(predicted, truth)
    assert scores["radius_ratio"] == pytest.approx(0.7, abs=0.03)
    assert scores["radius_bias_mm"] == pytest.approx(-0.9, abs=0.1)
    assert scores["radius_error_mm_gt3mm"] == pytest.approx(0.9, abs=0.1)
    assert "radius_error_mm_lt1.5mm" not in scores
    same = radius_errors(truth, truth)
    assert (same["radius_error_mm"], same["radius_ratio"]) == (0.0, 1.0)


def test_radii_of_a_missing_vessel_are_not_compared():
    affine = centered_affine(SHAPE, SPACING)
    truth, elsewhere = extract_tokens(tube(1.5), affine), extract_tokens(tube(1.5, y=32), affine)
    assert radius_errors(elsewhere, truth) == {}
    assert radius_errors(extract_tokens(np.zeros(SHAPE, bool), affine), truth) == {}
