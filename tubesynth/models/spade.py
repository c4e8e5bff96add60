"""Spatially adaptive normalization (SPADE): scale and shift maps computed from the label map.

Park et al. 2019 (arXiv 1903.07291). The label map is first encoded by strided convolutions to
latent resolution: one-hot labels at image resolution have 16 to 64 times as many voxels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tubesynth.models.blocks import CONV, conv, group_norm, he_init

POOL = {2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}


def one_hot(labels: Tensor, num_classes: int, dtype: torch.dtype) -> Tensor:
    """Class indices (B, X, ...) uint8 -> (B, num_classes, X, ...)."""
    classes = torch.arange(num_classes, dtype=labels.dtype, device=labels.device)
    result = labels.new_empty((len(labels), num_classes, *labels.shape[1:]))
    # On a CPU a comparison is vectorized if its output has the type of its operands, not bool.
    torch.eq(labels[:, None], classes.view(1, -1, *[1] * (labels.ndim - 1)), out=result)
    return result.to(dtype)


class LabelEncoder(nn.Module):
    """Labels (B, X, ...) uint8 -> features (B, channels[-1], X / f, ...) at latent resolution."""

    def __init__(self, dim: int, num_classes: int, channels: tuple[int, ...], factor: int):
        super().__init__()
        self.dim = dim
        self.num_classes = num_classes
        self.channels = channels[-1]
        halvings = factor.bit_length() - 1
        assert 2**halvings == factor and halvings < len(channels)
        layers, width = [], num_classes
        for i, level_width in enumerate(channels[:-1]):
            stride = 2 if i < halvings else 1
            # With kernel 4 and stride 2 every voxel of a thin vessel contributes to two cells.
            kernel = dict(kernel_size=4, stride=2) if stride == 2 else dict(kernel_size=3, stride=1)
            layers += [CONV[dim](width, level_width, padding=1, **kernel), nn.SiLU()]
            width = level_width
        layers.append(conv(dim, width, channels[-1]))
        self.layers = nn.Sequential(*layers).apply(he_init)

    def forward(self, labels: Tensor) -> Tensor:
        dtype = next(self.layers.parameters()).dtype
        return self.layers(one_hot(labels, self.num_classes, dtype))


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


class Spade(nn.Module):
    """GroupNorm with scale and shift maps computed from the label features.

    The maps (`modulation`) do not depend on t: a sampler computes them once for all its steps.
    """

    def __init__(self, dim: int, channels: int, label_channels: int, hidden: int):
        super().__init__()
        self.dim = dim
        self.norm = group_norm(channels, affine=False)
        self.shared = nn.Sequential(conv(dim, label_channels, hidden), nn.ReLU()).apply(he_init)
        self.to_scale_shift = conv(dim, hidden, 2 * channels)

    def modulation(self, label_features: Tensor, size: tuple[int, ...]) -> Tensor:
        """(B, label_channels, ...) -> (B, 2 channels, *size): scale and shift."""
        if label_features.shape[2:] != size:
            label_features = POOL[self.dim](label_features, size)
        return self.to_scale_shift(self.shared(label_features))

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        scale, shift = modulation.chunk(2, dim=1)
        return self.norm(x) * (1 + scale) + shift
