"""Centrelines as files, in world mm: as tubesynth.phantom writes them, drawn or edited.

    {"units": "mm", "frame": "RAS world", "branches": [
        {"name": "LM", "parent": null, "points": [[x, y, z, radius], ...]},
        {"name": "LAD", "parent": 0, "points": ...}]}

A branch runs away from the root. parent is the number, from 0, of an earlier branch that it leaves;
null is a root. Other keys are left alone.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tubesynth.runtime.atomic import write_text
from tubesynth.runtime.errors import InputError
from tubesynth.volume.grid import Volume
from tubesynth.volume.vessel_tree import arc
from tubesynth.volume.vessels import VesselTokens, in_box, spaced

SUFFIX = ".centreline.json"
WIDEST_MM = 100.0  # no vessel has such a radius: other units, or a slip


@dataclass(frozen=True)
class Branch:
    """points: (N, 4) x, y, z, radius in world mm, outwards; parent: index of a branch."""

    name: str
    parent: int | None
    points: np.ndarray


def write_centreline(path: Path, branches: Sequence[Branch]) -> None:
    rows = [
        {"name": b.name, "parent": b.parent, "points": np.round(b.points, 4).tolist()}
        for b in branches
    ]
    write_text(path, json.dumps({"units": "mm", "frame": "RAS world", "branches": rows}))


def read_centreline(path: Path) -> list[Branch]:
    """InputError names the branch that is not as the top of this module says."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: no centreline can be read ({error}); give its JSON") from error
    rows = found.get("branches") if isinstance(found, dict) else None
    if not isinstance(rows, list):
        raise InputError(f"{path}: branches: expected a list of branches, each with its points")
    for key, only in (("units", "mm"), ("frame", "RAS world")):
        if found.get(key, only) != only:
            raise InputError(f"{path}: {key}: {found[key]!r}, expected {only!r}; convert the file")
    return [_branch(path, number, row) for number, row in enumerate(rows)]


def _branch(path: Path, number: int, row) -> Branch:
    where = f"{path}: branches[{number}]"
    if not isinstance(row, dict):
        raise InputError(f"{where}: expected points, and the parent that it leaves")
    try:
        points = np.array(row.get("points"), dtype=np.float64)
    except (TypeError, ValueError):
        points = np.empty(0)
    good = points.ndim == 2 and points.shape[1:] == (4,) and len(points) >= 2
    sane = good and np.isfinite(points).all() and (points[:, 3] > 0).all()
    if not (sane and (points[:, 3] < WIDEST_MM).all()):
        raise InputError(
            f"{where}.points: expected two or more of [x, y, z, radius] in mm, the radius above 0"
            f" and below {WIDEST_MM:g}"
        )
    parent = row.get("parent")
    if parent is not None and not (type(parent) is int and 0 <= parent < number):
        raise InputError(f"{where}.parent: {parent!r}, expected null or an earlier branch's number")
    return Branch(str(row.get("name", number)), parent, points)


def dense(points: np.ndarray, step_mm: float = 0.25) -> np.ndarray:
    """(K, 4) -> the same polyline with a point every step_mm or less, corners kept; a point that
    repeats the one before it goes.
    """
    points = points[np.r_[True, np.diff(arc(points)) > 0]]
    along = arc(points)
    pieces = [
        np.linspace(a, b, max(1, int(np.ceil((b - a) / step_mm))), endpoint=False)
        for a, b in zip(along[:-1], along[1:], strict=True)
    ]
    at = np.concatenate([*pieces, along[-1:]])
    return np.column_stack([np.interp(at, along, column) for column in points.T])


def tokens_of_branches(
    branches: Sequence[Branch], grid: Volume, step_mm: float = 1.0
) -> VesselTokens:
    """The tokens of branches in a volume: relative to its middle, along its axes, at most step_mm
    apart; those whose vessel lies outside it are left out. A branch without length has none.
    """
    turn = np.linalg.inv(grid.affine[:3, :3] / grid.spacing)
    rows, ends = [], []
    for branch in branches:
        points = branch.points.copy()
        points[:, :3] = (points[:, :3] - grid.center_mm) @ turn.T
        points = dense(points)
        start_mm = 0.0
        if branch.parent is not None:
            trunk, along = ends[branch.parent]
            nearest = np.linalg.norm(trunk[:, :3] - points[0, :3], axis=1).argmin()
            start_mm = along[nearest]
        ends.append((points, start_mm + arc(points)))
        if len(points) > 1:
            rows.append(spaced(points, step_mm, len(rows), start_mm))
    tokens = VesselTokens.from_array(np.vstack(rows) if rows else np.zeros((0, 9)))
    inside = in_box(tokens.position_mm, tokens.radius_mm, np.array(grid.shape) * grid.spacing)
    return VesselTokens.from_array(tokens.to_array()[inside])


def user_centreline_tokens(path: Path, labels: Volume, step_mm: float = 1.0) -> VesselTokens:
    """The tokens of a centreline file in its label map; InputError where all lie outside it."""
    branches = read_centreline(path)
    tokens = tokens_of_branches(branches, labels, step_mm)
    if branches and not len(tokens):
        raise InputError(
            f"{path}: none of its vessels lies in the case's label map; is it another case's, or"
            " not in RAS world mm?"
        )
    return tokens
