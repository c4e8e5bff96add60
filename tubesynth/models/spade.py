"""Spatially adaptive normalization (SPADE): scale and shift maps computed from the label map.

Park et al. 2019 (arXiv 1903.07291). The label map is first encoded by strided convolutions to
latent resolution: one-hot labels at image resolution have 16 to 64 times as many voxels.
`published` are the layers of the published model, with PyTorch's default initialization.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tubesynth.models.blocks import (
    CONV,
    PUBLISHED_GROUPS,
    computing_type,
    conv,
    group_norm,
    he_init,
    zero_init,
)

POOL = {2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}


def one_hot(labels: Tensor, num_classes: int, dtype: torch.dtype) -> Tensor:
    """Class indices (B, X, ...) uint8 -> (B, num_classes, X, ...)."""
    classes = torch.arange(num_classes, dtype=labels.dtype, device=labels.device)
    result = labels.new_empty((len(labels), num_classes, *labels.shape[1:]))
    # On a CPU a comparison is vectorized if its output has the type of its operands, not bool.
    torch.eq(labels[:, None], classes.view(1, -1, *[1] * (labels.ndim - 1)), out=result)
    return result.to(dtype)


class LabelEncoder(nn.Module):
    """Labels (B, X, ...) uint8 -> features (B, channels[-1], X / f, ...) at latent resolution.

    published: at full resolution a first convolution, at every level one more, and a last layer
    that is zero-initialized and may have another width.
    """

    def __init__(
        self,
        dim: int,
        num_classes: int,
        channels: tuple[int, ...],
        factor: int,
        published: bool = False,
        published_width: int | None = None,
    ):
        super().__init__()
        self.num_classes = num_classes
        self.channels = channels[-1]
        halvings = factor.bit_length() - 1
        assert 2**halvings == factor and halvings < len(channels)
        strides = [2 if i < halvings else 1 for i in range(len(channels) - 1)]
        if published:
            layers = [conv(dim, num_classes, channels[0]), nn.SiLU()]
            for (width, next_width), stride in zip(pairwise(channels), strides, strict=True):
                layers += [conv(dim, width, width), nn.SiLU()]
                layers += [conv(dim, width, next_width, stride=stride), nn.SiLU()]
            last = conv(dim, channels[-1], published_width or channels[-1])
            self.layers = nn.Sequential(*layers, zero_init(last))
            return
        layers, width = [], num_classes
        for level_width, stride in zip(channels[:-1], strides, strict=True):
            # With kernel 4 and stride 2 every voxel of a thin vessel contributes to two cells.
            kernel = dict(kernel_size=4, stride=2) if stride == 2 else dict(kernel_size=3, stride=1)
            layers += [CONV[dim](width, level_width, padding=1, **kernel), nn.SiLU()]
            width = level_width
        layers.append(conv(dim, width, channels[-1]))
        self.layers = nn.Sequential(*layers).apply(he_init)

    def forward(self, labels: Tensor) -> Tensor:
        dtype = computing_type(next(self.layers.parameters()))
        return self.layers(one_hot(labels, self.num_classes, dtype))


class LabelSampler(nn.Module):
    """Labels (B, X, ...) uint8 -> one-hot (B, num_classes, X / f, ...): the voxel at the middle of
    each latent cell. It has no weights.
    """

    def __init__(self, num_classes: int, factor: int):
        super().__init__()
        self.channels, self.factor = num_classes, factor

    def forward(self, labels: Tensor) -> Tensor:
        return one_hot(middle_voxels(labels, self.factor), self.channels, torch.float32)


def middle_voxels(volume: Tensor, factor: int) -> Tensor:
    """(B, X, ...) -> (B, X / f, ...): the voxel behind the middle of each latent cell."""
    middles = slice(factor // 2, None, factor)
    return volume[(slice(None), *[middles] * (volume.ndim - 1))]


class FieldEncoder(nn.Module):
    """Vessel fields (B, 2, X, ...) at latent resolution -> features (B, channels, X, ...).

    The closeness at the center of a cell encodes the position of a vessel that is thinner than the
    cell, in the cell or beside it. The convolutions have no bias: far from all vessels both fields
    are 0, and so are the features.
    """

    def __init__(self, dim: int, channels: int):
        super().__init__()
        self.layers = nn.Sequential(
            conv(dim, 2, channels, bias=False),
            nn.SiLU(),
            conv(dim, channels, channels, bias=False),
        ).apply(he_init)

    def forward(self, fields: Tensor) -> Tensor:
        return self.layers(fields)


def resized(features: Tensor, size: tuple[int, ...], published: bool = False) -> Tensor:
    """Label features (B, channels, ...) on the grid of a level: averaged; published: sampled."""
    if features.shape[2:] == size:
        return features
    return (F.interpolate if published else POOL[len(size)])(features, size)


def hidden_layers(
    dim: int, label_channels: int, hidden: int, published: bool = False
) -> nn.Sequential:
    """Label features (B, label_channels, X, ...) -> the hidden map (B, hidden, X, ...) of SPADE."""
    if published:
        return nn.Sequential(conv(dim, label_channels, hidden), nn.LeakyReLU())
    return nn.Sequential(conv(dim, label_channels, hidden), nn.ReLU()).apply(he_init)


class Spade(nn.Module):
    """GroupNorm with scale and shift maps computed from the label features of its level.

    norm_silu applies both. The maps (`modulation`) do not depend on t: a sampler computes them once
    for all its steps.
    label_channels: None if a hidden map for all norms of the level takes the place of the label
    features; convolutions of kernel 1 make the scale and shift of it. published: the norm has
    weights of its own, and both maps are instance-normalized.
    """

    def __init__(
        self,
        dim: int,
        channels: int,
        label_channels: int | None,
        hidden: int,
        published: bool = False,
    ):
        super().__init__()
        self.published = published
        groups = PUBLISHED_GROUPS if published else None
        self.norm = group_norm(channels, affine=published, groups=groups)
        self.shared = None  # by scale and shift
        if label_channels:
            self.shared = hidden_layers(dim, label_channels, hidden, published)
        self.to_scale_shift = conv(dim, hidden, 2 * channels, kernel=3 if label_channels else 1)

    def modulation(self, features: Tensor) -> Tensor:
        """(B, label_channels or hidden, X, ...) -> (B, 2 channels, X, ...): scale and shift."""
        maps = self.to_scale_shift(self.shared(features) if self.shared else features)
        if self.published:  # instance normalization, also of a grid of one cell
            variance, mean = torch.var_mean(
                maps, tuple(range(2, maps.ndim)), correction=0, keepdim=True
            )
            maps = (maps - mean) * torch.rsqrt(variance + 1e-5)
        return maps
