"""Tiles of a panel: gray values with hatched gaps, outlines of classes, lines of vessels.

A tile is float32 or uint8 (height, width, 3); sizes are (width, height) in pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Color = tuple[int, int, int]

# Of classes 1, 2, ...; class 13 takes the first color again.
COLORS = (
    (110, 205, 110),
    (255, 130, 200),
    (255, 75, 75),
    (80, 205, 255),
    (95, 140, 255),
    (255, 155, 50),
    (190, 130, 255),
    (255, 236, 60),
    (0, 190, 170),
    (190, 230, 170),
    (205, 150, 105),
    (200, 200, 200),
)
CTA_WINDOW = (200.0, 800.0)  # center and width in HU: fat nearly black, contrast nearly white
HATCH, HATCH_PAPER, HATCH_STEP = (120, 120, 135), (44, 44, 52), 8  # a line every 8 pixels


@dataclass(frozen=True)
class Line:
    """A centreline, one pixel wide; of a dotted one each second step between its points."""

    position_mm: np.ndarray  # (N, 3) from the volume's middle, nan where nothing is rendered
    branch: np.ndarray  # (N,) points of one branch are joined
    color: Color
    dotted: bool = False


def class_color(k: int) -> Color:
    """The color of class k >= 1."""
    return COLORS[(int(k) - 1) % len(COLORS)]


def display_window(hu_window: Sequence[float], are_pictures: bool) -> tuple[float, float]:
    """(center, width): of pictures of gray values, from 0 on, the whole window of the model."""
    low, high = hu_window
    return ((low + high) / 2, high - low) if are_pictures and low >= 0 else CTA_WINDOW


def ct_tile(
    hu: np.ndarray, size: tuple[int, int], window: tuple[float, float] = CTA_WINDOW
) -> np.ndarray:
    """HU (rows, columns) -> uint8 tile; nan, no data, is hatched. window: (center, width)."""
    from PIL import Image

    center, width = window
    low, missing = center - width / 2, np.isnan(hu)
    image = Image.fromarray(np.where(missing, low, hu).astype(np.float32))
    # interpolated, then windowed
    gray = (np.asarray(image.resize(size, Image.Resampling.BICUBIC)) - low) / width
    tile = np.repeat((gray.clip(0, 1) * 255)[..., None], 3, axis=2).astype(np.uint8)
    if missing.any():
        gap = np.asarray(Image.fromarray(missing).resize(size, Image.Resampling.NEAREST))
        line = np.indices(gap.shape).sum(0) % HATCH_STEP == 0
        tile[gap] = np.where(line[..., None], HATCH, HATCH_PAPER)[gap]
    return tile


def class_tile(labels: np.ndarray, size: tuple[int, int], vessel_class: int) -> np.ndarray:
    """(rows, columns) class indices -> (height, width), with edges that have no steps.

    Each class is enlarged as a smooth mask, and a pixel has the class of the largest mask value.
    """
    from PIL import Image, ImageFilter

    width, height = size
    strongest = np.full((height, width), 0.5, dtype=np.float32)
    classes = np.zeros((height, width), dtype=np.int64)
    blur = ImageFilter.GaussianBlur(0.6 * width / labels.shape[1])  # 0.6 voxels, in pixels
    for k in np.unique(labels[labels > 0]):
        mask = Image.fromarray(np.where(labels == k, np.uint8(255), np.uint8(0)))
        mask = mask.resize(size, Image.Resampling.BILINEAR).filter(blur)
        # The smooth mask of a vessel one voxel wide stays below 0.5: its weight is raised.
        weight = np.asarray(mask) * np.float32((2.2 if k == vessel_class else 1.0) / 255)
        classes[weight > strongest] = k
        strongest = np.maximum(strongest, weight)
    return classes


def render_outlines(tile: np.ndarray, classes: np.ndarray) -> None:
    """Colors, in place, each pixel of a class (height, width) next to a lower class.

    The line between two classes is so one pixel wide, in the color of the higher one.
    """
    padded = np.pad(classes, 1, mode="edge")
    neighbors = padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]
    border = np.any([classes > neighbor for neighbor in neighbors], axis=0)
    for k in np.unique(classes[border]):
        tile[border & (classes == k)] = class_color(k)


def render_line(tile: np.ndarray, pixels: np.ndarray, line: Line) -> None:
    """The line through the pixels (N, 2) of its points, in place; nan leaves out a point."""
    from PIL import Image, ImageDraw

    picture = Image.fromarray(tile)
    draw = ImageDraw.Draw(picture)
    segments = np.concatenate([pixels[:-1], pixels[1:]], axis=1)  # (N - 1, 4)
    segments = segments[np.isfinite(segments).all(1) & (np.diff(line.branch) == 0)]
    for x0, y0, x1, y1 in segments[:: 2 if line.dotted else 1].tolist():
        draw.line((x0, y0, x1, y1), line.color)
    tile[:] = picture


def side_by_side(tiles: Sequence[np.ndarray], gap: int, paper: Color) -> np.ndarray:
    """Tiles in a row, aligned at the top."""
    height = max(tile.shape[0] for tile in tiles)
    width = sum(tile.shape[1] + gap for tile in tiles) - gap
    row = np.full((height, width, 3), paper, dtype=np.uint8)
    left = 0
    for tile in tiles:
        row[: tile.shape[0], left : left + tile.shape[1]] = tile
        left += tile.shape[1] + gap
    return row
