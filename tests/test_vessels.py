"""Vessel tokens against closed forms, phantoms whose centrelines are known, and one real aorta."""

import numpy as np
import pytest

from tubesynth.data.volumes import TokenSource
from tubesynth.phantom.anatomy import make_phantom
from tubesynth.volume.centreline import _assign_voxels
from tubesynth.volume.files import read_labels
from tubesynth.volume.grid import Volume, centered_affine
from tubesynth.volume.rasterize import rasterize_vessels, vessel_fields
from tubesynth.volume.resample import resample_labels, target_grid
from tubesynth.volume.vessel_tree import Vessel
from tubesynth.volume.vessels import VesselTokens, extract_tokens, place_tokens

SPACING = np.array([0.7, 0.7, 1.05])
SHAPE = (96, 96, 64)


def dense(points: np.ndarray, step_mm: float = 0.1) -> np.ndarray:
    """(K, 4) x y z radius -> the same polyline with points at most step_mm apart."""
    points = np.asarray(points, float)
    along = np.r_[0, np.cumsum(np.linalg.norm(np.diff(points[:, :3], axis=0), axis=1))]
    at = np.linspace(0, along[-1], int(along[-1] / step_mm) + 2)
    return np.column_stack([np.interp(at, along, column) for column in points.T])


def paint(curves, shape=SHAPE, spacing=SPACING) -> np.ndarray:
    """Every voxel whose center lies within the radius of a curve (K, 4), mm from the middle."""
    mask, middle = np.zeros(shape, bool), (np.array(shape) - 1) / 2
    for x, y, z, radius in np.vstack([dense(curve) for curve in curves]):
        low = np.ceil((np.array([x, y, z]) - radius) / spacing + middle).astype(int).clip(0)
        high = np.floor((np.array([x, y, z]) + radius) / spacing + middle).astype(int) + 1
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        axes = [((np.arange(n) - c) * s)[b] for n, c, s, b in zip(shape, middle, spacing, box)]  # noqa: B905
        gx, gy, gz = np.meshgrid(*axes, indexing="ij")
        mask[box] |= (gx - x) ** 2 + (gy - y) ** 2 + (gz - z) ** 2 <= radius**2
    return mask


def tokens_of(curves, spacing=SPACING, **options) -> VesselTokens:
    return extract_tokens(paint(curves, spacing=spacing), np.diag([*spacing, 1.0]), **options)


def tube(start, end, first_radius, last_radius=None) -> np.ndarray:
    last_radius = first_radius if last_radius is None else last_radius
    return np.array([[*start, first_radius], [*end, last_radius]])


def distances(tokens: VesselTokens, curves):
    """Token -> truth mm, truth -> token mm, and the radius error of each token, mm."""
    from scipy.spatial import cKDTree

    truth = np.vstack([dense(curve) for curve in curves])
    off, nearest = cKDTree(truth[:, :3]).query(tokens.position_mm)
    missed = cKDTree(tokens.position_mm).query(truth[:, :3])[0]
    return off, missed, tokens.radius_mm - truth[nearest, 3]


def voxels_off(tokens: VesselTokens, mask: np.ndarray, spacing=SPACING) -> float:
    """The largest distance of a token to the nearest voxel center of the mask, in voxels."""
    from scipy.spatial import cKDTree

    index = tokens.position_mm / spacing + (np.array(mask.shape) - 1) / 2
    return float(cKDTree(np.argwhere(mask)).query(index)[0].max())


Y_SHAPE = [
    tube([-25, 0, 0], [0, 0, 0], 2.0),
    tube([0, 0, 0], [22, 14, 0], 1.5, 1.0),
    tube([0, 0, 0], [22, -10, 8], 1.5, 1.0),
]


@pytest.mark.parametrize("radius", [0.5, 0.7, 1.0, 1.5, 2.0, 4.0])
def test_a_straight_tube_has_its_radius_and_length_in_every_direction(radius):
    generator = np.random.default_rng(7)
    for _ in range(3):
        direction = generator.normal(size=3)
        direction /= np.linalg.norm(direction)
        middle = generator.uniform(-0.5, 0.5, 3)
        curve = tube(middle - 15 * direction, middle + 15 * direction, radius)
        tokens = tokens_of([curve])
        inner = np.abs((tokens.position_mm - middle) @ direction) < 14
        off, missed, error = distances(tokens, [curve])
        assert off[inner].mean() < 0.25
        assert np.abs(error[inner]).mean() < 0.15
        assert np.abs(error[inner].mean()) < 0.1, "counting voxels has no bias"
        along = tokens.tangent[inner] @ direction
        # The mask ends in half balls, whose tips the centreline goes half way towards. Of the
        # thinnest tubes no voxel center lies inside for a few mm, so their masks have gaps.
        if radius >= 0.7:
            assert missed.max() < 1.3 and np.mean(missed < 0.8) > 0.95
            length = tokens.root_distance_mm.max()
            assert length == pytest.approx(30 + radius, abs=radius + 1.5)
            assert (np.sign(along) == np.sign(along[0])).all()
        assert np.abs(along).min() > 0.87 and np.abs(along).mean() > 0.985


@pytest.mark.parametrize("width", [(2, 2), (4, 4), (1, 2), (6, 2), (8, 4)])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_tube_of_even_width_keeps_its_skeleton(width, axis):
    mask = np.zeros((60, 20, 20), bool)
    mask[10:50, 5 : 5 + width[0], 5 : 5 + width[1]] = True
    tokens = extract_tokens(np.moveaxis(mask, 0, axis), np.eye(4))
    assert len(np.unique(tokens.branch)) == 1
    assert tokens.root_distance_mm.max() == pytest.approx(40, abs=width[0] + 1)
    middle = np.abs(tokens.position_mm[:, axis]) < 12
    assert np.allclose(tokens.radius_mm[middle], np.sqrt(np.prod(width) / np.pi), rtol=0.07)


def test_an_even_branch_that_thinning_removed_is_restored_at_its_junction():
    mask = np.zeros((60, 40, 20), bool)
    mask[5:55, 9:12, 9:12] = True  # odd: stays
    mask[29:31, 12:38, 9:11] = True  # even: scikit-image removes it
    tokens = extract_tokens(mask, np.eye(4))
    assert len(np.unique(tokens.branch)) == 3
    assert tokens.position_mm[:, 1].max() == pytest.approx(17.5, abs=1.5)


def test_a_fork_has_three_branches_that_meet_in_one_point():
    tokens = tokens_of(Y_SHAPE)
    assert tokens.branch.max() == 2
    pieces = [np.flatnonzero(tokens.branch == b) for b in range(3)]
    fork = tokens.position_mm[pieces[0][-1]]
    assert np.linalg.norm(fork) < 2.0
    for piece in pieces[1:]:
        assert np.allclose(tokens.position_mm[piece[0]], fork, atol=1e-3)
        assert tokens.root_distance_mm[piece[0]] == tokens.root_distance_mm[pieces[0][-1]]
    assert tokens.position_mm[0] == pytest.approx([-25, 0, 0], abs=2), "the wide end is the root"
    off, missed, error = distances(tokens, Y_SHAPE)
    assert off.mean() < 0.2 and missed.max() < 0.8 and np.abs(error).mean() < 0.15


def test_the_root_is_the_end_nearest_to_the_root_mask():
    root = np.zeros(SHAPE, bool)
    root[-6:, -30:, 20:40] = True  # near the end of the second branch, at (22, 14, 0)
    tokens = tokens_of(Y_SHAPE, root_mask=root)
    assert tokens.position_mm[0] == pytest.approx([22, 14, 0], abs=1.5)
    far = tokens.root_distance_mm[np.linalg.norm(tokens.position_mm - [-25, 0, 0], axis=1) < 2]
    assert far.max() == pytest.approx(np.hypot(22, 14) + 25, abs=2.5)


def test_a_helix_has_its_length():
    t = np.linspace(0, 6 * np.pi, 600)
    for radius in (0.6, 1.0, 2.0):
        curve = np.c_[15 * np.cos(t), 15 * np.sin(t), t / t.max() * 40 - 20, np.full(600, radius)]
        tokens = tokens_of([curve])
        true_length = np.hypot(15 * 6 * np.pi, 40)
        assert tokens.root_distance_mm.max() == pytest.approx(true_length + radius, rel=0.02)
        off, missed, error = distances(tokens, [curve])
        assert off.mean() < 0.25 and missed.max() < 0.8 and np.abs(error).mean() < 0.1


def test_a_taper_narrows_from_the_root_on():
    tokens = tokens_of([tube([-28, 0.3, -5], [28, 0.3, 5], 2.5, 0.6)])
    inner = np.abs(tokens.position_mm[:, 0]) < 26
    assert tokens.position_mm[0, 0] < -27
    true_radius = np.interp(tokens.position_mm[:, 0], [-28, 28], [2.5, 0.6])
    assert np.abs(tokens.radius_mm - true_radius)[inner].max() < 0.2
    smooth = np.convolve(tokens.radius_mm[inner], np.ones(5) / 5, mode="valid")
    assert (np.diff(smooth) < 0.03).all()


def test_a_ring_is_cut_opposite_its_root_and_closed():
    t = np.linspace(0, 2 * np.pi, 600)
    curve = np.c_[15 * np.cos(t), 15 * np.sin(t), 0 * t + 3, np.full(600, 1.5)]
    tokens = tokens_of([curve])
    assert tokens.branch.max() == 1
    assert tokens.root_distance_mm.max() == pytest.approx(15 * np.pi, rel=0.03)
    off, missed, _ = distances(tokens, [curve])
    assert off.mean() < 0.25 and missed.max() < 0.8


def test_spacing_decides_lengths_and_radii():
    curve = tube([-12, -8, -10], [12, 8, 10], 2.0)
    for spacing in ([0.5, 0.5, 0.5], [0.7, 0.7, 1.05], [0.4, 0.9, 1.4]):
        tokens = tokens_of([curve], spacing=np.array(spacing))
        inner = np.linalg.norm(tokens.position_mm, axis=1) < 15
        assert tokens.radius_mm[inner].mean() == pytest.approx(2.0, abs=0.1)
        true_length = np.sqrt(24**2 + 16**2 + 20**2)
        assert tokens.root_distance_mm.max() == pytest.approx(true_length + 2, abs=2)


def test_an_oblique_affine_gives_the_tokens_of_its_spacing():
    from scipy.spatial.transform import Rotation

    mask = paint(Y_SHAPE)
    oblique = np.eye(4)
    oblique[:3, :3] = Rotation.from_euler("xyz", [20, -35, 70], degrees=True).as_matrix() * SPACING
    oblique[:3, 3] = [100, -50, 30]
    plain = extract_tokens(mask, np.diag([*SPACING, 1.0]))
    assert np.allclose(extract_tokens(mask, oblique).to_array(), plain.to_array(), atol=1e-3)


def test_an_empty_mask_and_a_lone_voxel_have_no_tokens():
    mask = np.zeros(SHAPE, bool)
    tokens = extract_tokens(mask, np.eye(4))
    assert len(tokens) == 0 and tokens.to_array().shape == (0, 9)
    assert tokens.position_mm.shape == (0, 3) and tokens.tangent.shape == (0, 3)
    assert (vessel_fields(tokens, (4, 4, 4), (2, 2, 2))[0] == 8).all()
    mask[3, 3, 3] = True
    assert len(extract_tokens(mask, np.eye(4))) == 0


def test_a_lone_voxel_beside_vessels_changes_no_token():
    mask = paint(Y_SHAPE)
    before = extract_tokens(mask, np.diag([*SPACING, 1.0])).to_array()
    mask[2, 2, 2] = True
    assert np.array_equal(extract_tokens(mask, np.diag([*SPACING, 1.0])).to_array(), before)


def test_each_component_has_its_own_root_and_the_longest_comes_first():
    curves = [tube([-10, -15, 0], [10, -15, 0], 1.0), tube([-25, 12, 0], [25, 12, 0], 1.2)]
    tokens = tokens_of(curves)
    roots = np.flatnonzero(tokens.root_distance_mm == 0)
    assert len(roots) == 2 and roots[0] == 0
    assert tokens.position_mm[0, 1] == pytest.approx(12, abs=0.5)
    assert tokens.position_mm[roots[1], 1] == pytest.approx(-15, abs=0.5)


def test_short_bumps_are_pruned_and_real_side_branches_stay():
    trunk = tube([-25, 0, 0], [25, 0, 0], 3.0)
    bump, branch = tube([0, 0, 0], [0, 3.2, 0], 0.8), tube([0, 0, 0], [0, 12, 0], 0.8)
    assert tokens_of([trunk, bump]).branch.max() == 0
    assert tokens_of([trunk, branch]).branch.max() == 2


def test_steps_are_equal_along_a_branch_and_tangents_are_unit_and_away_from_the_root():
    for step_mm in (0.5, 1.0, 2.5):
        tokens = tokens_of(Y_SHAPE, step_mm=step_mm)
        assert np.allclose(np.linalg.norm(tokens.tangent, axis=1), 1, atol=1e-5)
        for branch in np.unique(tokens.branch):
            rows = tokens.branch == branch
            steps = np.diff(tokens.root_distance_mm[rows])
            assert np.ptp(steps) < 1e-3 and step_mm / 2 < steps.mean() <= step_mm + 1e-4
            chords = np.diff(tokens.position_mm[rows], axis=0)
            assert np.linalg.norm(chords, axis=1) == pytest.approx(steps, rel=0.05)
            assert ((chords * tokens.tangent[rows][:-1]).sum(axis=1) > 0).all()
        assert np.isin(np.diff(tokens.branch), [0, 1]).all(), "branches are numbered in order"


def test_the_same_mask_gives_the_same_tokens_and_they_survive_to_array():
    first, second = tokens_of(Y_SHAPE), tokens_of(Y_SHAPE)
    assert np.array_equal(first.to_array(), second.to_array())
    again = VesselTokens.from_array(first.to_array())
    for name in ("position_mm", "radius_mm", "tangent", "branch", "root_distance_mm"):
        assert np.array_equal(getattr(again, name), getattr(first, name))
        assert getattr(again, name).dtype == getattr(first, name).dtype


def test_a_sheared_label_map_has_the_vessels_of_a_right_angled_one():
    """A gantry tilt of 25 degrees: slices move along y, and lie closer than they are apart."""
    shape, upright = (48, 96, 64), centered_affine((48, 96, 64), (0.8, 0.8, 0.8))
    tilted = upright.copy()
    tilted[:3, 2] = 0.8 * np.array([0, np.sin(np.radians(25)), np.cos(np.radians(25))])
    tilted[:3, 3] = -tilted[:3, :3] @ ((np.array(shape) - 1) / 2)
    results = []
    for affine in (upright, tilted):
        index = np.indices(shape).reshape(3, -1)
        x, y, z = affine[:3, :3] @ index + affine[:3, 3:]
        tube = np.hypot(x, y - 0.2 * z) < 2.0  # its radius across is a little smaller
        mask = Volume((tube & (abs(z) < 20)).reshape(shape).astype(np.uint8), affine)
        tokens = TokenSource(1, 1.0).trace(mask)
        results.append(place_tokens(tokens, mask, shape, upright))
    straight, sheared = results
    assert sheared.root_distance_mm.max() == pytest.approx(straight.root_distance_mm.max(), abs=1)
    assert np.median(sheared.radius_mm) == pytest.approx(np.median(straight.radius_mm), rel=0.03)
    off = abs(sheared.position_mm[:, 1] - 0.2 * sheared.position_mm[:, 2])
    assert off.max() < 0.4


@pytest.mark.parametrize("sides", [(8, 2), (8, 1), (12, 2), (6, 3), (2, 10)])
def test_a_flat_vessel_is_one_branch_from_end_to_end(sides):
    mask = np.zeros((80, 24, 24), bool)
    mask[8:72, 6 : 6 + sides[0], 8 : 8 + sides[1]] = True
    tokens = extract_tokens(mask, centered_affine(mask.shape, (0.5, 0.5, 0.5)))
    assert set(tokens.branch) == {0}
    assert tokens.root_distance_mm.max() == pytest.approx(32, abs=2.5)


@pytest.mark.parametrize(("gap", "radius"), [(4, 1.5), (6, 2.5)])
def test_vessels_side_by_side_remain_two(gap, radius):
    _, y, z = np.mgrid[:80, :40, :40]
    mask = np.hypot(y - 15, z - 20) <= radius
    mask |= np.hypot(y - 15 - gap, z - 20) <= radius
    tokens = extract_tokens(mask, centered_affine(mask.shape, (0.5, 0.5, 0.5)))
    assert set(tokens.branch) == {0, 1}


def test_noise_gives_finite_tokens_within_a_voxel_of_the_mask():
    from scipy.ndimage import binary_fill_holes

    generator = np.random.default_rng(3)
    for density in (0.03, 0.1, 0.8):
        mask = generator.random((20, 17, 12)) < density
        tokens = extract_tokens(mask, np.diag([*SPACING, 1.0]))
        assert np.isfinite(tokens.to_array()).all() and (tokens.radius_mm > 0).all()
        assert np.allclose(np.linalg.norm(tokens.tangent, axis=1), 1, atol=1e-5)
        assert voxels_off(tokens, binary_fill_holes(mask)) <= 1.01


@pytest.mark.parametrize("radius", [2.771729742261019, 0.911463928370206])
def test_the_widest_point_owns_voxels_whichever_way_its_square_is_rounded(radius):
    """For one radius in 2,000, x**2 of a NumPy scalar is below x**2 of an array."""
    points = np.column_stack([np.arange(5.0), *np.zeros((2, 5)), np.full(5, radius)])
    vessel = Vessel(points, [0, 4], None, True, True)
    ((number, row),) = _assign_voxels([vessel], [0], points[:, :3])
    assert number.tolist() == row.tolist() == [0, 1, 2, 3, 4]


def test_the_distance_field_of_a_tube_is_the_closed_form():
    position = np.column_stack([np.linspace(-20, 20, 41), np.zeros(41), np.zeros(41)])
    tokens = VesselTokens(
        position.astype(np.float32),
        np.linspace(1, 3, 41, dtype=np.float32),
        np.tile(np.float32([1, 0, 0]), (41, 1)),
        np.zeros(41, np.int32),
        np.arange(41, dtype=np.float32),
    )
    shape, spacing = (16, 16, 8), np.array([2.8, 2.8, 4.2])
    distance, radius = vessel_fields(tokens, shape, spacing, max_mm=6.0)
    cells = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), axis=-1)
    x, y, z = np.moveaxis((cells - (np.array(shape) - 1) / 2) * spacing, -1, 0)
    across = np.hypot(y, z)
    inside = np.abs(x) < 18
    expected = np.clip(across - (2 + x / 20), -6, 6)
    assert np.abs(distance - expected)[inside].max() < 0.03  # the cone's slope is 1 in 20
    near = inside & (expected < 5.9)
    assert np.abs(radius - (2 + x / 20))[near].max() < 0.3
    assert (radius[expected > 6.1] == 0).all() and distance.dtype == np.float32


def test_a_branch_of_which_a_crop_leaves_two_ends_is_no_tube():
    """A branch that leaves the box and comes back has the gap as its only step."""
    x, y = [*range(-2, 3), -8, 8], [0] * 5 + [20] * 2
    branch, root_distance = [0] * 5 + [1] * 2, [0, 1, 2, 3, 4, 10, 40]
    zero, one = np.zeros(7), np.ones(7)
    columns = [x, y, zero, one, one, zero, zero, branch, root_distance]
    tokens = VesselTokens.from_array(np.column_stack(columns))
    distance = vessel_fields(tokens, (51, 51, 1), (1, 1, 1))[0, :, :, 0]
    assert (distance[23:28, 25] <= 0).all()  # the tube of the other branch
    assert distance[17, 45] <= 0 and distance[33, 45] <= 0 and (distance[20:31, 45] > 0).all()


def test_a_gap_that_a_crop_made_is_not_bridged():
    tokens = tokens_of([tube([-25, 0, 0], [25, 0, 0], 1.5)])
    cropped = tokens.to_array()[np.abs(tokens.position_mm[:, 0]) > 8]
    distance = vessel_fields(VesselTokens.from_array(cropped), (51, 1, 1), (1, 1, 1))[0, :, 0, 0]
    assert distance[25] > 5 and distance[5] < -1 and distance[45] < -1


def test_the_fields_of_a_latent_grid_agree_with_the_mask(phantom):
    case, tokens = phantom
    distance, radius = vessel_fields(tokens, (64, 64, 32), SPACING * 4)
    share = (case.labels.array == 8).reshape(64, 4, 64, 4, 32, 4).mean(axis=(1, 3, 5))
    assert (distance[share > 0.3] < 1.0).all() and (distance[share > 0] < 3.5).mean() > 0.99
    assert (share[distance > 3.5] == 0).mean() > 0.999
    assert np.median(radius[share > 0.3]) == pytest.approx(1.8, abs=0.5)


def test_a_vessel_thinner_than_a_voxel_of_the_model_keeps_its_tokens(phantom):
    """At 2.8 x 2.8 x 4.2 mm the label map has fragments of the coronaries; tokens come from the
    file."""
    case, fine = phantom
    shape, affine = target_grid(case.labels, SPACING * 4, (64, 64, 32))
    tokens = place_tokens(TokenSource(8, 1.0).trace(case.labels), case.labels, shape, affine)
    assert len(tokens) == len(fine) and np.array_equal(tokens.radius_mm, fine.radius_mm)
    # the exact centrelines, relative to the middle of the coarse grid
    middle = Volume(np.zeros(shape, np.uint8), affine).center_mm
    curves = [np.c_[b.points[:, :3] - middle, b.points[:, 3]] for b in case.branches]
    assert np.mean(distances(tokens, curves)[1] < 0.8) > 0.96
    coarse = resample_labels(case.labels, shape, affine)
    coarse_tokens = extract_tokens(coarse.array == 8, affine)
    covered = 0.0
    if len(coarse_tokens):
        covered = np.mean(distances(coarse_tokens, curves)[1] < 0.8)
    assert covered < 0.6


def test_tokens_keep_their_place_in_the_world_on_any_grid():
    turn = np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1.0]])
    oblique, straight = np.eye(4), np.diag([1.5, 1.5, 3.0, 1.0])
    oblique[:3, :3], oblique[:3, 3] = turn * SPACING, [11, -7, 40]
    source = Volume(paint([tube([-20, 3, 2], [20, -8, 10], 1.5)]), oblique)
    tokens = extract_tokens(source.array, source.affine)
    straight[:3, 3] = source.center_mm - [15, 21, 30]
    shape = (40, 30, 20)
    placed = place_tokens(tokens, source, shape, straight)
    grid = Volume(np.zeros(shape, np.uint8), straight)
    world = source.center_mm + tokens.position_mm @ turn.T
    expected = world - grid.center_mm
    reach = np.array(shape) * grid.spacing / 2 + tokens.radius_mm[:, None]
    inside = (np.abs(expected) <= reach).all(axis=1)
    assert 0 < inside.sum() < len(tokens)
    assert np.abs(placed.position_mm - expected[inside]).max() < 1e-3
    assert np.abs(placed.tangent - tokens.tangent[inside] @ turn.T).max() < 1e-6
    assert np.array_equal(placed.radius_mm, tokens.radius_mm[inside])
    same = place_tokens(tokens, source, source.shape, source.affine)
    assert np.abs(same.to_array() - tokens.to_array()).max() < 1e-4


@pytest.mark.parametrize("factor", [1, 4])
def test_rasterized_tokens_are_the_vessels_of_the_label_map_at_every_spacing(phantom, factor):
    case, tokens = phantom
    shape, affine = target_grid(case.labels, SPACING * factor, np.array((256, 256, 128)) // factor)
    labels = resample_labels(case.labels, shape, affine)
    placed = place_tokens(tokens, case.labels, shape, affine)
    rasterized = rasterize_vessels(labels, placed, 8)
    mask = rasterized.array == 8
    original = labels.array == 8
    assert mask.sum() == pytest.approx(original.sum(), rel=0.1)
    assert np.array_equal(
        rasterized.array[~mask], np.where(labels.array == 8, 0, labels.array)[~mask]
    )
    if factor == 1:
        assert 2 * (mask & original).sum() / (mask.sum() + original.sum()) > 0.85
    none = rasterize_vessels(labels, VesselTokens.from_array(np.zeros((0, 9))), 8)
    assert not (none.array == 8).any() and none.array.dtype == labels.array.dtype


@pytest.mark.parametrize("spacing", [0.35, 0.7, 1.25, 2.1])
@pytest.mark.parametrize("radius", [0.4, 1.0, 3.0])
def test_rasterized_tubes_have_their_volume_in_the_mean(radius, spacing):
    """Sixteen parallel tubes of 40 mm, oblique to the grid and 8 mm apart, in several places."""
    rng = np.random.default_rng(1)
    volume = true = 0.0
    for _ in range(1 if spacing < 1 else 12):
        axis = rng.normal(size=3) + [0, 0, 3]
        axis /= np.linalg.norm(axis)
        rows = []
        for branch, (x, y) in enumerate(np.ndindex(4, 4)):
            middle = np.array([8.0 * x - 12, 8.0 * y - 12, 0]) + rng.uniform(-0.5, 0.5, 3)
            for along in np.arange(-20.0, 21.0):
                rows.append([*(middle + along * axis), radius, *axis, branch, along + 20])
        tokens = VesselTokens.from_array(np.array(rows))
        shape = (int(60 / spacing),) * 3
        blank = Volume(np.zeros(shape, np.uint8), centered_affine(shape, (spacing,) * 3))
        volume += np.count_nonzero(rasterize_vessels(blank, tokens, 8).array) * spacing**3
        true += 16 * (np.pi * radius**2 * 40 + 4 / 3 * np.pi * radius**3)
    assert volume == pytest.approx(true, rel=0.05)


@pytest.fixture(scope="module")
def phantom():
    """One case at full size: its voxels and its tokens."""
    case = make_phantom(5, 0, (256, 256, 128), SPACING)
    return case, extract_tokens(case.labels.array == 8, case.labels.affine)


def test_phantom_tokens_lie_on_the_true_centrelines_with_the_true_radius(phantom):
    case, tokens = phantom
    middle = case.labels.center_mm
    curves = [np.c_[b.points[:, :3] - middle, b.points[:, 3]] for b in case.branches]
    off, missed, error = distances(tokens, curves)
    assert off.mean() < 0.2  # required: 0.4
    assert np.mean(missed < 0.8) > 0.96  # required: 0.95
    assert np.abs(error).mean() < 0.1  # required: 0.3
    assert abs(error.mean()) < 0.03
    assert voxels_off(tokens, case.labels.array == 8) < 1.5
    assert np.sum(tokens.root_distance_mm == 0) == 2
    ostia = [
        curve[0, :3] for curve, b in zip(curves, case.branches, strict=True) if b.parent is None
    ]
    for root in tokens.position_mm[tokens.root_distance_mm == 0]:
        assert min(np.linalg.norm(root - ostium) for ostium in ostia) < 2.5


def test_a_real_aorta_is_one_vessel_from_its_root(real_ct):
    labels = read_labels(real_ct / "labels" / "aorta.label.nii.gz")
    mask = np.isin(labels.array, (3, 4))  # both lumina of the dissection
    tokens = extract_tokens(mask, labels.affine)
    assert tokens.branch.max() == 0 and 350 < tokens.root_distance_mm.max() < 410
    assert 12 < np.median(tokens.radius_mm) < 17
    assert voxels_off(tokens, mask, labels.spacing) < 1.5
    inside = vessel_fields(tokens, mask.shape, labels.spacing, max_mm=1.0)[0] < 0
    assert 2 * (inside & mask).sum() / (inside.sum() + mask.sum()) > 0.9
    torn = extract_tokens(labels.array == 3, labels.affine)  # the true lumen is in 121 pieces
    assert np.isfinite(torn.to_array()).all()
    assert voxels_off(torn, labels.array == 3, labels.spacing) < 1.5
