"""The picture of an evaluated case: its panel, with the names of its coronaries.

`volumes` is the result of read_case (metrics/case.py), in the order of the case's images.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from tubesynth.metrics.case import EvaluationCase
from tubesynth.pictures.panel import render_panel, without_padding
from tubesynth.pictures.straightened import PICTURE_RANGE_HU
from tubesynth.pictures.tiles import CTA_WINDOW
from tubesynth.volume.centreline_file import SUFFIX, Branch, read_centreline
from tubesynth.volume.classes import LabelScheme
from tubesynth.volume.grid import Volume, same_grid
from tubesynth.volume.polyline import arc_length, point_tree
from tubesynth.volume.resample import labels_on_grid, resample_image
from tubesynth.volume.straighten import VesselPath
from tubesynth.volume.vessels import VesselTokens, place_tokens

MAX_SAMPLES = 3  # of each source
NEAR_MM, FOLLOWED_MM = 3.0, 10.0  # from a named branch; along it


def panel_path(output_dir: Path, case: str) -> Path:
    """The file of a case's panel."""
    return output_dir / "panels" / f"{case}.png"


def case_panel(
    case: EvaluationCase,
    volumes: Sequence[Volume],
    label: Volume | None,
    tokens: VesselTokens | None,
    scheme: LabelScheme,
    original: VesselTokens | None = None,
    window: tuple[float, float] = CTA_WINDOW,
) -> np.ndarray:
    """uint8 (H, W, 3): all images of a case, on the grid of the last one, which is the model's.

    tokens: of the label map; original: those that user centrelines have replaced; window: (center,
    width), see display_window.
    """
    grid, images = volumes[-1], {}
    counts: Counter[str] = Counter()
    for (source, sample, _), volume in zip(case.images, volumes, strict=True):
        counts[source] += 1
        if counts[source] <= MAX_SAMPLES:
            if not same_grid(volume, grid):
                volume = resample_image(volume, grid.shape, grid.affine, np.nan, PICTURE_RANGE_HU)
            hu = without_padding(volume.array) if source == "real" else volume.array
            images[column_name(case, source, sample)] = hu
    classes = None
    if label is not None:
        classes = labels_on_grid(label, grid).array
        tokens, original = (
            None if each is None else place_tokens(each, label, grid.shape, grid.affine)
            for each in (tokens, original)
        )
    return render_panel(
        images,
        grid.spacing,
        classes,
        scheme=scheme,
        title=f"case {case.id}",
        tokens=tokens,
        original=original,
        name_of=path_names(named_branches(case), grid),
        window=window,
    )


def column_name(case: EvaluationCase, source: str, sample: int) -> str:
    """A column's name: the source, with its sample number where it has several."""
    count = sum(name == source for name, *_ in case.images)
    name = source.removeprefix("synthesis ")
    return f"{name} s{sample}" if count > 1 else name


def named_branches(case: EvaluationCase) -> list[Branch]:
    """The branches of the user centreline, or of centrelines/ beside the label maps' folder."""
    path = case.centreline
    if path is None and case.label is not None:
        path = case.label.parent.parent / "centrelines" / f"{case.id}{SUFFIX}"
    return read_centreline(path) if path is not None and path.is_file() else []


def path_names(branches: Sequence[Branch], grid: Volume) -> Callable[[VesselPath], str]:
    """The name of a path on a grid: the named branches that it follows, as "LM-LAD".

    branches: in world mm; without a name along the path it is the number of the path's branch.
    """
    points: dict[str, list[np.ndarray]] = {}  # of the branches, and pieces of them, by name
    middle = (np.array(grid.shape) - 1) / 2
    for branch in branches:
        if not branch.name.isdigit():
            index = grid.to_index(branch.points[:, :3])
            points.setdefault(branch.name, []).append((index - middle) * grid.spacing)
    names, trees = list(points), [point_tree(np.concatenate(p)) for p in points.values()]
    # A path follows a branch for FOLLOWED_MM, or for half of a shorter branch: where a side branch
    # begins it lies within NEAR_MM too.
    needed_mm = {
        name: min(FOLLOWED_MM, sum(arc_length(piece)[-1] for piece in pieces) / 2)
        for name, pieces in points.items()
    }

    def name_of(path: VesselPath) -> str:
        followed: Counter[str] = Counter()  # number of points, in the order along the path
        if trees:
            distance = np.stack([tree.query(path.position_mm)[0] for tree in trees])  # (B, K)
            followed.update(names[b] for b in distance.argmin(0)[distance.min(0) < NEAR_MM])
        step_mm = path.along_mm[1]
        long_enough = [name for name, n in followed.items() if n * step_mm >= needed_mm[name]]
        return "-".join(long_enough) or f"branch {path.branch}"

    return name_of
