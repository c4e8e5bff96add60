"""Distance against evaluations, one line a solver, both axes logarithmic: one SVG file.

Colors, type and geometry are those of the charts of `evaluate`; it follows a dark page too.
"""

import html
import math

from tubesynth.report.charts import BOTTOM, HEIGHT, LEFT, TOP, WIDTH, height_of, text
from tubesynth.report.style import STYLE

NAMES, NAME_HEIGHT = 62, 13  # room for the names at the ends of the lines
ROUND = (1, 2, 5)


def picture(lines: dict[str, list[tuple[float, float]]], x_label: str, y_label: str) -> str:
    """lines: {name: [(x, y), ...]}, a y of 0 (the reference itself) is left out."""
    lines = {name: sorted(p for p in points if p[1] > 0) for name, points in lines.items()}
    lines = {name: points for name, points in lines.items() if points}
    (left, right), (low, high) = (
        (min(values) / 1.2, max(values) * 1.2)
        for values in zip(*(p for points in lines.values() for p in points), strict=True)
    )

    def across(x: float) -> float:
        share = math.log(x / left) / math.log(right / left)
        return LEFT + share * (WIDTH - NAMES - LEFT)

    def up(y: float) -> float:
        return height_of(math.log(y), math.log(low), math.log(high))

    elements = [text((LEFT + WIDTH - NAMES) / 2, HEIGHT - 5, x_label, "middle")]
    middle = (TOP + HEIGHT - BOTTOM) / 2
    turned = f'transform="translate(12 {middle:.0f}) rotate(-90)"'
    elements.append(text(0, 0, y_label, "middle", turned))
    for tick in round_numbers(left, right):
        elements.append(text(across(tick), HEIGHT - BOTTOM + 15, f"{tick:g}", "middle"))
    for tick in round_numbers(low, high):
        y = up(tick)
        across_all = f'x1="{LEFT}" x2="{WIDTH - NAMES}" y1="{y:.1f}" y2="{y:.1f}"'
        elements.append(
            f'<line class="grid" {across_all}/>{text(LEFT - 6, y + 4, f"{tick:g}", "end")}'
        )
    ends = []
    for k, (name, points) in enumerate(lines.items()):
        places = [(across(x), up(y)) for x, y in points]
        track = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        elements.append(f'<polyline class="s{k} line" style="fill: none" points="{track}"/>')
        for (x, y), (count, distance) in zip(places, points, strict=True):
            title = f"<title>{html.escape(name)}: {count:g}, {distance:.3g}</title>"
            dot = f'<circle class="s{k}" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>'
            elements.append(f"<g>{title}{dot}</g>")
        ends.append((*places[-1][::-1], k, name))
    named: list[tuple[float, float]] = []
    for y, x, k, name in sorted(ends):  # a name moves below those it would cover
        while any(abs(x - a) < NAMES and abs(y - b) < NAME_HEIGHT for a, b in named):
            y += 1
        named.append((x, y))
        where = f'class="s{k}" style="stroke: none" x="{x + 7:.1f}" y="{y + 4:.1f}"'
        elements.append(text(0, 0, name, "start", where))
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" xmlns="http://www.w3.org/2000/svg" '
        f'font-family="system-ui, sans-serif"><style>{STYLE}</style>'
        f'<rect width="{WIDTH}" height="{HEIGHT}" style="fill: var(--paper)"/>'
        f"{''.join(elements)}</svg>\n"
    )


def round_numbers(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten; the powers alone where the range is wide."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = ROUND if len(decades) <= 4 else ROUND[:1]
    numbers = (factor * 10.0**k for k in decades for factor in factors)
    return [number for number in numbers if low <= number <= high]
