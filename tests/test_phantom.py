"""The phantom: anatomy, Murray's law, HU, physics of the scan, files, equal bytes."""

import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import REPOSITORY
from refusals import refused_command
from scipy.ndimage import binary_dilation, binary_erosion, label

from tubesynth.phantom import __main__ as command
from tubesynth.phantom.anatomy import CORONARY, make_phantom, sample_anatomy
from tubesynth.phantom.scanner import ct_noise
from tubesynth.runtime.errors import InputError
from tubesynth.volume.files import read_labels, read_volume

AORTA = 6
MIDDLE = ((128, 128, 96), (1.2, 1.2, 1.2))
CASES = (1, 2)


@pytest.fixture(scope="module")
def middle():
    return make_phantom(3, 1, *MIDDLE)


@pytest.fixture(scope="module")
def anatomies():
    return [sample_anatomy(11, case) for case in CASES]


def points_of(branches, *, septal=True):
    return np.concatenate([b.points for b in branches if septal or not b.name.startswith("S")])


def test_blood_and_tissue_have_plausible_hu(middle):
    hu, labels = middle.image.array, middle.labels.array
    inside = {k: hu[binary_erosion(labels == k, iterations=2)].mean() for k in range(1, 8)}
    assert 85 < inside[1] < 140
    aorta = inside[6]
    assert 270 < aorta < 540 and all(abs(inside[k] - aorta) < 40 for k in (2, 3))
    assert all(110 < inside[k] < 300 for k in (4, 5, 7))
    thick = points_of(middle.branches)
    thick = thick[thick[:, 3] > 1.6]
    index = np.rint(middle.image.to_index(thick[:, :3])).astype(int)
    assert 0.75 * aorta < hu[tuple(index.T)].mean() < 1.02 * aorta
    assert -900 < np.median(hu[hu < -600]) < -800
    assert (hu > 400).sum() > (labels == 6).sum() * 0.05  # bone and dense blood


def test_every_class_occurs_with_a_plausible_volume(middle):
    millilitres = np.bincount(middle.labels.array.ravel(), minlength=9) * 1.2**3 / 1000
    low = [0, 80, 40, 60, 40, 40, 50, 30, 2]
    high = [9999, 230, 180, 220, 200, 200, 180, 150, 15]
    assert (millilitres > low).all() and (millilitres < high).all(), millilitres.round()


def test_radii_taper_from_two_to_half_a_millimeter(anatomies):
    for anatomy in anatomies:
        radii = points_of(anatomy.branches)[:, 3]
        assert 0.5 <= radii.min() < 0.65 and 1.8 < radii.max() < 2.3
        assert all((np.diff(b.points[:, 3]) <= 0).all() for b in anatomy.branches)
        roots = [b.points[0, 3] for b in anatomy.branches if b.parent is None]
        assert len(roots) == 2 and min(roots) > 1.3


def test_murrays_law_holds_at_every_branching(anatomies):
    branchings = 0
    for anatomy in anatomies:
        for i, parent in enumerate(anatomy.branches):
            children = [b for b in anatomy.branches if b.parent == i]
            for child in children:
                assert np.allclose(child.points[0, :3], parent.points[-1, :3])
            if children:
                cubes = sum(child.points[0, 3] ** 3 for child in children)
                assert np.isclose(cubes, parent.points[-1, 3] ** 3, rtol=1e-6)
                branchings += len(children) == 2
    assert branchings >= 8 * len(anatomies)


def test_parents_come_before_children_and_names_are_those_of_the_trees(anatomies):
    for anatomy in anatomies:
        names = {b.name for b in anatomy.branches}
        assert {"LM", "LAD", "LCX", "RCA", "D1"} <= names
        assert any(name.startswith("OM") for name in names)
        assert all(b.parent is None or b.parent < i for i, b in enumerate(anatomy.branches))


def test_ostia_lie_on_the_wall_of_the_aortic_root(anatomies):
    for anatomy in anatomies:
        aorta = anatomy.lattice.sampler(anatomy.heart["aorta"])
        ostia = np.array([b.points[0, :3] for b in anatomy.branches if b.parent is None])
        assert np.abs(aorta(ostia)).max() < 0.6


def test_arteries_run_on_the_epicardium_and_outside_of_the_chambers(anatomies):
    for anatomy in anatomies:
        points = points_of(anatomy.branches, septal=False)
        shapes, sample = anatomy.heart, anatomy.lattice.sampler
        for chamber in ("la", "lv", "ra", "rv"):
            assert (sample(shapes[chamber])(points[:, :3]) > points[:, 3]).all(), chamber
        height = sample(shapes["epicardium"])(points[:, :3])
        assert np.median(height) < 4 and np.percentile(height, 99) < 8
        assert (height > -2).all()


def test_paths_have_no_kinks(anatomies):
    for anatomy in anatomies:
        for branch in anatomy.branches:
            step = np.diff(branch.points[:, :3], axis=0)
            step /= np.linalg.norm(step, axis=1, keepdims=True)
            if len(step) > 1:
                turn = np.degrees(np.arccos(np.clip((step[1:] * step[:-1]).sum(1), -1, 1)))
                assert turn.max() < 35, branch.name  # per 0.5 mm


def test_two_cases_differ_in_anatomy_and_contrast(middle):
    a, b = middle, make_phantom(3, 2, *MIDDLE)
    for k in (1, 3, 5):
        first, second = a.labels.array == k, b.labels.array == k
        assert 2 * (first & second).sum() / (first.sum() + second.sum()) < 0.93
    assert [x.name for x in a.branches] != [x.name for x in b.branches]
    heart = (a.labels.array == AORTA) & (b.labels.array == AORTA)
    assert abs(a.image.array[heart].mean() - b.image.array[heart].mean()) > 2


def test_one_anatomy_at_two_resolutions(middle):
    other = make_phantom(3, 1, (80, 80, 60), (2.0, 2.0, 2.0))
    world = middle.labels.to_world(np.argwhere(np.ones(middle.labels.shape)))
    index = np.rint(other.labels.to_index(world)).astype(int).clip(0, np.array((79, 79, 59)))
    resampled = other.labels.array[tuple(index.T)].reshape(middle.labels.shape)
    for k in range(1, 8):
        first, second = middle.labels.array == k, resampled == k
        assert 2 * (first & second).sum() / (first.sum() + second.sum()) > 0.85, k
    for a, b in zip(middle.branches, other.branches, strict=True):
        assert a.name == b.name and np.allclose(a.points, b.points, atol=1e-3)


def test_coronary_labels_hold_the_centreline_and_are_connected_to_the_aorta(middle):
    labels = middle.labels.array
    index = np.rint(middle.labels.to_index(points_of(middle.branches)[:, :3])).astype(int)
    index = index[((index >= 0) & (index < labels.shape)).all(1)]
    assert np.isin(labels[tuple(index.T)], (CORONARY, AORTA)).mean() > 0.999
    components, _ = label((labels == CORONARY) | (labels == AORTA), np.ones((3, 3, 3)))
    root = middle.labels.to_index(middle.branches[0].points[0, :3])
    same = components == components[tuple(np.rint(root).astype(int))]
    assert (same[labels == CORONARY]).all()


def test_the_centreline_lies_on_bright_voxels_by_the_affine(middle):
    hu, points = middle.image.array, points_of(middle.branches)
    points = points[(points[:, 3] > 1.2)]
    on = np.rint(middle.image.to_index(points[:, :3])).astype(int)
    mirrored = points[:, :3] * [-1, 1, 1]
    off = np.rint(middle.image.to_index(mirrored)).astype(int)
    assert (hu[tuple(on.T)] > 200).mean() > 0.9
    assert (hu[tuple(off.T)] > 200).mean() < 0.6
    assert np.allclose(middle.image.spacing, 1.2) and np.allclose(middle.image.center_mm, 0)


def test_apex_points_left_front_down_and_the_liver_is_right(middle):
    labels = middle.labels
    center = {k: labels.to_world(np.argwhere(labels.array == k).mean(0)) for k in range(1, 8)}
    x, y, z = center[3] - center[2]  # from the left atrium to the left ventricle
    assert x < 0 and y > 0 and z < 0
    assert center[4][0] > center[3][0]  # right atrium right of the left ventricle
    assert center[5][1] > center[2][1]  # right ventricle in front of the left atrium
    assert center[7][2] > center[5][2]
    hu = middle.image.array
    base = hu[:, 40:90, :6]
    assert (base[-40:] > 0).mean() > (base[:20] > 0).mean()


def test_noise_is_band_shaped_in_plane_correlated_in_z_and_has_its_level():
    noise = ct_noise((128, 128, 64), (0.7, 0.7, 1.05), 25.0, np.random.default_rng(0))
    assert abs(noise.std() - 25) < 0.5 and abs(noise.mean()) < 0.1
    power = (np.abs(np.fft.fft2(noise[:, :, ::8], axes=(0, 1))) ** 2).mean(2)
    f = np.hypot(*np.meshgrid(np.fft.fftfreq(128, 0.7), np.fft.fftfreq(128, 0.7)))
    low, band, high = (
        power[(f > a) & (f < b)].mean() for a, b in ((0, 0.05), (0.2, 0.35), (0.6, 0.7))
    )
    assert band > 3 * low and band > 3 * high
    along_z = np.mean(noise[:, :, 1:] * noise[:, :, :-1]) / noise.var()
    assert 0.1 < along_z < 0.8
    coarse = ct_noise((64, 64, 48), (1.87, 1.87, 2.1), 25.0, np.random.default_rng(0))
    assert 2 < coarse.std() < 20


def test_edges_are_partial(middle):
    hu, labels = middle.image.array.astype(float), middle.labels.array
    blood = labels == 3
    rim = binary_dilation(blood) & (labels == 1)
    deep = binary_erosion(labels == 1, iterations=3)
    assert (
        hu[deep].mean() + 25 < hu[rim].mean() < hu[binary_erosion(blood, iterations=2)].mean() - 25
    )


def run(folder, *options, cases, workers=1):
    size = ["--resolution", "40", "40", "32", "--spacing", "4.4", "4.4", "4.2"]
    args = ["--output-dir", str(folder), "--cases", str(cases), "--workers", str(workers)]
    command.main([*args, *size, *options])


def digests(folder):
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def data_set(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantoms") / "one"
    run(folder, cases=2)
    return folder


def test_bytes_do_not_depend_on_the_number_of_workers(data_set, tmp_path):
    run(tmp_path, cases=2, workers=2)
    expected = digests(data_set)
    assert expected == digests(tmp_path) and len(expected) == 1 + 2 * 3
    assert (
        "validation/images/2.img.nii.gz" in expected
        and "training/labels/1.label.nii.gz" in expected
    )


def test_image_label_and_centreline_of_a_case_agree(data_set):
    image = read_volume(data_set / "training/images/1.img.nii.gz")
    labels = read_labels(data_set / "training/labels/1.label.nii.gz")
    assert image.array.dtype == np.int16 and set(np.unique(labels.array)) == set(range(9))
    assert np.allclose(image.affine, labels.affine) and np.allclose(image.spacing, (4.4, 4.4, 4.2))
    tree = json.loads(
        (data_set / "training/centrelines/1.centreline.json").read_text(encoding="utf-8")
    )
    assert tree["units"] == "mm" and tree["frame"] == "RAS world"
    points = np.array(tree["branches"][0]["points"])[:, :3]
    index = np.rint(labels.to_index(points)).astype(int)
    assert np.isin(labels.array[tuple(index.T)], (AORTA, CORONARY)).all()


def test_a_second_run_writes_only_missing_files(data_set, capsys):
    before = digests(data_set)
    complete = data_set / "training/images/1.img.nii.gz"
    stamp = complete.stat().st_mtime_ns
    (data_set / "validation/images/2.img.nii.gz").unlink()
    run(data_set, cases=2)
    assert digests(data_set) == before and complete.stat().st_mtime_ns == stamp
    assert "1 written, 1 complete before" in capsys.readouterr().out


def test_other_settings_in_a_finished_folder_are_refused_with_a_remedy(tmp_path):
    settings = {"seed": 0, "resolution": [40, 40, 32], "spacing": [4.4, 4.4, 4.2], "version": 1}
    (tmp_path / command.SETTINGS_FILE).write_text(json.dumps(settings))
    with pytest.raises(InputError, match=r"phantom.json: seed is 0, but .* 9; .* --output-dir"):
        run(tmp_path, "--seed", "9", cases=1)


def test_more_cases_do_not_change_the_split():
    few, many = command.split_cases(2, 0.2), command.split_cases(20, 0.2)
    assert few == {1: "training", 2: "validation"} and few.items() <= many.items()
    assert list(many.values()).count("validation") == 4


@pytest.mark.parametrize(
    "bad",
    [
        ["--cases", "0"],
        ["--cases", "two"],
        ["--workers", "0"],
        ["--resolution", "8", "64", "64"],
        ["--spacing", "0", "1", "1"],
        ["--validation-fraction", "1"],
    ],
)
def test_bad_arguments_end_with_code_2_and_one_line(bad, tmp_path, capsys):
    cases = [] if "--cases" in bad else ["--cases", "1"]
    args = ["--output-dir", str(tmp_path / "d"), *cases, *bad]
    refused_command(lambda: command.main(args), capsys)
    assert not (tmp_path / "d").exists()


def test_the_module_runs_with_worker_processes(tmp_path):
    """Workers cannot import the functions of a room's `__main__`."""
    options = "--cases 2 --resolution 16 16 16 --spacing 8 8 8 --workers 2".split()
    arguments = [sys.executable, "-m", "tubesynth.phantom", "--output-dir", str(tmp_path)]
    subprocess.run([*arguments, *options], cwd=REPOSITORY, check=True)
    assert len(list(tmp_path.glob("*/images/*.img.nii.gz"))) == 2
