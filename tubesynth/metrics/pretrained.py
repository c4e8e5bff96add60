"""Published networks as feature functions: ResNet-50 and Inception-v3 from a weights file on disk.

`load_features(path)` tells the network and its input scaling by the names and shapes in the file:

    layout of the names            network                   input, three equal channels
    backbone.0.weight ...          ResNet-50, RadImageNet    [-1, 1], 224 x 224
    backbone.0.conv.weight ...     Inception-v3, RadImageNet [-1, 1], 299 x 299
    conv1.weight, conv1.bias ...   ResNet-50 converted from  [0, 1] minus ImageNet's mean, BGR,
                                   Keras (strides on the     224 x 224
                                   first 1 x 1 convolution)
    conv1.weight ...               ResNet-50, torchvision    ImageNet mean and deviation, 224 x 224
    Conv2d_1a_3x3.conv.weight ...  Inception-v3 of torchvision, or with fc of 1008 classes the one
                                   of the original FID (other pooling); [-1, 1], 299 x 299

Features are the 2048 averages of the last layer. Nothing is ever downloaded. Sources: He et al.
2016, Szegedy et al. 2016, Mei et al. 2022 (RadImageNet), Heusel et al. 2017 (FID).
"""

import pickle
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from tubesynth.errors import InputError
from tubesynth.metrics.pretrained_layers import FID_CLASSES, InceptionV3, ResNet50

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
AT_ONCE = 16  # slices through the network together
HALF = (0.5, 0.5, 0.5)
ONE = (1.0, 1.0, 1.0)


class PretrainedFeatures:
    """Slices (N, 1, H, W) in [0, 1] -> (N, 2048): resized, scaled as the weights expect, averaged.

    standardise is False: Frechet distances are then those that others report for the network.
    """

    standardise = False

    def __init__(self, network: nn.Module, size: int, mean, std, name: str):
        self.network = network.eval().requires_grad_(False)
        self.size, self.name = size, name
        self.mean, self.std = (torch.tensor(v).view(1, 3, 1, 1) for v in (mean, std))

    @torch.no_grad()
    def __call__(self, slices: torch.Tensor) -> torch.Tensor:
        self.network.to(slices.device)
        mean, std = (v.to(slices.device) for v in (self.mean, self.std))
        parts = []
        for part in slices.float().split(AT_ONCE):
            shape = (self.size, self.size)
            part = F.interpolate(part, shape, mode="bilinear", align_corners=False)
            parts.append(self.network((part.expand(-1, 3, -1, -1) - mean) / std))
        return torch.cat(parts)


def load_features(path) -> PretrainedFeatures:
    """The feature function of a weights file; InputError where it is missing or another network."""
    path = Path(path)
    state = _read(path)
    if "backbone.0.conv.weight" in state:
        network, scaling = InceptionV3(), (299, HALF, HALF, "RadImageNet Inception-v3")
        renamed = _renamed(state, InceptionV3.CHILDREN)
    elif "backbone.0.weight" in state:
        network, scaling = ResNet50(), (224, HALF, HALF, "RadImageNet ResNet-50")
        renamed = _renamed(state, ResNet50.CHILDREN)
    elif "Conv2d_1a_3x3.conv.weight" in state:
        fid = len(state.get("fc.weight", ())) == FID_CLASSES
        network, renamed = InceptionV3(fid), state
        scaling = (299, HALF, HALF, "FID Inception-v3" if fid else "Inception-v3")
    elif "conv1.bias" in state:
        network, renamed = ResNet50(keras=True), state
        scaling = (224, IMAGENET_MEAN[::-1], ONE, "RadImageNet ResNet-50 (from Keras)")
    elif "conv1.weight" in state:
        network, renamed = ResNet50(), state
        scaling = (224, IMAGENET_MEAN, IMAGENET_STD, "ResNet-50")
    else:
        some = ", ".join(list(state)[:3])
        raise InputError(
            f"{path}: neither a ResNet-50 nor an Inception-v3 (it holds {some}, ...); give one of "
            "the layouts named in tubesynth/metrics/pretrained.py"
        )
    _fill(network, renamed, path)
    return PretrainedFeatures(network, *scaling)


def _read(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise InputError(
            f"{path}: no such weights file; download RadImageNet (ResNet50.pt or InceptionV3.pt) "
            "yourself, nothing is fetched here, or leave the option out for the default features"
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, pickle.UnpicklingError) as error:
        raise InputError(
            f"{path}: not a file of plain weights ({str(error).splitlines()[0][:80]}); "
            "save it again with torch.save(model.state_dict(), ...)"
        ) from None
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    tensors = isinstance(state, dict) and all(isinstance(v, torch.Tensor) for v in state.values())
    if not tensors or not state:
        raise InputError(f"{path}: not a state dict of tensors; save model.state_dict()")
    return {name.removeprefix("module."): value for name, value in state.items()}


def _renamed(state, children: dict[int, str]) -> dict[str, torch.Tensor]:
    """RadImageNet's networks are a list of children: backbone.4.0.x -> layer1.0.x."""
    renamed = {}
    for name, value in state.items():
        _, index, rest = name.split(".", 2)
        renamed[f"{children.get(int(index), index)}.{rest}"] = value
    return renamed


def _fill(network, state, path) -> None:
    """Every weight from the file, of the right shape; the classifier (and AuxLogits) is left."""
    wanted = network.state_dict()
    for name, tensor in wanted.items():
        if name.endswith("num_batches_tracked"):
            state.setdefault(name, tensor)
        if name not in state:
            raise InputError(f"{path}: the weight {name} is missing; is the file whole?")
        if state[name].shape != tensor.shape:
            shapes = f"{tuple(state[name].shape)}, not {tuple(tensor.shape)}"
            raise InputError(f"{path}: {name} has shape {shapes}; it is another network")
    network.load_state_dict({name: state[name] for name in wanted})
