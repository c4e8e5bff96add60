"""The scale of the latents: mean and standard deviation per channel over the whole training set.

A generator learns latents of mean 0 and deviation 1; both numbers travel in its checkpoint.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class LatentScale:
    """mean, std: (C,) float32."""

    mean: Tensor
    std: Tensor

    @classmethod
    def from_moments(cls, count: float, total: Tensor, total_squares: Tensor) -> "LatentScale":
        """From the number of cells, and the sum and sum of squares per channel (C,) in float64."""
        mean = total / count
        variance = (total_squares / count - mean.square()).clamp_min(1e-12)
        return cls(mean.float(), variance.sqrt().float())

    def normalize(self, latents: Tensor) -> Tensor:
        """(B, C, ...) as the encoder gives them -> mean 0, deviation 1."""
        mean, std = self._shaped(latents)
        return (latents - mean) / std

    def restore(self, latents: Tensor) -> Tensor:
        """(B, C, ...) of mean 0, deviation 1 -> as the decoder takes them."""
        mean, std = self._shaped(latents)
        return latents * std + mean

    def _shaped(self, like: Tensor) -> tuple[Tensor, Tensor]:
        shape = (1, -1, *[1] * (like.ndim - 2))
        return self.mean.to(like.device).reshape(shape), self.std.to(like.device).reshape(shape)

    def state(self) -> dict:
        return {"mean": self.mean, "std": self.std}
