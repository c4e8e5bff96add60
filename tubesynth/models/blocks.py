"""Building blocks shared by all networks, in two and three dimensions.

Tensors are (B, C, X, Y, Z), or (B, C, X, Y) where dim is 2.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

CONV = {2: nn.Conv2d, 3: nn.Conv3d}
CONV_TRANSPOSE = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
INSTANCE_NORM = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
PUBLISHED_GROUPS = 32  # of every GroupNorm of the published U-Net


def conv(
    dim: int, cin: int, cout: int, kernel: int = 3, stride: int = 1, bias: bool = True
) -> nn.Conv2d | nn.Conv3d:
    """A padded convolution. With an odd kernel, a side of n voxels becomes ceil(n / stride)."""
    return CONV[dim](cin, cout, kernel, stride, padding=(kernel - 1) // 2, bias=bias)


def zero_init(module: nn.Module) -> nn.Module:
    """Set all parameters to zero: the branch that ends in this layer adds nothing at first."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def he_init(module: nn.Module) -> None:
    """Initialize a convolution for ReLU (He et al. 2015, arXiv 1502.01852); for `Module.apply`.

    In a network without normalization layers the signal of PyTorch's default initialization fades
    with depth.
    """
    if isinstance(module, nn.modules.conv._ConvNd):
        transposed = isinstance(module, tuple(CONV_TRANSPOSE.values()))
        # A transposed convolution reaches each output voxel with only kernel / stride of its taps.
        taps = math.prod(module.kernel_size) / (math.prod(module.stride) if transposed else 1)
        nn.init.normal_(module.weight, std=math.sqrt(2 / (module.in_channels * taps)))
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def group_norm(channels: int, affine: bool = True, groups: int | None = None) -> nn.GroupNorm:
    """GroupNorm, by default of at most 32 groups with at least four channels each (Karras et al.
    2022, EDM).
    """
    groups = groups or math.gcd(32, max(1, channels // 4))
    return nn.GroupNorm(groups, channels, eps=1e-6, affine=affine)


def run_block(block: Callable, *inputs, checkpointing: bool):
    """block(*inputs); with gradient checkpointing its activations are not stored for backward."""
    if checkpointing and torch.is_grad_enabled():
        return checkpoint(block, *inputs, use_reentrant=False)
    return block(*inputs)


def without_autocast(layer: nn.Module, x: Tensor) -> Tensor:
    """layer(x) in the type of its weights: of a window of 2,000 HU, bf16 has steps of 8 HU."""
    with torch.autocast(x.device.type, enabled=False):
        return layer(x.to(next(layer.parameters()).dtype))


def computing_type(x: Tensor) -> torch.dtype:
    """The type of a convolution of x: under autocast that of 16 bits, else its own."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def expand_to(values: Tensor, like: Tensor) -> Tensor:
    """(B, ...) with trailing axes of size 1, to broadcast with `like` (B, C, X, ...)."""
    return values.reshape(*values.shape, *[1] * (like.ndim - values.ndim))


def filled(
    numbers: Sequence[float], device: torch.device, dtype: torch.dtype = torch.float32
) -> Tensor:
    """(n,) numbers on a device, written there: the host would wait for a copy from it to end."""
    return torch.stack([torch.full((), n, dtype=dtype, device=device) for n in numbers])


def repeat_cases(cases: Tensor, count: int) -> Tensor:
    """(B, ...) -> (count, ...): the B cases once per guidance term; count = S * B for S terms."""
    if count == len(cases):
        return cases
    return cases.repeat(count // len(cases), *[1] * (cases.ndim - 1))


def sinusoidal(values: Tensor, channels: int, max_period: float = 10_000.0) -> Tensor:
    """(B,) -> (B, channels): cosines and sines (Vaswani et al. 2017, section 3.5).

    Wavelengths run from 2 pi to 2 pi * max_period. Values should span many of the shortest.
    """
    half = channels // 2
    frequencies = torch.exp(
        -math.log(max_period) * torch.arange(half, device=values.device, dtype=torch.float32) / half
    )
    angles = values.float()[:, None] * frequencies[None]
    return torch.cat([angles.cos(), angles.sin()], dim=1)
