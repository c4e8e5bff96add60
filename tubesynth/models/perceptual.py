"""How alike two pictures look to a trained network: LPIPS, or RadImageNet's ResNet-50.

`load_perceptual(files)` tells which by the names in the files; together they are one of

    net.slice1.0.weight ..., lin0.model.1.weight ...   LPIPS, the module's own state dict
    features.0.weight ... | lin0.model.1.weight ...    torchvision's AlexNet and LPIPS's alex.pth
    a layout of ResNet-50                              see pretrained.py

Pictures are (N, 1, H, W) in [0, 1]; distances are (N,). Nothing is downloaded. Gradients flow to
the pictures, the weights stay as they are. Sources: Zhang et al. 2018 (arXiv 1801.03924), Mei et
al. 2022 (RadImageNet).
"""

import torch
from torch import Tensor, nn

from tubesynth.models.pretrained import PretrainedNetwork, fill, read_weights, recognise
from tubesynth.models.pretrained_layers import AlexNet, ResNet50
from tubesynth.runtime.errors import InputError


def unit_channels(maps: Tensor) -> Tensor:
    """(N, C, h, w) of length 1 along the channels; where all are 0, 0 with a gradient of 0."""
    maps = maps.float()  # squares of 16 bits overflow
    return maps / (maps.square().sum(1, keepdim=True) + 1e-20).sqrt()


class Lpips(nn.Module):
    """LPIPS with AlexNet, version 0.1: weighted squared differences of unit features."""

    name = "LPIPS (AlexNet)"

    def __init__(self):
        super().__init__()
        self.net = AlexNet()
        # The published heads are a dropout and a 1 x 1 convolution without bias.
        self.heads = nn.ParameterList(torch.zeros(1, c, 1, 1) for c in AlexNet.widths)
        # ImageNet's mean and deviation for pictures in [-1, 1], rounded as published.
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1))

    def forward(self, image: Tensor, reference: Tensor) -> Tensor:
        total = 0.0
        features = (self.net((2 * x - 1 - self.shift) / self.scale) for x in (image, reference))
        for head, a, b in zip(self.heads, *features, strict=True):
            squares = (unit_channels(a) - unit_channels(b)).square()
            total = total + (squares * head).sum(1).mean((1, 2))
        return total


class ResNetDistance(nn.Module):
    """Squared difference of the last layer's unit features, at the pictures' own size.

    The measure of the RadImageNet perceptual loss in MONAI.
    """

    def __init__(self, loaded: PretrainedNetwork):
        super().__init__()
        self.net, self.name = loaded.network, loaded.name
        self.register_buffer("mean", torch.tensor(loaded.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(loaded.std).view(1, 3, 1, 1))

    def forward(self, image: Tensor, reference: Tensor) -> Tensor:
        a, b = (
            unit_channels(self.net.maps((x - self.mean) / self.std)) for x in (image, reference)
        )
        return (a - b).square().sum(1).mean((1, 2))


def load_perceptual(files: list[str]) -> Lpips | ResNetDistance:
    """The frozen distance whose weights the files hold; InputError names what is missing."""
    state: dict[str, Tensor] = {}
    for path in files:
        state |= read_weights(path)
    source = " + ".join(map(str, files))
    if any(name.startswith(("features.", "net.slice", "lin0.")) for name in state):
        module = _lpips(state, source)
    else:
        loaded = recognise(state, source)
        if not isinstance(loaded.network, ResNet50):
            raise InputError(
                f"{source}: {loaded.name} is no perceptual loss here; give LPIPS (AlexNet) or"
                " RadImageNet's ResNet50.pt"
            )
        module = ResNetDistance(loaded)
    return module.eval().requires_grad_(False)


def _lpips(state: dict[str, Tensor], source: str) -> Lpips:
    renamed = {}
    for name, value in state.items():
        parts = name.split(".")
        if name.startswith("net.slice"):  # net.slice2.3.weight -> net.features.3.weight
            renamed[f"net.features.{'.'.join(parts[2:])}"] = value
        elif parts[0] == "features":
            renamed[f"net.{name}"] = value
        elif parts[0].startswith("lin") and parts[1:] == ["model", "1", "weight"]:
            renamed[f"heads.{parts[0].removeprefix('lin')}"] = value
    for needed, what in (
        ("net.features.0.weight", "AlexNet's convolutions; name torchvision's AlexNet file too"),
        ("heads.0", "LPIPS's heads (lin0.model.1.weight); name LPIPS's alex.pth too"),
    ):
        if needed not in renamed:
            raise InputError(f"{source}: lacks {what}")
    module = Lpips()
    fixed = {"shift": module.shift, "scale": module.scale}
    fill(module, renamed | fixed, source)
    return module
