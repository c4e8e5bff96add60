"""A small U-Net that segments the vessels in a CT (Cicek et al. 2016, arXiv 1606.06650)."""

import torch
from torch import Tensor, nn

from tubesynth.models.blocks import CONV_TRANSPOSE, INSTANCE_NORM, conv


def _double_conv(dim: int, cin: int, cout: int) -> nn.Sequential:
    layers = []
    for width in (cin, cout):
        layers += [conv(dim, width, cout, bias=False), INSTANCE_NORM[dim](cout, affine=True)]
        layers.append(nn.LeakyReLU(0.01))
    return nn.Sequential(*layers)


class SegmentationUNet(nn.Module):
    """Images in [0, 1], (B, 1, X, ...) -> logits of the vessel class, the same shape.

    Every side must be a multiple of `factor`.
    """

    def __init__(self, dim: int, channels: tuple[int, ...]):
        super().__init__()
        self.factor = 2 ** (len(channels) - 1)
        widths = [1, *channels]
        self.down = nn.ModuleList(
            _double_conv(dim, a, b) for a, b in zip(widths[:-1], widths[1:], strict=True)
        )
        self.shrink = (nn.MaxPool2d if dim == 2 else nn.MaxPool3d)(2)
        self.grow = nn.ModuleList(
            CONV_TRANSPOSE[dim](b, a, kernel_size=2, stride=2)
            for a, b in zip(channels[:-1], channels[1:], strict=True)
        )
        self.up = nn.ModuleList(_double_conv(dim, 2 * a, a) for a in channels[:-1])
        self.head = conv(dim, channels[0], 1, kernel=1)

    def forward(self, image: Tensor) -> Tensor:
        skips, x = [], image
        for index, block in enumerate(self.down):
            x = block(self.shrink(x) if index else x)
            skips.append(x)
        skips.pop()
        for grow, up in zip(reversed(self.grow), reversed(self.up), strict=True):
            x = up(torch.cat([grow(x), skips.pop()], dim=1))
        return self.head(x)
