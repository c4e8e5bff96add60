"""Centreline files: vessel trees in world mm, written by tubesynth.phantom or by a user.

    {"units": "mm", "frame": "RAS world", "branches": [
        {"name": "LM", "parent": null, "points": [[x, y, z, radius], ...]},
        {"name": "LAD", "parent": 0, "points": ...}]}

A branch runs away from the root. parent is the number, from 0, of an earlier branch that it leaves;
null is a root. Other keys are ignored. README.md has a complete example.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tubesynth.runtime.atomic import write_text
from tubesynth.runtime.errors import InputError, short
from tubesynth.runtime.log import warn_once
from tubesynth.runtime.reading import read_json
from tubesynth.volume.grid import Volume
from tubesynth.volume.polyline import arc_length, densify, without_repeats
from tubesynth.volume.vessels import COLUMNS, VesselTokens, in_box, token_rows

SUFFIX = ".centreline.json"
WIDEST_MM = 100.0  # a larger radius is an error of units
GAP_MM = 3.0  # between a branch and its parent; a larger one is named
DENSE_MM = 0.25  # step of the points that tangents and junctions are computed from


@dataclass(frozen=True)
class Branch:
    """points: (N, 4) x, y, z, radius in world mm, outwards; parent: index of a branch."""

    name: str
    parent: int | None
    points: np.ndarray


def write_centreline(path: Path, branches: Sequence[Branch]) -> None:
    """Write branches as JSON, their points rounded to 0.0001 mm."""
    rows = [
        {"name": b.name, "parent": b.parent, "points": np.round(b.points, 4).tolist()}
        for b in branches
    ]
    write_text(path, json.dumps({"units": "mm", "frame": "RAS world", "branches": rows}))


def read_centreline(path: Path) -> list[Branch]:
    """The branches of a centreline file; InputError names the branch that breaks the format."""
    content = read_json(path, "give the JSON file of a centreline")
    rows = content.get("branches") if isinstance(content, dict) else None
    if not isinstance(rows, list):
        raise InputError(f"{path}: branches: expected a list of branches, each with its points")
    for key, expected in (("units", "mm"), ("frame", "RAS world")):
        value = content.get(key, expected)
        if value != expected:
            raise InputError(
                f"{path}: {key}: {short(value)}, expected {expected!r}; convert the file"
            )
    return [_branch(path, number, row) for number, row in enumerate(rows)]


def _branch(path: Path, number: int, row) -> Branch:
    key = f"{path}: branches[{number}]"
    if not isinstance(row, dict):
        raise InputError(f"{key}: expected an object with the keys points and parent")
    try:
        points = np.array(row.get("points"))
    except ValueError:  # rows of unequal lengths
        points = np.empty(0)
    # NumPy would read numbers that are written as text.
    points = points.astype(np.float64) if points.dtype.kind in "iuf" else np.empty(0)
    is_table = points.ndim == 2 and points.shape[1:] == (4,) and len(points) >= 2
    is_valid = is_table and np.isfinite(points).all() and (points[:, 3] > 0).all()
    if not (is_valid and (points[:, 3] < WIDEST_MM).all()):
        raise InputError(
            f"{key}.points: expected two or more of [x, y, z, radius] in mm, the radius above 0"
            f" and below {WIDEST_MM:g}"
        )
    if (points[:, :3] == points[0, :3]).all():
        raise InputError(f"{key}.points: all in one place: give two or more places")
    parent = row.get("parent")
    if parent is not None and not (type(parent) is int and 0 <= parent < number):
        raise InputError(
            f"{key}.parent: {short(parent)}, expected null or an earlier branch's number"
        )
    return Branch(str(row.get("name", number)), parent, points)


def tokens_of_branches(
    branches: Sequence[Branch], grid: Volume, step_mm: float = 1.0
) -> VesselTokens:
    """The tokens of branches (world mm) in a volume, at most step_mm apart.

    Positions are relative to the volume's middle, along its axes; tokens whose vessel lies outside
    it are left out. A branch without length has no tokens.
    """
    # world -> volume: p = U^-1 (world - middle) with the unit axes U (3, 3) in columns
    to_grid = np.linalg.inv(grid.affine[:3, :3] / grid.spacing)
    rows: list[np.ndarray] = []
    placed: list[tuple[np.ndarray, np.ndarray]] = []  # points (K, 4), root distances (K,)
    for branch in branches:
        points = branch.points.copy()
        points[:, :3] = (points[:, :3] - grid.center_mm) @ to_grid.T
        points = densify(without_repeats(points), DENSE_MM)
        start_mm = 0.0
        if branch.parent is not None:
            # the root distance of the parent's point that is nearest to the branch's start
            parent, root_distance_mm = placed[branch.parent]
            nearest = np.linalg.norm(parent[:, :3] - points[0, :3], axis=1).argmin()
            start_mm = float(root_distance_mm[nearest])
        placed.append((points, start_mm + arc_length(points)))
        if len(points) > 1:
            rows.append(token_rows(points, step_mm, len(rows), start_mm))
    table = np.vstack(rows) if rows else np.zeros((0, len(COLUMNS)))
    tokens = VesselTokens.from_array(table)
    inside = in_box(tokens.position_mm, tokens.radius_mm, np.array(grid.shape) * grid.spacing)
    return VesselTokens.from_array(tokens.to_array()[inside])


def user_centreline_tokens(path: Path, labels: Volume, step_mm: float = 1.0) -> VesselTokens:
    """The tokens of a centreline file in its label map; InputError where all lie outside it."""
    branches = read_centreline(path)
    for number, branch in enumerate(branches):
        if branch.parent is None:
            continue
        parent = densify(without_repeats(branches[branch.parent].points), DENSE_MM)
        gap_mm = np.linalg.norm(parent[:, :3] - branch.points[0, :3], axis=1).min()
        if gap_mm > max(GAP_MM, parent[:, 3].max()):
            warn_once(
                f"{path}: branches[{number}] begins {gap_mm:.3g} mm from its parent,"
                f" branches[{branch.parent}]"
            )
    tokens = tokens_of_branches(branches, labels, step_mm)
    if branches and not len(tokens):
        raise InputError(
            f"{path}: none of its vessels lies in the case's label map; give the file of this case,"
            " in RAS world mm"
        )
    return tokens
