"""A coronary pulled straight, in each image of a case: the vessel from left to right, its outline
by the label map's radius, and planes across it below. Needs Pillow and nothing else.
"""

import numpy as np

from tubesynth.pictures.lettering import draw_margin, fitted, font
from tubesynth.pictures.panel import CTA_WINDOW, FAINT, INK, PAPER, grey_tile

SCALE = 6.0  # pixels a mm
SECTION, MARGIN, GAP, BAR = 92, 116, 6, 26  # pixels
OUTLINE = (255, 200, 60)


def draw_straightened(images, length_mm, half_width_mm, radius_mm, at_mm, title="") -> np.ndarray:
    """uint8 (H, W, 3).

    images: {caption: (strip (W, K) HU, sections [(M, M) HU])}, nan outside the CT; the strip spans
    length_mm by 2 half_width_mm, a section 2 half_width_mm squared; radius_mm: (K,); at_mm: where
    along the vessel the sections lie.
    """
    from PIL import Image, ImageDraw

    scale = min(SCALE, 1200 / length_mm)
    wide, high = max(int(length_mm * scale), 320), int(2 * half_width_mm * scale)
    each = min(SECTION, (wide - GAP * (len(at_mm) - 1)) // max(len(at_mm), 1))
    row_height = high + GAP + each + 3 * GAP
    width = MARGIN + wide + GAP
    canvas = Image.new("RGB", (width, BAR + len(images) * row_height + BAR), PAPER)
    draw = ImageDraw.Draw(canvas)
    draw.text((8, 6), fitted(title, width - 16, 15), INK, font(15))
    columns = np.linspace(0, wide - 1, len(radius_mm))
    for number, (caption, (strip, sections)) in enumerate(images.items()):
        y = BAR + number * row_height
        canvas.paste(_picture(strip, (wide, high)), (MARGIN, y))
        for side in (-1, 1):
            edge = y + high / 2 + side * np.asarray(radius_mm) * high / (2 * half_width_mm)
            outline = [(MARGIN + a, b) for a, b in zip(columns, edge, strict=True)]
            draw.line(outline, OUTLINE, 1)
        draw_margin(draw, caption, 8, y + high / 2, MARGIN - 16, high, INK)
        y += high + GAP
        for where, section in zip(at_mm, sections, strict=True):
            # Under the place where it lies, as far as the row has room.
            x = MARGIN + int(min(max(where * wide / length_mm - each / 2, 0), wide - each))
            canvas.paste(_picture(section, (each, each)), (x, y))
            r = np.interp(where, np.linspace(0, length_mm, len(radius_mm)), radius_mm)
            r *= each / (2 * half_width_mm)
            middle = x + each / 2, y + each / 2
            box = (middle[0] - r, middle[1] - r, middle[0] + r, middle[1] + r)
            draw.ellipse(box, outline=OUTLINE)
            if number == len(images) - 1:
                place = f"{where:.0f} mm"
                if font(12).getlength(place) > each - GAP:  # its neighbour's would follow at once
                    place = f"{where:.0f}"
                draw.text((x, y + each + 4), place, FAINT, font(12))
    return np.array(canvas)


def _picture(plane, size):
    """HU with nan (shown as air) -> a grey picture of the CTA window."""
    from PIL import Image

    tile = grey_tile(np.nan_to_num(plane, nan=-1000.0), size, CTA_WINDOW)
    return Image.fromarray(tile.astype(np.uint8))
