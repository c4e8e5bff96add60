"""The score tables of the page: one row a metric; syntheses, ceiling and negative control side by
side."""

import html
import re
from typing import Any, NamedTuple

from tubesynth.metrics.summary import Stat, case_count, cell
from tubesynth.report.charts import Stats
from tubesynth.report.verdict import HEADLINE

CONTROL = "another patient’s CT"


class Metric(NamedTuple):
    """A row: the key in metrics.json, the name for readers, and whether more is better."""

    key: str
    name: str
    more_is_better: bool


IMAGE_METRICS = (
    Metric("psnr", "PSNR, dB", True),
    Metric("ssim", "SSIM", True),
    Metric("ms_ssim", "MS-SSIM", True),
    Metric("lpips", "LPIPS", False),
    Metric("mae_hu", "mean absolute error, HU", False),
    Metric("ssim_as_published", "SSIM, as published", True),
    Metric("ms_ssim_as_published", "MS-SSIM, as published", True),
    Metric("lpips_as_published", "LPIPS, as published", False),
)
SET_METRICS = (
    Metric("frechet", "Fréchet distance", False),
    Metric("frechet_excess", "Fréchet distance without the bias of small sets", False),
    Metric("frechet_axial", "Fréchet distance, axial slices", False),
    Metric("frechet_coronal", "Fréchet distance, coronal slices", False),
    Metric("frechet_sagittal", "Fréchet distance, sagittal slices", False),
    *(
        Metric(f"frechet_{plane}_as_published", f"FID as published, {plane} slices", False)
        for plane in ("sagittal", "coronal", "axial")
    ),
    Metric("precision", "precision: slices that look real", True),
    Metric("recall", "recall: real slices that are covered", True),
    Metric("diversity_ms_ssim", "MS-SSIM between samples of one label map", False),
    Metric("nearest_training_image", "distance to the nearest training CT", True),
    Metric("copied", "share of near copies of a training CT", False),
)
VESSEL_METRICS = (
    Metric("vessel_match", "match of the vessels with the real CT’s", True),
    Metric("vessel_match_gt3mm", "match, radius above 3 mm", True),
    Metric("vessel_match_1.5to3mm", "match, radius from 1.5 to 3 mm", True),
    Metric("vessel_match_lt1.5mm", "match, radius below 1.5 mm", True),
    Metric("segmenter_cldice", "clDice of the segmenter’s vessels", True),
    Metric("segmenter_centreline_recall", "recall of the segmenter’s centrelines", True),
    Metric("contrast_hu", "contrast of the lumen to its surroundings, HU", True),
    Metric("cldice", "clDice of the detected vessels", True),
    Metric("dice", "Dice of the detected vessels", True),
    Metric("centreline_recall", "recall of the centrelines", True),
    Metric("centreline_precision", "precision of the centrelines", True),
    Metric("betti0_error", "error of the number of components", False),
    Metric("betti1_error", "error of the number of loops", False),
    Metric("radius_error_mm", "radius error, mm", False),
    Metric("centreline_in_range", "centreline points with the HU of a lumen", True),
    Metric("vesselness_auc", "AUC of vesselness, vessel against shell", True),
    Metric("false_vessel_ml", "vessels where the label map has none, ml", False),
    Metric("segmenter_false_vessel_ml", "the same, the segmenter’s vessels, ml", False),
)
NOTE = (
    "Ceiling: the scores of the real image and of its reconstruction by the autoencoder; for sets, "
    "of one half of the real ones against the other half. Negative control: the real image of "
    "another patient. Arrows point to the better direction."
)
VESSEL_NOTE = (
    " A vessel score above the real CT’s is not a better one: where that is low, even noise can "
    "have more. The match of the vessels is 1 for the real CT and 0 for another patient’s CT, "
    "noise or blur. Vessels are detected in each CT by its intensities alone, so a missing vessel "
    "counts as missing."
)


def score_tables(result: dict[str, Any]) -> str:
    """The section of three tables: vessels, images, sets of images; "" without any score."""
    vessels, reconstruction = result["vessels"], result["reconstruction"]
    in_vessels = f"mae_hu_class{result['provenance']['vessel_class']}"
    image_metrics = (
        *IMAGE_METRICS,
        Metric(in_vessels, "mean absolute error in the vessels, HU", False),
    )
    tables = [
        score_table(
            "Vessels",
            VESSEL_METRICS,
            runs_with(result, "vessels"),
            {"real CT": vessels["real"], "reconstruction": vessels["reconstruction"]},
            {CONTROL: vessels["floor"]},
        ),
        score_table(
            "Images against the real CT",
            image_metrics,
            runs_with(result, "synthesis"),
            {"reconstruction": reconstruction},
            {CONTROL: result["floor"]},
        ),
        score_table(
            "Sets of images against the set of real CTs",
            SET_METRICS,
            runs_with(result, "synthesis"),
            {"halves of the real CTs": result["floor"], "reconstruction": reconstruction},
            {},
        ),
    ]
    if not any(tables):
        return ""
    note = f"<p class='note'>{NOTE}{VESSEL_NOTE if tables[0] else ''}</p>"
    return f"<h2>Scores</h2>{note}{''.join(tables)}{feature_validity(result)}"


def runs_with(result: dict[str, Any], section: str) -> dict[str, Stats]:
    """{run: {METRIC: STAT}} of the runs that have scores in a section: synthesis or vessels."""
    return {name: run[section] for name, run in result["runs"].items() if run[section]}


def score_table(
    title: str,
    metrics: tuple[Metric, ...],
    syntheses: dict[str, Stats],
    ceiling: dict[str, Stats],
    control: dict[str, Stats],
) -> str:
    """One table, {column: {METRIC: STAT}} for each group of columns; "" where none has a metric."""
    groups = {"synthesis": syntheses, "ceiling": ceiling, "negative control": control}
    columns = [  # (group, name, STATs, style class)
        (group, name, stats)
        for group, columns in groups.items()
        for name, stats in columns.items()
        if any(metric.key in stats for metric in metrics)
    ]
    rows = [metric for metric in metrics if any(metric.key in stats for *_, stats in columns)]
    if not rows:
        return ""
    styles = [
        f"{group.replace(' ', '-')}{' first' if k == 0 or group != columns[k - 1][0] else ''}"
        for k, (group, *_) in enumerate(columns)
    ]
    sizes = {group: sum(g == group for g, *_ in columns) for group in groups}
    group_heads = "".join(
        f'<th scope="colgroup" colspan="{size}" class="first">{group}</th>'
        for group, size in sizes.items()
        if size
    )
    heads = "".join(
        f'<th scope="col" class="{style}">{breakable("" if name == group else name)}</th>'
        for style, (group, name, _) in zip(styles, columns, strict=True)
    )
    lines = []
    for metric in rows:
        cells = "".join(
            f'<td class="{style}">{score(stats.get(metric.key), metric.key)}</td>'
            for style, (*_, stats) in zip(styles, columns, strict=True)
        )
        cells += f"<td>{case_count(stats.get(metric.key) for *_, stats in columns)}</td>"
        arrow, key = "↑" if metric.more_is_better else "↓", breakable(metric.key)
        name = f"{metric.name}&nbsp;<b>{arrow}</b><code>{key}</code>"
        row_style = ' class="headline"' if metric.key.startswith(HEADLINE) else ""
        lines.append(f'<tr{row_style}><th scope="row">{name}</th>{cells}</tr>')
    return (
        f"<h3>{title}</h3><div class='wide' role='region' aria-label='{title}' tabindex='0'>"
        f"<table><thead><tr><th></th>{group_heads}<th></th></tr>"
        f"<tr><th></th>{heads}<th>cases</th></tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def breakable(name: str) -> str:
    """A name as HTML that may be broken after underscores and the like, not within words."""
    return re.sub(r"([_.+-])", r"\1<wbr>", html.escape(name))


def score(stat: Stat | None, key: str) -> str:
    """The mean, and smaller below it the interval; an en dash where the mean is undefined."""
    mean, _, interval = cell(stat, key).partition(" ")
    mean = mean.replace("-", "−") if len(mean) > 1 else "–"
    return mean + (f"<small>{interval.replace('-', '−')}</small>" if interval else "")


def feature_validity(result: dict[str, Any]) -> str:
    """Whether the features behind the scores of sets rank known damage in the right order."""
    check = result.get("validity") or {}
    if check.get("ok") is None:
        return ""
    if check["ok"]:
        return (
            "<p class='note'>Validity check of these features: blur, noise and erased vessels of "
            "the real CTs are ranked in the right order.</p>"
        )
    messages = html.escape("; ".join(check["messages"]))
    return f"<p class='note warning'>Read the scores of sets with care: {messages}.</p>"
