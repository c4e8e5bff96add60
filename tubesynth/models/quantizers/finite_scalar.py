"""Finite scalar quantisation: each channel is rounded to one of a few levels.

Mentzer et al. 2023 (arXiv 2309.15505). The codebook is the grid of all combinations: nothing is
learned, so nothing can collapse, and there is no commitment loss.
"""

import math

import torch
from torch import Tensor, nn


class FiniteScalarQuantizer(nn.Module):
    """Channel i takes levels[i] values (each at least 3); D = len(levels).

    Latents are bounded and in units of levels: rounding gives whole numbers from -floor(L / 2) on.
    """

    def __init__(self, levels: tuple[int, ...]):
        super().__init__()
        self.in_channels = len(levels)
        self.num_codes = math.prod(levels)
        # A buffer, so that the digest of an autoencoder tells its levels too.
        self.register_buffer("levels", torch.tensor(levels))

    def forward(self, encoded: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """(B, D, ...) -> levels in [-1, 1] (straight-through gradient), no loss, indices."""
        latents = self.latents(encoded)
        quantised = self.quantise(latents)
        scaled = latents / (self._levels(latents) // 2)
        # Straight-through: the gradient passes the rounding as if it were not there.
        return scaled + (quantised - scaled).detach(), {}, self._indices(latents.detach())

    def latents(self, encoded: Tensor) -> Tensor:
        """(B, D, ...) -> bounded (B, D, ...), in 32 bits; 0 stays 0. An even number of levels has
        one more below 0 than above.
        """
        levels = self._levels(encoded)
        half_range = (levels - 1) / 2
        offset = 0.5 * (levels % 2 == 0)
        shift = torch.atanh(offset / half_range)
        return half_range * torch.tanh(encoded.float() + shift) - offset

    def quantise(self, latents: Tensor) -> Tensor:
        """(B, D, ...) latents, also beyond the bounds -> nearest levels, scaled to [-1, 1]."""
        return self._nearest_level(latents) / (self._levels(latents) // 2)

    def _nearest_level(self, latents: Tensor) -> Tensor:
        levels = self._levels(latents)
        lowest = -(levels // 2)
        return latents.float().round().clamp(lowest, lowest + levels - 1)

    def _indices(self, latents: Tensor) -> Tensor:
        """(B, ...) positions on the grid of levels, channel 0 running fastest; NaN counts as 0."""
        levels = self._levels(latents)
        digits = self._nearest_level(latents.nan_to_num()).long() + levels // 2
        strides = levels.cumprod(0) // levels
        return (digits * strides).sum(1)

    def _levels(self, like: Tensor) -> Tensor:
        """(D, 1, ...), to meet (B, D, ...)."""
        return self.levels.view(-1, *[1] * (like.ndim - 2))
