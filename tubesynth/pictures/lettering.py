"""Text on pictures: names of any length, fitted into a width in pixels. Needs Pillow."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont

LINE_HEIGHT = 1.2  # times the size of the letters
ROW_NAME_SIZE = 14  # pixels


@lru_cache
def font(size: int) -> FreeTypeFont:
    """Pillow's own font at a size in pixels."""
    from PIL import ImageFont

    letters = ImageFont.load_default(size)
    assert isinstance(letters, ImageFont.FreeTypeFont), "Pillow was built without FreeType"
    return letters


def fitted(text: str, width: float, size: int) -> str:
    """The text, cut short with an ellipsis where it is wider than `width` pixels."""
    letters = font(size)
    if letters.getlength(text) <= width:
        return text
    while text and letters.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"


def wrapped(text: str, width: float, size: int, max_lines: int) -> list[str]:
    """At most max_lines lines of the text, broken after spaces, hyphens, dots and underscores."""
    letters, lines = font(size), [""]
    for word in re.findall(r"[^ _.+-]*[ _.+-]?", text):
        if lines[-1] and letters.getlength((lines[-1] + word).rstrip()) > width:
            lines.append("")
        lines[-1] += word
    if len(lines) > max_lines:
        lines[max_lines - 1 :] = ["".join(lines[max_lines - 1 :])]
    return [fitted(line.rstrip(), width, size) for line in lines]


def render_row_name(
    canvas: ImageDraw,
    name: str,
    left: int,
    center: float,
    width: float,
    max_height: float,
    color: tuple[int, int, int],
) -> None:
    """A row's name in the margin of a picture, its lines about the height `center`; in pixels."""
    step = LINE_HEIGHT * ROW_NAME_SIZE
    lines = wrapped(name, width, ROW_NAME_SIZE, max(1, int(max_height / step)))
    for number, line in enumerate(lines):
        y = center + (number - len(lines) / 2) * step
        canvas.text((left, round(y)), line, color, font(ROW_NAME_SIZE))
