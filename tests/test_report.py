"""The report of an evaluation, also in a real browser; and known damage through all scores."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from parts.evaluate import evaluate_pair

from tubesynth.evaluate import main
from tubesynth.metrics.case import EvaluationCase
from tubesynth.metrics.condition import tokens_of
from tubesynth.metrics.pairing import runs_of
from tubesynth.pictures.case_pictures import case_panel
from tubesynth.report.charts import NUM_COLORS, TICK_ROOM, curve, dots, grid, height_of
from tubesynth.report.content import ceiling_notes
from tubesynth.report.score_tables import score_tables
from tubesynth.report.style import STYLE
from tubesynth.report.verdict import verdict
from tubesynth.runtime.errors import InputError
from tubesynth.volume.classes import NINE_CLASSES
from tubesynth.volume.files import write_volume
from tubesynth.volume.grid import Volume, centered_affine

SHAPE, SPACING = (72, 60, 44), (0.8, 0.8, 0.9)
FAT, MUSCLE, CONTRAST = -80.0, 60.0, 380.0
LABEL_MM = 2.2
AFFINE = centered_affine(SHAPE, SPACING)


def patient(radius_mm=LABEL_MM, gap=(), seed=0):
    """(HU, labels): an aorta, a heart, and one vessel along x that begins at the aorta.

    The label map has a vessel of LABEL_MM without gaps; the CT one of radius_mm without the columns
    of gap.
    """
    x, y, z = (
        (g - (n - 1) / 2) * s for g, n, s in zip(np.indices(SHAPE), SHAPE, SPACING, strict=True)
    )
    chamber, muscle = (np.sqrt(x**2 + (y + 9) ** 2 + z**2) < r for r in (8, 11))
    aorta = np.hypot(x + 22, y - 8) < 5
    along = (x > -18) & (x < 20)
    labels = np.zeros(SHAPE, dtype=np.uint8)
    labels[muscle], labels[chamber], labels[aorta] = 1, 3, 6
    labels[(np.hypot(y - 8, z) < LABEL_MM) & along] = 8
    vessel = (np.hypot(y - 8, z) < radius_mm) & along
    vessel[list(gap)] = False
    hu = np.select([chamber | aorta | vessel, muscle], [CONTRAST, MUSCLE], FAT)
    noise = np.random.default_rng(seed).normal(0, 12, SHAPE)
    return Volume((hu + noise).astype(np.float32), AFFINE), Volume(labels, AFFINE)


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory):
    """The folder of an evaluation of two cases and two runs: one with and one without vessels."""
    root = tmp_path_factory.mktemp("evaluation")
    for case in ("1", "2"):
        real, labels = patient(seed=int(case))
        bare, _ = patient(radius_mm=0, seed=9)
        write_volume(root / "real" / f"{case}.nii.gz", real, "int16")
        write_volume(root / "labels" / f"{case}.nii.gz", labels, "uint8")
        write_volume(root / "reconstruction" / f"{case}.nii.gz", patient(seed=7)[0], "int16")
        for run, volume, evaluations in (("fine", real, 16), ("fast", bare, 4)):
            write_volume(root / run / f"{case}_s0.nii.gz", volume, "int16")
            sidecar = {"evaluations": evaluations, "seconds": evaluations / 2}
            (root / run / f"{case}_s0.json").write_text(json.dumps(sidecar))
    folders = ("real", "labels", "reconstruction")
    options = [text for name in folders for text in (f"--{name}", str(root / name))]
    for run in ("fine", "fast"):
        options += ["--synthesis", f"{run}={root / run}"]
    main([*options, "--report", str(root / "out"), "--workers", "1"])
    return root / "out"


def test_runs_have_scores_and_costs_of_their_own_and_the_first_one_is_the_headline(evaluation):
    result = json.loads((evaluation / "metrics.json").read_text(encoding="utf-8"))
    fine, fast = result["runs"]["fine"], result["runs"]["fast"]
    assert (fine["evaluations"]["mean"], fast["seconds"]["mean"]) == (16, 2)
    assert result["vessels"]["synthesis"] == fine["vessels"]
    assert fine["vessels"]["cldice"]["mean"] > 0.9 and fast["vessels"]["cldice"]["mean"] == 0
    assert fine["vessels"]["centreline_recall_1.5to3mm"]["mean"] > 0.75
    assert fine["synthesis"]["psnr"]["mean"] == 100
    assert result["validity"]["cases"] == 2


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.open, self.seen, self.sources = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.seen.append(tag)
        self.sources += [v for k, v in attributes if k in ("src", "href")]
        if tag not in ("meta", "img", "br", "wbr"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_report_is_one_well_formed_file_that_loads_no_other(evaluation):
    text = (evaluation / "report.html").read_text(encoding="utf-8")
    tags = Tags(re.sub(r"<(line|circle|polyline)([^>]*)/>", r"<\1\2></\1>", text))
    assert tags.open == []
    assert "script" not in tags.seen and "link" not in tags.seen
    assert tags.sources and all(s.startswith("data:image/png;base64,") for s in tags.sources)
    assert "url(" not in text and text.count("<svg") >= 4
    for heading in ("Best case", "Worst case", "fine", "fast", "reconstruction", "Provenance"):
        assert heading in text


def test_the_report_fits_a_screen_of_390_pixels(evaluation):
    """Tables and pictures, which may be wider, lie in boxes (.wide) that scroll on their own."""
    text = (evaluation / "report.html").read_text(encoding="utf-8")
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in text
    assert text.count("<table>") == len(re.findall(r"class='wide'[^>]*><table>", text)) == 3
    assert text.count("<img ") == len(re.findall(r'class="wide"[^>]*><img ', text)) == 2
    assert not re.search(r"<(table|img|svg|div|section)[^>]*\bwidth=", text)
    rules = dict(re.findall(r"([^{}]+) \{([^{}]*)\}", STYLE.partition("@media (max-width")[0]))
    rules = {name.split(";")[-1].strip(): body for name, body in rules.items()}
    assert "overflow-x: auto" in rules[".wide"] and "position: sticky" in rules["th:first-child"]
    narrow = STYLE.partition("@media (max-width: 640px) {")[2].partition("@media print")[0]
    first_column = float(re.search(r"th:first-child \{ min-width: ([\d.]+)rem", narrow)[1]) * 16
    assert first_column <= 390 / 2  # the first numbers are on the screen without scrolling
    outside = re.sub(r"[^{}]*(th:first-child|\.case img|main) \{[^}]*\}", "", STYLE)
    assert "min-width" not in outside and not re.search(r"[^-]width: \d+(px|rem)", outside)


def test_the_report_follows_a_dark_page_with_every_color():
    light, dark = STYLE.partition("@media (prefers-color-scheme: dark)")[::2]
    dark = dark.partition("* { box-sizing")[0]
    colors = re.findall(r"(--\w+): (#\w{6})", light)
    assert len(colors) >= NUM_COLORS + 4
    replaced = dict(re.findall(r"(--\w+): (#\w{6})", dark))
    assert all(replaced[name] != color for name, color in colors)
    assert "color-scheme: light dark" in light
    rest = STYLE.partition("* { box-sizing")[2].partition("@media print")[0]
    assert not re.search(r"#\w{3,6}", rest)

    def luminance(color):
        channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for scheme in (dict(colors), replaced):  # WCAG 2.1: 4.5 for text, 3 for graphics
        paper = luminance(scheme["--paper"])
        for name in set(scheme) - {"--paper", "--line"}:
            low, high = sorted((paper, luminance(scheme[name])))
            contrast = (high + 0.05) / (low + 0.05)
            assert contrast >= (3.0 if re.match(r"--c\d", name) else 4.5), (name, contrast)


@pytest.mark.slow
def test_a_browser_shows_the_report_without_a_network(evaluation, tmp_path):
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("no chromium")
    options = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync"
    options += " --disable-background-networking --disable-component-update --hide-scrollbars"
    shot = tmp_path / "report.png"
    subprocess.run(
        [browser, *options.split(), f"--user-data-dir={tmp_path / 'profile'}"]
        + ["--host-resolver-rules=MAP * ~NOTFOUND", "--window-size=1200,2600"]
        + [f"--screenshot={shot}", (evaluation / "report.html").as_uri()],
        check=True,
        capture_output=True,
        timeout=1200,
    )
    from PIL import Image

    page = np.asarray(Image.open(shot).convert("L"), dtype=float)
    assert page.shape == (2600, 1200)
    # No blank part: text at the top, colored dots in the middle.
    assert all(page[top : top + 400].std() > 5 for top in range(0, 2400, 400))


def test_a_copy_of_the_real_ct_scores_as_the_real_ct():
    real, labels = patient()
    scores = evaluate_pair(real, real, labels)
    assert scores["made"] == scores["real"]
    assert (scores["image"]["psnr"], scores["image"]["mae_hu"]) == (100, 0)
    assert scores["made"]["betti0_error"] == 0 and scores["made"]["dice"] > 0.85


def test_a_cut_in_the_synthetic_vessel_adds_one_component():
    real, labels = patient()
    cut, _ = patient(gap=(42, 43))
    scores = evaluate_pair(real, cut, labels)
    assert (scores["real"]["betti0_error"], scores["made"]["betti0_error"]) == (0, 1)


def test_thinning_by_30_percent_shows_as_30_percent_less_radius():
    real, labels = patient()
    thin, _ = patient(radius_mm=LABEL_MM * 0.7)
    ratio = evaluate_pair(real, thin, labels)["made"]["radius_ratio"]
    assert ratio == pytest.approx(0.7, abs=0.06)


def test_a_missing_vessel_is_not_detected_and_has_no_contrast_to_its_shell():
    real, labels = patient()
    scores = evaluate_pair(real, patient(radius_mm=0)[0], labels)["made"]
    assert (scores["dice"], scores["cldice"], scores["centreline_recall"]) == (0, 0, 0)
    assert scores["betti0_error"] == 1
    assert scores["vesselness_auc"] == pytest.approx(0.5, abs=0.1)
    assert "radius_error_mm" not in scores


def test_runs_need_names_where_there_are_several(tmp_path):
    with pytest.raises(ValueError, match="give each folder a name"):
        runs_of([str(tmp_path), str(tmp_path)])
    named = runs_of([f"few={tmp_path}", f"16 steps={tmp_path}"])
    assert [run.name for run in named] == ["few", "16 steps"]


@pytest.mark.parametrize("name", ["real", "reconstruction", "negative control", "label map"])
def test_a_run_may_not_have_the_name_of_another_column(name, tmp_path):
    with pytest.raises(InputError, match=f"{name} is the name of a column"):
        runs_of([f"{name}={tmp_path}"])


def test_the_error_in_the_coronaries_is_of_the_vessel_class_of_the_evaluation(evaluation):
    result = json.loads((evaluation / "metrics.json").read_text(encoding="utf-8"))
    for vessel_class, other in ((8, 6), (6, 8)):
        result["provenance"]["vessel_class"] = vessel_class
        text = score_tables(result).replace("<wbr>", "")
        assert f"mae_hu_class{vessel_class}" in text and f"mae_hu_class{other}" not in text


def test_samples_have_pictures_whatever_their_sample_indices():
    real, labels = patient()
    pictures = []
    for sample in (0, 3):
        images = [("real", 0, Path()), ("synthesis", sample, Path())]
        case = EvaluationCase("1", None, images)
        tokens = tokens_of(labels, NINE_CLASSES)
        pictures.append(case_panel(case, [real, real], labels, tokens, NINE_CLASSES))
    assert np.array_equal(*pictures)


def test_names_of_runs_do_not_leave_or_cover_a_chart():
    stat = {"mean": 0.5, "std": None, "ci95": [None, None], "n": 1}
    names = [f"tokens_bias_fields_weighted_{k}" for k in range(12)]
    grown = curve({n: (10 + k, stat) for k, n in enumerate(names)}, "evaluations", "cldice")
    picture, _, key = grown.partition("</svg>")
    words = re.findall(r'<text x="([\d.]+)"[^>]*text-anchor="(\w+)">([^<]*)<', picture)
    assert max(map(len, (word for _, _, word in words))) <= len("evaluations")
    ticks = [float(x) for x, anchor, word in words if anchor == "middle" and word.isdigit()]
    assert len(ticks) > 1 and np.diff(ticks).min() >= TICK_ROOM
    assert all(f"<b>{k + 1}</b> {name}" in key for k, name in enumerate(names))


def test_every_series_has_a_color_of_the_page():
    stat = {"mean": 0.5, "std": 0.1, "ci95": [0.4, 0.6], "n": 5}
    picture = dots({"thin": {f"run {k}": stat for k in range(14)}}, "share")
    used = set(re.findall(r'"(s\d+)[" ]', picture))
    assert len(used) == NUM_COLORS
    assert all(re.search(rf"\.{name} {{ stroke: var\(--c\d\)", STYLE) for name in used)


def test_a_scale_through_zero_has_a_tick_at_zero():
    assert ">0.0<" in grid(-0.3, 0.3, "difference") and "-0.0<" not in grid(-0.3, 0.3, "difference")


def test_charts_place_values_and_name_them():
    stat = {"mean": 0.5, "std": 0.1, "ci95": [0.4, 0.6], "n": 5}
    picture = dots({"thin": {"real": stat, "made": stat | {"mean": None}}}, "share", 0.0, 1.0)
    assert picture.count("<circle") == 1 and "real: 0.500 [0.400, 0.600]" in picture
    assert f'cy="{height_of(0.5, 0.0, 1.0):.1f}"' in picture
    two = curve({"b": (16, stat), "a": (4, stat)}, "evaluations", "cldice", [("real CT", 0.9)])
    assert two.count("<circle") == 2 and "dashed" in two and "real CT" in two
    assert curve({"a": (4, stat | {"mean": None})}, "evaluations", "cldice") == ""


def verdict_result(real, synthesis, vessels="coronary arteries"):
    """The content of metrics.json that the verdict and the notes read; scores are means."""

    def stats(means):
        return {k: {"mean": v, "std": None, "ci95": [None, None], "n": 1} for k, v in means.items()}

    return {
        "vessels": {"real": stats(real), "reconstruction": {}},
        "runs": {"synthesis": {"vessels": stats(synthesis)}},
        "provenance": {
            "folders": {"real": "images", "labels": "labels"},
            "class_names": ["background", "heart", vessels],
            "vessel_class": 2,
        },
    }


def test_the_verdict_names_calibres_by_radius_and_the_segmenter_beside_its_ceiling():
    match = {"vessel_match": 0.5, "vessel_match_1.5to3mm": 0.84, "vessel_match_lt1.5mm": 0.41}
    segmented = {"segmenter_cldice": 0.47, "segmenter_centreline_recall": 0.6}
    ceiling = {"segmenter_cldice": 0.92, "segmenter_centreline_recall": 0.95}
    result = verdict_result(ceiling, match | segmented)
    assert verdict(result) == [
        "Coronaries in the synthesis: 0.50 of the real CT's (by radius: 0.84 from 1.5 to 3 mm, "
        "0.41 below 1.5 mm); 0 is another patient's CT or noise.",
        "Segmented in the synthesis: clDice 0.47, centreline recall 0.60; in the real CT clDice "
        "0.92, centreline recall 0.95.",
    ]
    assert verdict(verdict_result({}, match))[1:] == []
    no_contrast = verdict(verdict_result({}, {"centreline_in_range": 0.2}))
    assert no_contrast == [
        "Coronaries in the synthesis have no score: fewer than 10 of their points have 30 HU of "
        "contrast in the real CT."
    ]
    (other,) = verdict(verdict_result({}, match, vessels="airways"))
    assert other.startswith("Airways in the synthesis: 0.50 of the real CT's (by radius: ")
    half = verdict(verdict_result({}, {"vessel_match": 0.5, "centreline_covered": 0.6}))
    assert half == [
        "Coronaries in the synthesis: 0.50 of the real CT's, within 60% of their points: the others"
        " are outside of the image; 0 is another patient's CT or noise."
    ]
    few_of_each_calibre = verdict(verdict_result({}, {"vessel_match": 0.5}))
    assert few_of_each_calibre == [
        "Coronaries in the synthesis: 0.50 of the real CT's; 0 is another patient's CT or noise."
    ]


def test_notes_on_low_ceilings_are_true_where_a_synthesis_has_more_than_the_real_ct():
    real = {"centreline_in_range": 0.08, "cldice": 0.7, "vessel_match_left_out": 0.21}
    result = verdict_result(real, {"centreline_in_range": 0.218})
    left_out, in_range = ceiling_notes(result)
    assert left_out.startswith("vessel_match leaves out 21% of the centreline points")
    assert in_range.startswith("centreline_in_range of the real CTs is 0.08: it says little")
    assert "cannot" not in in_range
