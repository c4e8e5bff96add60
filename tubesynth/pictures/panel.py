"""The panel of a case: a column for each image, the same views, scale and window in all of them.

Rows: three planes through the widest coronary, the maximum intensity projection of a thin slab
with the other organs dimmed and, with tokens, the main coronaries straightened, root at the top.
The last column has the outlines of the label map on the first image.
Arrays are (X, Y, Z) in RAS+ order, images in HU; nan, where an image has no data, is hatched.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tubesynth.pictures.sheet import COLUMN, PAPER, Entry, Row, render_sheet
from tubesynth.pictures.straightened import straightened_rows
from tubesynth.pictures.tiles import (
    COLORS,
    CTA_WINDOW,
    Line,
    class_color,
    class_tile,
    ct_tile,
    render_line,
    render_outlines,
)
from tubesynth.pictures.views import ORGAN_HU, View, choose_views, other_organs
from tubesynth.volume.classes import NINE_CLASSES, LabelScheme, numbered_classes
from tubesynth.volume.grid import bounding_box
from tubesynth.volume.polyline import point_tree
from tubesynth.volume.straighten import VesselPath, main_paths
from tubesynth.volume.vessels import VesselTokens

FILL_HU, SCANNER_PADDING_HU = -1000.0, -1100.0
MAX_COLUMNS = 5  # side by side; more of them continue below
MAX_PATHS = 12  # of which the first ones are straightened
SHIFTED_MM = 2.0  # where two centrelines are farther apart, both are rendered
LEAST_SHIFTED = 10  # tokens, of about 1 mm: a vessel with fewer that are shifted comes in its turn
CENTRELINE, ORIGINAL = (255, 170, 40), (255, 60, 220)


def render_panel(
    images: Mapping[str, Any],
    spacing: Sequence[float] | np.ndarray,
    label: Any = None,
    *,
    scheme: LabelScheme = NINE_CLASSES,
    title: str = "",
    tokens: VesselTokens | None = None,
    original: VesselTokens | None = None,
    name_of: Callable[[VesselPath], str] = lambda path: f"branch {path.branch}",
    window: tuple[float, float] = CTA_WINDOW,
) -> np.ndarray:
    """uint8 (H, W, 3), as SummaryWriter.add_image(..., dataformats="HWC") takes it.

    images: {name: HU (X, Y, Z), array or tensor}, on the grid of `label` (uint8); spacing: (3,) mm;
    scheme: names and vessel class of the label map; tokens: of the label map, on its grid;
    original: those that user centrelines have replaced; name_of: the name of a path along the
    tokens (default: its branch's number); window: (center, width), see display_window.
    """
    arrays = [np.asarray(array, dtype=np.float32) for array in images.values()]
    label = None if label is None else np.asarray(label)
    shapes = {array.shape for array in [*arrays, *([] if label is None else [label])]}
    if len(shapes) != 1:
        raise ValueError(
            f"images: expected one grid, got shapes {sorted(shapes)}; resample them onto one grid"
        )
    (shape,) = shapes
    spacing = np.asarray(spacing, dtype=float)
    names, legend, lines = list(images), class_legend(label, scheme), []
    if label is not None:
        names.append(f"label map on {names[0]}")
    if tokens is not None and original is not None:
        lines = shifted_lines(tokens, original)
    rows = [
        plane_row(view, arrays, spacing, label, scheme.vessel, lines, window)
        for view in choose_views(shape, spacing, label, scheme.vessel)
    ]
    if tokens is not None and shape[2] > 1:
        paths = shifted_first(main_paths(tokens, MAX_PATHS), lines)
        rows += straightened_rows(paths, arrays, spacing, label is not None, lines, name_of)
    for color, text, style in (
        (CENTRELINE, "user centreline", "solid"),
        (ORIGINAL, "centreline of the label map", "dotted"),
    ):
        if lines and any((tile == color).all(-1).any() for row in rows for tile in row.tiles):
            legend.append(Entry(color, text, style))
    note = f"W {window[1]:g}  L {window[0]:g}"
    bands = []
    width = -(-len(names) // -(-len(names) // MAX_COLUMNS))  # bands of as many columns
    for start in range(0, len(names), width):
        columns = slice(start, start + width)
        cut = [Row(row.caption, row.tiles[columns], row.scale, row.letter) for row in rows]
        entries = legend if start + width >= len(names) else []
        bands.append(render_sheet(names[columns], cut, title, note, entries))
    width = max(band.shape[1] for band in bands)
    bands = [np.pad(b, ((0, 0), (0, width - b.shape[1]), (0, 0)), mode="edge") for b in bands]
    return np.concatenate(bands)


def plane_row(
    view: View,
    arrays: Sequence[np.ndarray],
    spacing: np.ndarray,
    label: np.ndarray | None,
    vessel_class: int,
    lines: Sequence[Line],
    window: tuple[float, float] = CTA_WINDOW,
) -> Row:
    """A view of all images, and the outlines of the label map on the first of them."""
    shape = arrays[0].shape
    scale = COLUMN / (np.array(shape) * spacing).max()  # pixels per mm: one scale in all views
    size = view.size(shape, spacing, scale)
    slabs, caption = [view.slab(array) for array in arrays], view.caption(shape, spacing)
    if view.is_slab and label is not None:
        dimmed = other_organs(view.slab(label), vessel_class, spacing)
        slabs = [np.where(dimmed, np.minimum(slab, ORGAN_HU), slab) for slab in slabs]
        caption += f"; other organs darkened to {ORGAN_HU:g} HU" if dimmed.any() else ""
    tiles = [ct_tile(view.project(slab), size, window) for slab in slabs]
    if label is not None:
        tiles.append(tiles[0].copy())
        render_outlines(tiles[-1], class_tile(view.labels(label, vessel_class), size, vessel_class))
    for line in lines:
        points = view.pixels(line.position_mm, size, scale)
        points[~view.shows(line.position_mm, shape, spacing)] = np.nan
        for tile in tiles:
            render_line(tile, points, line)
    return Row(caption, tiles, scale, view.letter)


def shifted_lines(tokens: VesselTokens, original: VesselTokens) -> list[Line]:
    """Both centrelines where they are apart; empty where no point is."""
    lines = []
    for line, other, color in ((tokens, original, CENTRELINE), (original, tokens, ORIGINAL)):
        position = np.array(line.position_mm)
        if len(other):
            distance, _ = point_tree(other.position_mm).query(position)
            position[distance <= SHIFTED_MM] = np.nan
        lines.append(Line(position, line.branch, color, dotted=line is original))
    return lines if any(np.isfinite(line.position_mm).any() for line in lines) else []


def shifted_first(paths: list[VesselPath], lines: Sequence[Line]) -> list[VesselPath]:
    """First the paths along which user centrelines are shifted, each where none before it is."""
    if not lines or not np.isfinite(lines[0].position_mm).any():
        return paths
    shifted = point_tree(lines[0].position_mm[np.isfinite(lines[0].position_mm[:, 0])])
    points: list[set[int]] = []  # of each path the shifted points along it
    for path in paths:
        distance, nearest = shifted.query(path.position_mm)
        points.append(set(np.asarray(nearest)[distance < SHIFTED_MM].tolist()))
    order, left = [], list(range(len(paths)))
    seen: set[int] = set()
    while left:  # the path with the most points that no other before it has
        best = max(left, key=lambda index: len(points[index] - seen))
        if len(points[best] - seen) < LEAST_SHIFTED:
            break
        seen |= points[best]
        order.append(best)
        left.remove(best)
    return [paths[index] for index in [*order, *left]]


def without_padding(hu: np.ndarray) -> np.ndarray:
    """float32 HU with nan where a CT is only padding: around all voxels above -1000 HU.

    Air in a CT is noisy; a crop or a grid larger than the CT is filled with exactly -1000 HU, and
    a scanner marks what lies outside its field of view with lower numbers.
    """
    result = np.full(hu.shape, np.nan, dtype=np.float32)
    if (box := bounding_box(hu > FILL_HU)) is not None:
        result[box] = hu[box]
    result[hu < SCANNER_PADDING_HU] = np.nan
    return result


def class_legend(label: np.ndarray | None, scheme: LabelScheme) -> list[Entry]:
    """The classes that occur; numbers where the scheme is another one."""
    if label is None:
        return []
    present = [int(k) for k in np.unique(label) if k]
    if present and present[-1] >= scheme.num_classes:  # a label map of another scheme
        scheme = numbered_classes(present[-1] + 1, scheme.vessel)
    legend = [Entry(class_color(k), scheme.names[k]) for k in present[: len(COLORS)]]
    if len(present) > len(COLORS):
        legend.append(Entry(PAPER, f"and {len(present) - len(COLORS)} more"))
    return legend
