"""Mean and standard deviation of the latents per channel, over the whole training set.

The generator is trained on latents normalized to mean 0 and deviation 1. Both statistics are stored
in its checkpoint.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LatentScale:
    """mean, std: (C,) float32."""

    mean: Tensor
    std: Tensor

    @classmethod
    def from_moments(cls, count: float, total: Tensor, total_squares: Tensor) -> "LatentScale":
        """From the number of cells, and per channel their sum and sum of squares (C,), float64."""
        mean = total / count
        variance = (total_squares / count - mean.square()).clamp_min(1e-12)
        return cls(mean.float(), variance.sqrt().float())

    @classmethod
    def fixed(cls, mean: float, scaling_factor: float, channels: int) -> "LatentScale":
        """The same for all channels: normalized latents are (latents - mean) * scaling_factor."""
        return cls(torch.full((channels,), mean), torch.full((channels,), 1 / scaling_factor))

    def to(self, device: torch.device) -> "LatentScale":
        return LatentScale(self.mean.to(device), self.std.to(device))

    def normalize(self, latents: Tensor) -> Tensor:
        """Latents of the encoder (B, C, ...) -> mean 0, deviation 1."""
        mean, std = self._shaped(latents)
        return (latents - mean) / std

    def restore(self, latents: Tensor) -> Tensor:
        """(B, C, ...) of mean 0, deviation 1 -> latents for the decoder."""
        mean, std = self._shaped(latents)
        return latents * std + mean

    def _shaped(self, like: Tensor) -> tuple[Tensor, Tensor]:
        shape = (1, -1, *[1] * (like.ndim - 2))
        return self.mean.to(like.device).reshape(shape), self.std.to(like.device).reshape(shape)

    def state(self) -> dict:
        return {"mean": self.mean, "std": self.std}
