"""Finite scalar quantization: each channel is rounded to one of a few levels.

Mentzer et al. 2023 (arXiv 2309.15505). The codebook is the grid of all combinations, and there is
no commitment loss. One thing follows the data, since without it most combinations stay unused: the
mean and the deviation of each channel, by which the encoder's output is brought to 0 and 1. A
normal variable of deviation 1 uses the levels nearly alike; what is wider lies where the bound is
flat.
"""

import math

import torch
import torch.distributed as dist
from torch import Tensor, nn

DECAY = 0.95  # of the moving averages of mean and deviation, a step


class FiniteScalarQuantizer(nn.Module):
    """Channel i takes levels[i] values (each at least 3); D = len(levels).

    Latents are bounded and in units of levels: rounding gives whole numbers from -floor(L / 2) on.
    """

    def __init__(self, levels: tuple[int, ...]):
        super().__init__()
        self.register_buffer("mean", torch.zeros(len(levels)))
        self.register_buffer("deviation", torch.ones(len(levels)))
        self.register_buffer("initialised", torch.tensor(False))
        self.in_channels = len(levels)
        self.num_codes = math.prod(levels)
        # A buffer, so that the digest of an autoencoder tells its levels too.
        self.register_buffer("levels", torch.tensor(levels))

    def forward(self, encoded: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """(B, D, ...) -> levels in [-1, 1] (straight-through gradient), no loss, indices. In
        training mean and deviation follow.
        """
        if self.training:
            self._follow(encoded.detach().float())
        latents = self.latents(encoded)
        quantized = self.quantize(latents)
        scaled = latents / (self._per_channel(self.levels, latents) // 2)
        # Straight-through: the gradient passes the rounding as if it were not there.
        return scaled + (quantized - scaled).detach(), {}, self._indices(latents.detach())

    def latents(self, encoded: Tensor) -> Tensor:
        """(B, D, ...) -> bounded (B, D, ...), in 32 bits; the mean becomes 0. An even number of
        levels has one more below 0 than above.
        """
        levels = self._per_channel(self.levels, encoded)
        half_range = (levels - 1) / 2
        offset = 0.5 * (levels % 2 == 0)
        shift = torch.atanh(offset / half_range)
        centred = encoded.float() - self._per_channel(self.mean, encoded)
        standard = centred / self._per_channel(self.deviation, encoded)
        return half_range * torch.tanh(standard + shift) - offset

    @torch.no_grad()
    def _follow(self, encoded: Tensor):
        """Move mean and deviation towards those of the batches of all ranks."""
        # One NaN would stay in the averages for ever; a step that is skipped must leave no trace.
        vectors = encoded.movedim(1, 0).flatten(1).double()
        finite = vectors.isfinite().all(0)
        vectors = torch.where(finite, vectors, 0)
        packed = torch.cat([finite.sum()[None], vectors.sum(1), vectors.square().sum(1)])
        if dist.is_initialized():
            dist.all_reduce(packed)
        count, total, squares = packed.split([1, len(vectors), len(vectors)])
        mean = total / count.clamp_min(1)
        deviation = (squares / count.clamp_min(1) - mean.square()).clamp_min(1e-12).sqrt()
        # Decided on the device: asking it would make every step wait for it.
        share = torch.where(self.initialised, 1 - DECAY, 1.0) * (count > 0)
        self.mean.lerp_(mean.float(), share)
        self.deviation.lerp_(deviation.float(), share)
        self.initialised.logical_or_((count > 0)[0])

    def quantize(self, latents: Tensor) -> Tensor:
        """(B, D, ...) latents, also beyond the bounds -> nearest levels, scaled to [-1, 1]."""
        return self._nearest_level(latents) / (self._per_channel(self.levels, latents) // 2)

    def _nearest_level(self, latents: Tensor) -> Tensor:
        levels = self._per_channel(self.levels, latents)
        lowest = -(levels // 2)
        return latents.float().round().clamp(lowest, lowest + levels - 1)

    def _indices(self, latents: Tensor) -> Tensor:
        """(B, ...) positions on the grid of levels, channel 0 running fastest; NaN counts as 0."""
        levels = self._per_channel(self.levels, latents)
        digits = self._nearest_level(latents.nan_to_num()).long() + levels // 2
        strides = levels.cumprod(0) // levels
        return (digits * strides).sum(1)

    @staticmethod
    def _per_channel(channels: Tensor, like: Tensor) -> Tensor:
        """(D,) -> (D, 1, ...), to meet (B, D, ...)."""
        return channels.view(-1, *[1] * (like.ndim - 2))
