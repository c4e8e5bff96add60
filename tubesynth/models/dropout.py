"""Dropout with a mask that depends on the sample alone, not on its batch or rank.

The mask is a hash of (seed of the sample, layer, element), so it needs no generator: gradient
checkpointing, torch.compile, one rank with two samples and two ranks with one see the same mask.
"""

import math

import torch
from torch import Tensor, nn

UINT32 = 0xFFFFFFFF
GOLDEN_RATIO = 0x9E3779B9  # 2^32 / golden ratio: separates the seeds of neighboring layers


class SampleDropout(nn.Module):
    """Zeros a share of the elements in training mode and scales the others by 1 / (1 - share).

    layer: the number of the layer in its network (`number_dropouts`).
    """

    layer = 0

    def __init__(self, share: float):
        super().__init__()
        self.share = share

    def forward(self, x: Tensor, seeds: Tensor | None) -> Tensor:
        """x: (R, C, X, ...); seeds: (R,) int64 below 2^32, needed where the share is not 0."""
        if not self.training or self.share == 0:
            return x
        if seeds is None:
            raise ValueError("a network with dropout needs dropout_seeds in training mode")
        keep = keep_mask(seeds + GOLDEN_RATIO * self.layer, tuple(x.shape[1:]), self.share)
        return torch.where(keep, x / (1 - self.share), 0)


def number_dropouts(network: nn.Module) -> None:
    """Give each dropout layer of a network a number of its own."""
    layers = [module for module in network.modules() if isinstance(module, SampleDropout)]
    for number, layer in enumerate(layers):
        layer.layer = number


@torch.no_grad()
def keep_mask(seeds: Tensor, shape: tuple[int, ...], share: float) -> Tensor:
    """(R, *shape) bool, False for the share of elements that is dropped. seeds: (R,) int64."""
    element = _mixed(torch.arange(math.prod(shape), device=seeds.device))
    hashed = _mixed(element + (seeds & UINT32)[:, None])
    return (hashed >= round(share * (UINT32 + 1))).view(-1, *shape)


def _mixed(x: Tensor) -> Tensor:
    """The finalizer of MurmurHash3 (Appleby), a bijection of 32-bit integers, in int64."""
    x = x & UINT32
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & UINT32
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & UINT32
    return x ^ (x >> 16)
