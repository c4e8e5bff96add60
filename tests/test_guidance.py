"""Guidance in closed form: the three-way sum, skipped terms, intervals."""

import itertools

import pytest
import torch

from tubesynth.generative.guidance import GuidanceTerm, guidance_terms, guided


@pytest.mark.parametrize(("w_l", "w_v"), list(itertools.product([0.0, 1.0, 1.5, 3.0], repeat=2)))
def test_the_guidance_terms_sum_to_the_three_way_formula(w_l, w_v):
    """v00 + w_l (v_l0 - v00) + w_v (v_lv - v_l0)"""
    v00, vl0, vlv = torch.randn(3, 5, dtype=torch.float64)
    value = {(False, False): v00, (True, False): vl0, (True, True): vlv}
    total = sum(term.weight * value[term.label, term.vessels] for term in guidance_terms(w_l, w_v))
    torch.testing.assert_close(total, v00 + w_l * (vl0 - v00) + w_v * (vlv - vl0))
    assert all(term.weight for term in guidance_terms(w_l, w_v))


def test_terms_of_zero_weight_are_left_out():
    assert guidance_terms(1.0, 1.0) == [GuidanceTerm(True, True, 1.0)]
    assert guidance_terms(1.0, 0.0) == [GuidanceTerm(True, False, 1.0)]
    assert guidance_terms(0.0, 0.0) == [GuidanceTerm(False, False, 1.0)]
    assert (
        len(guidance_terms(2.0, 2.0)) == 2
        and len(guidance_terms(1.0, 3.0)) == 2
        and len(guidance_terms(3.0, 2.0)) == 3
    )
    assert guidance_terms(None, None) == [GuidanceTerm(False, False, 1.0)]
    assert guidance_terms(2.0, None) == [
        GuidanceTerm(True, False, 2.0),
        GuidanceTerm(False, False, -1.0),
    ]
    assert guidance_terms(None, 3.0) == [
        GuidanceTerm(False, True, 3.0),
        GuidanceTerm(False, False, -2.0),
    ]


@pytest.mark.parametrize(("w_l", "w_v"), [(0.0, 0.0), (2.0, 0.0), (0.0, 2.0), (0.0, None), (3, 2)])
def test_with_an_interval_the_first_term_has_all_conditions_whatever_its_weight(w_l, w_v):
    """It is the velocity outside of the interval; inside, the sum is the same."""
    terms = guidance_terms(w_l, w_v, with_conditional=True)
    assert terms[0].label and terms[0].vessels == (w_v is not None)
    assert [term for term in terms if term.weight] == guidance_terms(w_l, w_v)


def test_one_forward_evaluates_all_terms_of_all_cases():
    calls = []

    def network(x, t):
        calls.append(len(x))
        term = torch.arange(len(x)) // 2  # two cases: rows 0 and 1 are term 0, and so on
        return (term + 1).reshape(-1, 1) * x + t[:, None]

    x, t = torch.randn(2, 3), torch.full((2,), 0.25)
    out = guided(network, [2.0, -1.5, 0.5])(x, t)
    torch.testing.assert_close(out, 2.0 * x - 1.5 * 2 * x + 0.5 * 3 * x + t[:, None])
    assert calls == [6]


def test_outside_the_interval_the_velocity_is_the_conditional_one():
    interval = (0.25, 0.5)
    velocity = guided(lambda x, t: x * 0, [2.0, -1.0], lambda x, t: x * 0 + 7, interval)
    times = torch.tensor([0.0, 0.25, 0.4, 0.5, 0.6])
    assert [velocity(torch.zeros(1, 1), t[None]).item() for t in times] == [7, 0, 0, 0, 7]


def test_the_interval_applies_to_the_time_of_each_case():
    velocity = guided(lambda x, t: x * 0, [2.0, -1.0], lambda x, t: x * 0 + 7, (0.25, 0.5))
    times = torch.tensor([0.2, 0.3, 0.6])
    assert velocity(torch.zeros(3, 1), times)[:, 0].tolist() == [7, 0, 7]
