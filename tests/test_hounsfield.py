"""Images that do not hold HU are told from CTs by their histogram, by every command."""

import shutil

import numpy as np
import pytest

from tubesynth.__main__ import load_command
from tubesynth.data.preprocessing import Preprocessing, read_case
from tubesynth.metrics.set_scores import aligned_features
from tubesynth.runtime.errors import InputError
from tubesynth.volume.cases import find_cases, pair_cases
from tubesynth.volume.files import read_volume, write_volume
from tubesynth.volume.grid import Volume
from tubesynth.volume.hounsfield import check_hu, judge

WINDOW = (-1000.0, 1000.0)


def thorax(seed=0, contrast_hu=350.0, air_hu=-1000.0):
    """(56, 56, 40) HU with noise: air outside, skin of fat, two lungs, bone, a heart."""
    rng = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in (56, 56, 40)), indexing="ij")
    hu = np.full(x.shape, air_hu)
    for width, value in ((0.9, -100), (0.8, 50)):
        hu[(x / width) ** 2 + (y / width / 0.8) ** 2 < 1] = value
    for side in (-0.45, 0.45):
        hu[((x - side) / 0.3) ** 2 + (y / 0.45) ** 2 + (z / 0.9) ** 2 < 1] = -850
    hu[x**2 + ((y + 0.55) / 0.12) ** 2 < 0.02] = 500
    hu[(x / 0.3) ** 2 + (y / 0.35) ** 2 + (z / 0.5) ** 2 < 1] = contrast_hu
    return np.rint(hu + rng.normal(0, 15, hu.shape))


def speckled(hu, seed=0):
    """Like MR: magnitudes from 0 on, of a wide range in each tissue."""
    return np.rint((hu - hu.min()) * np.random.default_rng(seed).uniform(0.5, 1.5, hu.shape))


def angiogram(hu, seed=0):
    """Like time-of-flight MRA: bright vessels, dim tissue, Rician noise."""
    rng = np.random.default_rng(seed)
    signal = np.select([hu > 150, hu > -300], [900.0, 150.0], 10.0)
    return np.rint(np.hypot(signal + rng.normal(0, 15, hu.shape), rng.normal(0, 15, hu.shape)))


OTHERS = {  # kind: (what it does to HU, words of the message)
    "plus 1024": (lambda hu: hu + 1024, "subtract 1024"),
    "unsigned": (lambda hu: (hu + 1024).clip(0).astype(np.uint16), "subtract 1024"),
    "raw with padding": (lambda hu: np.where(hu < -960, -2000, hu + 1024), "subtract 1024"),
    "plus 2048": (lambda hu: hu.clip(-1024) + 2048, "subtract 2048"),
    "subtracted twice": (lambda hu: hu - 1024, "add 1024"),
    "8 bits": (lambda hu: ((hu + 1000) / 2000 * 255).clip(0, 255).astype(np.uint8), "of 8 bits"),
    "0 to 1": (lambda hu: ((hu + 1000) / 2000).clip(0, 1), "scaled"),
    "-1 to 1": (lambda hu: (hu / 1000).clip(-1, 1), "scaled"),
    "z-score": (lambda hu: (hu - hu.mean()) / hu.std(), "standardized"),
    "MR": (speckled, "MR"),
    "MRA": (angiogram, "MR"),
    "constant": (lambda hu: np.full_like(hu, 40), "every voxel is 40"),
    "label map": (lambda hu: np.digitize(hu, (-500, -50, 100, 300)), "a label map"),
    "clipped -160": (lambda hu: hu.clip(-160, 240), "within [-160, 240]"),
    "clipped -175": (lambda hu: hu.clip(-175, 250), "within [-175, 250]"),
    "clipped -200": (lambda hu: hu.clip(-200, 600), "within [-200, "),
    "times ten": (lambda hu: hu * 10, "10 x"),
    "wrapped": (lambda hu: np.where(hu < 0, hu + 65536, hu), "overflow"),
}


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("contrast_hu", [45.0, 350.0, 550.0])
def test_what_is_no_hu_is_certain_and_named(kind, contrast_hu):
    change, words = OTHERS[kind]
    finding = judge(change(thorax(int(contrast_hu), contrast_hu)), WINDOW)
    assert finding is not None and finding.is_certain and words in finding.text


@pytest.mark.parametrize("intercept", [1024, 2048])
def test_a_missing_intercept_is_named_in_a_narrow_field_of_contrast_medium_too(intercept):
    finding = judge(thorax()[18:38, 16:40, 10:30].clip(-1024) + intercept, WINDOW)
    assert finding is not None and f"subtract {intercept}" in finding.text


@pytest.mark.parametrize("contrast_hu", [45.0, 350.0, 550.0])
def test_a_tenth_of_hu_is_a_warning(contrast_hu):
    finding = judge(np.rint(thorax(0, contrast_hu) / 10), WINDOW)
    assert finding is not None and not finding.is_certain and "HU / 10" in finding.text


def with_padding(hu, value):
    side = np.linspace(-1, 1, hu.shape[0])
    return np.where(np.hypot(side[:, None, None], side[None, :, None]) > 0.95, value, hu)


def with_metal(hu, value):
    hu = hu.copy()
    hu[20:23, 30:33] = value
    return hu


ORDINARY = {
    "whole": lambda hu: hu,
    "padding -3024": lambda hu: with_padding(hu, -3024),
    "padding -32768": lambda hu: with_padding(hu, -32768),
    "padding -2000": lambda hu: with_padding(hu, -2000),
    "padding -1024": lambda hu: with_padding(hu, -1024),
    "metal": lambda hu: with_metal(hu, 3071),
    "metal of 16 bits": lambda hu: with_metal(hu, 30000),
    "clipped as by the model": lambda hu: hu.clip(*WINDOW),
    "noise": lambda hu: hu + np.random.default_rng(1).normal(0, 80, hu.shape),
    "heart": lambda hu: hu[14:42, 12:44, 8:32],
    "inside the heart": lambda hu: hu[24:32, 24:32, 16:24],
    "a slice": lambda hu: hu[:, :, 20:21],
}


@pytest.mark.parametrize("kind", ORDINARY)
@pytest.mark.parametrize("contrast_hu", [45.0, 350.0, 550.0])
def test_an_ordinary_ct_is_passed_over_in_silence(kind, contrast_hu):
    assert judge(ORDINARY[kind](thorax(int(contrast_hu), contrast_hu)), WINDOW) is None


def test_phantoms_and_real_ct_are_passed_over_in_silence(workplace, real_ct):
    folders = workplace / "data" / "training" / "images", real_ct / "images"
    paths = [path for folder in folders for path in find_cases(folder).values()]
    assert len(paths) >= 8
    for path in paths:
        array = read_volume(path).array
        middle = tuple(slice(n // 4, n // 4 + n // 2) for n in array.shape)
        assert judge(array, WINDOW) is None and judge(array[middle], WINDOW) is None, path


def test_a_clipped_image_is_a_warning_until_the_window_is_known_and_right_within_it(caplog):
    clipped = Volume(thorax().clip(-160, 240), np.eye(4))
    check_hu(clipped, "a.nii", window=None)
    check_hu(clipped, "a.nii", window=None)
    assert [line.getMessage()[:5] for line in caplog.records] == ["a.nii"]
    assert judge(clipped.array, (-160.0, 240.0)) is None
    with pytest.raises(InputError, match="a.nii: .* clipped"):
        check_hu(clipped, "a.nii", WINDOW)


def test_pictures_with_a_window_of_their_own_need_contrast_alone():
    gray = np.random.default_rng(0).integers(0, 256, (32, 32, 1))
    assert judge(gray, (0.0, 255.0)) is None
    finding = judge(gray // 128, (0.0, 255.0))
    assert finding is not None and "no contrast" in finding.text


@pytest.fixture
def raw_case(workplace, tmp_path):
    """A copy of the training folder, of which case 1 is stored without its rescale intercept."""
    data = tmp_path / "data"
    shutil.copytree(workplace / "data" / "training", data / "training")
    path = next(iter(find_cases(data / "training" / "images").values()))
    ct = read_volume(path)
    write_volume(path, Volume(ct.array + 1024, ct.affine), np.int16)
    return path


def test_every_command_that_reads_ct_refuses_one_that_is_not_in_hu(raw_case, stage_1, tmp_path):
    images = raw_case.parent
    out, flag = ["--output-dir", tmp_path / "out"], "--input-dir"
    source = tmp_path / "source"
    for name, folder in (("img", images), ("label", images.parent / "labels")):
        source.mkdir(exist_ok=True)
        for case, path in find_cases(folder).items():
            shutil.copy(path, source / f"{case}.{name}.nii.gz")
    commands = {
        "doctor": ["--data", raw_case.parents[2], "--json"],
        "reconstruct": [flag, images, *out, "--model", stage_1],
        "evaluate": ["--real", images, "--reconstruction", images, *out],
    }
    for name, arguments in commands.items():
        try:
            load_command(name).main([str(argument) for argument in arguments])
        except InputError as error:
            assert raw_case.name in str(error) and "subtract 1024" in str(error), name
        except SystemExit as end:
            assert name == "doctor" and end.code == 2
        else:
            pytest.fail(f"{name}: takes a CT that is not in HU")
    case = next(iter(pair_cases(images, images.parent / "labels")))
    with pytest.raises(InputError, match="subtract 1024"):
        read_case(case, Preprocessing((16, 16, 12), (2.0, 2.0, 2.0)))
    with pytest.raises(InputError, match="subtract 1024"):
        aligned_features(case.id, raw_case, (16, 16, 12), np.eye(4), {"window": WINDOW})
