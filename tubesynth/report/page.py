"""The evaluation as one HTML file: no network, no scripts, pictures and styles inside.

report_page takes the content of metrics.json and the rows of metrics.csv, so the page can be
written again from these two files and the folder of panels.
"""

import html
import math
from base64 import b64encode
from pathlib import Path
from typing import Any

from tubesynth.pictures.case_pictures import panel_path
from tubesynth.report.charts import Stats, curve, dots
from tubesynth.report.score_tables import runs_with, score_tables
from tubesynth.report.style import STYLE

CALIBRES = {"_lt1.5mm": "< 1.5 mm", "_1.5to3mm": "1.5 to 3 mm", "_gt3mm": "> 3 mm"}
# Metric, label of the axis, and the axis' upper end where it has one.
CALIBRE_CHARTS = (
    ("vessel_match", "match with the real CT", 1.0),
    ("centreline_recall", "centreline recall", 1.0),
    ("radius_error_mm", "radius error, mm", None),
)
MOST_CURVES = 4
MOST_CASES = 3  # with pictures, where no score ranks them
# Metric, its section in a run, and the label of the axis; the first MOST_CURVES are shown.
CURVES = (
    ("vessel_match", "vessels", "match of the vessels"),
    ("cldice", "vessels", "clDice"),
    ("centreline_recall", "vessels", "centreline recall"),
    ("ssim", "synthesis", "SSIM"),
    ("psnr", "synthesis", "PSNR, dB"),
)
RANKING_METRICS = ("vessel_match", "cldice", "ssim", "psnr")  # the first available one


def report_page(result: dict[str, Any], rows: list[dict[str, Any]], output_dir: Path) -> str:
    """The whole page as text.

    result: content of metrics.json; rows: of metrics.csv, scores as numbers; output_dir: the folder
    that contains panels/.
    """
    provenance = result["provenance"]
    count, date = provenance["n_cases"], html.escape(provenance["date"][:10])
    version = html.escape(provenance["version"])
    sections = [
        "<h1>Evaluation of synthetic images</h1>"
        f'<p class="lead">{count} case{"s" * (count != 1)}, {date}, tubesynth {version}. '
        "Scores are means over cases with the 95 % "
        "interval of the mean.</p>",
        *(f'<p class="verdict">{html.escape(line)}</p>' for line in result["verdict"]),
        score_tables(result),
        calibre_charts(result),
        quality_curves(result),
        case_pictures(result, rows, output_dir),
        appendix(result),
    ]
    body = "\n".join(section for section in sections if section)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>tubesynth evaluation</title>\n<style>{STYLE}</style></head>\n"
        f"<body><main>\n{body}\n</main></body></html>\n"
    )


def calibre_charts(result: dict[str, Any]) -> str:
    """Charts of vessel scores by the radius of the lumen, since thin vessels are lost first."""
    vessels = result["vessels"]
    sources = {"real CT": vessels["real"], "reconstruction": vessels["reconstruction"]}
    sources |= runs_with(result, "vessels")
    charts = []
    for metric, label, highest in CALIBRE_CHARTS:
        groups: dict[str, Stats] = {}
        for suffix, calibre in CALIBRES.items():
            key = metric + suffix
            if stats := {name: s[key] for name, s in sources.items() if key in s}:
                groups[calibre] = stats
        if groups:
            charts.append(dots(groups, label, 0.0, highest))
    if not any(charts):
        return ""
    return f"<h2>Scores by vessel radius</h2><div class='charts'>{''.join(charts)}</div>"


def quality_curves(result: dict[str, Any]) -> str:
    """Scores over the number of network evaluations, where two or more runs recorded it."""
    runs = {name: run for name, run in result["runs"].items() if run.get("evaluations")}
    if len(runs) < 2:
        return ""
    charts = []
    for metric, section, label in CURVES:
        points = {
            name: (run["evaluations"]["mean"], run[section][metric])
            for name, run in runs.items()
            if metric in run[section]
        }
        ceiling_name, ceiling = (
            ("reconstruction", result["reconstruction"])
            if section == "synthesis"
            else ("real CT", result["vessels"]["real"])
        )
        mean = ceiling.get(metric, {}).get("mean")
        references = [(ceiling_name, mean)] if mean else []
        if len(points) > 1:
            charts.append(curve(points, "network evaluations per volume", label, references))
    seconds = ", ".join(
        f"{html.escape(name)} {run['seconds']['mean']:.1f} s"
        for name, run in runs.items()
        if run.get("seconds")
    )
    cost = f"<p class='note'>Seconds per volume: {seconds}.</p>" if seconds else ""
    pictures = "".join(charts[:MOST_CURVES])
    return f"<h2>Quality and cost</h2>{cost}<div class='charts'>{pictures}</div>"


def ranked_cases(rows: list[dict[str, Any]]) -> tuple[str, str, list[tuple[str, float]]]:
    """The ranking metric, its source, and (case, mean over samples) from best to worst."""
    sources = [row["source"] for row in rows]
    synthesis = next((s for s in sources if s.startswith("synthesis")), None)
    source = synthesis or next((s for s in ("reconstruction", "real") if s in sources), "")
    rows = [row for row in rows if row["source"] == source]
    available = [m for m in RANKING_METRICS if any(row.get(m) is not None for row in rows)]
    # A metric that is the same for all cases, as where no vessel was detected, ranks nothing.
    varied = [m for m in available if len({row.get(m) for row in rows}) > 1]
    metric = [*varied, *available, RANKING_METRICS[0]][0]
    scores: dict[str, list[float]] = {}
    for row in rows:
        number = row.get(metric)
        if number is not None and not math.isnan(number):
            scores.setdefault(row["case"], []).append(number)
    means = [(case, sum(samples) / len(samples)) for case, samples in scores.items()]
    return metric, source, sorted(means, key=lambda item: -item[1])


def case_pictures(result: dict[str, Any], rows: list[dict[str, Any]], output_dir: Path) -> str:
    """The pictures of the best, the median and the worst case; without scores of the first ones."""
    metric, source, order = ranked_cases(rows)
    last = len(order) - 1
    places = {last // 2: "Median case", last: "Worst case", 0: "Best case" if last else "The case"}
    heading = "Best, median and worst case"
    note = f"Ranked by <code>{metric}</code> of the {html.escape(source)}, samples averaged."
    cases = [
        (order[place][0], f"{places[place]}: ", f" <small>{metric} {order[place][1]:.3f}</small>")
        for place in sorted(places)
        if order
    ]
    if not order:
        heading, note = "Pictures", "The first cases."
        cases = [(case, "", "") for case in dict.fromkeys(row["case"] for row in rows)][:MOST_CASES]
    if any(result["vessels"].values()):
        note += (
            " Planes through the widest vessel, a projection of a thin slab, and the main vessels"
            " of the label map, straightened."
        )
    sections = [
        f"<h2>{heading}</h2><p class='note'>{note} What lies outside an image is hatched.</p>"
    ]
    for case, before, after in cases:
        name, path = html.escape(case), panel_path(output_dir, case)
        picture = embedded_picture(path, f"panel of case {name}") if path.is_file() else ""
        sections.append(f"<section class='case'><h3>{before}{name}{after}</h3>{picture}</section>")
    return "".join(sections) if cases else ""


def embedded_picture(path: Path, alt: str) -> str:
    """A PNG inside the page, in a box that scrolls on a narrow screen."""
    data = b64encode(path.read_bytes()).decode()
    return (
        f'<div class="wide" tabindex="0"><img alt="{alt}" src="data:image/png;base64,{data}"></div>'
    )


def appendix(result: dict[str, Any]) -> str:
    """Notes, definitions of the scores, and provenance."""
    provenance = result["provenance"]
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in provenance["notes"])
    facts = {k: plain(v) for k, v in provenance.items() if k not in ("notes", "definitions")}
    return (
        (f"<h2>Notes</h2><ul>{notes}</ul>" if notes else "")
        + f"<h2>Definitions of the scores</h2>{definition_list(provenance['definitions'])}"
        + f"<h2>Provenance</h2>{definition_list(facts)}"
        + "<p class='note'>Statistics: metrics.json; scores of every image: metrics.csv; pictures "
        "of every case: panels/.</p>"
    )


def definition_list(entries: dict[str, str]) -> str:
    """{term: text} as an HTML list."""
    pairs = (f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in entries.items())
    return f"<dl>{''.join(pairs)}</dl>"


def plain(content: object) -> str:
    """A value of the provenance in one line."""
    if isinstance(content, dict):
        return ", ".join(f"{key}: {value}" for key, value in content.items())
    if isinstance(content, list | tuple):
        return " ".join(str(value) for value in content)
    return "none" if content is None else str(content)
