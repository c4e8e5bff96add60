"""A sheet: columns of tiles below their names, rows below their captions, with scale bars.

From the top: title and note; for each row a line with its caption and its scale bar, then its
tiles; the legend. The names of the columns stand above the first row. Needs Pillow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tubesynth.pictures.tiles import Color

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont

COLUMN, GAP, EDGE, LINE = 300, 8, 12, 24  # pixels
TITLE, TEXT = 16, 13  # heights of letters in pixels
BARS_MM, LONGEST_BAR = (1, 2, 5, 10, 20, 50, 100), 90  # pixels
PAPER, INK, FAINT = (16, 16, 18), (236, 236, 236), (170, 170, 175)


@dataclass(frozen=True)
class Row:
    """One tile per column, of one scale; the letter is written at the left edge of each."""

    caption: str
    tiles: Sequence[np.ndarray]  # uint8 (height, width, 3), at most COLUMN wide
    scale: float  # pixels per mm
    letter: str = ""


class Entry(NamedTuple):
    """An entry of the legend: a square, or a line."""

    color: Color
    name: str
    style: str = "square"  # square, solid or dotted


@lru_cache
def font(size: int) -> FreeTypeFont:
    """Pillow's own font at a size in pixels."""
    from PIL import ImageFont

    letters = ImageFont.load_default(size)
    assert isinstance(letters, ImageFont.FreeTypeFont), "Pillow was built without FreeType"
    return letters


def fitted(text: str, width: float, size: int = TEXT) -> str:
    """The text, cut short with an ellipsis where it is wider than `width` pixels."""
    letters = font(size)
    if letters.getlength(text) <= width:
        return text
    while text and letters.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"


def scale_bar(scale: float) -> tuple[int, int]:
    """(mm, pixels): the longest bar of BARS_MM that has at most LONGEST_BAR pixels."""
    length_mm = max((mm for mm in BARS_MM if mm * scale <= LONGEST_BAR), default=BARS_MM[0])
    return length_mm, round(length_mm * scale)


def sheet_width(columns: int) -> int:
    return 2 * EDGE + columns * (COLUMN + GAP) - GAP


def render_sheet(
    names: Sequence[str], rows: Sequence[Row], title: str, note: str, legend: Sequence[Entry]
) -> np.ndarray:
    """uint8 (H, sheet_width(len(names)), 3); names: of the columns; note: at the right edge."""
    from PIL import Image, ImageDraw

    width = sheet_width(len(names))
    lefts = [EDGE + i * (COLUMN + GAP) for i in range(len(names))]
    heights = [max(tile.shape[0] for tile in row.tiles) for row in rows]
    places = _legend_places(legend, width)
    top = EDGE + 2 * LINE
    bottom = top + sum(LINE + height + GAP for height in heights)
    height = bottom + (places[-1][1] + LINE if places else 0) + EDGE
    canvas = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(canvas)
    note_width = font(TITLE).getlength(note)
    draw.text((EDGE, EDGE), fitted(title, width - 3 * EDGE - note_width, TITLE), INK, font(TITLE))
    draw.text((width - EDGE, EDGE), note, INK, font(TITLE), anchor="ra")
    for left, name in zip(lefts, names, strict=True):
        draw.text((left, EDGE + LINE), fitted(name, COLUMN, TITLE), INK, font(TITLE))
    for row, tile_height in zip(rows, heights, strict=True):
        bar_left = _render_scale_bar(draw, row.scale, width - EDGE, top)
        draw.text((EDGE, top + 3), fitted(row.caption, bar_left - 2 * EDGE), FAINT, font(TEXT))
        top += LINE
        for left, tile in zip(lefts, row.tiles, strict=True):
            canvas.paste(Image.fromarray(tile), (left, top))
            middle = (left + 4, top + tile.shape[0] // 2)
            draw.text(middle, row.letter, INK, font(TEXT), "lm", stroke_width=2, stroke_fill=PAPER)
        top += tile_height + GAP
    for entry, (x, y) in zip(legend, places, strict=True):
        _render_entry(draw, entry, EDGE + x, bottom + y)
    return np.array(canvas)


def _render_scale_bar(draw: ImageDraw, scale: float, right: int, top: int) -> float:
    """A bar with its length, right-aligned in a row's line; returns its left end."""
    length_mm, length = scale_bar(scale)
    text, middle = f"{length_mm} mm", top + LINE // 2
    left = right - length
    draw.rectangle((left, middle - 1, right - 1, middle), INK)
    for x in (left, right - 1):
        draw.line((x, middle - 5, x, middle + 4), INK)
    draw.text((left - GAP, top + 3), text, INK, font(TEXT), anchor="ra")
    return left - GAP - font(TEXT).getlength(text)


def _legend_places(legend: Sequence[Entry], width: int) -> list[tuple[int, int]]:
    """(x, y) of each entry from the legend's corner, in as many lines as it takes."""
    places, x, y = [], 0, 0
    for entry in legend:
        entry_width = 22 + int(font(TEXT).getlength(entry.name)) + 2 * EDGE
        if x and x + entry_width > width - 2 * EDGE:
            x, y = 0, y + LINE
        places.append((x, y))
        x += entry_width
    return places


def _render_entry(draw: ImageDraw, entry: Entry, x: int, y: int) -> None:
    middle = y + LINE // 2
    if entry.style == "square":
        draw.rectangle((x, middle - 6, x + 13, middle + 6), outline=entry.color)
    else:
        step = 6 if entry.style == "dotted" else 3
        for start in range(x, x + 15, step):
            draw.line((start, middle, start + 3, middle), entry.color)
    draw.text((x + 22, y + 3), entry.name, INK, font(TEXT))
