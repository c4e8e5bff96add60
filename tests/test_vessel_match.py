"""The headline score on phantoms at three voxel sizes: right, wrong and damaged images."""

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from headline_score import DAMAGES, WRONG, Patient, damaged_images, rescanned, wrong_images

from tubesynth.metrics.vessel_match import MIN_POINTS, along_branch, vessel_match
from tubesynth.phantom.anatomy import sample_anatomy
from tubesynth.volume.grid import Volume, centered_affine

GRIDS = {0.7: (120, 120, 96), 1.25: (72, 72, 56), 2.1: (44, 44, 34)}
WIDE, THIN = "vessel_match_1.5to3mm", "vessel_match_lt1.5mm"


@pytest.fixture(scope="module")
def anatomies():
    return [sample_anatomy(0, case) for case in (1, 2)]


@pytest.fixture(scope="module", params=GRIDS, ids=lambda mm: f"{mm}mm")
def patients(request, anatomies):
    grid = request.param, GRIDS[request.param]
    return [Patient.of(case, anatomies[case - 1], *grid) for case in (1, 2)]


def test_the_real_ct_has_1_and_noise_of_another_scan_costs_little(patients):
    patient = patients[0]
    scores = patient.match(patient.hu)
    left_out = scores["vessel_match_left_out"]
    assert scores["vessel_match"] == scores[THIN] == 1.0
    assert left_out < (0.5 if patient.spacing_mm > 2 else 0.1)
    assert patient.match(rescanned(patient))["vessel_match"] > 0.9


def test_images_without_the_patients_vessels_have_0(patients):
    scores = {name: [] for name in WRONG}
    for patient, other in (patients, patients[::-1]):
        for name, hu in wrong_images(patient, other).items():
            scores[name].append(patient.match(hu))
    for name, rows in scores.items():
        for metric, limit in (("vessel_match", 0.02), (THIN, 0.02), (WIDE, 0.1)):
            values = [row[metric] for row in rows if metric in row]
            assert np.mean(values or [0]) <= limit, (name, metric, values)


@pytest.mark.parametrize("kind", DAMAGES)
def test_thinned_broken_and_moved_vessels_have_less_from_level_to_level(patients, kind):
    patient = patients[0]
    scores = [1.0]
    for _, hu in damaged_images(patient, kind):
        scores.append(patient.match(hu)["vessel_match"])
    assert all(b < a - 0.05 or b <= a < 0.05 for a, b in pairwise(scores)), scores
    lowest = {"radii x": 0.45, "gaps of 5 mm in each branch:": 0.3, "vessels moved, mm:": 0.2}
    assert scores[-1] < lowest[kind]


def test_the_share_of_contrast_is_the_score_and_too_much_contrast_costs_as_well(patients):
    patient = patients[0]
    match = [patient.match(patient.hu * a)["vessel_match"] for a in (0.25, 0.5, 2.0, -1.0)]
    assert match == pytest.approx([0.25, 0.5, 0.5, 0.0], abs=1e-6)


def straight_tube(points, radius_mm=1.5):
    """(CT, tokens): a tube along z in the middle of 30 x 30 x 60 mm, tokens every mm."""
    affine = centered_affine((40, 40, 80), (0.75, 0.75, 0.75))
    x, y = (np.arange(40) - 19.5) * 0.75, (np.arange(40) - 19.5) * 0.75
    tube = np.hypot(*np.meshgrid(x, y, indexing="ij")) < radius_mm
    ct = np.where(tube[..., None], 350.0, -80.0) + np.zeros(80)
    z = np.arange(points) - (points - 1) / 2
    tokens = SimpleNamespace(
        position_mm=z[:, None] * [0, 0, 1.0],
        tangent=np.tile([0, 0, 1.0], (points, 1)),
        radius_mm=np.full(points, radius_mm),
        branch=np.zeros(points, dtype=int),
    )
    return Volume(ct, affine), tokens


def test_a_break_costs_more_than_its_length():
    ct, tokens = straight_tube(50)
    cut = ct.array.copy()
    cut[:, :, 38:42] = -80  # 3 of 50 mm
    score = vessel_match(Volume(cut, ct.affine), ct, tokens, ct)["vessel_match"]
    assert 0.8 < score < 1 - 2 * 3 / 50


def test_points_outside_or_without_contrast_in_the_real_ct_are_left_out():
    ct, tokens = straight_tube(50)
    dim = ct.array.copy()
    dim[:, :, :40] = -80  # the half below the middle
    real = Volume(dim, ct.affine)
    scores = vessel_match(real, real, tokens, ct)
    assert scores["vessel_match"] == pytest.approx(1.0)
    assert scores["vessel_match_left_out"] == pytest.approx(0.5, abs=0.08)
    # a vessel that the real CT has not: only the neighborhood of its end counts
    assert 0.75 < vessel_match(ct, real, tokens, ct)["vessel_match"] < 0.9
    flat = Volume(np.full_like(dim, 100.0), ct.affine)
    assert vessel_match(ct, flat, tokens, ct).keys() == {
        "vessel_match_left_out",
        "vessel_match_left_out_1.5to3mm",
    }
    below = Volume(ct.array[:, :, :30], ct.affine)
    assert vessel_match(below, ct, tokens, ct)["vessel_match"] == pytest.approx(1.0)
    far = ct.affine.copy()
    far[:3, 3] += 500
    assert vessel_match(Volume(ct.array, far), ct, tokens, ct) == {}


def test_a_calibre_of_few_points_and_a_condition_without_vessels_have_no_score():
    ct, tokens = straight_tube(MIN_POINTS - 1)
    assert "vessel_match" not in vessel_match(ct, ct, tokens, ct)
    ct, tokens = straight_tube(MIN_POINTS)
    assert vessel_match(ct, ct, tokens, ct)["vessel_match_1.5to3mm"] == pytest.approx(1.0)
    empty = SimpleNamespace(position_mm=np.zeros((0, 3)), tangent=np.zeros((0, 3)))
    assert vessel_match(ct, ct, empty, ct) == {}


def test_neighbors_are_those_of_the_same_branch():
    branch = np.array([0, 0, 0, 1, 1])
    values = np.array([3.0, 1.0, 2.0, 9.0, 7.0])
    assert along_branch(values, branch, 1, np.min, initial=np.inf).tolist() == [1, 1, 1, 7, 7]
    assert along_branch(values, branch, 1, np.mean).tolist() == [2.0, 2.0, 1.5, 8.0, 8.0]
