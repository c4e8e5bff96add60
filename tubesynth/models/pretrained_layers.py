"""ResNet-50 (He et al. 2016) and Inception-v3 (Szegedy et al. 2016) up to their 2048 averages, and
the convolutions of AlexNet (Krizhevsky 2014, arXiv 1404.5997).

Names are those of torchvision's state dicts, so published weights load by name. Input is
(N, 3, H, W), output (N, 2048). CHILDREN numbers the children as a list of them does.
"""

import torch
import torch.nn.functional as F
from torch import nn

FID_CLASSES = 1008  # of the TensorFlow network that the FID was defined with


class AlexNet(nn.Module):
    """(N, 3, H, W), both at least 31 -> the five maps after each convolution's ReLU."""

    widths = (64, 192, 384, 256, 256)

    def __init__(self):
        super().__init__()
        a, b, c, d, e = self.widths
        pool = nn.MaxPool2d(3, 2)
        self.features = nn.Sequential(
            *(nn.Conv2d(3, a, 11, 4, 2), nn.ReLU(), pool),
            *(nn.Conv2d(a, b, 5, padding=2), nn.ReLU(), pool),
            *(nn.Conv2d(b, c, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(c, d, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(d, e, 3, padding=1), nn.ReLU()),
        )

    def forward(self, x):
        maps = []
        for layer in self.features:
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                maps.append(x)
        return maps


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3, 1 x 1 convolutions beside the identity. keras: biases, stride on the first."""

    def __init__(self, inputs, width, stride, keras):
        super().__init__()
        eps = 1.001e-5 if keras else 1e-5
        first, second = (stride, 1) if keras else (1, stride)
        self.conv1 = nn.Conv2d(inputs, width, 1, first, bias=keras)
        self.bn1 = nn.BatchNorm2d(width, eps)
        self.conv2 = nn.Conv2d(width, width, 3, second, 1, bias=keras)
        self.bn2 = nn.BatchNorm2d(width, eps)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=keras)
        self.bn3 = nn.BatchNorm2d(4 * width, eps)
        self.downsample = None
        if stride != 1 or inputs != 4 * width:
            shortcut = nn.Conv2d(inputs, 4 * width, 1, stride, bias=keras)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(4 * width, eps))

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet50(nn.Module):
    CHILDREN = {0: "conv1", 1: "bn1", 4: "layer1", 5: "layer2", 6: "layer3", 7: "layer4"}

    def __init__(self, keras=False):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=keras)
        self.bn1 = nn.BatchNorm2d(64, 1.001e-5 if keras else 1e-5)
        inputs = 64
        for i, (width, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3)), start=1):
            layer = []
            for block in range(blocks):
                stride = 2 if i > 1 and block == 0 else 1
                layer.append(Bottleneck(inputs, width, stride, keras))
                inputs = 4 * width
            self.add_module(f"layer{i}", nn.Sequential(*layer))

    def maps(self, x):
        """(N, 3, H, W) -> (N, 2048, ceil(H / 32), ceil(W / 32)): what the averages are of."""
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))

    def forward(self, x):
        return self.maps(x).mean((2, 3))


class Unit(nn.Module):
    """Convolution, batch normalisation (eps 0.001), ReLU."""

    def __init__(self, inputs, outputs, kernel, stride=1, padding=0):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, 0.001)

    def forward(self, x):
        return F.relu(self.bn(self.conv(x)))


class Mixed(nn.Module):
    """Branches side by side. Each is a list of names run in turn; a tuple of names splits its input
    once more; "pool" averages 3 x 3, "max" takes their maximum, "max2" with stride 2."""

    def __init__(self, branches, units: dict[str, Unit], fid):
        super().__init__()
        self.branches, self.fid = branches, fid
        for name, unit in units.items():
            self.add_module(name, unit)

    def forward(self, x):
        return torch.cat([self._run(branch, x) for branch in self.branches], 1)

    def _run(self, branch, x):
        for step in branch:
            if isinstance(step, tuple):
                x = torch.cat([getattr(self, name)(x) for name in step], 1)
            elif step == "pool":
                x = F.avg_pool2d(x, 3, 1, 1, count_include_pad=not self.fid)
            elif step == "max":
                x = F.max_pool2d(x, 3, 1, 1)
            elif step == "max2":
                x = F.max_pool2d(x, 3, 2)
            else:
                x = getattr(self, step)(x)
        return x


def block_35(inputs, pooled, fid):
    units = {
        "branch1x1": Unit(inputs, 64, 1),
        "branch5x5_1": Unit(inputs, 48, 1),
        "branch5x5_2": Unit(48, 64, 5, padding=2),
        "branch3x3dbl_1": Unit(inputs, 64, 1),
        "branch3x3dbl_2": Unit(64, 96, 3, padding=1),
        "branch3x3dbl_3": Unit(96, 96, 3, padding=1),
        "branch_pool": Unit(inputs, pooled, 1),
    }
    double = [f"branch3x3dbl_{i}" for i in (1, 2, 3)]
    return Mixed(
        [["branch1x1"], ["branch5x5_1", "branch5x5_2"], double, ["pool", "branch_pool"]], units, fid
    )


def reduction_17(inputs, fid):
    units = {
        "branch3x3": Unit(inputs, 384, 3, 2),
        "branch3x3dbl_1": Unit(inputs, 64, 1),
        "branch3x3dbl_2": Unit(64, 96, 3, padding=1),
        "branch3x3dbl_3": Unit(96, 96, 3, 2),
    }
    return Mixed([["branch3x3"], [f"branch3x3dbl_{i}" for i in (1, 2, 3)], ["max2"]], units, fid)


def block_17(inputs, width, fid):
    wide, tall = dict(kernel=(1, 7), padding=(0, 3)), dict(kernel=(7, 1), padding=(3, 0))
    units = {
        "branch1x1": Unit(inputs, 192, 1),
        "branch7x7_1": Unit(inputs, width, 1),
        "branch7x7_2": Unit(width, width, **wide),
        "branch7x7_3": Unit(width, 192, **tall),
        "branch7x7dbl_1": Unit(inputs, width, 1),
        "branch7x7dbl_2": Unit(width, width, **tall),
        "branch7x7dbl_3": Unit(width, width, **wide),
        "branch7x7dbl_4": Unit(width, width, **tall),
        "branch7x7dbl_5": Unit(width, 192, **wide),
        "branch_pool": Unit(inputs, 192, 1),
    }
    once, twice = [f"branch7x7_{i}" for i in (1, 2, 3)], [f"branch7x7dbl_{i}" for i in range(1, 6)]
    return Mixed([["branch1x1"], once, twice, ["pool", "branch_pool"]], units, fid)


def reduction_8(inputs, fid):
    units = {
        "branch3x3_1": Unit(inputs, 192, 1),
        "branch3x3_2": Unit(192, 320, 3, 2),
        "branch7x7x3_1": Unit(inputs, 192, 1),
        "branch7x7x3_2": Unit(192, 192, (1, 7), padding=(0, 3)),
        "branch7x7x3_3": Unit(192, 192, (7, 1), padding=(3, 0)),
        "branch7x7x3_4": Unit(192, 192, 3, 2),
    }
    seven = [f"branch7x7x3_{i}" for i in (1, 2, 3, 4)]
    return Mixed([["branch3x3_1", "branch3x3_2"], seven, ["max2"]], units, fid)


def block_8(inputs, fid, pool="pool"):
    wide, tall = dict(kernel=(1, 3), padding=(0, 1)), dict(kernel=(3, 1), padding=(1, 0))
    units = {
        "branch1x1": Unit(inputs, 320, 1),
        "branch3x3_1": Unit(inputs, 384, 1),
        "branch3x3_2a": Unit(384, 384, **wide),
        "branch3x3_2b": Unit(384, 384, **tall),
        "branch3x3dbl_1": Unit(inputs, 448, 1),
        "branch3x3dbl_2": Unit(448, 384, 3, padding=1),
        "branch3x3dbl_3a": Unit(384, 384, **wide),
        "branch3x3dbl_3b": Unit(384, 384, **tall),
        "branch_pool": Unit(inputs, 192, 1),
    }
    branches = [
        ["branch1x1"],
        ["branch3x3_1", ("branch3x3_2a", "branch3x3_2b")],
        ["branch3x3dbl_1", "branch3x3dbl_2", ("branch3x3dbl_3a", "branch3x3dbl_3b")],
        [pool, "branch_pool"],
    ]
    return Mixed(branches, units, fid)


class InceptionV3(nn.Module):
    """fid: the pooling of the FID's network (averages without padding, a maximum in the last)."""

    CHILDREN = {
        **dict(enumerate(("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3"))),
        **dict(enumerate(("Conv2d_3b_1x1", "Conv2d_4a_3x3"), start=4)),
        **dict(enumerate((f"Mixed_{x}" for x in "5b 5c 5d 6a 6b 6c 6d 6e 7a 7b 7c".split()), 7)),
    }

    def __init__(self, fid=False):
        super().__init__()
        self.Conv2d_1a_3x3 = Unit(3, 32, 3, 2)
        self.Conv2d_2a_3x3 = Unit(32, 32, 3)
        self.Conv2d_2b_3x3 = Unit(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = Unit(64, 80, 1)
        self.Conv2d_4a_3x3 = Unit(80, 192, 3)
        self.Mixed_5b = block_35(192, 32, fid)
        self.Mixed_5c = block_35(256, 64, fid)
        self.Mixed_5d = block_35(288, 64, fid)
        self.Mixed_6a = reduction_17(288, fid)
        self.Mixed_6b = block_17(768, 128, fid)
        self.Mixed_6c = block_17(768, 160, fid)
        self.Mixed_6d = block_17(768, 160, fid)
        self.Mixed_6e = block_17(768, 192, fid)
        self.Mixed_7a = reduction_8(768, fid)
        self.Mixed_7b = block_8(1280, fid)
        self.Mixed_7c = block_8(2048, fid, "max" if fid else "pool")

    def forward(self, x):
        for name, layer in self.named_children():
            x = layer(x)
            if name in ("Conv2d_2b_3x3", "Conv2d_4a_3x3"):
                x = F.max_pool2d(x, 3, 2)
        return x.mean((2, 3))
