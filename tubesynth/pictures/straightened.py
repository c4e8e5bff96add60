"""The straightened rows of a panel: the main coronaries from their roots down, and planes across.

A strip is a plane along a path, in the frame of volume/straighten.py; the sections are planes
across the first path. In the label map's column they have the outline of its radius.
"""

from collections.abc import Callable, Sequence

import numpy as np

from tubesynth.pictures.sheet import COLUMN, FAINT, GAP, PAPER, TEXT, Row, fitted, font
from tubesynth.pictures.tiles import COLORS, Line, ct_tile, render_line, side_by_side
from tubesynth.volume.polyline import point_tree
from tubesynth.volume.straighten import VesselPath

STRIPS, STRIP_SCALE, LONGEST_STRIP = 3, 4.0, 520  # pixels per mm; pixels
SECTIONS, SECTION_SCALE = 5, 5.0
SAMPLE_MM = 0.25  # between the points that are read from a CT
TEXT_HEIGHT = 54  # pixels above a strip: three lines
IN_PLANE_MM = 1.5  # largest distance of a centreline from the plane of a strip that shows it
AIR_HU = -1000.0
# Before interpolation: scanner padding (SCANNER_PADDING_HU) stays below air, metal does not ring.
PICTURE_RANGE_HU = (-1200.0, 1000.0)
RADIUS = COLORS[7]  # as the coronary arteries of nine classes

Reader = Callable[[np.ndarray], np.ndarray]  # (..., 3) mm -> (...) HU


def straightened_rows(
    paths: Sequence[VesselPath],
    arrays: Sequence[np.ndarray],
    spacing: np.ndarray,
    has_label_map: bool,
    lines: Sequence[Line],
    name_of: Callable[[VesselPath], str],
) -> list[Row]:
    """A row with the strips of at most STRIPS paths, and a row with sections of the first path."""
    if not paths:
        return []
    paths = paths[:STRIPS]
    scale = min(STRIP_SCALE, LONGEST_STRIP / max(path.along_mm[-1] for path in paths))
    strip_width = (COLUMN - (STRIPS - 1) * GAP) // STRIPS
    along = np.linspace(0, len(paths[0].along_mm) - 1, SECTIONS + 2).astype(int)[1:-1]
    section_width = (COLUMN - (SECTIONS - 1) * GAP) // SECTIONS
    strips, sections = [], []
    columns = [(reader(array, spacing), False) for array in arrays]
    if has_label_map:
        columns.append((columns[0][0], True))
    for read, outlined in columns:
        tiles = [strip_tile(path, read, strip_width, scale, lines, outlined) for path in paths]
        tiles = [described(tile, path, name_of) for tile, path in zip(tiles, paths, strict=True)]
        strips.append(side_by_side(tiles, GAP, PAPER))
        tiles = [section_tile(paths[0], row, read, section_width, outlined) for row in along]
        sections.append(side_by_side(tiles, GAP, PAPER))
    places = ", ".join(f"{paths[0].along_mm[row]:.0f}" for row in along)
    return [
        Row(
            "straightened, root at the top, with the median radius; hatched: no image there",
            strips,
            scale,
        ),
        Row(f"across {name_of(paths[0])} at {places} mm", sections, SECTION_SCALE),
    ]


def strip_tile(
    path: VesselPath,
    read: Reader,
    width: int,
    scale: float,
    lines: Sequence[Line],
    outlined: bool,
) -> np.ndarray:
    """The plane along a path, its root at the top; outlined: with the path's radius."""
    from PIL import Image, ImageDraw

    height = max(1, round(path.along_mm[-1] * scale))
    hu = read(path.strip(width / scale / 2, SAMPLE_MM))  # (W, K)
    tile = ct_tile(hu.T, (width, height))
    rows, tree = path.along_mm * scale, point_tree(path.position_mm)
    for line in lines:
        # each point of the line in the frame of the path's point that is nearest to it
        nearest = tree.query(np.nan_to_num(line.position_mm))[1]
        offset = line.position_mm - path.position_mm[nearest]
        across = (offset * path.normal[nearest]).sum(1)
        depth = (offset * path.binormal[nearest]).sum(1)
        pixels = np.column_stack([width / 2 + across * scale, rows[nearest]])
        pixels[(np.abs(depth) > IN_PLANE_MM) | (np.abs(across) > width / scale / 2)] = np.nan
        render_line(tile, pixels, line)
    if outlined:
        picture = Image.fromarray(tile)
        for sign in (-1, 1):
            x = width / 2 + sign * path.radius_mm * scale
            ImageDraw.Draw(picture).line(list(zip(x, rows, strict=True)), RADIUS)
        tile = np.array(picture)
    return tile


def section_tile(
    path: VesselPath, row: int, read: Reader, width: int, outlined: bool
) -> np.ndarray:
    """The plane across a path at one of its points."""
    from PIL import Image, ImageDraw

    positions = path.section(row, width / SECTION_SCALE / 2, SAMPLE_MM)
    tile = ct_tile(read(positions), (width, width))
    if not outlined:
        return tile
    picture = Image.fromarray(tile)
    center, radius = (width - 1) / 2, float(path.radius_mm[row]) * SECTION_SCALE
    ImageDraw.Draw(picture).circle((center, center), radius, outline=RADIUS)
    return np.array(picture)


def described(
    tile: np.ndarray, path: VesselPath, name_of: Callable[[VesselPath], str]
) -> np.ndarray:
    """The tile below its path's name, length and median radius."""
    from PIL import Image, ImageDraw

    height, width, _ = tile.shape
    picture = Image.new("RGB", (width, TEXT_HEIGHT + height), PAPER)
    draw, radius_mm = ImageDraw.Draw(picture), float(np.median(path.radius_mm))
    texts = name_of(path), f"{path.along_mm[-1]:.0f} mm", f"radius {radius_mm:.1f} mm"
    for number, text in enumerate(texts):
        color = FAINT if number else RADIUS
        draw.text((0, number * TEXT_HEIGHT // 3), fitted(text, width), color, font(TEXT))
    picture.paste(Image.fromarray(tile), (0, TEXT_HEIGHT))
    return np.array(picture)


def reader(array: np.ndarray, spacing: np.ndarray) -> Reader:
    """Cubic HU of an image (X, Y, Z) at positions (..., 3) mm from its middle.

    nan outside of its voxels and where the nearest voxel is nan.
    """
    from scipy.ndimage import map_coordinates, spline_filter

    no_data = np.isnan(array)
    coefficients = spline_filter(np.where(no_data, AIR_HU, array.clip(*PICTURE_RANGE_HU))).astype(
        np.float32
    )

    def read(position_mm: np.ndarray) -> np.ndarray:
        index = position_mm / spacing + (np.array(array.shape) - 1) / 2
        index = np.moveaxis(index, -1, 0)  # (3, ...)
        hu = map_coordinates(coefficients, index, order=3, mode="mirror", prefilter=False)
        outside = map_coordinates(no_data, index, order=0, mode="constant", cval=True)
        return np.where(outside, np.nan, hu)

    return read
