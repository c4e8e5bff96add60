"""Centreline files: branches written and read back, their tokens, and invalid files."""

import json
import re

import numpy as np
import pytest
from conftest import REPOSITORY
from refusals import refusal
from test_vessels import distances

from tubesynth.phantom.anatomy import make_phantom
from tubesynth.runtime.errors import InputError
from tubesynth.volume.centreline_file import (
    Branch,
    read_centreline,
    tokens_of_branches,
    user_centreline_tokens,
    write_centreline,
)
from tubesynth.volume.grid import Volume
from tubesynth.volume.vessels import extract_tokens

FORK = [
    Branch("trunk", None, np.array([[0, 0, 0, 2.0], [10, 0, 0, 1.5], [20, 0, 0, 1.0]])),
    Branch("side", 0, np.array([[10, 0, 0, 1.2], [10, 8, 0, 0.6]])),
]


def test_written_branches_are_read_back(tmp_path):
    write_centreline(tmp_path / "a.centreline.json", FORK)
    branches = read_centreline(tmp_path / "a.centreline.json")
    for branch, original in zip(branches, FORK, strict=True):
        assert (branch.name, branch.parent) == (original.name, original.parent)
        assert np.array_equal(branch.points, original.points)


def test_tokens_of_a_fork_have_steps_radii_and_distances_from_the_root():
    grid = Volume(np.zeros((60, 60, 20), np.uint8), np.diag([1.0, 1.0, 2.0, 1.0]))
    tokens = tokens_of_branches(FORK, grid, step_mm=1.0)
    trunk, side = tokens.branch == 0, tokens.branch == 1
    assert trunk.sum() == 21 and side.sum() == 9
    assert np.allclose(tokens.position_mm[0], -grid.center_mm)
    assert np.allclose(tokens.root_distance_mm[trunk], np.arange(21))
    assert np.allclose(tokens.root_distance_mm[side], 10 + np.arange(9), atol=1e-5)
    assert np.allclose(tokens.radius_mm[side], np.linspace(1.2, 0.6, 9), atol=1e-5)
    assert np.allclose(tokens.tangent[trunk], [1, 0, 0]) and np.allclose(
        tokens.tangent[side], [0, 1, 0]
    )
    corner = Volume(np.zeros((16, 60, 20), np.uint8), grid.affine)
    cut = tokens_of_branches(FORK, corner, step_mm=1.0)
    assert 16 <= (cut.branch == 0).sum() <= 18 and (cut.branch == 1).sum() == 9


def test_tangents_turn_at_a_corner_and_a_side_branch_leaves_between_two_points():
    grid = Volume(np.zeros((60, 60, 60), np.uint8), np.diag([1.0, 1.0, 1.0, 1.0]))
    bent = [
        Branch("", None, np.array([[5, 5, 9, 1.0], [15, 5, 9, 1.0], [15, 35, 9, 1.0]])),
        Branch("", 0, np.array([[15, 20, 9, 1.0], [25, 20, 9, 1.0]])),
    ]
    tokens = tokens_of_branches(bent, grid)
    first = tokens.root_distance_mm < 9.5
    first &= tokens.branch == 0
    assert np.allclose(tokens.tangent[first], [1, 0, 0], atol=1e-6)
    second = (tokens.root_distance_mm > 10.5) & (tokens.branch == 0)
    assert np.allclose(tokens.tangent[second], [0, 1, 0], atol=1e-6)
    assert tokens.root_distance_mm[tokens.branch == 1][0] == pytest.approx(25, abs=0.13)


def test_the_phantoms_centreline_file_gives_the_tokens_of_its_label_map():
    spacing = np.array([0.7, 0.7, 1.05])
    phantom = make_phantom(5, 1, (256, 256, 128), spacing)
    tokens = tokens_of_branches(phantom.branches, phantom.labels)
    traced = extract_tokens(phantom.labels.array == 8, phantom.labels.affine)
    middle = phantom.labels.center_mm
    curves = [np.c_[b.points[:, :3] - middle, b.points[:, 3]] for b in phantom.branches]
    off, missed, error = distances(tokens, curves)
    assert off.max() < 0.1 and missed.max() < 0.6 and np.abs(error).mean() < 0.02
    assert len(traced) == pytest.approx(len(tokens), rel=0.15)
    assert np.median(traced.radius_mm) == pytest.approx(np.median(tokens.radius_mm), abs=0.15)


def test_a_missing_centreline_file_is_named_as_such(tmp_path):
    path, remedy = tmp_path / "2.centreline.json", "; give the JSON file of a centreline"
    refusal(lambda: read_centreline(path), f"{path}: no such file{remedy}")
    path.symlink_to(tmp_path / "nowhere")
    refusal(lambda: read_centreline(path), f"{path}: a link to nowhere, no file{remedy}")


def test_a_centreline_outside_the_label_map_is_refused(tmp_path):
    write_centreline(tmp_path / "a.centreline.json", FORK)
    affine = np.eye(4)
    grid = Volume(np.zeros((20, 20, 20), np.uint8), affine)
    assert len(user_centreline_tokens(tmp_path / "a.centreline.json", grid)) > 0
    affine[:3, 3] = 500
    with pytest.raises(InputError, match="a.centreline.json: none of its vessels lies in"):
        user_centreline_tokens(tmp_path / "a.centreline.json", Volume(grid.array, affine))


def test_a_branch_without_length_is_refused_and_one_away_from_its_parent_named(tmp_path, caplog):
    path, grid = tmp_path / "a.centreline.json", Volume(np.zeros((60, 60, 60)), np.eye(4))
    point = np.array([[10, 0, 0, 1.0]])
    write_centreline(path, [Branch("point", None, np.vstack([point, point]))])
    assert "branches[0].points: all in one place" in refusal(lambda: read_centreline(path))
    path.write_text(json.dumps({"branches": [{"points": [["3", 0, 0, 1], [9, 0, 0, 1]]}]}))
    assert "branches[0].points: expected two or more of" in refusal(lambda: read_centreline(path))
    for gap_mm, count in ((0.0, 0), (2.0, 0), (15.0, 1)):
        side = FORK[1].points + [0, gap_mm, 0, 0]
        write_centreline(path, [FORK[0], Branch("side", 0, side)])
        with caplog.at_level("WARNING", logger="tubesynth"):
            user_centreline_tokens(path, grid)
        assert caplog.text.count("branches[1] begins 15 mm from its parent, branches[0]") == count


def test_the_example_of_the_readme_is_read(tmp_path):
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```json\n(.*?)```", readme, re.DOTALL)
    (tmp_path / "a.centreline.json").write_text(example, encoding="utf-8")
    branches = read_centreline(tmp_path / "a.centreline.json")
    assert [(b.name, b.parent) for b in branches] == [("LM", None), ("LAD", 0), ("RCA", None)]
    assert [b.points.shape for b in branches] == [(3, 4), (3, 4), (2, 4)]
    assert np.array_equal(branches[1].points[0, :3], branches[0].points[-1, :3])


def test_the_phantoms_file_has_the_keys_that_are_documented(tmp_path):
    write_centreline(tmp_path / "a.centreline.json", FORK)
    content = json.loads((tmp_path / "a.centreline.json").read_text(encoding="utf-8"))
    assert (content["units"], content["frame"]) == ("mm", "RAS world")
    assert content["branches"][1] == {
        "name": "side",
        "parent": 0,
        "points": [[10, 0, 0, 1.2], [10, 8, 0, 0.6]],
    }
