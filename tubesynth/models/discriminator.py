"""PatchGAN discriminator: one realism score per patch of a volume (Isola et al. 2017, arXiv
1611.07004).

Instance normalization replaces the batch normalization of the original. With a batch of one both
are equal in training, but instance normalization shares no statistics between ranks and is the same
function at evaluation.
"""

from torch import Tensor, nn

from tubesynth.models.blocks import CONV, INSTANCE_NORM


class PatchDiscriminator(nn.Module):
    """(B, 1, X, ...) -> patch scores (B, 1, x, ...) without an activation.

    published: the normal initialization of pix2pix (Isola et al. 2017, section 6.2).
    """

    def __init__(self, dim: int, channels: int, num_layers: int, published: bool = False):
        super().__init__()
        kernel = dict(kernel_size=4, padding=1)
        layers = [CONV[dim](1, channels, stride=2, **kernel), nn.LeakyReLU(0.2)]
        width = channels
        for layer in range(num_layers):
            stride = 1 if layer == num_layers - 1 else 2
            layers += [
                CONV[dim](width, 2 * width, stride=stride, bias=False, **kernel),
                INSTANCE_NORM[dim](2 * width, affine=True),
                nn.LeakyReLU(0.2),
            ]
            width *= 2
        layers.append(CONV[dim](width, 1, stride=1, **kernel))
        self.layers = nn.Sequential(*layers)
        if published:
            for name, parameter in self.layers.named_parameters():
                if name.endswith("weight"):  # norms have weights of one axis
                    nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.02)

    def forward(self, image: Tensor) -> Tensor:
        return self.layers(image)

    def features(self, image: Tensor) -> tuple[list[Tensor], Tensor]:
        """The activations of every hidden layer, and the patch scores."""
        activations, x = [], image
        for layer in self.layers:
            x = layer(x)
            if isinstance(layer, nn.LeakyReLU):
                activations.append(x)
        return activations, x
