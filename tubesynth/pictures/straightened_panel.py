"""The straightened panel of a case: one coronary in each image, from its root on the left.

Each row has the strip along the vessel with the outline of the label map's radius, and below it
planes across the vessel. Needs Pillow and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from tubesynth.pictures.lettering import fitted, font, render_row_name
from tubesynth.pictures.panel import CTA_WINDOW, FAINT, INK, PAPER, gray_tile

if TYPE_CHECKING:
    from PIL.Image import Image

SCALE, MAX_WIDTH, MIN_WIDTH = 6.0, 1200, 320  # pixels per mm; pixels of a strip
SECTION, MARGIN, GAP, BAR = 92, 116, 6, 26  # pixels
OUTLINE = (255, 200, 60)


def render_straightened(
    images: Mapping[str, tuple[np.ndarray, Sequence[np.ndarray]]],
    length_mm: float,
    half_width_mm: float,
    radius_mm: np.ndarray,
    at_mm: Sequence[float] | np.ndarray,
    title: str = "",
) -> np.ndarray:
    """uint8 (H, W, 3).

    images: {caption: (strip (W, K) HU, sections [(M, M) HU])}, nan outside the CT; the strip spans
    length_mm by 2 half_width_mm, a section 2 half_width_mm squared; radius_mm: (K,); at_mm: the
    positions of the sections along the vessel.
    """
    from PIL import Image, ImageDraw

    scale = min(SCALE, MAX_WIDTH / length_mm)
    strip_size = max(int(length_mm * scale), MIN_WIDTH), int(2 * half_width_mm * scale)
    wide, high = strip_size
    section_size = min(SECTION, (wide - GAP * (len(at_mm) - 1)) // max(len(at_mm), 1))
    row_height = high + GAP + section_size + 3 * GAP
    width = MARGIN + wide + GAP
    canvas = Image.new("RGB", (width, BAR + len(images) * row_height + BAR), PAPER)
    draw = ImageDraw.Draw(canvas)
    draw.text((8, 6), fitted(title, width - 16, 15), INK, font(15))
    columns = np.linspace(0, wide - 1, len(radius_mm))
    for number, (caption, (strip, sections)) in enumerate(images.items()):
        y = BAR + number * row_height
        canvas.paste(_gray_picture(strip, strip_size), (MARGIN, y))
        for sign in (-1, 1):
            edge = y + high / 2 + sign * np.asarray(radius_mm) * high / (2 * half_width_mm)
            outline = [(MARGIN + a, b) for a, b in zip(columns, edge, strict=True)]
            draw.line(outline, OUTLINE, 1)
        render_row_name(draw, caption, 8, y + high / 2, MARGIN - 16, high, INK)
        y += high + GAP
        half = section_size / 2
        for along_mm, section in zip(at_mm, sections, strict=True):
            # The section lies below its position on the strip, and within the row.
            left = min(max(along_mm * wide / length_mm - half, 0), wide - section_size)
            x = MARGIN + int(left)
            canvas.paste(_gray_picture(section, (section_size, section_size)), (x, y))
            r = float(np.interp(along_mm, np.linspace(0, length_mm, len(radius_mm)), radius_mm))
            r *= section_size / (2 * half_width_mm)
            box = (x + half - r, y + half - r, x + half + r, y + half + r)
            draw.ellipse(box, outline=OUTLINE)
            if number == len(images) - 1:
                place = f"{along_mm:.0f} mm"
                if font(12).getlength(place) > section_size - GAP:  # no room for the unit
                    place = f"{along_mm:.0f}"
                draw.text((x, y + section_size + 4), place, FAINT, font(12))
    return np.array(canvas)


def _gray_picture(plane: np.ndarray, size: tuple[int, int]) -> Image:
    """HU, nan as air -> a gray picture of size (width, height) in the CTA window."""
    from PIL import Image

    tile = gray_tile(np.nan_to_num(plane, nan=-1000.0), size, CTA_WINDOW)
    return Image.fromarray(tile.astype(np.uint8))
