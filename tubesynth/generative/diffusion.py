"""Denoising diffusion in discrete time: noise schedules, training loss, DDPM and DDIM sampling.

Ho et al. 2020 (DDPM), Song et al. 2021 (DDIM, arXiv 2010.02502), Nichol and Dhariwal 2021 (cosine),
Salimans and Ho 2022 (v), Lin et al. 2024 (zero terminal SNR, trailing steps, arXiv 2305.08891).
Timestep k = 0 .. T - 1 has x = sqrt(alpha_bar_k) x_0 + sqrt(1 - alpha_bar_k) eps, the state after
k + 1 noising steps. As everywhere in this project t = 0 is noise and t = 1 is data, so the network
is conditioned on t = 1 - (k + 1) / T.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from tubesynth.generative.objective import Network, Sampling, mean_error
from tubesynth.generative.times import expand


def scaled_linear(num_timesteps: int, beta_start: float, beta_end: float) -> Tensor:
    """alpha_bar (T,) float64 with evenly spaced sqrt(beta) (Rombach et al. 2022)."""
    roots = torch.linspace(beta_start**0.5, beta_end**0.5, num_timesteps, dtype=torch.float64)
    return torch.cumprod(1 - roots.square(), 0)


def cosine(num_timesteps: int) -> Tensor:
    """alpha_bar (T,) float64 (Nichol and Dhariwal 2021, eq. 17; betas at most 0.999)."""
    u = torch.linspace(0, 1, num_timesteps + 1, dtype=torch.float64)
    f = torch.cos((u + 0.008) / 1.008 * math.pi / 2).square()
    return torch.cumprod((f[1:] / f[:-1]).clamp_min(1 - 0.999), 0)


def zero_terminal(alpha_bar: Tensor) -> Tensor:
    """Rescale sqrt(alpha_bar) to 0 at the last timestep; the first timestep keeps its value (Lin et
    al. 2024, algorithm 1).
    """
    root = alpha_bar.sqrt()
    return ((root - root[-1]) * (root[0] / (root[0] - root[-1]))).square()


def spaced(num_timesteps: int, steps: int, spacing: str) -> list[int]:
    """The timesteps of a sampler, descending (Lin et al. 2024, section 3.3).

    trailing starts at the last timestep, whose state is pure noise. leading, floor(c i) of the DDIM
    paper (Song et al. 2021, appendix D.2), ends at timestep 0 and starts before the last one.
    """
    if spacing == "trailing":
        return [round(num_timesteps - i * num_timesteps / steps) - 1 for i in range(steps)]
    return [i * num_timesteps // steps for i in reversed(range(steps))]


@dataclass(frozen=True, kw_only=True)
class Diffusion:
    """An Objective (objective.py).

    prediction: epsilon, or v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x_0.
    """

    schedule: str  # scaled_linear or cosine
    num_timesteps: int
    beta_start: float  # of scaled_linear
    beta_end: float
    prediction: str  # epsilon or v
    zero_terminal_snr: bool
    norm: str  # l1 or l2

    @property
    def target(self) -> str:
        return self.prediction

    @cached_property
    def alpha_bar(self) -> Tensor:
        """(T,) float64: the share of the signal in the variance at each timestep."""
        if self.schedule == "cosine":
            alpha_bar = cosine(self.num_timesteps)
        else:
            alpha_bar = scaled_linear(self.num_timesteps, self.beta_start, self.beta_end)
        return zero_terminal(alpha_bar) if self.zero_terminal_snr else alpha_bar

    def time_of(self, timestep):
        """Timestep k -> t, for a tensor or a number."""
        return 1 - (timestep + 1) / self.num_timesteps

    def timestep_of(self, t: Tensor) -> Tensor:
        """t (B,) in [0, 1) -> the nearest k (B,)."""
        k = torch.round((1 - t.double()) * self.num_timesteps).long() - 1
        return k.clamp(0, self.num_timesteps - 1)

    def times(self, u: Tensor) -> Tensor:
        """Uniform timesteps: uniform numbers (B,) in [0, 1) -> times (B,)."""
        return self.time_of(torch.floor(u * self.num_timesteps).clamp_max(self.num_timesteps - 1))

    def pair_noise(self, noise: Tensor, data: Tensor) -> Tensor:
        return noise

    def loss(
        self, network: Network, data: Tensor, noise: Tensor, t: Tensor, weight: Tensor | None = None
    ) -> Tensor:
        k = self.timestep_of(t)
        alpha_bar = self.alpha_bar.to(data.device, non_blocking=True)[k]
        signal = expand(alpha_bar.sqrt().to(data.dtype), data)
        sigma = expand((1 - alpha_bar).sqrt().to(data.dtype), data)
        x_t = signal * data + sigma * noise
        target = noise if self.prediction == "epsilon" else signal * noise - sigma * data
        return mean_error(network(x_t, self.time_of(k).to(t.dtype)), target, self.norm, weight)

    def split(self, x: Tensor, prediction: Tensor, alpha_bar: float) -> tuple[Tensor, Tensor]:
        """Prediction at x -> the estimates of the data x_0 and of the noise eps."""
        signal, sigma = math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
        if self.prediction == "epsilon":
            return (x - sigma * prediction) / signal, prediction
        return signal * x - sigma * prediction, sigma * x + signal * prediction

    def sample(
        self,
        network: Network,
        noise: Tensor,
        sampling: Sampling,
        new_noise: Callable[[], Tensor],
        callback=None,
    ) -> tuple[Tensor, int]:
        """Steps of Song et al. 2021, eq. 12 and 16: eta = 0 is DDIM; eta = 1 is the ancestral
        sampling of DDPM with the variance of the posterior, on any subset of the timesteps.
        """
        eta = 1.0 if sampling.solver == "ddpm" else sampling.eta
        timesteps = spaced(self.num_timesteps, sampling.steps, sampling.timesteps)
        alpha_bars = [*self.alpha_bar[timesteps].tolist(), 1.0]  # the last step ends without noise
        x = noise
        for i, k in enumerate(timesteps):
            t = torch.full((len(x),), self.time_of(k), device=x.device, dtype=torch.float32)
            current, following = alpha_bars[i], alpha_bars[i + 1]
            data, eps = self.split(x, network(x, t).float(), current)
            variance = eta**2 * (1 - following) / (1 - current) * (1 - current / following)
            x = math.sqrt(following) * data + math.sqrt(1 - following - variance) * eps
            if variance > 0:
                x = x + math.sqrt(variance) * new_noise()
            if callback:
                last = i == len(timesteps) - 1
                callback(torch.full_like(t, 1.0 if last else self.time_of(timesteps[i + 1])), x)
        return x, len(timesteps)
