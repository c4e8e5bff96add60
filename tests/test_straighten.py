"""The straightened vessel: positions of its points, frames without twist, and its picture."""

import numpy as np
import pytest

from tubesynth.pictures.straightened_panel import BAR, MARGIN, OUTLINE, SCALE, render_straightened
from tubesynth.volume.straighten import frames, longest_path
from tubesynth.volume.vessels import COLUMNS, VesselTokens


def branch(number, points, radius, start_mm):
    """Rows of one branch of tokens."""
    points = np.asarray(points, dtype=float)
    along = np.concatenate([[0], np.linalg.norm(np.diff(points, axis=0), axis=1).cumsum()])
    rows = np.zeros((len(points), len(COLUMNS)))
    rows[:, :3], rows[:, 3], rows[:, 7], rows[:, 8] = points, radius, number, start_mm + along
    return rows


def fork():
    """20 mm along x, then a long branch of 30 mm along y and a short one of 5 mm along z."""
    stem = [(x, 0, 0) for x in range(21)]
    long = [(20, y, 0) for y in range(31)]
    short = [(20, 0, z) for z in range(6)]
    rows = [branch(0, stem, 2.0, 0), branch(1, short, 1.0, 20), branch(2, long, 1.5, 20)]
    return VesselTokens.from_array(np.concatenate(rows))


def test_the_longest_path_goes_from_the_root_through_the_junction_to_the_farthest_tip():
    path = longest_path(fork(), step_mm=0.5)
    assert path.along_mm[-1] == pytest.approx(50)
    assert path.position_mm[0] == pytest.approx([0, 0, 0])
    assert path.position_mm[-1] == pytest.approx([20, 30, 0])
    assert path.position_mm[40] == pytest.approx([20, 0, 0])
    assert (path.radius_mm[10], path.radius_mm[-1]) == pytest.approx((2.0, 1.5))


def test_one_token_or_none_has_no_path():
    empty = np.zeros((0, len(COLUMNS)))
    assert longest_path(VesselTokens.from_array(empty)) is None
    assert longest_path(VesselTokens.from_array(branch(0, [(1, 2, 3)], 1.0, 0))) is None


def test_frames_are_across_the_line_and_do_not_turn_about_a_plane_curve():
    angle = np.linspace(0, np.pi, 200)
    points = 20 * np.column_stack([np.cos(angle), np.sin(angle), 0 * angle])
    normal, binormal = frames(points)
    tangent = np.gradient(points, axis=0)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    for first, second in ((normal, tangent), (binormal, tangent), (normal, binormal)):
        assert np.abs((first * second).sum(1)).max() < 1e-6
    # A normal's angle to the plane is constant along a plane curve.
    upright = normal[:, 2] ** 2
    assert upright == pytest.approx(upright[0], abs=1e-3)


def test_the_strip_and_sections_are_centered_on_the_vessel_and_have_their_size():
    path = longest_path(fork())
    strip, section = path.strip(5.0, 0.5), path.section(10, 5.0, 0.5)
    assert strip.shape == (21, len(path.along_mm), 3) and section.shape == (21, 21, 3)
    assert strip[10] == pytest.approx(path.position_mm)
    assert section[10, 10] == pytest.approx(path.position_mm[10])
    assert np.linalg.norm(strip[-1] - strip[0], axis=1) == pytest.approx(10)
    assert section[..., 0] == pytest.approx(path.position_mm[10, 0])  # a plane across x


def test_the_radius_is_outlined_where_the_lumen_ends():
    strip, section = np.full((73, 101), -100.0), np.full((73, 73), -100.0)
    picture = render_straightened(
        {"real": (strip, [section])}, 50.0, 9.0, np.full(101, 3.0), [25.0]
    )
    rows = np.flatnonzero((picture[:, 200] == OUTLINE).all(1))
    assert np.ptp(rows) == pytest.approx(2 * 3.0 * SCALE, abs=1)


def test_a_long_name_stays_in_the_margin_of_the_straightened_vessel():
    strip, sections = np.full((73, 41), -100.0), [np.full((73, 73), -100.0)] * 8
    rest = 20.0, 9.0, np.full(41, 3.0), np.linspace(2, 18, 8), "case 1"
    names = ("run", "all vessel conditions")
    short, long = (render_straightened({name: (strip, sections)}, *rest) for name in names)
    assert np.array_equal(short[BAR:, MARGIN:], long[BAR:, MARGIN:])
    assert not np.array_equal(short, long)
