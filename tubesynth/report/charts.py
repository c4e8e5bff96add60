"""Charts as inline SVG: dots with intervals by group, and one curve over a count.

Colours come from the page's style sheet (classes s0 to s9; currentColor for axes), so that a chart
follows a dark page and prints in ink. Names stand below a chart, where any length has room. Plain
strings; no plotting library is needed.
"""

import html
import math

WIDTH, HEIGHT = 560, 260
LEFT, RIGHT, TOP, BOTTOM = 64, 12, 14, 40
TICK_ROOM = 30  # pixels that the number under a point takes
COLOURS = 10  # of style.py; an eleventh series takes the first one again


def dots(groups: dict[str, dict[str, dict]], label: str, lowest=0.0, highest=None) -> str:
    """One column of dots a group, one dot a series with its 95 % interval.

    groups: {group: {series: STAT}}; label: of the vertical axis.
    """
    series = list(dict.fromkeys(s for stats in groups.values() for s in stats))
    values = [
        v
        for stats in groups.values()
        for stat in stats.values()
        for v in (stat["mean"], *stat["ci95"])
        if v is not None
    ]
    if not values:
        return ""
    low, high = span(values, lowest, highest)
    parts = [grid(low, high, label)]
    step = (WIDTH - LEFT - RIGHT) / len(groups)
    for i, (group, stats) in enumerate(groups.items()):
        middle = LEFT + (i + 0.5) * step
        parts.append(text(middle, HEIGHT - BOTTOM + 18, group, "middle"))
        for k, name in enumerate(series):
            stat = stats.get(name)
            if stat is None or stat["mean"] is None:
                continue
            x = middle + (k - (len(series) - 1) / 2) * min(26.0, step / (len(series) + 1))
            parts.append(point(x, stat, low, high, k, name))
    return svg(parts, {name: f'<i class="{colour(k)}"></i>' for k, name in enumerate(series)})


def curve(points: dict[str, tuple[float, dict]], x_label: str, label: str, others=()) -> str:
    """STATs over a count on a logarithmic axis; dashed lines for others: (name, mean).

    points: {name: (count, STAT)}; a number at each says which name below is its.
    """
    known = {n: (x, s) for n, (x, s) in points.items() if s["mean"] is not None and x > 0}
    if not known:
        return ""
    ordered = sorted(known.items(), key=lambda item: item[1][0])
    values = [v for _, (_, s) in ordered for v in (s["mean"], *s["ci95"]) if v is not None]
    low, high = span([*values, *(mean for _, mean in others)])
    counts = [x for _, (x, _) in ordered]
    first, last = math.log(counts[0] / 1.3), math.log(counts[-1] * 1.3)

    def at(count):
        return LEFT + (math.log(count) - first) / (last - first) * (WIDTH - LEFT - RIGHT)

    parts = [grid(low, high, label), text((LEFT + WIDTH) / 2, HEIGHT - 5, x_label, "middle")]
    for k, (name, mean) in enumerate(others, start=1):
        y = height_of(mean, low, high)
        parts.append(
            f'<line class="{colour(k)} dashed" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" '
            f'y2="{y:.1f}"/>' + text(WIDTH - RIGHT - 4, y - 5, name, "end")
        )
    track = " ".join(f"{at(x):.1f},{height_of(s['mean'], low, high):.1f}" for _, (x, s) in ordered)
    parts.append(f'<polyline class="s0 line" points="{track}"/>')
    free, keys = 0.0, {}
    for number, (name, (x, stat)) in enumerate(ordered, start=1):
        parts.append(point(at(x), stat, low, high, 0, name))
        parts.append(text(at(x) + 8, height_of(stat["mean"], low, high) + 16, number, "start"))
        keys[name] = f"<b>{number}</b> "
        if at(x) >= free:
            parts.append(text(at(x), HEIGHT - BOTTOM + 15, f"{x:g}", "middle"))
            free = at(x) + TICK_ROOM
    return svg(parts, keys)


def span(values, lowest=None, highest=None) -> tuple[float, float]:
    """The range of an axis: the values and some room, held at the ends that are given."""
    low, high = min(values), max(values)
    room = 0.12 * (high - low) or 0.1 * abs(high) or 1.0
    low = min(lowest, low) if lowest is not None else low - room
    return low, highest if highest is not None else high + room


def height_of(value, low, high) -> float:
    share = (min(max(value, low), high) - low) / (high - low)
    return HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - TOP)


def grid(low, high, label) -> str:
    """Horizontal lines at round numbers, with the axis' name standing at its side."""
    step = 10 ** math.floor(math.log10((high - low) / 3))
    step *= next(f for f in (1, 2, 5, 10) if (high - low) / (step * f) <= 6)
    lines = []
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    for count in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1):
        tick = count * step  # not a running sum, which would print a 0 as -0.0
        y = height_of(tick, low, high)
        lines.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        lines.append(text(LEFT - 6, y + 4, f"{tick:.{digits}f}", "end"))
    middle = (TOP + HEIGHT - BOTTOM) / 2
    name = text(0, 0, label, "middle", f'transform="translate(12 {middle:.0f}) rotate(-90)"')
    return "".join(lines) + name


def point(x, stat, low, high, k, name) -> str:
    """A dot, its interval as a bar, and its numbers as a tooltip."""
    y = height_of(stat["mean"], low, high)
    ends = [v for v in stat["ci95"] if v is not None]
    shown = f"{name}: {stat['mean']:.3f}" + (f" [{ends[0]:.3f}, {ends[1]:.3f}]" if ends else "")
    bar = ""
    if ends:
        a, b = (height_of(v, low, high) for v in ends)
        bar = f'<line class="{colour(k)} bar" x1="{x:.1f}" x2="{x:.1f}" y1="{a:.1f}" y2="{b:.1f}"/>'
    title = f"<title>{html.escape(shown)}</title>"
    return f'<g>{title}{bar}<circle class="{colour(k)}" cx="{x:.1f}" cy="{y:.1f}" r="4.5"/></g>'


def text(x, y, content, anchor, extra="") -> str:
    where = extra or f'x="{x:.1f}" y="{y:.1f}"'
    return f'<text {where} text-anchor="{anchor}">{html.escape(str(content))}</text>'


def colour(k: int) -> str:
    """The class of the k-th series."""
    return f"s{k % COLOURS}"


def svg(parts, keys: dict[str, str]) -> str:
    """The picture and, below it, its names, each after its mark."""
    picture = (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" xmlns="http://www.w3.org/2000/svg">'
        f"{''.join(parts)}</svg>"
    )
    names = "".join(f"<span>{mark}{html.escape(name)}</span>" for name, mark in keys.items())
    return f'<div class="chart">{picture}<p class="key">{names}</p></div>'
