"""Classifier-free guidance with one weight for the label map and one for the vessels.

The network is trained with either condition dropped at random (Ho and Salimans 2022, arXiv
2207.12598). Guidance moves from the unconditional velocity v(0, 0) towards the label map l by w_l
and from there towards the vessels v by w_v, as Brooks et al. 2023 (arXiv 2211.09800, eq. 3) do for
image and text:

    v = v(0, 0) + w_l (v(l, 0) - v(0, 0)) + w_v (v(l, v) - v(l, 0)).

Collected by velocity, this is a weighted sum of guidance terms. Weights of 1 leave the conditional
velocity v(l, v) alone. Guidance can be limited to an interval of t (Kynkaanniemi et al. 2024, arXiv
2404.07724); outside of it the velocity is v(l, v).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tubesynth.generative.ode import Velocity
from tubesynth.generative.times import expand


@dataclass(frozen=True)
class GuidanceTerm:
    """One evaluation of the network: the conditions it uses, and the weight of its velocity."""

    label: bool
    vessels: bool
    weight: float


def guidance_terms(
    label: float | None, vessels: float | None, with_conditional: bool = False
) -> list[GuidanceTerm]:
    """Guidance terms with non-zero weight; their weights sum to 1.

    label, vessels: the guidance weights w_l and w_v; None if the sample has no such condition.
    with_conditional: the first term has all conditions, also with the weight 0, for the times
    outside of a guidance interval.
    """
    has_label, has_vessels = label is not None, vessels is not None
    w_l = label if label is not None else vessels if vessels is not None else 1.0
    w_v = vessels if vessels is not None else w_l
    first, *others = [  # of those with the same conditions all but the first have the weight 0
        GuidanceTerm(has_label, has_vessels, w_v),
        GuidanceTerm(has_label, False, w_l - w_v),
        GuidanceTerm(False, False, 1 - w_l),
    ]
    is_first_used = first.weight != 0 or with_conditional
    return [first] * is_first_used + [term for term in others if term.weight != 0]


def guided(
    network: Velocity,
    weights: list[float],
    conditional: Velocity | None = None,
    interval: tuple[float, float] = (0.0, 1.0),
) -> Velocity:
    """The guided velocity: the weighted sum of all guidance terms, evaluated as one batch.

    network: takes x (S B, ...) and t (S B,), the B cases of the first of S terms, then those of the
    second, and so on. weights: (S,) of the terms. conditional: takes x (B, ...) and gives v(l, v),
    the velocity outside the interval; needed only if the interval is shorter than [0, 1].
    """
    low, high = interval
    if len(weights) == 1:  # the sum of the weights is 1, so this one is 1
        return network

    def weighted_sum(x: Tensor, t: Tensor) -> Tensor:
        count = len(weights)
        stacked = network(x.repeat(count, *[1] * (x.ndim - 1)), t.repeat(count))  # (S B, ...)
        velocity = torch.zeros_like(x)
        for weight, term in zip(weights, stacked.chunk(count), strict=True):
            velocity = velocity + weight * term
        return velocity

    if low <= 0.0 and high >= 1.0:
        return weighted_sum
    assert conditional is not None, "a guidance interval needs the conditional velocity"

    def within_interval(x: Tensor, t: Tensor) -> Tensor:
        inside = (low <= t) & (t <= high)  # (B,): a solver may step each case at its own t
        if inside.all():
            return weighted_sum(x, t)
        if not inside.any():
            return conditional(x, t)
        return torch.where(expand(inside, x), weighted_sum(x, t), conditional(x, t))

    return within_interval
