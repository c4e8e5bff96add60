"""The two pictures of a case: planes with a maximum-intensity slab, and one coronary straightened.

Volumes as metrics/case.py reads them, in the order of the case's images; all of one case.
"""

from collections import Counter
from pathlib import Path

import numpy as np

from tubesynth.metrics.case import EvaluationCase
from tubesynth.metrics.vessel import sample_hu
from tubesynth.pictures.panel import draw_panel
from tubesynth.pictures.straight_panel import draw_straightened
from tubesynth.runtime.atomic import save_png
from tubesynth.volume.classes import LabelScheme
from tubesynth.volume.grid import Volume, same_grid
from tubesynth.volume.resample import resample_image, resample_labels
from tubesynth.volume.straighten import longest_path
from tubesynth.volume.vessels import VesselTokens

SAMPLES_IN_PANEL = 3
HALF_WIDTH_MM, PIXEL_MM = 9.0, 0.25
SECTIONS = 8


def panel_path(output_dir: Path, case: str) -> Path:
    return output_dir / "panels" / f"{case}.png"


def straight_path(output_dir: Path, case: str) -> Path:
    return output_dir / "panels" / f"{case}_coronary.png"


def draw_case(case, volumes, label, tokens, scheme: LabelScheme, output_dir: Path) -> None:
    """Writes panel_path, and straight_path where the label map holds a vessel."""
    picture = case_panel(case, volumes, label, scheme)
    save_png(panel_path(output_dir, case.id), picture)
    picture = None if label is None else straightened(case, volumes, label, tokens)
    if picture is not None:
        save_png(straight_path(output_dir, case.id), picture)


def case_panel(case: EvaluationCase, volumes, label, scheme: LabelScheme) -> np.ndarray:
    """All images of a case, on the grid of the last: the model's, where grids differ."""
    grid = volumes[-1]
    rows = {}
    for source, sample, volume in first_samples(case, volumes, SAMPLES_IN_PANEL):
        on_grid = same_grid(volume, grid)
        shown = volume if on_grid else resample_image(volume, grid.shape, grid.affine)
        rows[caption(case, source, sample)] = shown.array
    if label is not None and not same_grid(label, grid):
        label = resample_labels(label, grid.shape, grid.affine)
    classes = None if label is None else label.array
    title = f"case {case.id}"
    return draw_panel(rows, grid.spacing, classes, scheme=scheme, title=title)


def straightened(case: EvaluationCase, volumes, label: Volume, tokens: VesselTokens):
    """The longest coronary of the label map in the first sample of each source; None without."""
    way = longest_path(tokens)
    if way is None:
        return None
    length_mm = float(way.along_mm[-1])
    rows = np.linspace(0, len(way.along_mm) - 1, SECTIONS + 2).round().astype(int)[1:-1]
    images = {}
    for source, sample, volume in first_samples(case, volumes, 1):
        strip = read_at(volume, way.strip(HALF_WIDTH_MM, PIXEL_MM), label)
        planes = [read_at(volume, way.section(r, HALF_WIDTH_MM, PIXEL_MM), label) for r in rows]
        images[caption(case, source, sample, several=False)] = strip, planes
    title = f"case {case.id}: the longest coronary, {length_mm:.0f} mm from its root"
    return draw_straightened(
        images, length_mm, HALF_WIDTH_MM, way.radius_mm, way.along_mm[rows], title
    )


def first_samples(case: EvaluationCase, volumes, most: int):
    """(source, sample, volume) of the first `most` of each source, whatever numbers they have."""
    seen = Counter()
    for (source, sample, _), volume in zip(case.images, volumes, strict=True):
        seen[source] += 1
        if seen[source] <= most:
            yield source, sample, volume


def read_at(volume: Volume, position_mm, label: Volume) -> np.ndarray:
    """(...) HU at positions (..., 3) relative to the label map's middle."""
    index = position_mm / label.spacing + (np.array(label.shape) - 1) / 2
    return sample_hu(volume, label.to_world(index))


def caption(case, source, sample, several=True) -> str:
    """A row's name in the margin: short, with the sample where there are several."""
    count = sum(s == source for s, *_ in case.images)
    name = source.removeprefix("synthesis ")
    return f"{name} s{sample}" if several and count > 1 else name
