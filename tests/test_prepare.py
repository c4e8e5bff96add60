"""python -m tubesynth.prepare: ImageCAS as distributed becomes nine-class training folders."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from grids import resampled
from refusals import refusal

from tubesynth.data import manifest
from tubesynth.data.preprocessing import Preprocessing
from tubesynth.doctor import __main__ as doctor
from tubesynth.doctor.facts import Expected
from tubesynth.prepare import __main__ as prepare
from tubesynth.prepare.imagecas import HEARTCHAMBERS, place
from tubesynth.runtime.errors import InputError
from tubesynth.runtime.process_id import ProcessId
from tubesynth.volume.cases import Case, pair_cases
from tubesynth.volume.digest import file_digest
from tubesynth.volume.files import read_labels, read_volume

SHAPE = (20, 18, 12)
# as ImageCAS files often lie: x and y backwards (LPS), anisotropic
AFFINE = np.array([[-0.5, 0, 0, 40.0], [0, -0.5, 0, -30], [0, 0, 0.8, 100], [0, 0, 0, 1]])
CASES = {"1-200": (1, 2, 3), "201-400": (201, 202), "801-1000": (1000,)}
ALL = [str(case) for cases in CASES.values() for case in cases]


def arrays(case: int):
    """(HU, coronaries 0/1, heart 0 to 7) in stored order; coronaries overlap the heart."""
    rng = np.random.default_rng(case)
    hu = rng.integers(-1000, 600, SHAPE).astype(np.int16)
    heart = np.zeros(SHAPE, np.uint8)
    heart[3:15, 4:12, 2:9] = rng.integers(0, 8, (12, 8, 7))
    coronaries = np.zeros(SHAPE, np.uint8)
    coronaries[5, 6, 3:8] = 1
    coronaries[14:17, 6, 4] = 1  # partly outside of the heart's box
    return hu, coronaries, heart


def save(path: Path, array, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)


@pytest.fixture
def source(tmp_path) -> Path:
    for folder, cases in CASES.items():
        for case in cases:
            hu, coronaries, _ = arrays(case)
            save(tmp_path / "ImageCAS" / folder / f"{case}.img.nii.gz", hu)
            save(tmp_path / "ImageCAS" / folder / f"{case}.label.nii.gz", coronaries)
    return tmp_path / "ImageCAS"


@pytest.fixture
def hearts(tmp_path) -> Path:
    """Odd cases as one multi-label file, even ones as a folder of masks."""
    for case in map(int, ALL):
        heart = arrays(case)[2]
        if case % 2:
            save(tmp_path / "heart" / f"{case}.nii.gz", heart)
        else:
            for value, name in enumerate(HEARTCHAMBERS, start=1):
                mask = (heart == value).astype(np.uint8)
                save(tmp_path / "heart" / f"{case}" / f"{name}.nii.gz", mask)
    return tmp_path / "heart"


def run(source, output, *arguments):
    command = ["--input-dir", source, "--output-dir", output, "--workers", 1, *arguments]
    prepare.main([str(item) for item in command])
    return output


def find(output: Path, kind: str, case) -> Path:
    (path,) = output.glob(f"*/{kind}s/{case}.{'img' if kind == 'image' else 'label'}.*")
    return path


def splits(output: Path) -> dict[str, str]:
    return {p.name.split(".")[0]: p.parts[-3] for p in output.glob("*/labels/*.nii.gz")}


def stamps(output: Path) -> dict[str, int]:
    files = ((path, path.stat()) for path in output.glob("*/labels/*.nii.gz"))
    return {str(path): (stat.st_mtime_ns, stat.st_ino) for path, stat in files}


def test_labels_hold_the_heart_and_the_coronaries_on_top(source, hearts, tmp_path):
    out = run(source, tmp_path / "out", "--heart-dir", hearts)
    for case in map(int, ALL):
        _, coronaries, heart = arrays(case)
        stored = nib.load(find(out, "label", case))
        expected = np.where(coronaries, 8, heart)
        assert np.array_equal(np.asarray(stored.dataobj), expected)
        assert stored.get_data_dtype() == np.uint8 and np.allclose(stored.affine, AFFINE)


def test_training_reads_the_resulting_folders(source, hearts, tmp_path):
    out = run(source, tmp_path / "out", "--heart-dir", hearts)
    for part in ("training", "validation"):
        for case in pair_cases(out / part / "images", out / part / "labels"):
            arrays, _ = resampled(case, Preprocessing(SHAPE, (0.5, 0.5, 0.8)))
            assert arrays["label"].max() == 8
    findings = doctor.check_data(doctor.find_splits(out), Expected())
    assert not [finding for finding in findings if finding.level == "error"]


FOUR = """labels:
  names: [background, heart, vessels, aorta]
  vessel: 2
  heart: [1]
  aorta: 3
  sources: {heart: [heart_myocardium, heart_ventricle_left]}
"""


def test_label_maps_have_the_scheme_of_the_config(source, hearts, tmp_path):
    (tmp_path / "four.yml").write_text(FOUR)
    scheme = ["--config", tmp_path / "four.yml"]
    for structure in ("heart_atrium_left", "pulmonary_artery"):
        (hearts / "2" / f"{structure}.nii.gz").unlink()  # no class needs them
    out = run(source, tmp_path / "out", "--heart-dir", hearts, *scheme)
    for case in map(int, ALL):
        _, coronaries, heart = arrays(case)
        expected = np.isin(heart, (1, 3)) + 3 * (heart == 6)
        expected[coronaries > 0] = 2
        assert np.array_equal(np.asarray(nib.load(find(out, "label", case)).dataobj), expected)
    (tmp_path / "four.yml").write_text(FOUR.replace("vessels", "coronaries"))
    with pytest.raises(InputError, match="was prepared with labels"):
        run(source, out, "--heart-dir", hearts, *scheme)
    (tmp_path / "four.yml").write_text("labels: {names: [background, a, vessels], vessel: 2}")
    with pytest.raises(InputError, match="labels.sources: no class holds a structure"):
        run(source, tmp_path / "other", "--heart-dir", hearts, *scheme)


def test_without_hearts_class_8_alone_is_written_and_printed(source, tmp_path, capsys):
    out = run(source, tmp_path / "out")
    label = np.asarray(nib.load(find(out, "label", 1)).dataobj)
    assert np.array_equal(label, 8 * arrays(1)[1])
    assert "hold class 8 (coronary arteries) alone" in capsys.readouterr().out


def test_a_flat_folder_and_other_names_of_heart_files_are_read(source, hearts, tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in source.rglob("*.nii.gz"):
        shutil.copy(path, flat / path.name)
    renamed = tmp_path / "renamed"
    for case in map(int, ALL):
        heart = arrays(case)[2]
        name = {0: f"1-200/{case}.heart.nii.gz", 1: f"{case}.img/heartchambers.nii.gz"}[case % 2]
        save(renamed / name, heart)
    first = run(source, tmp_path / "one", "--heart-dir", hearts)
    second = run(flat, tmp_path / "two", "--heart-dir", renamed)
    for case in ALL:
        assert find(first, "label", case).read_bytes() == find(second, "label", case).read_bytes()


def test_images_are_hard_links_or_copies_with_the_same_bytes(source, tmp_path):
    linked, copied = run(source, tmp_path / "a"), run(source, tmp_path / "b", "--link", "copy")
    image = source / "1-200/1.img.nii.gz"
    assert find(linked, "image", 1).samefile(image)
    assert not find(copied, "image", 1).samefile(image)
    assert find(copied, "image", 1).read_bytes() == image.read_bytes()


def test_where_links_are_impossible_images_are_copied_with_a_message(
    source, tmp_path, capsys, monkeypatch
):
    def refuse(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    out = run(source, tmp_path / "out")
    assert "6 images are copies" in capsys.readouterr().out
    record = json.loads((out / "manifest.json").read_text(encoding="utf-8"))["cases"]["1"]
    assert record["made"] == "copy"


def test_linking_twice_leaves_one_file(source, tmp_path):
    target = tmp_path / "x" / "1.img.nii.gz"
    for _ in range(2):
        assert place(source / "1-200/1.img.nii.gz", target, "hard") == "hard"
    assert [p.name for p in target.parent.iterdir()] == [target.name]


def test_the_manifest_has_the_hashes_of_sources_and_outputs(source, hearts, tmp_path):
    out = run(source, tmp_path / "out", "--heart-dir", hearts, "--seed", 3)
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["settings"]["seed"] == 3 and manifest["settings"]["heart"] is True
    assert list(manifest["cases"]) == ALL and manifest["tubesynth"]
    for case, record in manifest["cases"].items():
        assert record["part"] == splits(out)[case]
        for kind in ("image", "label"):
            assert file_digest(out / record[kind]["path"]) == record[kind]["sha256"]
        assert len(record["sources"]) == (3 if int(case) % 2 else 9)
        for described in record["sources"]:
            assert file_digest(Path(described["path"])) == described["sha256"]
        assert sum(record["class_voxels"].values()) == np.prod(SHAPE)
    assert not (out / ".records").exists()


def test_the_split_depends_on_seed_and_id_alone(tmp_path):
    ids = [str(i) for i in range(1, 1001)]
    some, more = (prepare.assign_splits(ids[:n], 0, 0.1, None, {}) for n in (600, 1000))
    assert all(more[case] == part for case, part in some.items())
    validation = sum(part == "validation" for part in more.values())
    assert 70 <= validation <= 130  # 100 expected, standard deviation 9.5
    other = prepare.assign_splits(ids, 1, 0.1, None, {})
    assert other != more
    both = sum(other[c] == more[c] == "validation" for c in ids)
    assert both < 30  # seeds are independent: 10 expected


def test_few_cases_still_give_both_splits(source, tmp_path):
    for fraction in (0.001, 0.999):
        out = run(source, tmp_path / str(fraction), "--validation-fraction", fraction)
        counts = [list(splits(out).values()).count(p) for p in ("training", "validation")]
        assert counts == ([5, 1] if fraction < 0.5 else [1, 5])


def test_a_case_that_moves_to_the_other_split_leaves_its_first_one(source, tmp_path):
    """Where the only validation case is removed, a training case takes its place."""
    out = run(source, tmp_path / "out", "--validation-fraction", 0.001)
    (removed,) = (case for case, split in splits(out).items() if split == "validation")
    (path,) = source.glob(f"*/{removed}.img.nii.gz")
    path.unlink()
    path.with_name(f"{removed}.label.nii.gz").unlink()
    for path in out.glob(f"*/*/{removed}.*"):
        path.unlink()
    run(source, out, "--validation-fraction", 0.001)
    for kind in ("image", "label"):
        found = [p.name.split(".")[0] for p in out.glob(f"*/{kind}s/*.nii.gz")]
        assert sorted(found) == sorted(set(ALL) - {removed})
    assert list(splits(out).values()).count("validation") == 1


def test_the_split_can_be_a_file_of_ids(source, tmp_path):
    ids = tmp_path / "ids.txt"
    ids.write_text("2, 1000  # the second fold\n\n201\n")
    out = run(source, tmp_path / "out", "--validation-ids", ids)
    validation = [case for case, split in splits(out).items() if split == "validation"]
    assert sorted(validation) == ["1000", "2", "201"]
    ids.write_text("2 77")
    with pytest.raises(InputError, match="no cases: 77"):
        run(source, tmp_path / "other", "--validation-ids", ids)
    assert not (tmp_path / "other").exists()


def test_a_second_run_writes_nothing(source, hearts, tmp_path, capsys):
    out = run(source, tmp_path / "out", "--heart-dir", hearts)
    before = stamps(out)
    capsys.readouterr()
    run(source, out, "--heart-dir", hearts)
    assert "(0 prepared now, 6 before)" in capsys.readouterr().out
    assert stamps(out) == before


def test_cases_whose_sources_changed_are_written_again(source, hearts, tmp_path, capsys):
    out = run(source, tmp_path / "out", "--heart-dir", hearts)
    find(out, "label", 2).write_bytes(b"damaged")
    find(out, "image", 3).unlink()
    save(hearts / "1.nii.gz", arrays(55)[2])
    before = stamps(out)
    capsys.readouterr()
    run(source, out, "--heart-dir", hearts)
    assert "(3 prepared now, 3 before)" in capsys.readouterr().out
    changed = {Path(p).name.split(".")[0] for p, t in stamps(out).items() if before[p] != t}
    assert changed == {"1", "2", "3"}
    label = np.asarray(nib.load(find(out, "label", 1)).dataobj)
    assert np.array_equal(label, np.where(arrays(1)[1], 8, arrays(55)[2]))


def test_new_cases_do_not_change_the_others(source, tmp_path, capsys):
    out = run(source, tmp_path / "out")
    before = stamps(out)
    hu, coronaries, _ = arrays(7)
    save(source / "1-200/7.img.nii.gz", hu)
    save(source / "1-200/7.label.nii.gz", coronaries)
    capsys.readouterr()
    run(source, out)
    assert "(1 prepared now, 6 before)" in capsys.readouterr().out
    assert before.items() <= stamps(out).items()
    assert len(json.loads((out / "manifest.json").read_text(encoding="utf-8"))["cases"]) == 7


def test_a_case_that_the_input_has_no_more_is_named_and_removed_on_demand(source, tmp_path, capsys):
    out = run(source, tmp_path / "out")
    for path in source.glob("*/3.*"):
        path.unlink()
    capsys.readouterr()
    run(source, out)
    printed = capsys.readouterr().out
    assert "(0 prepared now, 6 before)" in printed
    assert "what the input has no more, 1 case: 3: --prune removes" in printed
    assert "3" in splits(out)
    run(source, out, "--prune")
    printed = capsys.readouterr().out
    assert "(0 prepared now, 5 before)" in printed and "removed 1 case: 3\n" in printed
    assert "3" not in splits(out) and not list(out.glob("*/images/3.*"))
    assert "3" not in json.loads((out / "manifest.json").read_text(encoding="utf-8"))["cases"]


def test_other_settings_in_an_existing_folder_are_refused(source, hearts, tmp_path):
    out = run(source, tmp_path / "out")
    for change in (["--seed", 1], ["--crop-to-heart"], ["--heart-dir", hearts]):
        with pytest.raises(InputError, match="choose another --output-dir"):
            run(source, out, *change)
    foreign = tmp_path / "foreign"
    save(foreign / "training/images/1.img.nii.gz", arrays(1)[0])
    with pytest.raises(InputError, match="holds images"):
        run(source, foreign)


@pytest.mark.slow
def test_a_killed_run_is_completed_by_the_same_command(source, tmp_path):
    out = tmp_path / "out"
    for case in range(11, 41):
        save(source / f"{case}.img.nii.gz", np.repeat(arrays(case)[0], 8, axis=2))
        save(source / f"{case}.label.nii.gz", np.repeat(arrays(case)[1], 8, axis=2))
    arguments = ["--input-dir", str(source), "--output-dir", str(out), "--workers", "1"]
    job = subprocess.Popen(
        [sys.executable, "-m", "tubesynth.prepare", *arguments], cwd=Path(__file__).parents[1]
    )
    while job.poll() is None and len(list(out.glob(".records/*.json"))) < 3:
        time.sleep(0.005)
    job.kill()
    job.wait()
    done = {p.name[: -len(".json")] for p in out.glob(".records/*.json")}
    assert len(done) >= 3
    for path in out.glob("*/labels/*.nii.gz"):  # nothing half-written bears a final name
        read_labels(path)
    killed = ProcessId.own()._replace(pid=job.pid)
    (out / "training" / "images" / f".99.img.nii.gz.{killed}.0000000a.tmp").write_bytes(b"half")
    live = out / "training" / "images" / f".99.img.nii.gz.{ProcessId.own()}.0000000b.tmp"
    live.write_bytes(b"of a running process")
    before = {path: t for path, t in stamps(out).items() if Path(path).name.split(".")[0] in done}
    run(source, out)
    assert before.items() <= stamps(out).items()
    fresh = run(source, tmp_path / "fresh")
    assert splits(fresh) == splits(out) and len(splits(out)) == 36
    for case in splits(out):
        assert find(fresh, "label", case).read_bytes() == find(out, "label", case).read_bytes()
    assert [p for p in out.rglob(".*") if p.is_file()] == [live]


def test_the_bytes_do_not_depend_on_the_workers(source, hearts, tmp_path):
    first = run(source, tmp_path / "one", "--heart-dir", hearts)
    second = run(source, tmp_path / "two", "--heart-dir", hearts, "--workers", 2)
    for case in ALL:
        assert find(first, "label", case).read_bytes() == find(second, "label", case).read_bytes()


def test_missing_files_are_listed_by_id_before_anything_is_written(source, hearts, tmp_path):
    (source / "1-200/2.label.nii.gz").unlink()
    (source / "201-400/202.label.nii.gz").unlink()
    (source / "801-1000/1000.img.nii.gz").unlink()
    shutil.rmtree(hearts / "202")
    refusal(
        lambda: run(source, tmp_path / "out", "--heart-dir", hearts),
        *("no label map for 2 cases: 2, 202", "no image for 1 case: 1000"),
        *("no heart structures", "for 1 case: 202"),
    )
    assert not (tmp_path / "out").exists()
    (hearts / "2" / "aorta.nii.gz").unlink()
    with pytest.raises(InputError, match="no aorta; run TotalSegmentator"):
        run(source, tmp_path / "out", "--heart-dir", hearts)


def test_bad_cases_stop_no_other_and_the_folder_is_named_as_incomplete(source, tmp_path):
    out = tmp_path / "out"
    save(source / "1-200/1.label.nii.gz", 3 * arrays(1)[1])
    save(source / "1-200/2.label.nii.gz", arrays(2)[1], np.eye(4))
    remedy = ": correct the input, and the same command prepares the rest"
    refusal(
        lambda: run(source, out),
        *("1.label.nii.gz: label value 3", f"; also {source}/1-200/2.label.nii.gz: grid of"),
        f"; {out} is incomplete, 4 of 6 cases{remedy}",
    )
    assert len(splits(out)) == 4
    for case in (1, 2):
        save(source / f"1-200/{case}.label.nii.gz", arrays(case)[1])
    run(source, out)
    assert len(splits(out)) == 6


def test_of_many_bad_cases_the_first_are_named(source, tmp_path):
    for folder, cases in CASES.items():
        for case in cases[-2:]:
            save(source / folder / f"{case}.label.nii.gz", 3 * arrays(case)[1])
    message = refusal(lambda: run(source, tmp_path / "out"), "; and 2 more; ", "1 of 6 cases")
    assert message.count("label value 3") == 3


def test_a_heart_on_another_grid_is_resampled_with_a_message(source, hearts, tmp_path, capsys):
    coarse = np.zeros((10, 9, 6), np.uint8)
    coarse[2:7, 2:6, 1:4] = 3
    affine = AFFINE @ np.diag([2, 2, 2, 1])
    affine[:3, 3] = (AFFINE @ [0.5, 0.5, 0.5, 1])[:3]  # the same corner of the voxels
    save(hearts / "1.nii.gz", coarse, affine)
    out = run(source, tmp_path / "out", "--heart-dir", hearts)
    assert "1 cases: heart labels were resampled" in capsys.readouterr().out
    expected = coarse.repeat(2, 0).repeat(2, 1).repeat(2, 2)
    label = np.asarray(nib.load(find(out, "label", 1)).dataobj)
    assert np.array_equal(label, np.where(arrays(1)[1], 8, expected))
    notes = json.loads((out / "manifest.json").read_text(encoding="utf-8"))["cases"]["1"]["notes"]
    assert notes == ["1.nii.gz: resampled onto the image's grid"]
    affine[:3, 3] += 500
    save(hearts / "1.nii.gz", coarse, affine)
    with pytest.raises(InputError, match="none of its structures lies within"):
        run(source, tmp_path / "other", "--heart-dir", hearts)


def test_a_crop_has_the_heart_in_its_middle_and_every_voxel_where_it_was(source, hearts, tmp_path):
    options = ["--heart-dir", hearts, "--crop-to-heart", "--margin-mm", 1]
    out = run(source, tmp_path / "out", *options)
    for case in map(int, ALL):
        path = Case(str(case), find(out, "image", case), find(out, "label", case))
        image, label = read_volume(path.image), read_labels(path.label)
        inside = np.argwhere(label.array > 0)
        low, high = inside.min(axis=0), inside.max(axis=0)
        assert np.array_equal(low, np.array(label.shape) - 1 - high)  # the same margin, both sides
        assert np.array_equal(low, [2, 2, 1])  # 1 mm in voxels of 0.5 x 0.5 x 0.8 mm
        hu, coronaries, heart = arrays(case)
        index = np.round(np.linalg.inv(AFFINE) @ [*image.to_world(low), 1]).astype(int)[:3]
        assert image.array[tuple(low)] == hu[tuple(index)]
        whole = np.count_nonzero(np.where(coronaries, 8, heart))
        assert len(inside) == whole  # no label is cut off
        assert nib.aff2axcodes(nib.load(path.image).affine) == ("L", "P", "S")


def test_a_margin_beyond_the_image_is_cut_alike_on_both_sides(source, hearts, tmp_path):
    out = run(source, tmp_path / "out", "--heart-dir", hearts, "--crop-to-heart")
    label = read_labels(find(out, "label", 1))
    inside = np.argwhere(label.array > 0)
    low, high = inside.min(axis=0), inside.max(axis=0)
    assert np.array_equal(low, np.array(label.shape) - 1 - high) and low.min() >= 2


def test_wrong_options_are_refused(tmp_path):
    for arguments, text in (
        (["--margin-mm", 3], "without --crop-to-heart"),
        (["--validation-fraction", 2], "above 0 and below 1"),
        (["--validation-fraction", 0.5, "--validation-ids", "x"], "give only one of them"),
        (["--workers", 0], "at least 1"),
    ):
        with pytest.raises(InputError, match=text):
            run(tmp_path, tmp_path / "out", *arguments)


def test_an_output_folder_in_an_input_folder_is_refused(source, hearts, tmp_path):
    (tmp_path / "link").symlink_to(source)
    before = sorted(tmp_path.rglob("*"))
    for out, text in (
        (source, "is the folder of --input-dir: choose another"),
        (source / "x" / "y", "lies in the folder of --input-dir, "),
        (tmp_path / "link" / "x", "lies in the folder of --input-dir, "),
        (hearts / "x", "lies in the folder of --heart-dir, "),
    ):
        refusal(
            lambda folder=out: run(source, folder, "--heart-dir", hearts),
            *(f"--output-dir {out}: ", text),
        )
    assert sorted(tmp_path.rglob("*")) == before


def test_an_affine_that_only_the_quaternion_has_is_copied(source, tmp_path):
    """sform marked as set but all zero, as some converters leave it."""
    path = source / "1-200" / "1.img.nii.gz"
    image = nib.Nifti1Image(arrays(1)[0], AFFINE)
    image.set_qform(AFFINE, code=1)
    image.set_sform(np.zeros((4, 4)), code=1)
    nib.save(image, path)
    out = run(source, tmp_path / "out")
    stored = nib.load(find(out, "label", 1))
    assert np.allclose(stored.affine, AFFINE, atol=1e-4)
    assert np.array_equal(np.asarray(stored.dataobj), 8 * arrays(1)[1])


def test_an_image_in_two_files_is_written_as_one(source, tmp_path):
    old = source / "1-200" / "1.img.nii.gz"
    sitk.WriteImage(sitk.ReadImage(str(old)), str(old.with_name("1.img.mhd")))
    old.unlink()
    out = run(source, tmp_path / "out")
    image = read_volume(find(out, "image", 1))
    assert find(out, "image", 1).name == "1.img.nii.gz"
    assert np.array_equal(image.array, read_volume(source / "1-200" / "1.img.mhd").array)
    run(source, tmp_path / "out")  # finished: nothing to do
    raw = source / "1-200" / "1.img.raw"
    (np.fromfile(raw, np.int16) + 1).tofile(raw)
    run(source, tmp_path / "out")
    assert np.array_equal(read_volume(find(out, "image", 1)).array, image.array + 1)


def test_a_second_prepare_is_refused_while_the_first_runs(source, tmp_path):
    out = tmp_path / "out"
    with manifest.exclusive(out), pytest.raises(InputError, match="another prepare is writing"):
        run(source, out)
    run(source, out)


def test_the_module_runs_with_worker_processes(source, tmp_path):
    """Workers cannot import the functions of a room's `__main__`."""
    out = tmp_path / "out"
    arguments = ["--input-dir", str(source), "--output-dir", str(out), "--workers", "2"]
    command = [sys.executable, "-m", "tubesynth.prepare", *arguments]
    subprocess.run(command, cwd=Path(__file__).parents[1], check=True)
    assert len(list(out.glob("*/labels/*.label.nii.gz"))) == len(ALL)
