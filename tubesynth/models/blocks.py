"""The small parts that every network here is made of, for two and three dimensions alike.

Tensors are (B, C, X, Y, Z), or (B, C, X, Y) where dim is 2.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

CONV = {2: nn.Conv2d, 3: nn.Conv3d}
CONV_TRANSPOSE = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


def conv(dim: int, cin: int, cout: int, kernel: int = 3, stride: int = 1, bias: bool = True):
    """A convolution whose output has ceil(n / stride) voxels a side for odd kernels."""
    return CONV[dim](cin, cout, kernel, stride, padding=(kernel - 1) // 2, bias=bias)


def zero_init(module: nn.Module) -> nn.Module:
    """Start a layer at zero, so that the branch it ends is silent at initialisation."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def he_init(module: nn.Module) -> None:
    """He et al. 2015 for ReLU, of one convolution; for `Module.apply`.

    Where nothing normalises between layers, PyTorch's default lets the signal fade with depth.
    """
    if isinstance(module, nn.modules.conv._ConvNd):
        transposed = isinstance(module, tuple(CONV_TRANSPOSE.values()))
        # An output voxel of a transposed convolution is met by kernel / stride of the taps.
        taps = math.prod(module.kernel_size) / (math.prod(module.stride) if transposed else 1)
        nn.init.normal_(module.weight, std=math.sqrt(2 / (module.in_channels * taps)))
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def group_norm(channels: int, affine: bool = True) -> nn.GroupNorm:
    """GroupNorm of up to 32 groups of at least four channels each (as EDM has it)."""
    groups = math.gcd(32, max(1, channels // 4))
    return nn.GroupNorm(groups, channels, eps=1e-6, affine=affine)


def run(block: Callable, *inputs, recompute: bool):
    """block(*inputs), with its activations recomputed in the backward pass where asked for."""
    if recompute and torch.is_grad_enabled():
        return checkpoint(block, *inputs, use_reentrant=False)
    return block(*inputs)


def repeat_cases(cases: Tensor, count: int) -> Tensor:
    """(B, ...) -> (count, ...): all cases, then all of them again, as far as count goes.

    What a network has made of B cases, for the rows that are told different parts of it.
    """
    if count == len(cases):
        return cases
    return cases.repeat(count // len(cases), *[1] * (cases.ndim - 1))


def sinusoidal(values: Tensor, channels: int, max_period: float = 10_000.0) -> Tensor:
    """(B,) -> (B, channels): cosines and sines (Vaswani et al. 2017, section 3.5).

    Wavelengths run from 2 pi to max_period * 2 pi, so values should span many of the shortest.
    """
    half = channels // 2
    frequencies = torch.exp(
        -math.log(max_period) * torch.arange(half, device=values.device, dtype=torch.float32) / half
    )
    angles = values.float()[:, None] * frequencies[None]
    return torch.cat([angles.cos(), angles.sin()], dim=1)
