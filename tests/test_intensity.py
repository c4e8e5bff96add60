"""The window between HU and [0, 1]."""

import numpy as np
import pytest
import torch

from tubesynth.volume.intensity import hu_to_unit, unit_to_hu

WINDOW = (-1000, 1000)


@pytest.mark.parametrize(
    "kind", [lambda x: np.array(x, np.int16), lambda x: torch.tensor(x).short()]
)
def test_window_maps_its_ends_to_0_and_1_and_clips_beyond_without_overflow(kind):
    hu = kind([-32768, -1000, -500, 0, 1000, 32767])
    assert np.allclose(hu_to_unit(hu, WINDOW), [0, 0, 0.25, 0.5, 1, 1], atol=1e-7)


def test_round_trip_inside_the_window_is_exact_to_a_hundredth_hu():
    hu = np.arange(-1000, 1001, dtype=np.int16)
    assert np.abs(unit_to_hu(hu_to_unit(hu, WINDOW), WINDOW) - hu).max() < 0.01


def test_hu_never_leaves_the_window():
    assert np.array_equal(unit_to_hu(np.array([-3.0, 7.0]), (-200, 600)), [-200, 600])
