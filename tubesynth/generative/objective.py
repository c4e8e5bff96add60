"""What a generative process is to those who train it and sample from it, and the error they share.

FlowMatching (flow.py) and Diffusion (diffusion.py) are Objectives. The network is any callable
network(x_t (B, C, ...), t (B,)) with t = 0 at noise and t = 1 at data, in both of them.
"""

from collections.abc import Callable
from typing import Protocol

import torch.nn.functional as F
from torch import Tensor

Network = Callable[[Tensor, Tensor], Tensor]
POOL = {2: F.max_pool2d, 3: F.max_pool3d}


class Sampling(Protocol):
    """How to sample. Flow: solver, steps, time_grid, shift, atol, rtol. Diffusion: solver, steps,
    eta, timesteps.
    """

    solver: str
    steps: int
    time_grid: list[float] | None
    shift: float
    atol: float
    rtol: float
    eta: float
    timesteps: str


class Objective(Protocol):
    target: str  # what the network learns to predict: the name of the loss

    def times(self, u: Tensor) -> Tensor:
        """Uniform numbers (B,) in [0, 1) -> times to train at (B,)."""

    def pair_noise(self, noise: Tensor, data: Tensor) -> Tensor:
        """Noise and data (B, C, ...) of a training batch -> the noise in the order to train in."""

    def loss(
        self, network: Network, data: Tensor, noise: Tensor, t: Tensor, weight: Tensor | None = None
    ) -> Tensor:
        """Data and noise (B, C, ...), t (B,), weight (B, 1, ...) of mean 1 -> (B,), a case each."""

    def sample(
        self,
        network: Network,
        noise: Tensor,
        sampling: Sampling,
        fresh: Callable[[], Tensor],
        callback: Callable[[Tensor, Tensor], None] | None = None,
    ) -> tuple[Tensor, int]:
        """Noise (B, C, ...) -> data, and the number of network evaluations.

        fresh: draws white noise (B, C, ...), for what a sampler adds on the way;
        callback(t (B,), x) sees every step.
        """


def mean_error(prediction: Tensor, target: Tensor, norm: str, weight: Tensor | None) -> Tensor:
    """Mean l1 or l2 distance of (B, C, ...), in 32 bits: (B,), a case each."""
    error = prediction.float() - target
    error = error.abs() if norm == "l1" else error.square()
    if weight is not None:
        error = error * weight
    return error.flatten(1).mean(1)


def vessel_weight(labels: Tensor, vessel_class: int, factor: int, weight: float) -> Tensor:
    """Labels (B, fX, ...) -> (B, 1, X, ...): `weight` to 1 where a cell holds any vessel voxel.

    Scaled to mean 1 over each case, so that a learning rate keeps its meaning and a case without
    vessels weighs as much as any other.
    """
    vessel = (labels == vessel_class)[:, None].float()
    cells = 1 + (weight - 1) * POOL[labels.ndim - 1](vessel, factor)
    return cells / cells.flatten(1).mean(1).reshape(-1, *[1] * (cells.ndim - 1))
