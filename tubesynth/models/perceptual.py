"""Perceptual distances of images by a trained network: LPIPS, or RadImageNet's ResNet-50.

`load_perceptual(files)` recognizes the network by the names of the weights; the files together hold
one of

    net.slice1.0.weight ..., lin0.model.1.weight ...   LPIPS, the state dict of its module
    features.0.weight ... | lin0.model.1.weight ...    torchvision's AlexNet and LPIPS's alex.pth
    a layout of ResNet-50                              see pretrained.py

Images are (N, 1, H, W) in [0, 1]; distances are (N,). Nothing is downloaded. Gradients flow to the
images, the weights are frozen. Sources: Zhang et al. 2018 (arXiv 1801.03924), Mei et al. 2022
(RadImageNet).
"""

import torch
from torch import Tensor, nn

from tubesynth.models.pretrained import PretrainedNetwork, fill, read_weights, recognize
from tubesynth.runtime.errors import InputError

WIDTHS = (64, 192, 384, 256, 256)  # channels of AlexNet's five convolutions


def alexnet_features() -> nn.Sequential:
    """The convolutions of AlexNet (Krizhevsky 2014, arXiv 1404.5997), named as in torchvision.

    (N, 3, H, W), H and W at least 31. With these five layers LPIPS does not need torchvision.
    """
    a, b, c, d, e = WIDTHS
    return nn.Sequential(
        *(nn.Conv2d(3, a, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(a, b, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(b, c, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(c, d, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(d, e, 3, padding=1), nn.ReLU()),
    )


def unit_channels(maps: Tensor) -> Tensor:
    """(N, C, h, w) of length 1 along the channels; where all are 0, 0 with a gradient of 0."""
    maps = maps.float()  # squares of 16 bits overflow
    return maps / (maps.square().sum(1, keepdim=True) + 1e-20).sqrt()


class Lpips(nn.Module):
    """LPIPS with AlexNet, version 0.1: weighted squared differences of unit features.

    d = sum over layers of mean over pixels of w . (unit(a) - unit(b))^2 (Zhang 2018, eq. 1).
    rescale: images in [0, 1] to [-1, 1], which the network expects.
    """

    name = "LPIPS (AlexNet)"
    shift: Tensor
    scale: Tensor

    def __init__(self, rescale: bool = True):
        super().__init__()
        self.rescale = rescale
        self.features = alexnet_features()
        # The published heads are a dropout and a 1 x 1 convolution without bias.
        self.heads = nn.ParameterList([torch.zeros(1, c, 1, 1) for c in WIDTHS])
        # ImageNet's mean and deviation for images in [-1, 1], rounded as published.
        shift, scale = torch.tensor([[-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]])
        self.register_buffer("shift", shift.view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", scale.view(1, 3, 1, 1), persistent=False)

    def maps(self, image: Tensor) -> list[Tensor]:
        """(N, 1, H, W) -> five maps (N, C, h, w), after each ReLU."""
        image = 2 * image - 1 if self.rescale else image
        x, maps = (image - self.shift) / self.scale, []
        for layer in self.features:
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                maps.append(x)
        return maps

    def forward(self, image: Tensor, reference: Tensor) -> Tensor:
        total = image.new_zeros(len(image), dtype=torch.float32)
        for head, a, b in zip(self.heads, self.maps(image), self.maps(reference), strict=True):
            squares = (unit_channels(a) - unit_channels(b)).square()
            total = total + (squares * head).sum(1).mean((1, 2))
        return total


class ResNetDistance(nn.Module):
    """Squared difference of the last layer's unit features, at the images' own size.

    MONAI's perceptual loss with RadImageNet computes the same distance.
    """

    def __init__(self, network: PretrainedNetwork):
        super().__init__()
        self.network, self.name = network, network.name

    def forward(self, image: Tensor, reference: Tensor) -> Tensor:
        a, b = (unit_channels(self.network.maps(x)) for x in (image, reference))
        return (a - b).square().sum(1).mean((1, 2))


def load_perceptual(files: list[str], rescale: bool = True) -> Lpips | ResNetDistance:
    """The frozen distance of the weights in the files; InputError names missing weights.

    rescale: for LPIPS.
    """
    state: dict[str, Tensor] = {}
    for path in files:
        state |= read_weights(path)
    source = " + ".join(map(str, files))
    if any(name.startswith(("features.", "net.slice", "lin0.")) for name in state):
        module = _lpips(state, source, rescale)
    else:
        network = recognize(state, source)
        if "ResNet-50" not in network.name:
            raise InputError(
                f"{source}: {network.name} is not supported as a perceptual loss; give LPIPS"
                " (AlexNet) or RadImageNet's ResNet50.pt"
            )
        module = ResNetDistance(network)
    return module.eval().requires_grad_(False)


def _lpips(state: dict[str, Tensor], source: str, rescale: bool) -> Lpips:
    renamed = {}
    for name, value in state.items():
        first, *rest = name.split(".")
        if name.startswith("net.slice"):  # net.slice2.3.weight -> features.3.weight
            renamed[f"features.{'.'.join(rest[1:])}"] = value
        elif first == "features":
            renamed[name] = value
        elif first.startswith("lin") and rest == ["model", "1", "weight"]:
            renamed[f"heads.{first.removeprefix('lin')}"] = value
    for name, remedy in (
        ("features.0.weight", "AlexNet's convolutions; name torchvision's AlexNet file too"),
        ("heads.0", "LPIPS's heads (lin0.model.1.weight); name LPIPS's alex.pth too"),
    ):
        if name not in renamed:
            raise InputError(f"{source}: lacks {remedy}")
    module = Lpips(rescale)
    fill(module, renamed, source)
    return module
