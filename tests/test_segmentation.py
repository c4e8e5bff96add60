"""Coronaries detected in the CT alone, on a spherical heart, an aorta and one vessel."""

import numpy as np
import pytest

from tubesynth.metrics.overlap import centreline_overlap, dice, radius_errors
from tubesynth.metrics.segmentation import find_vessels, search_region
from tubesynth.metrics.topology import betti_errors, betti_numbers
from tubesynth.volume.grid import centered_affine
from tubesynth.volume.vessels import extract_tokens

SHAPE, SPACING = (80, 64, 48), np.array([0.7, 0.7, 0.9])
FAT, MUSCLE, CONTRAST = -80.0, 60.0, 380.0


def anatomy(radius_mm=1.3):
    """(HU, vessel, heart, aorta): a vessel along x from the aorta past a bright chamber."""
    x, y, z = (
        (g - (n - 1) / 2) * s for g, n, s in zip(np.indices(SHAPE), SHAPE, SPACING, strict=True)
    )
    chamber = np.sqrt(x**2 + (y + 10) ** 2 + z**2) < 8
    muscle = np.sqrt(x**2 + (y + 10) ** 2 + z**2) < 12
    aorta = np.hypot(x + 22, y - 8) < 5
    vessel = (np.hypot(y - 8, z) < radius_mm) & (x > -18) & (x < 20)
    hu = np.select([chamber | aorta | vessel, muscle], [CONTRAST, MUSCLE], FAT)
    return hu + np.random.default_rng(0).normal(0, 15, SHAPE), vessel, muscle, aorta


def detected_vessels(hu, heart, aorta):
    """The vessels of a CT as a mask of its shape."""
    region = search_region(heart, aorta, SPACING)
    result = np.zeros(hu.shape, dtype=bool)
    result[region.box] = find_vessels(hu[region.box], region)[0]
    return result


def test_the_vessel_is_detected_and_nothing_else():
    hu, vessel, heart, aorta = anatomy()
    detected = detected_vessels(hu, heart, aorta)
    scores = centreline_overlap(detected, vessel, SPACING)
    assert dice(detected, vessel) > 0.8
    assert scores["cldice"] > 0.85 and scores["centreline_precision"] == 1.0
    errors = betti_errors(betti_numbers(detected), betti_numbers(vessel))
    assert errors == {"betti0_error": 0, "betti1_error": 0}


def test_an_erased_vessel_is_not_detected_though_the_condition_has_it():
    hu, vessel, heart, aorta = anatomy()
    erased = np.where(vessel, FAT, hu)
    assert not detected_vessels(erased, heart, aorta).any()
    assert search_region(np.zeros_like(heart), aorta, SPACING) is None
    assert search_region(heart, np.zeros_like(aorta), SPACING) is None


def test_a_narrow_gap_adds_one_component_and_beyond_a_wide_gap_nothing_is_detected():
    hu, vessel, heart, aorta = anatomy()
    narrow, wide = hu.copy(), hu.copy()
    narrow[44:46][vessel[44:46]] = FAT  # 1.4 mm, more where the cut ends blur
    wide[44:54][vessel[44:54]] = FAT
    detected = detected_vessels(narrow, heart, aorta)
    assert betti_errors(betti_numbers(detected), betti_numbers(vessel))["betti0_error"] == 1
    cut = centreline_overlap(detected_vessels(wide, heart, aorta), vessel, SPACING)
    length = vessel.any((1, 2)).sum()
    before = vessel[:44].any((1, 2)).sum()
    assert cut["centreline_recall"] == pytest.approx(before / length, abs=0.06)


def test_radii_of_the_detected_vessel_are_those_of_the_vessel_thick_or_thin():
    affine = centered_affine(SHAPE, SPACING)
    for radius in (2.2, 1.54, 1.1):
        hu, vessel, heart, aorta = anatomy(radius)
        detected = extract_tokens(detected_vessels(hu, heart, aorta), affine)
        scores = radius_errors(detected, extract_tokens(vessel, affine))
        assert scores["radius_ratio"] == pytest.approx(1, abs=0.06)
