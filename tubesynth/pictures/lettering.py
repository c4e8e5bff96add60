"""Words on pictures: names of any length, fitted into the pixels that there are. Needs Pillow."""

import re
from functools import lru_cache

LINE_HEIGHT = 1.2  # times the size of the letters


@lru_cache
def font(size: int):
    from PIL import ImageFont

    return ImageFont.load_default(size)


def fitted(text: str, width: float, size: int) -> str:
    """The text, cut short with an ellipsis where it is wider than `width` pixels."""
    letters = font(size)
    if letters.getlength(text) <= width:
        return text
    while text and letters.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"


def wrapped(text: str, width: float, size: int, most: int) -> list[str]:
    """At most `most` lines of the text, broken after spaces, hyphens, dots and underscores."""
    letters, lines = font(size), [""]
    for part in re.findall(r"[^ _.+-]*[ _.+-]?", text):
        if lines[-1] and letters.getlength((lines[-1] + part).rstrip()) > width:
            lines.append("")
        lines[-1] += part
    if len(lines) > most:
        lines[most - 1 :] = ["".join(lines[most - 1 :])]
    return [fitted(line.rstrip(), width, size) for line in lines]


def draw_margin(draw, text: str, left: int, middle: float, width: float, most_height: float, ink):
    """A row's name in the margin, its lines about the height `middle`."""
    size = 14
    step = LINE_HEIGHT * size
    lines = wrapped(text, width, size, max(1, int(most_height / step)))
    for number, line in enumerate(lines):
        y = middle + (number - len(lines) / 2) * step
        draw.text((left, round(y)), line, ink, font(size))
