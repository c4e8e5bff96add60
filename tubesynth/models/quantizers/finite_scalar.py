"""Finite scalar quantization: each channel is rounded to one of a few levels.

Mentzer et al. 2023 (arXiv 2309.15505). The codebook is the grid of all combinations of levels, and
there is no commitment loss. Addition here: moving averages of the mean and the deviation of each
channel normalize the encoder's output to 0 and 1. A normal variable of deviation 1 uses the levels
nearly evenly; a wider one lies where the bounding tanh is flat, and most combinations stay unused.
"""

import math

import torch
import torch.distributed as dist
from torch import Tensor, nn

DECAY = 0.95  # of the moving averages of mean and deviation, per step


class FiniteScalarQuantizer(nn.Module):
    """Channel i is rounded to levels[i] values (each at least 3); D = len(levels).

    Latents are bounded and in units of levels: rounding gives the whole numbers -floor(L / 2),
    -floor(L / 2) + 1, ..., for L levels.
    """

    mean: Tensor
    deviation: Tensor
    initialised: Tensor
    levels: Tensor

    def __init__(self, levels: tuple[int, ...]):
        super().__init__()
        self.register_buffer("mean", torch.zeros(len(levels)))
        self.register_buffer("deviation", torch.ones(len(levels)))
        self.register_buffer("initialised", torch.tensor(False))
        self.in_channels = len(levels)
        self.num_codes = math.prod(levels)
        # A buffer, so that the digest of an autoencoder covers its levels.
        self.register_buffer("levels", torch.tensor(levels))

    def forward(self, encoded: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """(B, D, ...) -> levels in [-1, 1] (straight-through gradient), no loss terms, indices. In
        training mode mean and deviation are updated.
        """
        if self.training:
            self._update(encoded.detach().float())
        latents = self.latents(encoded)
        quantized = self.quantize(latents)
        scaled = latents / (self._per_channel(self.levels, latents) // 2)
        # Straight-through estimator: the gradient passes the rounding unchanged.
        return scaled + (quantized - scaled).detach(), {}, self._indices(latents.detach())

    def latents(self, encoded: Tensor) -> Tensor:
        """(B, D, ...) -> bounded latents (B, D, ...), in 32 bits, with the mean at 0. An even
        number of levels has one more below 0 than above.
        """
        levels = self._per_channel(self.levels, encoded)
        half_range = (levels - 1) / 2
        offset = 0.5 * (levels % 2 == 0)
        shift = torch.atanh(offset / half_range)
        centered = encoded.float() - self._per_channel(self.mean, encoded)
        standard = centered / self._per_channel(self.deviation, encoded)
        return half_range * torch.tanh(standard + shift) - offset

    @torch.no_grad()
    def _update(self, encoded: Tensor) -> None:
        """Move mean and deviation towards those of the batches of all ranks."""
        # Vectors that are not finite are left out: one NaN would stay in the averages for ever.
        vectors = encoded.movedim(1, 0).flatten(1).double()
        finite = vectors.isfinite().all(0)
        vectors = torch.where(finite, vectors, 0)
        packed = torch.cat([finite.sum()[None], vectors.sum(1), vectors.square().sum(1)])
        if dist.is_initialized():
            dist.all_reduce(packed)
        count, total, squares = packed.split([1, len(vectors), len(vectors)])
        mean = total / count.clamp_min(1)
        deviation = (squares / count.clamp_min(1) - mean.square()).clamp_min(1e-12).sqrt()
        # Selected on the device: a Python branch would make every step wait for it.
        share = torch.where(self.initialised, 1 - DECAY, 1.0) * (count > 0)
        self.mean.lerp_(mean.float(), share)
        self.deviation.lerp_(deviation.float(), share)
        self.initialised.logical_or_((count > 0)[0])

    def quantize(self, latents: Tensor) -> Tensor:
        """Latents (B, D, ...), also beyond the bounds -> nearest levels, scaled to [-1, 1]."""
        return self._nearest_level(latents) / (self._per_channel(self.levels, latents) // 2)

    def _nearest_level(self, latents: Tensor) -> Tensor:
        levels = self._per_channel(self.levels, latents)
        lowest = -(levels // 2)
        return latents.float().round().clamp(lowest, lowest + levels - 1)

    def _indices(self, latents: Tensor) -> Tensor:
        """(B, ...) indices into the grid of levels, channel 0 varying fastest; NaN counts as 0."""
        levels = self._per_channel(self.levels, latents)
        digits = self._nearest_level(latents.nan_to_num()).long() + levels // 2
        strides = levels.cumprod(0) // levels
        return (digits * strides).sum(1)

    @staticmethod
    def _per_channel(channels: Tensor, like: Tensor) -> Tensor:
        """(D,) -> (D, 1, ...), to broadcast with (B, D, ...)."""
        return channels.view(-1, *[1] * (like.ndim - 2))
