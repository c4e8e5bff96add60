"""The panel of a case, in radiological display: three planes and a maximum-intensity projection.

One row an image, one column a view; the last row is the label map, painted over the first image.
Arrays are (X, Y, Z) in RAS+ order, images in HU. Radiological display: the patient's right is on
the left, anterior (axial) or superior is up, the sagittal plane looks to the left. All tiles share
one scale in mm, so their proportions are true. Needs Pillow and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tubesynth.pictures.lettering import fitted, font, render_row_name
from tubesynth.volume.classes import NINE_CLASSES, LabelScheme, numbered_classes

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw

Color = tuple[int, int, int]

# Of classes 1, 2, ...; class 13 takes the first color again.
COLORS = (
    (201, 138, 94),
    (238, 130, 190),
    (226, 52, 52),
    (86, 190, 233),
    (52, 105, 220),
    (245, 150, 50),
    (150, 110, 230),
    (255, 236, 60),
    (70, 200, 120),
    (180, 220, 160),
    (0, 158, 158),
    (190, 190, 190),
)
SLAB_MM = 25.0  # a thicker slab hides the coronaries behind the chambers
CTA_WINDOW = (200.0, 1000.0)  # center and width in HU: lungs black, contrast just below white
TILE, GAP, MARGIN, BAR, LEGEND_ENTRY = 256, 4, 116, 24, 150  # pixels
PAPER, INK, FAINT = (16, 16, 18), (236, 236, 236), (150, 150, 155)


@dataclass(frozen=True)
class View:
    """A column: its viewing axis, and the first and last plane of the slab that it projects."""

    caption: str
    axis: int
    first: int
    last: int
    letter: str  # the side of the patient at the left edge: R (right) or A (anterior)

    def image(self, array: np.ndarray) -> np.ndarray:
        """(rows, columns) of the display: the plane, or the slab's maximum."""
        return _displayed(array[self._index()].max(self.axis), self.axis)

    def labels(self, array: np.ndarray, vessel_class: int | None) -> np.ndarray:
        """(rows, columns) class indices; of a slab the vessels only, else the highest class."""
        slab = array[self._index()]
        if self.first < self.last and (slab == vessel_class).any():
            slab = np.where(slab == vessel_class, slab, 0)
        return _displayed(slab.max(self.axis), self.axis)

    def _index(self) -> tuple[slice, ...]:
        index = [slice(None)] * 3
        index[self.axis] = slice(self.first, self.last + 1)
        return tuple(index)


def render_panel(
    images: Mapping[str, Any],
    spacing: Sequence[float] | np.ndarray,
    label: Any = None,
    *,
    scheme: LabelScheme = NINE_CLASSES,
    window: tuple[float, float] = CTA_WINDOW,
    point: Sequence[float] | None = None,
    title: str = "",
) -> np.ndarray:
    """uint8 (H, W, 3), as SummaryWriter.add_image(..., dataformats="HWC") takes it.

    images: {row caption: HU (X, Y, Z), array or tensor}, on the grid of `label` (uint8); spacing:
    (3,) mm; scheme: names and vessel class of the label map; window: (center, width) HU; point: the
    voxel that the planes pass through (default: center of the labeled voxels, or of the volume).
    """
    from PIL import Image, ImageDraw

    images = {caption: np.asarray(array) for caption, array in images.items()}
    label = None if label is None else np.asarray(label)
    shapes = {array.shape for array in [*images.values(), *([] if label is None else [label])]}
    if len(shapes) != 1:
        raise ValueError(
            f"images: expected one grid, got shapes {sorted(shapes)}; resample them onto one grid"
        )
    (shape,) = shapes
    spacing = np.asarray(spacing, dtype=float)
    views = choose_views(shape, spacing, label, scheme.vessel, point)
    scale = TILE / (np.array(shape) * spacing).max()  # pixels a mm
    sizes = [_tile_size(shape, spacing, view.axis, scale) for view in views]
    rows = [*images, *(["label map"] if label is not None else [])]
    row_height = max(height for _, height in sizes)
    legend = _legend(label, scheme)
    # A tall volume has narrow tiles: a column is at least as wide as its caption.
    columns = [
        max(width, int(font(13).getlength(view.caption)) + 2 * GAP)
        for (width, _), view in zip(sizes, views, strict=True)
    ]
    width = MARGIN + sum(column + GAP for column in columns)
    legend_rows = -(-len(legend) // max(1, (width - MARGIN) // LEGEND_ENTRY))
    top = BAR * (2 if title else 1)
    height = top + len(rows) * (row_height + GAP) + BAR * legend_rows + BAR
    canvas = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(canvas)
    if title:
        draw.text((8, 4), fitted(title, width - 16, 15), INK, font(15))
    left = MARGIN
    for view, column, (tile_width, tile_height) in zip(views, columns, sizes, strict=True):
        draw.text((left, top - BAR + 5), view.caption, FAINT, font(13))
        for i, caption in enumerate(rows):
            y = top + i * (row_height + GAP)
            base = images.get(caption, next(iter(images.values()), None))
            tile = np.zeros((tile_height, tile_width, 3), dtype=np.float32)
            if base is not None:
                tile += gray_tile(view.image(base), (tile_width, tile_height), window)[..., None]
            if caption not in images and label is not None:
                _overlay(tile, view.labels(label, scheme.vessel), scheme.vessel)
            picture = Image.fromarray(tile.clip(0, 255).astype(np.uint8))
            y += (row_height - tile_height) // 2
            canvas.paste(picture, (left, y))
            draw.text((left + 4, y + tile_height // 2 - 8), view.letter, FAINT, font(12))
        left += column + GAP
    for i, caption in enumerate(rows):
        center = top + i * (row_height + GAP) + row_height / 2
        render_row_name(draw, caption, 8, center, MARGIN - 16, row_height, INK)
    _render_legend(draw, legend, (MARGIN, height - BAR * (legend_rows + 1)), width)
    note = f"window {window[0]:g} / {window[1]:g} HU"
    draw.text((MARGIN, height - BAR + 4), note, FAINT, font(12))
    return np.array(canvas)


def choose_views(
    shape: Sequence[int],
    spacing: Sequence[float] | np.ndarray,
    label: np.ndarray | None = None,
    vessel_class: int | None = None,
    point: Sequence[float] | np.ndarray | None = None,
) -> list[View]:
    """Axial, coronal and sagittal plane through the point, and an axial slab that is projected.

    The slab, SLAB_MM thick, contains as many vessel voxels as possible; without vessels it lies
    around the point. A slice (Z = 1) has one view.
    """
    if point is None:
        point = (np.array(shape) - 1) / 2
        if label is not None and label.any():
            point = _center(label > 0)
    x, y, z = (int(round(float(p))) for p in point)
    axial = View(f"axial  z {z + 1}/{shape[2]}", 2, z, z, "R")
    if shape[2] == 1:
        return [axial]
    thick = min(shape[2], max(2, round(SLAB_MM / spacing[2])))
    first = min(max(z - thick // 2, 0), shape[2] - thick)
    if label is not None and vessel_class is not None and (label == vessel_class).any():
        # Vessel voxels below each plane; the difference over `thick` planes is the count of a slab.
        below = np.concatenate([[0], (label == vessel_class).sum((0, 1)).cumsum()])
        first = int((below[thick:] - below[:-thick]).argmax())
    return [
        axial,
        View(f"coronal  y {y + 1}/{shape[1]}", 1, y, y, "R"),
        View(f"sagittal  x {x + 1}/{shape[0]}", 0, x, x, "A"),
        View(f"axial MIP  {thick * spacing[2]:.0f} mm", 2, first, first + thick - 1, "R"),
    ]


def _center(mask: np.ndarray) -> np.ndarray:
    """(3,) mean voxel of a mask, from its profiles, as a list of its voxels takes gigabytes."""
    profiles = [mask.sum(axes) for axes in ((1, 2), (0, 2), (0, 1))]
    return np.array([np.average(np.arange(len(p)), weights=p) for p in profiles])


def _displayed(plane: np.ndarray, axis: int) -> np.ndarray:
    """Two remaining axes in RAS+ order -> rows from the top, columns from the left.

    x and y grow to the patient's right and anterior, which the display has on the left; z, and y of
    the axial plane, grow upwards. Both axes are therefore reversed in all three planes.
    """
    assert axis in (0, 1, 2)
    return plane[::-1, ::-1].T


def _tile_size(
    shape: Sequence[int], spacing: np.ndarray, axis: int, scale: float
) -> tuple[int, int]:
    """(width, height) in pixels of the plane across an axis; scale: pixels per mm."""
    across, up = (i for i in range(3) if i != axis)
    width, height = (max(1, round(float(shape[i] * spacing[i] * scale))) for i in (across, up))
    return width, height


def gray_tile(plane: np.ndarray, size: tuple[int, int], window: tuple[float, float]) -> np.ndarray:
    """HU (rows, columns) -> gray 0 to 255, size (width, height); interpolated, then windowed."""
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(plane, dtype=np.float32))
    hu = np.asarray(image.resize(size, Image.Resampling.BICUBIC))
    center, width = window
    return ((hu - (center - width / 2)) / width).clip(0, 1) * 255


def _overlay(tile: np.ndarray, labels: np.ndarray, vessel_class: int | None) -> None:
    """Paint classes over a tile (H, W, 3) in place: translucent, their outline and vessels opaque.

    Each class is enlarged as a smooth mask, and a pixel has the class of the largest mask value, so
    that edges have no steps.
    """
    from PIL import Image, ImageFilter

    height, width = tile.shape[:2]
    strongest = np.full((height, width), 0.5, dtype=np.float32)
    winner = np.zeros((height, width), dtype=np.int64)
    blur = ImageFilter.GaussianBlur(0.6 * width / labels.shape[1])  # 0.6 voxels, in pixels
    for k in np.unique(labels[labels > 0]):
        mask = Image.fromarray(np.where(labels == k, np.uint8(255), np.uint8(0)))
        mask = mask.resize((width, height), Image.Resampling.BILINEAR).filter(blur)
        # The smooth mask of a vessel one voxel wide stays below 0.5: its weight is raised.
        weight = np.asarray(mask) * np.float32((2.2 if k == vessel_class else 1.0) / 255)
        winner[weight > strongest] = k
        strongest = np.maximum(strongest, weight)
    edge = np.zeros((height, width), dtype=bool)
    edge[1:] |= winner[1:] != winner[:-1]
    edge[:, 1:] |= winner[:, 1:] != winner[:, :-1]
    for k in np.unique(winner[winner > 0]):
        mask = winner == k
        alpha = np.where(edge[mask], 0.9, 1.0 if k == vessel_class else 0.45)[:, None]
        tile[mask] = (1 - alpha) * tile[mask] + alpha * np.array(class_color(k), dtype=np.float32)


def class_color(k: int) -> Color:
    """The color of class k >= 1."""
    return COLORS[(int(k) - 1) % len(COLORS)]


def _legend(label: np.ndarray | None, scheme: LabelScheme) -> list[tuple[Color, str]]:
    """(color, name) of the classes that occur; numbers where the scheme is another one."""
    if label is None:
        return []
    present = [int(k) for k in np.unique(label) if k]
    if present and present[-1] >= scheme.num_classes:  # a label map of another scheme
        scheme = numbered_classes(present[-1] + 1, scheme.vessel)
    legend = [(class_color(k), scheme.names[k]) for k in present[: len(COLORS)]]
    if len(present) > len(COLORS):
        legend.append((PAPER, f"and {len(present) - len(COLORS)} more"))
    return legend


def _render_legend(
    draw: ImageDraw, legend: list[tuple[Color, str]], corner: tuple[int, int], width: int
) -> None:
    x, y = corner
    for color, name in legend:
        draw.rectangle((x, y + 7, x + 11, y + 18), fill=color)
        draw.text((x + 17, y + 5), name, INK, font(12))
        x += LEGEND_ENTRY
        if x + LEGEND_ENTRY > width:
            x, y = corner[0], y + BAR
