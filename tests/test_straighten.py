"""Straightened vessels: the main paths of a tree, frames without twist, strips and sections."""

import numpy as np
import pytest

from tubesynth.pictures.straightened import (
    RADIUS,
    STRIP_SCALE,
    TEXT_HEIGHT,
    reader,
    straightened_rows,
)
from tubesynth.pictures.tiles import Line
from tubesynth.volume.straighten import frames, main_paths
from tubesynth.volume.vessels import COLUMNS, VesselTokens


def branch(number, points, radius, start_mm):
    """Rows of one branch of tokens."""
    points = np.asarray(points, dtype=float)
    along = np.concatenate([[0], np.linalg.norm(np.diff(points, axis=0), axis=1).cumsum()])
    rows = np.zeros((len(points), len(COLUMNS)))
    rows[:, :3], rows[:, 3], rows[:, 7], rows[:, 8] = points, radius, number, start_mm + along
    return rows


def tree(*rows):
    return VesselTokens.from_array(np.concatenate(rows))


def fork():
    """20 mm along x, then a long branch of 30 mm along y and a short one of 6 mm along z."""
    stem = [(x, 0, 0) for x in range(21)]
    long = [(20, y, 0) for y in range(31)]
    short = [(20, 0, z) for z in range(7)]
    return tree(branch(0, stem, 2.0, 0), branch(1, short, 1.0, 20), branch(2, long, 1.5, 20))


def straight_tube(shape=(32, 32, 60), radius_mm=3.0):
    """(HU, tokens): a contrast-filled tube along z through the middle of voxels of 1 mm."""
    x, y, _ = (g - (n - 1) / 2 for g, n in zip(np.indices(shape), shape, strict=True))
    hu = np.where(np.hypot(x, y) < radius_mm, 400.0, -100.0).astype(np.float32)
    return hu, tree(branch(0, [(0, 0, z) for z in range(-20, 21)], radius_mm, 0))


def test_main_paths_begin_with_the_longest_and_share_the_stem():
    long, short = main_paths(fork(), step_mm=0.5)
    assert (long.along_mm[-1], short.along_mm[-1]) == pytest.approx((50, 26))
    assert (long.branch, short.branch) == (2, 1)
    for path, tip in ((long, [20, 30, 0]), (short, [20, 0, 6])):
        assert path.position_mm[0] == pytest.approx([0, 0, 0])
        assert path.position_mm[-1] == pytest.approx(tip)
        assert path.position_mm[20] == pytest.approx([10, 0, 0])
    assert (long.radius_mm[10], long.radius_mm[-1]) == pytest.approx((2.0, 1.5))


def test_a_path_is_listed_only_where_it_adds_five_millimeters():
    twig = branch(1, [(20, 0, z) for z in range(5)], 1.0, 20)
    assert len(main_paths(tree(branch(0, [(x, 0, 0) for x in range(31)], 2.0, 0), twig))) == 1
    assert len(main_paths(fork(), count=1)) == 1


def test_a_side_branch_of_a_user_centreline_follows_its_parent_back_to_the_root():
    trunk = branch(0, [(x, 0, 0) for x in range(41)], 2.0, 0)
    side = branch(1, [(15.3, y, 0) for y in range(31)], 1.0, 15.3)
    longest = main_paths(tree(trunk, side))[0]
    assert longest.along_mm[-1] == pytest.approx(45, abs=1)
    assert longest.position_mm[0] == pytest.approx([0, 0, 0])


def test_one_token_or_none_has_no_path():
    empty = np.zeros((0, len(COLUMNS)))
    assert main_paths(VesselTokens.from_array(empty)) == []
    assert main_paths(tree(branch(0, [(1, 2, 3)], 1.0, 0))) == []


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
    path = main_paths(fork())[0]
    strip, section = path.strip(5.0, 0.5), path.section(10, 5.0, 0.5)
    assert strip.shape == (21, len(path.along_mm), 3) and section.shape == (21, 21, 3)
    assert strip[10] == pytest.approx(path.position_mm)
    assert section[10, 10] == pytest.approx(path.position_mm[10])
    assert np.linalg.norm(strip[-1] - strip[0], axis=1) == pytest.approx(10)
    assert section[..., 0] == pytest.approx(path.position_mm[10, 0])  # a plane across x


def strip_row(lines=(), name="LAD"):
    hu, tokens = straight_tube()
    paths = main_paths(tokens)
    return straightened_rows(paths, [hu], np.ones(3), True, lines, lambda _: name)[0]


def test_a_straightened_tube_has_its_length_and_its_radius_on_the_picture():
    row = strip_row()
    real, outlined = (tile[TEXT_HEIGHT:] for tile in row.tiles)
    assert real.shape[0] == 40 * STRIP_SCALE
    bright = (real[80, :, 0] > 127).sum()
    assert bright == pytest.approx(2 * 3.0 * STRIP_SCALE, abs=2)
    edges = np.flatnonzero((outlined[80] == RADIUS).all(1))
    assert np.ptp(edges) == pytest.approx(2 * 3.0 * STRIP_SCALE, abs=1)


def test_a_strip_shows_a_line_at_its_distance_from_the_path():
    _, tokens = straight_tube()
    path = main_paths(tokens)[0]
    beside = tokens.position_mm + 5.0 * path.normal[0].astype(np.float32)
    line = Line(beside, tokens.branch, (1, 2, 3))
    tile = strip_row([line]).tiles[0][TEXT_HEIGHT:]
    row = np.flatnonzero((tile[80] == (1, 2, 3)).all(1))
    middle = 94 / 2
    assert row == pytest.approx([middle + 5.0 * STRIP_SCALE], abs=1)


def test_a_long_name_stays_above_its_strip():
    short, long = (strip_row(name=name).tiles[0] for name in ("LM", "LM-LAD-D1-D2-D3-D4"))
    assert short.shape == long.shape
    assert np.array_equal(short[TEXT_HEIGHT:], long[TEXT_HEIGHT:])


def test_positions_outside_of_an_image_and_at_its_gaps_are_nan():
    array = np.full((10, 10, 10), 100.0, dtype=np.float32)
    array[:3] = np.nan
    read = reader(array, np.ones(3))
    values = read(np.array([[3.0, 0, 0], [-3.0, 0, 0], [6.0, 0, 0]]))
    assert values == pytest.approx([100, np.nan, np.nan], abs=1, nan_ok=True)
