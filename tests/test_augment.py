"""Augmentation moves voxels, masks and tokens together."""

import numpy as np
import pytest

from tubesynth.data.augment import (
    Augmentation,
    Pose,
    pose_array,
    pose_axes,
    pose_matrix,
    pose_tokens,
    random_transform,
)

SPACING = np.array([0.7, 0.7, 1.05])
ALL = Augmentation(flip=0.5, rotate90=0.7, intensity=0.5)


def tube(shape, start_mm, end_mm, radius_mm):
    """A straight tube as voxels (X, Y, Z) and as tokens, in mm relative to the volume's center."""
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    points = (grid - (np.array(shape) - 1) / 2) * SPACING
    along = np.subtract(end_mm, start_mm)
    t = np.clip((points - start_mm) @ along / (along @ along), 0, 1)
    mask = np.linalg.norm(points - start_mm - t[..., None] * along, axis=-1) <= radius_mm
    t = np.linspace(0, 1, 60)[:, None]
    tokens = {
        "position_mm": (start_mm + t * along).astype(np.float32),
        "tangent": np.tile(along / np.linalg.norm(along), (60, 1)).astype(np.float32),
        "radius_mm": np.full(60, radius_mm, np.float32),
        "branch": np.arange(60, dtype=np.int32),
    }
    return mask, tokens


def tangent_alignment(mask, tokens, spacing=SPACING):
    """|cosine| between the tube's long axis and the tokens' tangent; all tokens lie in the tube."""
    shape = np.array(mask.shape)
    index = np.rint(tokens["position_mm"] / spacing + (shape - 1) / 2).astype(int)
    inside = ((index >= 0) & (index < shape)).all(axis=1)
    assert inside.sum() >= 10
    assert mask[tuple(index[inside].T)].all()
    points = (np.argwhere(mask) - (shape - 1) / 2) * spacing
    _, _, axes = np.linalg.svd(points - points.mean(axis=0), full_matrices=False)
    return abs(axes[0] @ tokens["tangent"][0])


@pytest.mark.parametrize("seed", range(24))
def test_a_tube_and_its_tokens_agree_after_any_transform(seed):
    mask, tokens = tube((32, 32, 24), [-7, -4, -6], [6, 5, 3], 2.2)
    crop = None if seed % 2 else (24, 24, 20)
    transform = random_transform(np.random.default_rng(seed), mask.shape, SPACING, crop, ALL)
    posed = pose_array(mask, transform.pose)
    new = pose_tokens(tokens, transform.pose, mask.shape, SPACING)
    alignment = tangent_alignment(posed, new)
    assert crop is not None or alignment > 0.99
    if crop is None:
        assert len(new["branch"]) == 60 and posed.sum() == mask.sum()
        steps = np.diff(new["position_mm"], axis=0)
        steps /= np.linalg.norm(steps, axis=1, keepdims=True)
        assert np.abs(steps - new["tangent"][1:]).max() < 1e-4


def test_every_pose_moves_a_marked_voxel_as_its_matrix_does():
    shape = (8, 8, 8)
    spot = np.array([1, 2, 6])
    array = np.zeros(shape)
    array[tuple(spot)] = 1
    center = (np.array(shape) - 1) / 2
    for flips in np.ndindex(2, 2, 2):
        for plane in ((0, 1), (0, 2), (1, 2)):
            for turns in range(4):
                turned = ((plane, turns), ((1, 2), 1))
                pose = Pose((0, 0, 0), shape, tuple(map(bool, flips)), turned)
                posed_spot = np.argwhere(pose_array(array, pose))[0]
                assert np.array_equal(posed_spot - center, pose_matrix(pose) @ (spot - center))


def test_tokens_are_relative_to_the_center_of_the_crop_and_outside_ones_are_gone():
    tokens = {
        "position_mm": np.array([[0, 0, 0], [-7, 0, 0]], np.float32),
        "radius_mm": np.array([1, 1], np.float32),
    }
    pose = Pose((20, 10, 10), (10, 10, 10))
    posed = pose_tokens(tokens, pose, (40, 30, 30), SPACING)
    # the box's middle is voxel 24.5, the volume's 19.5: five voxels further along x
    assert np.allclose(posed["position_mm"], [[-5 * 0.7, 0, 0]])
    assert len(posed["radius_mm"]) == 1


def test_only_planes_of_equal_extent_and_spacing_are_turned():
    for size, spacing, planes in (
        ((256, 256, 128), (0.7, 0.7, 1.05), {(0, 1)}),
        ((128, 128, 128), (0.7, 0.7, 1.05), {(0, 1)}),
        ((64, 64, 64), (1, 1, 1), {(0, 1), (0, 2), (1, 2)}),
        ((64, 48, 32), (1, 1, 1), set()),
    ):
        transforms = [
            random_transform(np.random.default_rng(seed), size, spacing, None, ALL)
            for seed in range(50)
        ]
        assert {plane for t in transforms for plane, _ in t.pose.turns} == planes


@pytest.mark.parametrize(
    ("convention", "dim", "flipped", "turned"),
    [
        ("per_axis", 3, 1 - 0.5**3, 0.1),
        ("published", 3, 0.5, 1 - 0.9**3),
        ("per_axis", 2, 0.75, 0.1),
        ("published", 2, 0.5, 0.1),
    ],
)
def test_the_shares_of_samples_that_a_convention_changes(convention, dim, flipped, turned):
    size, spacing = ((16, 16, 16), SPACING) if dim == 3 else ((16, 16, 1), (1, 1, 1))
    a = Augmentation(flip=0.5, rotate90=0.1, convention=convention)
    rng = np.random.default_rng(1)
    poses = [random_transform(rng, size, spacing, None, a).pose for _ in range(6000)]
    for expected, measured in (
        (flipped, np.mean([any(pose.flips) for pose in poses])),
        (turned, np.mean([len(pose.turns) > 0 for pose in poses])),
    ):
        assert abs(measured - expected) < 4 * np.sqrt(expected * (1 - expected) / len(poses))
    axes = np.sum([pose.flips for pose in poses], axis=1)
    assert convention == "per_axis" or axes.max() == 1  # never two axes


@pytest.mark.parametrize("seed", range(24))
def test_published_turns_exchange_shape_and_spacing_and_keep_the_tube_in_its_place(seed):
    mask, tokens = tube((32, 28, 24), [-7, -4, -6], [6, 5, 3], 2.2)
    a = Augmentation(flip=0.5, rotate90=0.7, convention="published")
    pose = random_transform(np.random.default_rng(seed), mask.shape, SPACING, None, a).pose
    posed, new = pose_array(mask, pose), pose_tokens(tokens, pose, mask.shape, SPACING)
    spacing = pose_axes(SPACING, pose)
    assert posed.shape == tuple(pose_axes(mask.shape, pose))
    assert tangent_alignment(posed, new, spacing) > 0.99
    assert len(new["branch"]) == 60


def test_rates_and_ranges_are_those_of_the_settings():
    a = Augmentation(0.5, 0.25, 0.3, 0.1, 0.05)
    rng = np.random.default_rng(0)
    transforms = [random_transform(rng, (16, 16, 8), SPACING, (8, 8, 8), a) for _ in range(4000)]
    rate = {
        0.5: np.mean([t.pose.flips for t in transforms]),
        0.25: np.mean([len(t.pose.turns) > 0 for t in transforms]),
        0.3: np.mean([t.scale != 1 for t in transforms]),
    }
    for expected, measured in rate.items():
        assert abs(measured - expected) < 0.03
    scales, shifts = np.array([(t.scale, t.shift) for t in transforms]).T
    assert 0.09 < np.abs(scales - 1).max() <= 0.1 and 0.045 < np.abs(shifts).max() <= 0.05
    starts = np.array([t.pose.start for t in transforms])
    assert (starts.min(axis=0) == 0).all() and (starts.max(axis=0) == [8, 8, 0]).all()


def test_without_augmentation_a_case_stays_as_it_is_and_one_setting_moves_no_other():
    plain = random_transform(np.random.default_rng(3), (9, 8, 7), SPACING)
    assert plain.pose == Pose((0, 0, 0), (9, 8, 7)) and (plain.scale, plain.shift) == (1, 0)
    cropped = [
        random_transform(np.random.default_rng(3), (9, 8, 7), SPACING, (4, 4, 4), a).pose.start
        for a in (None, ALL)
    ]
    assert cropped[0] == cropped[1]


def test_a_slice_is_never_flipped_along_its_missing_axis():
    for seed in range(20):
        for convention in ("per_axis", "published"):
            a = Augmentation(flip=0.5, rotate90=0.7, convention=convention)
            pose = random_transform(np.random.default_rng(seed), (8, 8, 1), (1, 1, 1), None, a).pose
            assert not pose.flips[2] and all(plane == (0, 1) for plane, _ in pose.turns)
