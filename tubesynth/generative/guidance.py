"""Classifier-free guidance with a weight for the label map and one for the vessels.

A network that was trained with either condition dropped at random (Ho and Salimans 2022, arXiv
2207.12598) is steered in two steps (as Brooks et al. 2023, arXiv 2211.09800, do for image and
text): from nothing to the label map by w_l, from there to the vessels by w_v,

    v = v(0, 0) + w_l (v(l, 0) - v(0, 0)) + w_v (v(l, v) - v(l, 0)).

Weights of 1 are the conditional network itself. Sides whose share of the sum is zero are not
evaluated, the others go through the network as one batch. Guidance may be kept to an interval of
the flow's time (Kynkaanniemi et al. 2024, arXiv 2404.07724): outside, the conditional network is
taken as it is.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tubesynth.generative.times import expand

Velocity = Callable[[Tensor, Tensor], Tensor]  # x (B, ...), t (B,) -> dx/dt


@dataclass(frozen=True)
class Side:
    """What the network is told on this side, and the weight of its output in the sum."""

    label: bool
    vessels: bool
    weight: float


def sides(label: float | None, vessels: float | None) -> list[Side]:
    """The sides of non-zero weight, for the weights of the conditions; None: there is no such one.

    Without one of the conditions the other one's step starts from nothing.
    """
    w_l, w_v = label, vessels
    if w_l is None and w_v is None:
        every = [Side(False, False, 1.0)]
    elif w_v is None:
        every = [Side(True, False, w_l), Side(False, False, 1 - w_l)]
    elif w_l is None:
        every = [Side(False, True, w_v), Side(False, False, 1 - w_v)]
    else:
        every = [
            Side(True, True, w_v),
            Side(True, False, w_l - w_v),
            Side(False, False, 1 - w_l),
        ]
    return [side for side in every if side.weight != 0]


def guided(
    network: Velocity,
    weights: list[float],
    conditional: Velocity | None = None,
    interval: tuple[float, float] = (0.0, 1.0),
) -> Velocity:
    """The weighted sum of a network's sides, in one forward.

    network takes x (S B, ...), all cases of the first side, then all of the second, and so on;
    conditional takes x (B, ...) and is the velocity outside the interval, where that is shorter
    than the whole.
    """
    low, high = interval
    always = low <= 0.0 and high >= 1.0
    assert always or conditional is not None
    if len(weights) == 1:  # of weight 1, since all add up to it
        return network

    def weighted(x: Tensor, t: Tensor) -> Tensor:
        count = len(weights)
        out = network(x.repeat(count, *[1] * (x.ndim - 1)), t.repeat(count))
        return sum(w * side for w, side in zip(weights, out.chunk(count), strict=True))

    def within(x: Tensor, t: Tensor) -> Tensor:
        inside = (low <= t) & (t <= high)  # a solver may step every case by itself
        if inside.all():
            return weighted(x, t)
        if not inside.any():
            return conditional(x, t)
        return torch.where(expand(inside, x), weighted(x, t), conditional(x, t))

    return weighted if always else within
