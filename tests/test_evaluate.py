"""The evaluate command on small phantoms: promised keys, known scores, samples, grids, errors."""

import csv
import html
import json
import shutil

import numpy as np
import pytest

from tubesynth.evaluate import main
from tubesynth.metrics.features import RADIOMIC
from tubesynth.metrics.summary import json_safe, statistics, summarize, table
from tubesynth.metrics.training_log import validation_losses
from tubesynth.runtime.errors import InputError
from tubesynth.volume.centreline_file import Branch, write_centreline
from tubesynth.volume.digest import file_digest
from tubesynth.volume.files import read_volume, write_volume
from tubesynth.volume.grid import Volume, centered_affine
from tubesynth.volume.resample import image_on_grid, resample_image, resample_labels

SHAPE, SPACING = (40, 36, 32), (1.0, 1.0, 1.2)


def heart_and_vessel(seed):
    """(HU, labels) of a contrast-filled ball with a vessel of 4 mm diameter running past it."""
    rng = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*map(np.arange, SHAPE), indexing="ij")
    labels = np.zeros(SHAPE, dtype=np.uint8)
    labels[(x - 20) ** 2 + (y - 20) ** 2 + (z - 16) ** 2 < 100] = 3
    labels[(x - 20) ** 2 + (y - 6) ** 2 <= 4] = 8
    hu = np.select([labels == 3, labels == 8], [400.0, 350.0], -80.0) + rng.normal(0, 10, SHAPE)
    return hu, labels


def write(folder, name, array, dtype="int16", affine=None):
    affine = centered_affine(SHAPE, SPACING) if affine is None else affine
    write_volume(folder / f"{name}.nii.gz", Volume(array, affine), dtype)


@pytest.fixture
def folders(tmp_path):
    """Three cases: exact reconstructions but for noise of 20 HU; two samples, the vessel erased in
    s1."""
    for case in ("1", "2", "10"):
        hu, labels = heart_and_vessel(int(case))
        noise = np.random.default_rng(int(case)).normal(0, 20, SHAPE)
        write(tmp_path / "real", f"{case}.img", hu)
        write(tmp_path / "labels", f"{case}.label", labels, "uint8")
        write(tmp_path / "reconstruction", f"{case}.img", hu + noise)
        write(tmp_path / "synthesis", f"{case}_s0.img", hu)
        write(tmp_path / "synthesis", f"{case}_s1.img", np.where(labels == 8, -80, hu))
    return tmp_path


def evaluate(root, *names, extra=(), workers=1):
    options = [x for name in names for x in (f"--{name}", str(root / name))]
    options += ["--output-dir", str(root / "out"), "--workers", str(workers)]
    main([*options, *map(str, extra)])
    return json.loads((root / "out" / "metrics.json").read_text(encoding="utf-8"))


def csv_rows(root):
    with open(root / "out" / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_metrics_json_has_the_promised_keys_and_the_scores_of_known_images(folders, capsys):
    result = evaluate(folders, "real", "labels", "reconstruction", "synthesis")
    stable = {"reconstruction", "synthesis", "floor", "vessels", "runs", "training", "provenance"}
    assert stable <= set(result)
    assert list(result["vessels"]) == ["real", "reconstruction", "synthesis", "floor"]
    psnr = result["reconstruction"]["psnr"]
    assert list(psnr) == ["mean", "std", "ci95", "n"]
    assert psnr["mean"] == pytest.approx(20 * np.log10(2000 / 20), abs=0.1)
    assert psnr["ci95"][0] < psnr["mean"] < psnr["ci95"][1]
    assert psnr["n"] == 3
    # Samples of a case are averaged before cases are counted: one has its vessel, one has not.
    in_range = result["vessels"]["synthesis"]["centreline_in_range_1.5to3mm"]
    assert (in_range["mean"], in_range["n"]) == (pytest.approx(0.5), 3)
    assert result["vessels"]["real"]["centreline_in_range"]["mean"] == 1.0
    assert result["vessels"]["reconstruction"]["centreline_in_range"]["mean"] > 0.99
    provenance = result["provenance"]
    assert provenance["n_cases"] == 3
    assert provenance["lumen_range"] == [200.0, 600.0]
    assert {"command", "version", "git_commit", "date", "torch", "hu_window", "data_range"} <= set(
        provenance
    )
    printed = capsys.readouterr().out
    assert "3 cases" in printed and "\npsnr " in printed
    for case in ("1", "2", "10"):
        assert (folders / "out" / "panels" / f"{case}.png").stat().st_size > 5000


def tilt(folders, *names):
    """Slices that move along y by 25 degrees: lengths in their voxels are none in mm."""
    for name in names:
        for path in (folders / name).glob("*.nii.gz"):
            volume = read_volume(path)
            affine = volume.affine.copy()
            affine[:3, 2] += np.tan(np.radians(25)) * volume.spacing[2] * np.array([0, 1, 0])
            affine[:3, 3] += volume.center_mm - Volume(volume.array, affine).center_mm
            resample = resample_labels if name == "labels" else resample_image
            tilted = resample(volume, volume.shape, affine)
            write_volume(path, tilted, "uint8" if name == "labels" else "int16")


def test_the_ct_of_a_tilted_gantry_is_interpolated_once_for_its_reconstruction(folders):
    tilt(folders, "real", "labels")
    evaluate(folders, "real", "labels", "reconstruction", extra=["--no-distribution"])
    for row in csv_rows(folders):
        if row["source"] == "reconstruction":
            image = read_volume(folders / "reconstruction" / f"{row['case']}.img.nii.gz")
            real = read_volume(folders / "real" / f"{row['case']}.img.nii.gz")
            once = image_on_grid(real, image, (-1000.0, 1000.0))
            error = np.sqrt(np.mean((once.array - image.array) ** 2))
            assert float(row["psnr"]) == pytest.approx(20 * np.log10(2000 / error), abs=0.01)


def test_a_tilted_gantry_changes_no_score_of_the_vessels(folders):
    names, rows = ("real", "labels", "reconstruction"), []
    for is_tilted in (False, True):
        if is_tilted:
            tilt(folders, *names)
        result = evaluate(folders, *names)
        rows.append({k: v["mean"] for k, v in result["vessels"]["reconstruction"].items()})
    upright, tilted = rows
    note = "resampled for scoring: grids of a tilted gantry onto right-angled ones"
    assert note in result["provenance"]["notes"]
    assert tilted["vessel_match"] == pytest.approx(upright["vessel_match"], abs=0.01)
    # The nearest voxel makes the surface of the vessel rough, and some of its radii smaller.
    assert tilted["contrast_hu"] == pytest.approx(upright["contrast_hu"], abs=15)
    assert tilted["vesselness_auc"] == pytest.approx(upright["vesselness_auc"], abs=0.1)
    assert tilted["centreline_in_range"] > 0.9


def test_vessels_of_ct_are_scored_in_any_window(folders):
    extra = ["--hu-window", "0", "1000", "--no-distribution"]
    result = evaluate(folders, "real", "labels", "reconstruction", extra=extra)
    assert result["vessels"]["reconstruction"]["vessel_match"]["mean"] > 0.9


def test_the_csv_has_one_line_an_image(folders):
    evaluate(folders, "real", "labels", "reconstruction", "synthesis")
    rows = csv_rows(folders)
    assert [(r["case"], r["source"], r["sample"]) for r in rows[:4]] == [
        ("1", "real", "0"),
        ("1", "reconstruction", "0"),
        ("1", "synthesis", "0"),
        ("1", "synthesis", "1"),
    ]
    assert len(rows) == 12 + 3  # and a negative control for each case
    assert [r["centreline_in_range"] for r in rows[2:4]] == ["1.0", "0.0"]
    assert rows[0]["psnr"] == "" and float(rows[2]["psnr"]) == 100.0


def test_scores_do_not_depend_on_the_number_of_workers(folders):
    names = ("real", "labels", "reconstruction")
    alone = evaluate(folders, *names)
    rows = csv_rows(folders)
    together = evaluate(folders, *names, workers=2)
    assert csv_rows(folders) == rows
    assert alone["vessels"] == together["vessels"]
    frechet = [r["reconstruction"]["frechet"]["mean"] for r in (alone, together)]
    assert frechet[0] == pytest.approx(frechet[1], rel=1e-6)


def test_label_maps_of_another_scheme_have_the_scores_of_their_translation(folders):
    for folder in ("real", "labels", "reconstruction"):
        for case in ("2", "10"):
            next((folders / folder).glob(f"{case}.*")).unlink()
    names, quick = ("real", "reconstruction"), ["--no-distribution"]
    expected = evaluate(folders, *names, "labels", extra=quick)
    labels = heart_and_vessel(1)[1]
    segments = np.where(labels == 8, 20 + np.arange(SHAPE[2]) // 8, 10 * labels)
    write(folders / "segments", "1.label", segments, "uint8")
    with pytest.raises(InputError, match="values 20, .* outside the classes 0 to 8; trans.*fig"):
        evaluate(folders, *names, extra=(*quick, "--labels", folders / "segments"))
    (folders / "map.yml").write_text("data: {label_map: {30: 3, 20: 8, 21: 8, 22: 8, 23: 8}}\n")
    extra = (*quick, "--labels", folders / "segments", "--config", folders / "map.yml")
    result = evaluate(folders, *names, extra=extra)
    assert result["reconstruction"] == expected["reconstruction"]
    assert result["vessels"] == expected["vessels"]


def test_exact_copies_have_perfect_scores_and_swapped_cases_have_not(folders):
    for case, other in (("1", "1"), ("2", "10"), ("10", "2")):
        hu, labels = heart_and_vessel(int(other))
        shifted = np.roll(hu, 6 * (case != other), axis=1)
        write(folders / "copy", f"{case}.img", shifted)
    root = folders
    (root / "reconstruction").rename(root / "unused")
    (root / "copy").rename(root / "reconstruction")
    evaluate(root, "real", "reconstruction")
    rows = {r["case"]: r for r in csv_rows(root) if r["source"] == "reconstruction"}
    perfect = rows["1"]
    assert (float(perfect["psnr"]), float(perfect["mae_hu"])) == (100.0, 0.0)
    assert float(perfect["ssim"]) == pytest.approx(1.0)
    assert float(rows["2"]["psnr"]) < 30
    assert float(rows["2"]["ssim"]) < 0.9


def test_a_synthesis_needs_no_real_ct(folders):
    result = evaluate(folders, "labels", "synthesis")
    assert list(result["synthesis"]) == ["diversity_ms_ssim"] and result["vessels"]["real"] == {}
    assert result["vessels"]["synthesis"]["centreline_in_range"]["mean"] == pytest.approx(0.5)


def test_a_synthesis_is_scored_against_user_centrelines(folders):
    """The CTs have a tube on the user centreline, 14 voxels away from that of the label map."""
    for case in ("1", "2", "10"):
        hu, labels = heart_and_vessel(int(case))
        other = np.where(labels == 8, -80, np.where(np.roll(labels == 8, 14, axis=0), 350, hu))
        write(folders / "moved", f"{case}_s0.img", other)
        center = (np.array(SHAPE) - 1) / 2
        ends = (np.array([[34, 6, 0], [34, 6, SHAPE[2] - 1]]) - center) * SPACING
        points = np.column_stack([ends, [2 * SPACING[0]] * 2])
        path = folders / "centrelines" / f"{case}.centreline.json"
        write_centreline(path, [Branch("", None, points)])
    options = ["--synthesis", folders / "moved"]
    old = evaluate(folders, "labels", extra=options)["vessels"]["synthesis"]
    new = evaluate(folders, "labels", "centrelines", extra=options)["vessels"]["synthesis"]
    assert old["centreline_in_range"]["mean"] < 0.05 < 0.9 < new["centreline_in_range"]["mean"]
    assert new["vesselness_auc"]["mean"] > 0.9 > old["vesselness_auc"]["mean"]
    (folders / "centrelines" / "2.centreline.json").unlink()
    with pytest.raises(InputError, match="no centreline of case 2: add it"):
        evaluate(folders, "labels", "centrelines", extra=options)
    with pytest.raises(InputError, match="give --labels"):
        evaluate(folders, "real", "centrelines", "reconstruction")


def test_a_damaged_centreline_leaves_out_its_own_case(folders):
    points = np.array([[0.0, -11.5, -12.0, 2.0], [0.0, -11.5, 12.0, 2.0]])
    for case in ("1", "2", "10"):
        write_centreline(folders / "lines" / f"{case}.centreline.json", [Branch("", None, points)])
    (folders / "lines" / "2.centreline.json").write_text("[1, 2")
    extra = ["--centrelines", folders / "lines", "--no-distribution"]
    with pytest.raises(InputError, match="2.centreline.json.*; all other cases are done"):
        evaluate(folders, "real", "labels", "reconstruction", extra=extra)
    assert {row["case"] for row in csv_rows(folders)} == {"1", "10"}


def test_images_on_another_grid_are_scored_on_it_with_a_note(folders, capsys):
    shape = (32, 36, 28)  # two slices less below and above, four columns less on either side
    for case in ("1", "2", "10"):
        flat = np.full(shape, 100.0)
        write(folders / "cropped", f"{case}.img", flat, affine=centered_affine(shape, SPACING))
    (folders / "reconstruction").rename(folders / "unused")
    (folders / "cropped").rename(folders / "reconstruction")
    result = evaluate(folders, "real", "labels", "reconstruction")
    assert "real CT onto the grid of its reconstruction" in capsys.readouterr().out
    # A flat 100 HU against a heart of 400 HU.
    assert result["reconstruction"]["mae_hu_class3"]["mean"] == pytest.approx(300, abs=1)
    assert result["vessels"]["reconstruction"]["lumen_hu"]["mean"] == pytest.approx(100)
    covered = result["vessels"]["reconstruction"]["centreline_covered"]["mean"]
    assert 0.85 < covered < 0.97  # 28 of 32 slices, of a centreline that ends before the mask


@pytest.mark.parametrize("columns", [0, 6])
def test_an_image_that_reaches_beyond_its_real_ct_has_a_note(folders, columns, capsys):
    shape = (SHAPE[0] + columns, *SHAPE[1:])
    for case in ("1", "2", "10"):
        flat, affine = np.full(shape, 100.0), centered_affine(shape, SPACING)
        write(folders / "reconstruction", f"{case}.img", flat, affine=affine)
    evaluate(folders, "real", "labels", "reconstruction", extra=["--no-distribution"])
    note = "more than 2 % of a reconstruction lie outside of its real CT and are compared with air"
    assert (note in capsys.readouterr().out) == bool(columns)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_case_that_cannot_be_read_is_left_out_and_named(folders, workers):
    path = folders / "reconstruction" / "1.img.nii.gz"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"1\.img\.nii\.gz: .*; all other cases are done"):
        evaluate(folders, "real", "labels", "reconstruction", workers=workers)
    result = json.loads((folders / "out" / "metrics.json").read_text(encoding="utf-8"))
    assert result["provenance"]["n_cases"] == 2
    assert "1 cases are left out, whose files cannot be scored: 1" in result["provenance"]["notes"]


def test_an_image_that_holds_no_hu_is_refused_unless_it_is_constant(folders):
    reconstruction = folders / "reconstruction"
    write(reconstruction, "1.img", heart_and_vessel(1)[0] / 1000, "float32")
    write(reconstruction, "2.img", np.full(SHAPE, 100.0))
    with pytest.raises(InputError, match=r"1\.img\.nii\.gz: .*scaled to a small range"):
        evaluate(folders, "real", "labels", "reconstruction")
    (reconstruction / "1.json").write_text('{"settings": {}}')  # of reconstruct
    assert evaluate(folders, "real", "labels", "reconstruction")["provenance"]["n_cases"] == 3


def test_an_image_outside_the_real_ct_is_refused(folders):
    far = centered_affine(SHAPE, SPACING)
    far[:3, 3] += 500
    write(folders / "reconstruction", "1.img", heart_and_vessel(1)[0], affine=far)
    with pytest.raises(InputError, match=r"1\.img\.nii\.gz.*different grids"):
        evaluate(folders, "real", "labels", "reconstruction")


def test_missing_partners_are_named_and_unpaired_real_cts_are_noted(folders, capsys):
    (folders / "synthesis" / "2_s0.img.nii.gz").rename(folders / "synthesis" / "7_s0.img.nii.gz")
    with pytest.raises(InputError, match=r"unpaired.*7_s0\.img\.nii\.gz"):
        evaluate(folders, "real", "labels", "synthesis")
    (folders / "synthesis" / "7_s0.img.nii.gz").unlink()
    (folders / "synthesis" / "2_s1.img.nii.gz").unlink()
    result = evaluate(folders, "real", "labels", "synthesis")
    assert result["provenance"]["n_cases"] == 2
    assert "1 real CTs without an image are skipped: 2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("labels",), "nothing to score"),
        (("labels", "reconstruction"), "give --real"),
        (("synthesis",), "give --labels"),
    ],
)
def test_a_comparison_without_its_folders_names_the_missing_flag(folders, names, message):
    with pytest.raises(InputError, match=message):
        evaluate(folders, *names)


def test_a_window_with_the_higher_number_first_is_refused(folders):
    with pytest.raises(InputError, match="--hu-window 1000 -1000"):
        evaluate(folders, "labels", "synthesis", extra=["--hu-window", "1000", "-1000"])


def test_a_training_log_gives_first_last_and_lowest_validation_loss(folders):
    run = folders / "runs" / "demo"
    run.mkdir(parents=True)
    lines = [
        {"step": 0, "split": "validation", "loss": 0.5},
        {"step": 5, "split": "training", "loss": 9.0},
        {"step": 10, "split": "validation", "loss": 0.1},
        {"step": 20, "split": "validation", "loss": 0.2},
    ]
    log = run / "metrics.jsonl"
    log.write_text("\n".join(json.dumps(line) for line in lines) + '\n{"step": 30, "spl')
    losses = evaluate(folders, "labels", "synthesis", extra=["--training-log", log])["training"]
    first, last, lowest = (losses["demo"][f"{k}_loss"] for k in ("first", "last", "lowest"))
    assert (first, last, lowest, losses["demo"]["fell"]) == (0.5, 0.2, 0.1, True)
    no_losses = ['{"step": 1, "split": "training", "loss": 1}\n', "[3]\n4\n"]
    no_losses += ['{"step": 1, "split": "validation", "loss": null}']
    for content in [*map(str.encode, no_losses), b"\x18\x00\xff\xfe events of TensorBoard"]:
        log.write_bytes(content)
        with pytest.raises(InputError, match="validation"):
            validation_losses([log])


def test_statistics_are_student_intervals_and_undefined_is_null():
    from scipy.stats import t

    values = [1.0, 2.0, 4.0, 7.0, None, float("nan")]
    stat = statistics(values)
    low, high = t.interval(0.95, 3, loc=3.5, scale=np.std(values[:4], ddof=1) / 2)
    assert (stat["n"], stat["mean"]) == (4, 3.5)
    assert stat["ci95"] == pytest.approx([low, high])
    assert statistics(values, bounds=(0.0, 5.0))["ci95"] == [0.0, 5.0]
    assert statistics([]) == {"mean": None, "std": None, "ci95": [None, None], "n": 0}
    assert json_safe({"a": [float("inf"), {"b": float("nan")}]}) == {"a": [None, {"b": None}]}


def test_tables_align_and_have_a_dash_for_a_missing_score():
    rows = [{"case": str(i), "sample": 0, "source": "real", "psnr": 30.0 + i} for i in range(2)]
    text = table({"real": summarize(rows), "synthesis": {}}, ["psnr", "ssim"])
    lines = text.splitlines()
    assert lines[1].startswith("psnr  30.50 [24.15, 36.85]")
    assert len(lines[1]) == len(lines[2]) == len(lines[0])
    assert lines[1].endswith("  2") and lines[2].endswith("-")


def test_vessels_where_the_label_map_has_none_are_scored(folders, capsys):
    """The bright tube beside the heart touches the aorta and is no vessel of the label map."""
    x, y, z = np.meshgrid(*map(np.arange, SHAPE), indexing="ij")
    for case in ("1", "2"):
        hu, labels = heart_and_vessel(int(case))
        vessel = labels == 8
        labels[vessel] = 0
        labels[vessel & (z < 4)] = 6
        write(folders / "labels", f"{case}.label", labels, "uint8")
    result = evaluate(folders, "real", "labels", "synthesis")
    assert result["vessels"]["real"]["false_vessel_ml"]["mean"] == pytest.approx(0.4, abs=0.2)
    assert result["vessels"]["synthesis"]["false_vessel_ml"]["n"] == 2
    assert "false_vessel_ml" in capsys.readouterr().out


def test_training_cts_are_compared_although_the_first_case_has_no_synthesis(folders):
    for sample in (0, 1):
        (folders / "synthesis" / f"1_s{sample}.img.nii.gz").unlink()
    options = ["--training", folders / "real"]
    result = evaluate(folders, "real", "labels", "reconstruction", "synthesis", extra=options)
    assert result["synthesis"]["nearest_training_image"]["n"] == 2
    result = evaluate(folders, "real", "labels", "reconstruction", extra=options)
    assert "no case has a synthesis" in " ".join(result["provenance"]["notes"])


def test_features_of_a_network_leave_the_diversity_of_samples(folders, monkeypatch):
    monkeypatch.setattr(
        "tubesynth.metrics.set_scores.load_features", lambda path, raw=False: RADIOMIC
    )
    monkeypatch.setattr("tubesynth.evaluate.load_features", lambda path: RADIOMIC)
    options = ["--features", folders / "weights.pt", "--as-published"]
    names = ("real", "labels", "synthesis")
    radiomic = evaluate(folders, *names)["synthesis"]["diversity_ms_ssim"]
    scores = evaluate(folders, *names, extra=options)["synthesis"]
    assert scores["diversity_ms_ssim"] == radiomic
    # The published distance and this program's: of the same features, not standardized here.
    for plane in ("axial", "coronal", "sagittal"):
        distances = [scores[f"frechet_{plane}{end}"]["mean"] for end in ("", "_as_published")]
        assert distances[0] == pytest.approx(distances[1], rel=1e-9) and distances[0] > 0


def test_the_verdict_is_the_headline_score_and_stands_first(folders, capsys):
    result = evaluate(folders, "real", "labels", "reconstruction", "synthesis")
    whole = result["vessels"]["synthesis"]["vessel_match"]["mean"]
    assert whole == pytest.approx(0.5, abs=0.02)  # one of two samples has the vessel
    assert result["vessels"]["real"]["vessel_match"]["mean"] == 1
    assert result["vessels"]["floor"]["vessel_match"]["mean"] > 0.9  # the vessels have one place
    sentence = f"Coronaries in the synthesis: {whole:.2f} of the real CT's (by radius: {whole:.2f}"
    assert result["verdict"][1].startswith(sentence)
    text = capsys.readouterr().out
    assert text.index(sentence) < text.index("3 cases")
    page = (folders / "out" / "report.html").read_text(encoding="utf-8")
    assert html.escape(sentence) in page.partition("<h2>")[0]


def test_the_label_maps_of_other_images_have_no_headline_score(folders, capsys):
    """The vessel of the label map is 20 mm from that of the CT."""
    for case in ("1", "2"):
        labels = heart_and_vessel(1)[1]
        write(folders / "labels", f"{case}.label", np.roll(labels, 20, axis=0), "uint8")
    result = evaluate(folders, "real", "labels", "reconstruction")
    (sentence,) = result["verdict"]
    assert sentence.startswith("Coronaries in the reconstruction have no score: 67% of their")
    text = capsys.readouterr().out
    assert "no vessels in the real CT along most of the label map's: case 1, 2;" in text


def test_images_that_their_sidecars_say_are_something_else_are_noted(folders):
    digests = {
        f"{folder}/{case}": file_digest(folders / folder / f"{case}.{kind}.nii.gz")
        for folder, kind in (("real", "img"), ("labels", "label"))
        for case in ("1", "2", "10")
    }
    own, other = {"case": "1", "label_map": None}, {"case": "2", "label_map": ["3=8"]}
    sidecars = {
        "synthesis/1_s0": {"settings": own, "source_sha256": digests["labels/1"]},
        "synthesis/1_s1": {"settings": own, "source_sha256": 64 * "0"},
        "synthesis/2_s0": {"settings": other, "source_sha256": digests["labels/2"]},
        "synthesis/2_s1": {"settings": {**own, "centreline_sha256": 64 * "0"}},
        "reconstruction/1": {"settings": {}, "source_sha256": digests["real/1"]},
        "reconstruction/2": {"settings": {}, "source_sha256": digests["real/1"]},
        "reconstruction/10": {"settings": {"original_grid": True}, "cut_off": 0.25},
    }
    for name, record in sidecars.items():
        (folders / f"{name}.json").write_text(json.dumps(record), encoding="utf-8")
    result = evaluate(folders, "real", "labels", "synthesis", "reconstruction")
    notes = result["provenance"]["notes"]
    expected = {
        "another label map than": "1_s1.img.nii.gz",
        "another translation of label values": "2_s0.img.nii.gz",
        "another centreline": "2_s1.img.nii.gz",
        "another CT than": "2.img.nii.gz",
        "air outside of the model's field of view": "10.img.nii.gz (25 %)",
    }
    for text, name in expected.items():
        (note,) = [note for note in notes if text in note]
        assert f": {name}" in note and note.count(".img") == 1


def test_the_label_maps_that_synthesize_wrote_are_those_of_its_images(folders):
    labels = heart_and_vessel(1)[1]
    write(folders / "synthesis" / "labels", "1_s0.label", labels, "uint8")
    for name in ("1_s1", "2_s0", "2_s1", "10_s0", "10_s1"):
        (folders / "synthesis" / f"{name}.img.nii.gz").unlink()
    record = {"settings": {"case": "1"}, "source_sha256": 64 * "0"}
    (folders / "synthesis" / "1_s0.json").write_text(json.dumps(record), encoding="utf-8")
    own = ("--labels", folders / "synthesis" / "labels", "--no-distribution")
    notes = evaluate(folders, "synthesis", extra=own)["provenance"]["notes"]
    assert not any("made of another" in note for note in notes)


def test_without_the_real_ct_the_headline_score_is_absent_and_a_line_says_so(folders):
    result = evaluate(folders, "labels", "synthesis")
    assert "vessel_match" not in result["vessels"]["synthesis"]
    assert result["verdict"] == ["Coronaries are not compared with the real CT's: give --real."]
    result = evaluate(folders, "real", "reconstruction")
    assert result["verdict"] == ["Vessels are not scored: give --labels."]


def test_syntheses_without_label_maps_are_compared_with_the_real_cts_as_a_set(folders, capsys):
    """Unconditional samples, on a grid far from those of the patients: equal images score best."""
    shifted = centered_affine(SHAPE, SPACING)
    shifted[:3, 3] += 500
    for number in range(4):
        hu = heart_and_vessel(number)[0]
        write(folders / "real", f"{number}.img", hu)
        write(folders / "same", f"unconditional_s{number}.img", hu, affine=shifted)
        write(folders / "flat", f"unconditional_s{number}.img", 0.5 * hu, affine=shifted)
    (folders / "real" / "10.img.nii.gz").unlink()
    runs = ["--synthesis", f"same={folders / 'same'}", "--synthesis", f"flat={folders / 'flat'}"]
    result = evaluate(folders, "real", extra=[*runs, "--training", folders / "real"])
    same, flat = (result["runs"][name]["synthesis"] for name in ("same", "flat"))
    assert same["frechet"]["mean"] == pytest.approx(0, abs=1e-6) and flat["frechet"]["mean"] > 1
    assert (same["precision"]["mean"], same["recall"]["mean"]) == (1, 1)
    assert same["frechet"]["n"] == 4 and result["floor"]["frechet"]["n"] == 2
    assert same["nearest_training_image"]["mean"] == pytest.approx(0, abs=1e-6)
    assert "psnr" not in same and result["vessels"]["synthesis"] == {}
    assert result["validity"]["cases"] == 2
    printed = capsys.readouterr().out
    assert "the 4 syntheses are compared with the 4 real CTs as sets; scores of single" in printed
    assert "scores of vessels --labels" in printed and "frechet_excess" in printed
    names = [f"unconditional_s{number}" for number in range(4)]
    assert sorted(path.stem for path in (folders / "out" / "panels").iterdir()) == names
    assert [(row["case"], row["source"]) for row in csv_rows(folders)[:2]] == [
        (names[0], "synthesis same"),
        (names[0], "synthesis flat"),
    ]
    page = (folders / "out" / "report.html").read_text(encoding="utf-8")
    assert page.count("<img ") == 3 and names[2] in page
    assert "straightened" not in page and "missing vessel" not in page  # there are no label maps


def test_syntheses_without_label_maps_are_scored_against_the_real_cts_of_their_ids(folders):
    result = evaluate(folders, "real", "synthesis")
    expected = evaluate(folders, "real", "labels", "synthesis")
    for metric in ("psnr", "frechet", "diversity_ms_ssim"):
        assert result["synthesis"][metric] == expected["synthesis"][metric]
    (folders / "synthesis" / "2_s0.img.nii.gz").rename(folders / "synthesis" / "7_s0.img.nii.gz")
    with pytest.raises(InputError, match=r"unpaired.*7_s0\.img\.nii\.gz"):
        evaluate(folders, "real", "synthesis")


def test_scores_are_not_written_among_the_volumes_that_they_are_of(folders, monkeypatch):
    monkeypatch.setattr("tubesynth.evaluate.pool.each", None)
    shutil.copytree(folders / "real", folders / "training")
    (folders / "link").symlink_to(folders / "labels")
    names = ("real", "labels", "reconstruction", "synthesis", "training")
    before = sorted(folders.rglob("*"))
    for name, folder in (*zip(names, names, strict=True), ("labels", "link")):
        with pytest.raises(InputError, match=f"^--output-dir .*{folder}: is .* of --{name}:"):
            evaluate(folders, *names, extra=["--output-dir", folders / folder])
    assert sorted(folders.rglob("*")) == before


def test_what_cannot_be_scored_or_written_is_refused_before_a_case_is_scored(folders, monkeypatch):
    monkeypatch.setattr("tubesynth.evaluate.pool.each", None)
    with pytest.raises(InputError, match="nothing to score: give --reconstruction"):
        evaluate(folders, "real")
    (folders / "out").write_text("a file")
    with pytest.raises(InputError, match="^--output-dir .*out is no folder to write to"):
        evaluate(folders, "real", "reconstruction")
