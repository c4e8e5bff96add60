"""Solvers for dx/dt = velocity(x, t) from t = 0 to t = 1.

Runge-Kutta, fixed steps: euler, midpoint, heun, rk4. Multistep, fixed steps: adams. Adaptive steps:
dopri5 (Dormand and Prince 1980; step control after Hairer, Norsett and Wanner, Solving Ordinary
Differential Equations I, section II.4). Each returns the end point and the number of network
evaluations, the cost of a batch.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tubesynth.generative.times import expand, time_grid
from tubesynth.runtime.errors import InputError

MAX_STEPS = 1000  # of dopri5
ADAMS_ENDS = 0.5  # of its time grid (docs/results.md)
Velocity = Callable[[Tensor, Tensor], Tensor]  # x (B, ...), t (B,) -> dx/dt


@dataclass(frozen=True)
class Tableau:
    """Butcher tableau: nodes c, matrix a (rows of the stages after the first), weights b."""

    c: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]


FIXED = {
    "euler": Tableau((0,), (), (1,)),
    "midpoint": Tableau((0, 1 / 2), ((1 / 2,),), (0, 1)),
    "heun": Tableau((0, 1), ((1,),), (1 / 2, 1 / 2)),
    "rk4": Tableau(
        (0, 1 / 2, 1 / 2, 1),
        ((1 / 2,), (0, 1 / 2), (0, 0, 1)),
        (1 / 6, 1 / 3, 1 / 3, 1 / 6),
    ),
}

DOPRI5 = Tableau(
    (0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1),
    (
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    ),
    (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0),
)
# Weights of the embedded fourth-order solution; its distance from the fifth-order solution
# estimates the error.
DOPRI5_FOURTH = (
    5179 / 57600,
    0,
    7571 / 16695,
    393 / 640,
    -92097 / 339200,
    187 / 2100,
    1 / 40,
)


def _combine(x: Tensor, step: Tensor, weights, stages: list[Tensor]) -> Tensor:
    """x + step (B,) times the weighted sum of the stages."""
    for weight, stage in zip(weights, stages, strict=False):
        if weight:
            x = x + expand((step * weight).to(x.dtype), x) * stage
    return x


def _stages(velocity: Velocity, x: Tensor, t: Tensor, step: Tensor, tableau: Tableau, first=None):
    """The velocities at the stages of a step (B,) from times t (B,), both float64."""
    stages = [velocity(x, t.float()) if first is None else first]
    for c, row in zip(tableau.c[1:], tableau.a, strict=True):
        stages.append(velocity(_combine(x, step, row, stages), (t + c * step).float()))
    return stages


def solve_fixed(
    velocity: Velocity, x: Tensor, times: list[float], solver: str, callback=None
) -> tuple[Tensor, int]:
    """Step along ascending times, usually from 0 to 1."""
    tableau, evaluations = FIXED[solver], 0
    for t, t_next in zip(times[:-1], times[1:], strict=True):
        step = torch.full((len(x),), t_next - t, dtype=torch.float64, device=x.device)
        stages = _stages(velocity, x, torch.full_like(step, t), step, tableau)
        evaluations += len(stages)
        x = _combine(x, step, tableau.b, stages)
        if callback:
            callback(torch.full_like(step, t_next), x)
    return x, evaluations


def solve_adams(
    velocity: Velocity, x: Tensor, times: list[float], callback=None
) -> tuple[Tensor, int]:
    """Adams-Bashforth-Moulton of second order along ascending times (Hairer et al. I, section
    III.1), in the mode predict, evaluate, correct: one evaluation a step.

    The line through the last two velocities predicts the end of a step; there the velocity is
    evaluated, and its mean with the one at the start of the step makes the step.
    """

    def at(t: float) -> Tensor:
        return torch.full((len(x),), t, dtype=torch.float32, device=x.device)

    steps = list(zip(times[:-1], times[1:], strict=True))
    current, slope = velocity(x, at(times[0])), None  # slope: of the velocity, in t
    for number, (t, t_next) in enumerate(steps, start=1):
        step = t_next - t
        predicted = x + step * current
        if slope is not None:
            predicted = predicted + step**2 / 2 * slope
        if number == len(steps):
            x = predicted
        else:
            arrived = velocity(predicted, at(t_next))
            x = x + step / 2 * (current + arrived)
            current, slope = arrived, (arrived - current) / step
        if callback:
            callback(at(t_next), x)
    return x, len(steps)


def solve_dopri5(
    velocity: Velocity, x: Tensor, atol: float, rtol: float, callback=None
) -> tuple[Tensor, int]:
    """From t = 0 to 1; the RMS error of each step, relative to atol + rtol |x|, is at most 1.

    Every case has its own time and step, so each case of a batch ends where it would end alone (as
    in torchode, Lienen and Guennemann 2022, arXiv 2210.12375). The network is evaluated for all
    cases until the last one reaches t = 1.
    """

    def norm(v: Tensor) -> Tensor:
        return v.double().flatten(1).square().mean(1).sqrt()

    t = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    first = velocity(x, t.float())
    # First step (Hairer II.4): an explicit Euler step that changes x by one percent gives the rate
    # of change of the velocity, and with it the length of a fifth-order step.
    scale = atol + rtol * x.abs()
    d0, d1 = norm(x / scale), norm(first / scale)
    short = torch.where(torch.minimum(d0, d1) > 1e-5, 0.01 * d0 / d1, 1e-6).clamp_max(1.0)
    second = velocity(_combine(x, short, (1,), [first]), short.float())
    evaluations = 2
    steepest = torch.maximum(d1, norm((second - first) / scale) / short)
    fallback = (1e-3 * short).clamp_min(1e-6)  # of a velocity that does not change
    step = torch.where(steepest > 1e-15, (0.01 / steepest) ** (1 / 5), fallback)
    step = torch.minimum(step, 100 * short)
    difference = [b - b4 for b, b4 in zip(DOPRI5.b, DOPRI5_FOURTH, strict=True)]
    for _ in range(MAX_STEPS):
        if bool((t >= 1).all()):  # one sync point per step
            return x, evaluations
        step = torch.minimum(step, 1 - t)  # 0 for a finished case: no change
        stages = _stages(velocity, x, t, step, DOPRI5, first)
        evaluations += len(stages) - 1
        candidate = _combine(x, step, DOPRI5.b, stages)
        error = _combine(torch.zeros_like(x), step, difference, stages)
        ratio = norm(error / (atol + rtol * torch.maximum(x.abs(), candidate.abs())))
        if bool(ratio.isnan().any()):
            at = t[ratio.isnan()].min().item()
            raise InputError(
                f"dopri5: the velocity is not finite near t = {at:.4f}: use precision 32, or an"
                " earlier checkpoint"
            )
        accepted = ratio <= 1
        t = torch.where(accepted, torch.where(step >= 1 - t, 1.0, t + step), t)
        x = torch.where(expand(accepted, x), candidate, x)
        first = torch.where(expand(accepted, x), stages[-1], first)  # first same as last
        if callback and bool(accepted.any()):
            callback(t, x)
        growth = (0.9 * ratio ** (-1 / 5)).clamp(0.2, 10.0)
        step = step * torch.where(accepted, growth, growth.clamp_max(1.0))
    at = t.min().item()
    raise InputError(f"dopri5: t = {at:.4f} after {MAX_STEPS} steps: raise atol or rtol")


def solve(
    velocity: Velocity,
    x: Tensor,
    solver: str,
    steps: int = 10,
    atol: float = 1e-4,
    rtol: float = 1e-2,
    callback: Callable[[Tensor, Tensor], None] | None = None,
    times: list[float] | None = None,
    shift: float = 1.0,
) -> tuple[Tensor, int]:
    """The state at t = 1 and the number of network evaluations.

    A fixed-step solver steps along `times`, by default along time_grid(steps, shift); those of
    adams are then shorter at both ends.
    callback(t, x) is called after every step, with the time of each case, t (B,).
    """
    if solver == "dopri5":
        return solve_dopri5(velocity, x, atol, rtol, callback)
    if solver == "adams":
        return solve_adams(velocity, x, times or time_grid(steps, shift, ADAMS_ENDS), callback)
    return solve_fixed(velocity, x, times or time_grid(steps, shift), solver, callback)
