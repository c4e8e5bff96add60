"""Flow matching on a straight path (Lipman et al. 2023, arXiv 2210.02747).

t = 0 is noise and t = 1 is data: x_t = (1 - (1 - sigma_min) t) x_0 + t x_1 (eq. 22), and the
target velocity is x_1 - (1 - sigma_min) x_0 (eq. 23). The network is any callable
velocity(x_t, t).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from tubesynth.generative.coupling import couple
from tubesynth.generative.objective import Network, Sampling, mean_error
from tubesynth.generative.ode import solve
from tubesynth.generative.times import expand, logit_normal, shift_times


def path(noise: Tensor, data: Tensor, t: Tensor, sigma_min: float) -> tuple[Tensor, Tensor]:
    """Noise and data (B, C, ...), t (B,) -> the point x_t and the target velocity at x_t."""
    t = expand(t, data)
    x_t = (1 - (1 - sigma_min) * t) * noise + t * data
    velocity = data - (1 - sigma_min) * noise
    return x_t, velocity


def with_offset(noise: Tensor, scale: float) -> Tensor:
    """White noise (B, C, ...) and, in each channel, one normal number of deviation `scale` in all
    cells: its own mean, scaled up, so that no other random numbers are drawn.

    The mean of white noise over n cells is of the order of n ** -0.5, too little to tell the
    network how bright a whole volume shall be (Guttenberg 2023, "Diffusion with offset noise").
    """
    if not scale:
        return noise
    dims = tuple(range(2, noise.ndim))
    cells = math.prod(noise.shape[2:])
    return noise + scale / math.sqrt(cells) * noise.sum(dims, keepdim=True)


@dataclass(frozen=True, kw_only=True)
class FlowMatching:
    """An Objective (objective.py). time_mean, time_std: parameters of the logit-normal density.
    offset_noise: the scale of with_offset, in training and in sampling.
    """

    sigma_min: float
    norm: str  # l1 or l2
    time_sampling: str  # uniform or logit_normal
    time_mean: float
    time_std: float
    time_shift: float
    coupling: str  # independent or optimal_transport
    offset_noise: float
    target = "velocity"

    def times(self, u: Tensor) -> Tensor:
        if self.time_sampling == "logit_normal":
            u = logit_normal(u, self.time_mean, self.time_std)
        return shift_times(u, self.time_shift)

    def pair_noise(self, noise: Tensor, data: Tensor) -> Tensor:
        return couple(noise, data) if self.coupling == "optimal_transport" else noise

    def loss(
        self,
        velocity: Network,
        data: Tensor,
        noise: Tensor,
        t: Tensor,
        weight: Tensor | None = None,
    ) -> Tensor:
        noise = with_offset(noise, self.offset_noise)
        x_t, target = path(noise, data, t, self.sigma_min)
        return mean_error(velocity(x_t, t), target, self.norm, weight)

    def sample(
        self,
        velocity: Network,
        noise: Tensor,
        sampling: Sampling,
        new_noise: Callable[[], Tensor],
        callback=None,
    ) -> tuple[Tensor, int]:
        """Solves the flow ODE, which adds no noise: new_noise is not used."""
        return solve(
            velocity,
            with_offset(noise, self.offset_noise),
            sampling.solver,
            sampling.steps,
            sampling.atol,
            sampling.rtol,
            callback,
            times=sampling.time_grid,
            shift=sampling.shift,
        )
