"""Dilation by a ball against a distance transform."""

import numpy as np
import pytest

from tubesynth.metrics.dilation import within


@pytest.mark.parametrize("reach_mm", [0.5, 1.05, 3.0, 9.0])
def test_dilation_is_the_distance_transform_at_a_threshold(reach_mm):
    from scipy.ndimage import distance_transform_edt

    spacing = np.array([0.7, 0.8, 1.05])
    mask = np.random.default_rng(0).random((30, 25, 20)) > 0.999
    mask[0, 0, 0] = True
    expected = distance_transform_edt(~mask, spacing) <= reach_mm
    assert np.array_equal(within(mask, spacing, reach_mm), expected)


def test_nothing_is_near_an_empty_mask():
    assert not within(np.zeros((5, 6, 7), dtype=bool), (1, 1, 1), 3.0).any()
