"""The interface of a generative objective, and the training error of all objectives.

FlowMatching (flow.py) and Diffusion (diffusion.py) are Objectives. The network is any callable
network(x_t (B, C, ...), t (B,)); in both, t = 0 is noise and t = 1 is data.
"""

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

Network = Callable[[Tensor, Tensor], Tensor]
POOL = {2: F.max_pool2d, 3: F.max_pool3d}


class Sampling(Protocol):
    """Settings of a sampler. Flow uses solver, steps, time_grid, shift, atol and rtol; diffusion
    uses solver, steps, eta and timesteps.
    """

    @property
    def solver(self) -> str: ...
    @property
    def steps(self) -> int: ...
    @property
    def time_grid(self) -> list[float] | None: ...
    @property
    def shift(self) -> float: ...
    @property
    def atol(self) -> float: ...
    @property
    def rtol(self) -> float: ...
    @property
    def eta(self) -> float: ...
    @property
    def timesteps(self) -> str: ...


class Objective(Protocol):
    """A generative process: its training times, noise pairs and loss, and its sampler."""

    @property
    def target(self) -> str:
        """The quantity that the network predicts; also the name of the loss."""
        ...

    def times(self, u: Tensor) -> Tensor:
        """Uniform numbers (B,) in [0, 1) -> training times t (B,)."""
        ...

    def pair_noise(self, noise: Tensor, data: Tensor) -> Tensor:
        """Noise and data (B, C, ...) of a batch -> the noise, permuted to its training pairs."""
        ...

    def loss(
        self,
        network: Network,
        /,
        data: Tensor,
        noise: Tensor,
        t: Tensor,
        weight: Tensor | None = None,
    ) -> Tensor:
        """Data and noise (B, C, ...), t (B,), weight (B, 1, ...) of the cells -> losses (B,)."""
        ...

    def sample(
        self,
        network: Network,
        /,
        noise: Tensor,
        sampling: Sampling,
        new_noise: Callable[[], Tensor],
        callback: Callable[[Tensor, Tensor], None] | None = None,
    ) -> tuple[Tensor, int]:
        """Noise (B, C, ...) -> data, and the number of network evaluations.

        new_noise() gives white noise (B, C, ...) for samplers that add noise at each step.
        callback(t (B,), x) is called after every step.
        """
        ...


def mean_error(prediction: Tensor, target: Tensor, norm: str, weight: Tensor | None) -> Tensor:
    """Mean absolute (l1) or squared (l2) error of (B, C, ...) per case: (B,), in 32 bits."""
    error = prediction.float() - target
    error = error.abs() if norm == "l1" else error.square()
    if weight is not None:
        error = error * weight
    return error.flatten(1).mean(1)


def published_vessel_weight(
    labels: Tensor, vessel_class: int, factor: int, weight: float
) -> Tensor:
    """Labels (B, fX, ...) -> loss weights (B, 1, X, ...): `weight` where the voxel at the middle of
    a cell is within two steps of a vessel voxel, along the axes; others 1.
    """
    vessel, dim = (labels == vessel_class)[:, None].float(), labels.ndim - 1
    for _ in range(2):
        kernels = [[3 if i == axis else 1 for i in range(dim)] for axis in range(dim)]
        along_axes = [POOL[dim](vessel, k, 1, [n // 2 for n in k]) for k in kernels]
        vessel = torch.stack(along_axes).amax(0)
    middles = slice(factor // 2, None, factor)
    return 1 + (weight - 1) * vessel[(slice(None), slice(None), *[middles] * dim)]


def vessel_weight(labels: Tensor, vessel_class: int, factor: int, weight: float) -> Tensor:
    """Labels (B, fX, ...) -> loss weights (B, 1, X, ...): cells with a vessel voxel weigh `weight`
    times as much as others.

    The mean weight of each case is 1, so the learning rate keeps its meaning and a case without
    vessels counts as much as any other.
    """
    vessel = (labels == vessel_class)[:, None].float()
    cells = 1 + (weight - 1) * POOL[labels.ndim - 1](vessel, factor)
    return cells / cells.flatten(1).mean(1).reshape(-1, *[1] * (cells.ndim - 1))
