"""The evaluation as one HTML file: no network, no scripts, pictures and styles inside.

report_page takes the content of metrics.json and the rows of metrics.csv, so it can be made again
from those two and the folder of panels.
"""

import html
import re
from base64 import b64encode
from pathlib import Path

from tubesynth.metrics.summary import cell
from tubesynth.pictures.case_pictures import panel_path, straight_path
from tubesynth.report.charts import curve, dots
from tubesynth.report.style import STYLE

# Metric, what a reader calls it, and whether more is better.
IMAGE_METRICS = (
    ("psnr", "PSNR, dB", True),
    ("ssim", "SSIM", True),
    ("ms_ssim", "MS-SSIM", True),
    ("mae_hu", "mean absolute error, HU", False),
)
SET_METRICS = (
    ("frechet", "Fréchet distance", False),
    ("frechet_excess", "what of it is not chance", False),
    ("frechet_axial", "axial slices", False),
    ("frechet_coronal", "coronal slices", False),
    ("frechet_sagittal", "sagittal slices", False),
    ("precision", "slices that look real", True),
    ("recall", "real slices that are covered", True),
    ("diversity_ms_ssim", "MS-SSIM between samples of a map", False),
    ("nearest_training_image", "distance to the nearest training CT", True),
    ("copied", "share too near to a training CT", False),
)
VESSEL_METRICS = (
    ("centreline_in_range", "centreline points with the HU of a lumen", True),
    ("contrast_hu", "lumen against its surroundings, HU", True),
    ("cldice", "clDice of the vessels found", True),
    ("dice", "Dice of the vessels found", True),
    ("centreline_recall", "centrelines found", True),
    ("centreline_precision", "of those found, true ones", True),
    ("betti0_error", "pieces too many or too few", False),
    ("betti1_error", "loops too many or too few", False),
    ("radius_error_mm", "radius error, mm", False),
    ("segmenter_cldice", "clDice of the vessels a trained segmenter finds", True),
    ("segmenter_centreline_recall", "centrelines that it finds", True),
    ("vesselness_auc", "vesselness stands out (AUC)", True),
)
CALIBRES = {"_lt1.5mm": "< 1.5 mm", "_1.5to3mm": "1.5 to 3 mm", "_gt3mm": "> 3 mm"}
CALIBRE_CHARTS = (
    ("centreline_in_range", "share in lumen range", 1.0),
    ("centreline_recall", "share of centrelines found", 1.0),
    ("radius_error_mm", "radius error, mm", None),
)
CURVES = ("cldice", "centreline_in_range", "centreline_recall", "ssim", "psnr")
# What cases are ranked by: the first of these that they have.
RANKS = ("cldice", "centreline_in_range", "ssim", "psnr")


def report_page(result: dict, rows: list[dict], output_dir: Path) -> str:
    """The whole page as text; output_dir holds panels/."""
    about = result["provenance"]
    n = about["n_cases"]
    sections = [
        f"<h1>How well the synthetic CTs obey their anatomy</h1>"
        f'<p class="lead">{n} case{"s" * (n != 1)}, {html.escape(about["date"][:10])}, tubesynth '
        f"{html.escape(about['version'])}. Means over cases with 95 % intervals of the mean.</p>",
        headline(result),
        calibre_charts(result),
        quality_curves(result),
        case_pictures(result, rows, output_dir),
        appendix(result),
    ]
    body = "\n".join(section for section in sections if section)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>tubesynth evaluation</title>\n<style>{STYLE}</style></head>\n"
        f"<body><main>\n{body}\n</main></body></html>\n"
    )


def syntheses(result, part) -> dict[str, dict]:
    """{run: {METRIC: STAT}} with what is there; part: "synthesis" (images) or "vessels"."""
    return {name: run[part] for name, run in result["runs"].items() if run[part]}


def headline(result) -> str:
    """Two tables: vessels first, since they are what the page is about."""
    vessels, floor = result["vessels"], "another patient’s CT"
    in_vessels = f"mae_hu_class{result['provenance']['vessel_class']}"
    tables = [
        comparison(
            "Vessels",
            VESSEL_METRICS,
            syntheses(result, "vessels"),
            {"reconstruction": vessels["reconstruction"], "real CT": vessels["real"]},
            {floor: vessels["floor"]},
        ),
        comparison(
            "Images against the real CT",
            (*IMAGE_METRICS, (in_vessels, "the same in the coronaries", False)),
            syntheses(result, "synthesis"),
            {"reconstruction": result["reconstruction"]},
            {floor: result["floor"]},
        ),
        comparison(
            "Sets of images against the set of real CTs",
            SET_METRICS,
            syntheses(result, "synthesis"),
            {"reconstruction": result["reconstruction"], "halves of the real": result["floor"]},
            {},
        ),
    ]
    note = (
        "<p class='note'>Ceiling: the real CT and what the autoencoder keeps of it, scored in the "
        "same way, or for sets one half of the real CTs against the other; a synthesis can hardly "
        "be better. Floor: a CT that has nothing to do with the label map. Arrows say which way is "
        "better. Vessels are found in each CT by its intensities alone, so a forgotten one counts "
        "as forgotten.</p>"
    )
    tables = [table for table in tables if table]
    return "<h2>Scores</h2>" + note + "".join(tables) + trust(result) if tables else ""


def comparison(title, metrics, made, ceiling, floor) -> str:
    """A table: one row a metric, made runs | ceiling | floor."""
    groups = [("synthesis", made), ("ceiling", ceiling), ("floor", floor)]
    groups = [(name, {k: v for k, v in stats.items() if v}) for name, stats in groups]
    groups = [(name, stats) for name, stats in groups if stats]
    columns = [(name, key, stat) for name, stats in groups for key, stat in stats.items()]
    shown = [m for m in metrics if any(m[0] in stat for *_, stat in columns)]
    if not shown:
        return ""
    head = "".join(f'<th colspan="{len(s)}" class="{g}">{g}</th>' for g, s in groups)
    names = "".join(
        f'<th class="{group}">{breakable("" if key == group else key)}</th>'
        for group, key, _ in columns
    )
    lines = []
    for metric, name, more in shown:
        cells = "".join(
            f'<td class="{g}">{value(stat.get(metric), metric)}</td>' for g, _, stat in columns
        )
        arrow = "↑" if more else "↓"
        code = f"<code>{metric}</code>"
        lines.append(f"<tr><th>{name} <b>{arrow}</b>{code}</th>{cells}</tr>")
    return (
        f"<h3>{title}</h3><div class='wide'><table><thead><tr><th></th>{head}</tr><tr><th></th>"
        f"{names}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def breakable(name: str) -> str:
    """A run's name in HTML that may be broken after underscores and the like, not within words."""
    return re.sub(r"([_.+-])", r"\1<wbr>", html.escape(name))


def value(stat, metric) -> str:
    """The mean, and smaller the interval."""
    mean, _, interval = cell(stat, metric).partition(" ")
    mean = mean.replace("-", "−") if len(mean) > 1 else "–"
    return mean + (f"<small>{interval.replace('-', '−')}</small>" if interval else "")


def trust(result) -> str:
    """Whether the features behind the scores of sets see the damage that they should."""
    check = result.get("validity") or {}
    if check.get("ok") is None:
        return ""
    if check["ok"]:
        said = "These features rank blur, noise and erased vessels of the real CTs rightly."
    else:
        said = "Read the scores of sets with care: " + "; ".join(check["messages"]) + "."
    return f"<p class='note{'' if check['ok'] else ' warning'}'>{html.escape(said)}</p>"


def calibre_charts(result) -> str:
    """Thin vessels are lost first: the same scores by the radius of the lumen."""
    sources = {"real": result["vessels"]["real"]}
    sources["reconstruction"] = result["vessels"]["reconstruction"]
    sources |= syntheses(result, "vessels")
    charts = []
    for metric, label, highest in CALIBRE_CHARTS:
        groups = {
            name: {
                s: stats[metric + suffix]
                for s, stats in sources.items()
                if metric + suffix in stats
            }
            for suffix, name in CALIBRES.items()
        }
        groups = {name: stats for name, stats in groups.items() if stats}
        if groups:
            charts.append(dots(groups, label, 0.0, highest))
    if not charts:
        return ""
    return f"<h2>By the radius of the vessel</h2><div class='charts'>{''.join(charts)}</div>"


def quality_curves(result) -> str:
    """Against evaluations of the network, where several runs say how many they took."""
    runs = {n: run for n, run in result["runs"].items() if run.get("evaluations")}
    if len(runs) < 2:
        return ""
    charts = []
    for metric in CURVES:
        part = "synthesis" if metric in ("ssim", "psnr") else "vessels"
        points = {
            name: (run["evaluations"]["mean"], run[part][metric])
            for name, run in runs.items()
            if metric in run[part]
        }
        best = result["reconstruction"] if part == "synthesis" else result["vessels"]["real"]
        name = "reconstruction" if part == "synthesis" else "real CT"
        others = [(name, best[metric]["mean"])] if best.get(metric, {}).get("mean") else []
        if len(points) > 1:
            charts.append(curve(points, "evaluations of the network a volume", metric, others))
    seconds = ", ".join(
        f"{html.escape(name)} {run['seconds']['mean']:.1f} s"
        for name, run in runs.items()
        if run.get("seconds")
    )
    spent = f"<p class='note'>Seconds a volume: {seconds}.</p>" if seconds else ""
    return f"<h2>Quality and cost</h2>{spent}<div class='charts'>{''.join(charts[:4])}</div>"


def ranked(result, rows) -> tuple[str, str, list[tuple[str, float]]]:
    """The metric, the source, and (case, score) from best to worst."""
    sources = [row["source"] for row in rows]
    chosen = next((s for s in sources if s.startswith("synthesis")), None) or next(
        (s for s in ("reconstruction", "real") if s in sources), ""
    )
    own = [row for row in rows if row["source"] == chosen]
    known = [m for m in RANKS if any(row.get(m) is not None for row in own)]
    # Where all cases score the same, as if nothing was found anywhere, it says nothing.
    telling = [m for m in known if len({row.get(m) for row in own}) > 1]
    metric = [*telling, *known, RANKS[0]][0]
    scores: dict[str, list[float]] = {}
    for row in own:
        number = row.get(metric)
        if number is not None and number == number:
            scores.setdefault(row["case"], []).append(number)
    means = [(case, sum(values) / len(values)) for case, values in scores.items()]
    return metric, chosen, sorted(means, key=lambda item: -item[1])


def case_pictures(result, rows, output_dir: Path) -> str:
    metric, source, order = ranked(result, rows)
    if not order:
        return ""
    last = len(order) - 1
    titles = {last // 2: "Median case", last: "Worst case", 0: "Best case" if last else "The case"}
    parts = [
        "<h2>Cases to look at</h2><p class='note'>Ranked by "
        f"<code class='in'>{metric}</code> of the {html.escape(source)}, samples of a case "
        "averaged. Below the planes, the longest coronary of the label map pulled straight: root "
        "on the left, the label map’s radius outlined, and planes across it.</p>"
    ]
    for place in sorted(titles):
        case, score = order[place]
        name = html.escape(case)
        heading = f"<h3>{titles[place]}: {name} <small>{metric} {score:.3f}</small></h3>"
        pictures = [
            (panel_path(output_dir, case), f"planes of case {name}"),
            (straight_path(output_dir, case), f"straightened coronary of case {name}"),
        ]
        shown = "".join(
            f'<img alt="{alt}" src="data:image/png;base64,{b64encode(p.read_bytes()).decode()}">'
            for p, alt in pictures
            if p.is_file()
        )
        parts.append(f"<section class='case'>{heading}{shown}</section>")
    return "".join(parts)


def appendix(result) -> str:
    """Notes, definitions and where all of it came from."""
    about = result["provenance"]
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in about["notes"])
    listed = {k: v for k, v in about.items() if k not in ("notes", "definitions")}
    facts = "".join(
        f"<dt>{html.escape(k)}</dt><dd>{html.escape(plain(v))}</dd>" for k, v in listed.items()
    )
    meanings = "".join(
        f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>"
        for k, v in about["definitions"].items()
    )
    return (
        (f"<h2>Notes</h2><ul>{notes}</ul>" if notes else "")
        + f"<h2>What the scores mean</h2><dl>{meanings}</dl>"
        + f"<h2>Provenance</h2><dl>{facts}</dl>"
        + "<p class='note'>All numbers: metrics.json; every image: metrics.csv; every case: "
        "panels/.</p>"
    )


def plain(content) -> str:
    if isinstance(content, dict):
        return ", ".join(f"{k}: {v}" for k, v in content.items())
    if isinstance(content, list | tuple):
        return " ".join(str(v) for v in content)
    return "none" if content is None else str(content)
