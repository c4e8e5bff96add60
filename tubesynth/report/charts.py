"""Charts as inline SVG: dots with intervals by group, and one curve over a count.

Colors come from the page's style sheet (classes s0 to s9; text and axes have its ink), so a chart
is readable on a light page, on a dark page and in print. Series names stand below a chart, where a
name of any length has room. Plain strings; no plotting library is needed.
"""

import html
import math
from collections.abc import Iterable, Sequence

from tubesynth.metrics.summary import Stat

Stats = dict[str, Stat]  # {METRIC or series: STAT}

WIDTH, HEIGHT = 560, 260  # of the view box; the page scales the picture
LEFT, RIGHT, TOP, BOTTOM = 72, 12, 14, 40
TICK_ROOM = 36  # pixels that the number under a point takes
NUM_COLORS = 10  # of style.py; an eleventh series takes the first color again


def dots(
    groups: dict[str, Stats], label: str, lowest: float = 0.0, highest: float | None = None
) -> str:
    """One column of dots a group, one dot a series with its 95 % interval; "" without a mean.

    groups: {group: {series: STAT}}; label: of the vertical axis; lowest, highest: its ends.
    """
    series = list(dict.fromkeys(name for stats in groups.values() for name in stats))
    values = [value for stats in groups.values() for stat in stats.values() for value in ends(stat)]
    if not values:
        return ""
    low, high = axis_range(values, lowest, highest)
    elements = [grid(low, high, label)]
    step = (WIDTH - LEFT - RIGHT) / len(groups)
    for i, (group, stats) in enumerate(groups.items()):
        center = LEFT + (i + 0.5) * step
        elements.append(text(center, HEIGHT - BOTTOM + 18, group, "middle"))
        for k, name in enumerate(series):
            stat = stats.get(name)
            if stat is None or stat["mean"] is None:
                continue
            x = center + (k - (len(series) - 1) / 2) * min(26.0, step / (len(series) + 1))
            elements.append(point(x, stat, low, high, k, name))
    return chart(
        elements, {name: f'<i class="{color_class(k)}"></i>' for k, name in enumerate(series)}
    )


def curve(
    points: dict[str, tuple[float, Stat]],
    x_label: str,
    label: str,
    references: Sequence[tuple[str, float]] = (),
) -> str:
    """STATs over a count on a logarithmic axis; "" where no point has a mean and a count above 0.

    points: {name: (count, STAT)}, numbered in the chart as in the list of names below it;
    references: (name, mean), each a dashed line.
    """
    defined = {
        name: (count, mean, stat)
        for name, (count, stat) in points.items()
        if (mean := stat["mean"]) is not None and count > 0
    }
    if not defined:
        return ""
    ordered = sorted(defined.items(), key=lambda item: item[1][0])
    values = [value for _, (*_, stat) in ordered for value in ends(stat)]
    low, high = axis_range([*values, *(mean for _, mean in references)])
    counts = [count for _, (count, *_) in ordered]
    first, last = math.log(counts[0] / 1.3), math.log(counts[-1] * 1.3)

    def x_of(count: float) -> float:
        return LEFT + (math.log(count) - first) / (last - first) * (WIDTH - LEFT - RIGHT)

    elements = [grid(low, high, label), text((LEFT + WIDTH) / 2, HEIGHT - 5, x_label, "middle")]
    for k, (name, mean) in enumerate(references, start=1):
        y = height_of(mean, low, high)
        elements.append(
            f'<line class="{color_class(k)} dashed" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" '
            f'y2="{y:.1f}"/>' + text(WIDTH - RIGHT - 4, y - 5, name, "end")
        )
    line = " ".join(
        f"{x_of(count):.1f},{height_of(mean, low, high):.1f}" for _, (count, mean, _) in ordered
    )
    elements.append(f'<polyline class="s0 line" points="{line}"/>')
    next_free, legend = 0.0, {}
    for number, (name, (count, mean, stat)) in enumerate(ordered, start=1):
        x = x_of(count)
        elements.append(point(x, stat, low, high, 0, name))
        elements.append(text(x + 8, height_of(mean, low, high) + 16, number, "start"))
        legend[name] = f"<b>{number}</b> "
        if x >= next_free:
            elements.append(text(x, HEIGHT - BOTTOM + 15, f"{count:g}", "middle"))
            next_free = x + TICK_ROOM
    return chart(elements, legend)


def ends(stat: Stat) -> list[float]:
    """The mean and the two ends of its interval, without those that are undefined."""
    return [value for value in (stat["mean"], *stat["ci95"]) if value is not None]


def axis_range(
    values: Sequence[float], lowest: float | None = None, highest: float | None = None
) -> tuple[float, float]:
    """The ends of an axis: lowest and highest, or 12 % beyond the values where these are None."""
    low, high = min(values), max(values)
    margin = 0.12 * (high - low) or 0.1 * abs(high) or 1.0
    low = min(lowest, low) if lowest is not None else low - margin
    return low, highest if highest is not None else high + margin


def height_of(value: float, low: float, high: float) -> float:
    """Vertical pixel of a value on an axis from low to high, cut off at its ends."""
    share = (min(max(value, low), high) - low) / (high - low)
    return HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - TOP)


def grid(low: float, high: float, label: str) -> str:
    """At most seven horizontal lines at round numbers, and the name of the vertical axis."""
    # The step is 1, 2, 5 or 10 times a power of ten: the first that makes at most 6 intervals.
    step = 10 ** math.floor(math.log10((high - low) / 3))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= 6)
    lines = []
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    for count in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1):
        tick = count * step  # not a running sum, which would print a 0 as -0.0
        y = height_of(tick, low, high)
        lines.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        lines.append(text(LEFT - 6, y + 4, f"{tick:.{digits}f}", "end"))
    center = (TOP + HEIGHT - BOTTOM) / 2
    name = text(0, 0, label, "middle", f'transform="translate(14 {center:.0f}) rotate(-90)"')
    return "".join(lines) + name


def point(x: float, stat: Stat, low: float, high: float, k: int, name: str) -> str:
    """A dot of the k-th series, its interval as a bar, and its numbers as a tooltip."""
    mean = stat["mean"]
    assert mean is not None, "a point without a mean has no place"
    y = height_of(mean, low, high)
    interval = [value for value in stat["ci95"] if value is not None]
    tooltip, bar = f"{name}: {mean:.3f}", ""
    if interval:
        tooltip += f" [{interval[0]:.3f}, {interval[1]:.3f}]"
        y1, y2 = (height_of(value, low, high) for value in interval)
        bar = (
            f'<line class="{color_class(k)} bar" x1="{x:.1f}" x2="{x:.1f}" y1="{y1:.1f}" '
            f'y2="{y2:.1f}"/>'
        )
    title = f"<title>{html.escape(tooltip)}</title>"
    dot = f'<circle class="{color_class(k)}" cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>'
    return f"<g>{title}{bar}{dot}</g>"


def text(x: float, y: float, content: object, anchor: str, attributes: str = "") -> str:
    """An SVG text; attributes, where present, take the place of x and y."""
    place = attributes or f'x="{x:.1f}" y="{y:.1f}"'
    return f'<text {place} text-anchor="{anchor}">{html.escape(str(content))}</text>'


def color_class(k: int) -> str:
    """The style class of the k-th series."""
    return f"s{k % NUM_COLORS}"


def chart(elements: Iterable[str], legend: dict[str, str]) -> str:
    """The picture and, below it, the names of its series, each after its mark: {name: mark}."""
    picture = (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" xmlns="http://www.w3.org/2000/svg">'
        f"{''.join(elements)}</svg>"
    )
    names = "".join(f"<span>{mark}{html.escape(name)}</span>" for name, mark in legend.items())
    return f'<div class="chart">{picture}<p class="key">{names}</p></div>'
