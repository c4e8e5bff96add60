"""Polylines against closed forms: lengths, resampling, smoothing, tangents, distances."""

import numpy as np
import pytest

from tubesynth.volume.polyline import (
    arc_length,
    decimate,
    densify,
    hermite_curve,
    relax,
    resample,
    resample_to_step,
    smooth,
    squared_distance_to_segment,
    tangents,
    total_length,
    without_repeats,
)

CORNER = np.array([[0, 0, 0, 1.0], [3, 0, 0, 4.0], [3, 4, 0, 8.0]])


def circle(num_points=400, radius=10.0):
    angle = np.linspace(0, 2 * np.pi, num_points)
    return radius * np.column_stack([np.cos(angle), np.sin(angle), 0 * angle])


def test_the_arc_length_ignores_the_radius_column():
    assert arc_length(CORNER).tolist() == [0, 3, 7] and total_length(CORNER) == 7
    assert total_length(circle()) == pytest.approx(20 * np.pi, rel=1e-4)


def test_resampling_gives_equal_steps_and_linear_radii_and_keeps_both_ends():
    points = resample(CORNER, 8)
    assert arc_length(points) == pytest.approx(np.arange(8))
    assert points[:4, 3].tolist() == [1, 2, 3, 4] and points[-1].tolist() == CORNER[-1].tolist()
    assert len(resample_to_step(CORNER, 2.0)) == 5  # 7 mm in steps of 1.75 mm
    assert len(resample_to_step(CORNER, 100.0)) == 2


def test_a_dense_polyline_keeps_its_corners():
    points = densify(CORNER, 0.7)
    assert np.diff(arc_length(points)).max() <= 0.7
    assert all((points == corner).all(axis=1).any() for corner in CORNER)


def test_decimation_keeps_the_first_and_the_last_point():
    rows = np.arange(11.0)[:, None].repeat(3, axis=1)
    assert decimate(rows, 4)[:, 0].tolist() == [0, 4, 8, 10]
    assert decimate(rows[:9], 4)[:, 0].tolist() == [0, 4, 8]


def test_repeated_points_are_dropped():
    repeated = CORNER[[0, 0, 1, 1, 1, 2]]
    assert np.array_equal(without_repeats(repeated), CORNER)


def test_smoothing_keeps_the_ends_and_straight_lines_and_shortens_a_staircase():
    line = np.linspace([0, 0, 0], [10, 5, 2], 30)
    assert smooth(line, 2.0) == pytest.approx(line)
    stairs = np.repeat(np.arange(20.0), 2)
    stairs = np.column_stack([stairs[:-1], stairs[1:], 0 * stairs[1:]])
    soft = smooth(stairs, 2.0)
    assert soft[[0, -1]] == pytest.approx(stairs[[0, -1]])
    assert total_length(soft) == pytest.approx(19 * np.sqrt(2), rel=0.01)


def test_relaxing_moves_a_kink_by_the_weight_and_no_end():
    kink = np.array([[0, 0, 0], [1, 2, 0], [2, 0, 0.0]])
    relax(kink, 0.25)
    assert kink.tolist() == [[0, 0, 0], [1, 1, 0], [2, 0, 0]]


def test_tangents_are_unit_and_a_turning_point_takes_the_one_before_it():
    points = circle()
    expected = np.column_stack([-points[:, 1], points[:, 0], points[:, 2]]) / 10
    assert tangents(points)[1:-1] == pytest.approx(expected[1:-1], abs=1e-3)
    turning = np.array([[0, 0, 0], [1, 0, 0], [0, 0, 0.0]])
    assert tangents(turning).tolist() == [[1, 0, 0], [1, 0, 0], [-1, 0, 0]]


def test_a_hermite_curve_passes_through_its_waypoints_and_radii_do_not_overshoot():
    waypoints = np.array([[0, 0, 0, 1], [10, 4, 0, 3], [20, -4, 3, 3], [30, 0, 0, 1.0]])
    curve = hermite_curve(waypoints, 0.1)
    gaps = np.linalg.norm(curve[:, None, :3] - waypoints[:, :3], axis=-1).min(axis=0)
    assert gaps.max() < 0.06 and curve[:, 3].max() == pytest.approx(3)
    assert np.diff(arc_length(curve)) == pytest.approx(0.1, rel=0.02)


def test_the_distance_to_a_segment_is_to_its_nearest_point():
    axes = [np.array([-3.0, 5.0, 13.0]), np.array([4.0]), np.array([0.0])]
    squared, t = squared_distance_to_segment(axes, np.zeros(3), np.array([10.0, 0, 0]))
    assert squared.ravel().tolist() == [25, 16, 25] and t.ravel().tolist() == [0, 0.5, 1]
