"""Solvers against closed forms, their orders, and scipy's Dormand-Prince."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from tubesynth.generative.ode import FIXED, solve
from tubesynth.runtime.errors import InputError

ORDER = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4, "adams": 2}
STAGES = {name: len(tableau.c) for name, tableau in FIXED.items()} | {"adams": 1}


def decay(x, t):
    """dx/dt = -2 t x: x(1) = x(0) / e."""
    return -2 * t.reshape(-1, 1) * x


@pytest.mark.parametrize("solver", ORDER)
def test_error_falls_with_the_order_of_the_solver(solver):
    start = torch.ones(1, 1, dtype=torch.float64)
    errors = []
    for steps in (16, 32):
        end, evaluations = solve(decay, start, solver, steps=steps)
        errors.append(abs(end.item() - math.exp(-1)))
        assert evaluations == steps * STAGES[solver]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(ORDER[solver], abs=0.3)


@pytest.mark.parametrize("solver", [*ORDER, "dopri5"])
def test_a_straight_path_is_solved_exactly(solver):
    noise, data = torch.randn(2, 3), torch.randn(2, 3)
    end, _ = solve(lambda x, t: data - noise, noise, solver, steps=1)
    torch.testing.assert_close(end, data)


@pytest.mark.parametrize("solver", ["midpoint", "adams"])
def test_the_order_holds_where_steps_have_many_lengths(solver):
    start, errors = torch.ones(1, 1, dtype=torch.float64), []
    for steps in (64, 128):
        even = [i / steps for i in range(steps + 1)]
        times = [t + 0.1 * math.sin(2 * math.pi * t) for t in even]
        errors.append(abs(solve(decay, start, solver, times=times)[0].item() - math.exp(-1)))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.4)


def test_adams_makes_two_steps_for_the_evaluations_of_one_of_midpoint():
    start = torch.ones(1, 1, dtype=torch.float64)
    ends = {
        solver: solve(decay, start, solver, steps=steps)
        for solver, steps in (("midpoint", 12), ("adams", 24))
    }
    assert ends["adams"][1] == ends["midpoint"][1] == 24
    errors = {solver: abs(end.item() - math.exp(-1)) for solver, (end, _) in ends.items()}
    assert errors["adams"] < errors["midpoint"]


def test_the_steps_of_adams_are_shorter_at_both_ends_unless_its_times_are_given():
    def lengths(**grid):
        times = [0.0]
        solve(decay, torch.ones(1, 1), "adams", 6, callback=lambda t, x: times.append(t), **grid)
        return [float(b - a) for a, b in itertools.pairwise(times)]

    first, *middle, last = lengths()
    assert first == pytest.approx(last) and first < 0.75 * max(middle)
    assert lengths(times=[0.0, 0.25, 1.0]) == [0.25, 0.75]


def test_dopri5_keeps_its_tolerance_and_costs_what_scipys_costs():
    matrix = np.array([[0.0, 6.0], [-6.0, -0.5]])
    torch_matrix = torch.from_numpy(matrix)
    calls = []

    def velocity(x, t):
        calls.append(t)
        return x @ torch_matrix.T

    start = torch.tensor([[1.0, 0.5]], dtype=torch.float64)
    end, evaluations = solve(velocity, start, "dopri5", atol=1e-8, rtol=1e-6)
    reference = solve_ivp(
        lambda t, x: matrix @ x, (0, 1), start[0].numpy(), method="RK45", rtol=1e-6, atol=1e-8
    )
    exact = torch.linalg.matrix_exp(torch_matrix) @ start[0]
    assert (end[0] - exact).abs().max() < 1e-5
    assert evaluations == len(calls)
    assert evaluations == pytest.approx(reference.nfev, rel=0.25)


def test_dopri5_names_a_velocity_that_is_not_finite():
    with pytest.raises(InputError, match="not finite"):
        solve(lambda x, t: x * float("nan"), torch.ones(1, 1), "dopri5")


def test_dopri5_costs_what_scipys_costs_at_a_loose_tolerance():
    """At the published tolerance: the first steps are a large share of all steps."""
    calls = []

    def velocity(x, t):
        calls.append(t)
        return 3 * (1 - x) * x

    _, evaluations = solve(velocity, torch.full((1, 1), 0.2), "dopri5", atol=1e-4, rtol=1e-2)
    reference = solve_ivp(
        lambda t, x: 3 * (1 - x) * x, (0, 1), [0.2], method="RK45", rtol=1e-2, atol=1e-4
    )
    assert evaluations == len(calls) <= reference.nfev


def test_the_callback_gets_every_step_up_to_the_end():
    seen = []
    solve(decay, torch.ones(1, 1), "heun", steps=4, callback=lambda t, x: seen.append(t.item()))
    assert seen == [0.25, 0.5, 0.75, 1.0]


def test_the_steps_are_those_of_a_shifted_and_of_an_explicit_grid():
    times = []
    solve(
        decay, torch.ones(1, 1), "euler", 2, shift=3.0, callback=lambda t, x: times.append(t.item())
    )
    assert times == pytest.approx([0.25, 1.0])
    grid, times = [0, 0.1, 0.7, 1], []
    end, evaluations = solve(
        decay,
        torch.ones(1, 1),
        "heun",
        99,
        times=grid,
        callback=lambda t, x: times.append(t.item()),
    )
    assert times == grid[1:] and evaluations == 6


def test_each_order_of_a_solver_is_exact_for_polynomials_of_time():
    """A solver of order p integrates t^(p - 1) exactly in any step, on an uneven grid too."""
    for solver, order in ORDER.items():
        end, _ = solve(
            lambda x, t, n=order: torch.ones_like(x) * t.double().reshape(-1, 1) ** (n - 1),
            torch.zeros(1, 1, dtype=torch.float64),
            solver,
            times=[0, 0.3, 1],
        )
        assert end.item() == pytest.approx(1 / order, rel=1e-6)


def test_dopri5_steps_every_case_by_itself():
    """A batch of an easy, a hard and a still case ends where each of them ends alone."""
    rates = torch.tensor([[-1.0], [-60.0], [0.0]], dtype=torch.float64)
    start = torch.tensor([[1.0, 2.0], [1.0, -1.0], [3.0, 0.0]], dtype=torch.float64)
    seen = []
    together, evaluations = solve(
        lambda x, t: rates * x, start, "dopri5", callback=lambda t, x: seen.append(t)
    )
    alone = [
        solve(lambda x, t, r=rate: r * x, x[None], "dopri5")
        for rate, x in zip(rates, start, strict=True)
    ]
    torch.testing.assert_close(together, torch.cat([end for end, _ in alone]), rtol=1e-12, atol=0)
    costs = [cost for _, cost in alone]
    assert evaluations == max(costs) == costs[1] > 3 * costs[0]
    times = torch.stack(seen)
    assert (times.diff(dim=0) >= 0).all() and times[-1].tolist() == [1, 1, 1]
    assert (times[1, 0] - times[1, 1]).abs() > 0.01  # they are not in step


@pytest.mark.parametrize("tolerance", [1e-3, 1e-5, 1e-7])
def test_dopri5_follows_scipy_on_a_nonlinear_problem(tolerance):
    """Van der Pol's oscillator, ten times faster; the reference at a hundredth of the tolerance."""

    def derivative(x, y):
        return 10 * y, 10 * (3 * (1 - x * x) * y - x)

    def velocity(state, t):
        return torch.stack(derivative(state[:, 0], state[:, 1]), dim=1)

    def solved(rtol):
        return solve_ivp(
            lambda t, s: derivative(*s), (0, 1), [2.0, 0.0], method="RK45", rtol=rtol, atol=rtol
        )

    start = torch.tensor([[2.0, 0.0]], dtype=torch.float64)
    end, evaluations = solve(velocity, start, "dopri5", atol=tolerance, rtol=tolerance)
    reference, peer = solved(tolerance / 100), solved(tolerance)
    error = np.abs(end[0].numpy() - reference.y[:, -1]).max()
    peer_error = np.abs(peer.y[:, -1] - reference.y[:, -1]).max()
    assert error < max(3 * peer_error, 10 * tolerance)
    assert evaluations == pytest.approx(peer.nfev, rel=0.15)
