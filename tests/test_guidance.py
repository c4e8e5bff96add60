"""Guidance in closed form: the three-way sum, what is skipped, intervals."""

import itertools

import pytest
import torch

from tubesynth.generative.guidance import Side, guided, sides


@pytest.mark.parametrize(("w_l", "w_v"), list(itertools.product([0.0, 1.0, 1.5, 3.0], repeat=2)))
def test_the_sides_are_the_three_way_sum(w_l, w_v):
    """v00 + w_l (v_l0 - v00) + w_v (v_lv - v_l0)"""
    v00, vl0, vlv = torch.randn(3, 5, dtype=torch.float64)
    value = {(False, False): v00, (True, False): vl0, (True, True): vlv}
    total = sum(side.weight * value[side.label, side.vessels] for side in sides(w_l, w_v))
    torch.testing.assert_close(total, v00 + w_l * (vl0 - v00) + w_v * (vlv - vl0))
    assert all(side.weight for side in sides(w_l, w_v))


def test_rows_that_no_weight_needs_are_left_out():
    assert sides(1.0, 1.0) == [Side(True, True, 1.0)]
    assert sides(1.0, 0.0) == [Side(True, False, 1.0)]
    assert sides(0.0, 0.0) == [Side(False, False, 1.0)]
    assert len(sides(2.0, 2.0)) == 2 and len(sides(1.0, 3.0)) == 2 and len(sides(3.0, 2.0)) == 3
    assert sides(None, None) == [Side(False, False, 1.0)]
    assert sides(2.0, None) == [Side(True, False, 2.0), Side(False, False, -1.0)]
    assert sides(None, 3.0) == [Side(False, True, 3.0), Side(False, False, -2.0)]


def test_one_forward_serves_all_sides_of_all_cases():
    calls = []

    def network(x, t):
        calls.append(len(x))
        side = torch.arange(len(x)) // 2  # two cases: rows 0-1 are side 0, and so on
        return (side + 1).reshape(-1, 1) * x + t[:, None]

    x, t = torch.randn(2, 3), torch.full((2,), 0.25)
    out = guided(network, [2.0, -1.5, 0.5])(x, t)
    torch.testing.assert_close(out, 2.0 * x - 1.5 * 2 * x + 0.5 * 3 * x + t[:, None])
    assert calls == [6]


def test_outside_the_interval_the_conditional_network_stands_alone():
    interval = (0.25, 0.5)
    velocity = guided(lambda x, t: x * 0, [2.0, -1.0], lambda x, t: x * 0 + 7, interval)
    times = torch.tensor([0.0, 0.25, 0.4, 0.5, 0.6])
    assert [velocity(torch.zeros(1, 1), t[None]).item() for t in times] == [7, 0, 0, 0, 7]


def test_cases_at_times_of_their_own_are_guided_where_each_is():
    velocity = guided(lambda x, t: x * 0, [2.0, -1.0], lambda x, t: x * 0 + 7, (0.25, 0.5))
    times = torch.tensor([0.2, 0.3, 0.6])
    assert velocity(torch.zeros(3, 1), times)[:, 0].tolist() == [7, 0, 7]
