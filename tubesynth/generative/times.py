"""Training times of a flow and time grids of a solver, from noise (t = 0) to data (t = 1).

Esser et al. 2024 (arXiv 2403.03206), section 3.1 and eq. 23, mirrored: their t = 1 is noise.
"""

import math

import torch
from torch import Tensor


def logit_normal(u: Tensor, mean: float, std: float) -> Tensor:
    """Quantile function of the logit-normal density: uniform u in [0, 1) -> t with
    logit(t) ~ N(mean, std). A negative mean moves times towards noise, a positive one towards data.
    """
    return torch.sigmoid(mean + std * torch.special.ndtri(u))


def shift_times(t, shift: float):
    """t / (t + shift (1 - t)), for a tensor or a number: shift above 1 moves times towards noise.

    For shift = sqrt(m / n), a latent of m cells has the same signal-to-noise ratio at the shifted
    time as one of n cells at t: neighboring cells are redundant, so more cells need more noise.
    """
    return t / (t + shift * (1 - t))


def expand(t: Tensor, like: Tensor) -> Tensor:
    """(B,) -> (B, 1, ..., 1), to broadcast with `like` (B, ...)."""
    return t.reshape(-1, *[1] * (like.ndim - 1))


def time_grid(steps: int, shift: float = 1.0, ends: float = 0.0) -> list[float]:
    """steps + 1 times from 0 to 1, evenly spaced and then shifted. ends: the share of a cosine in
    the spacing, with which steps are shorter at both ends, where the velocity changes fastest.
    """
    even = [i / steps for i in range(steps + 1)]
    return [shift_times(u + ends * ((1 - math.cos(math.pi * u)) / 2 - u), shift) for u in even]
