"""Published networks from a weights file on disk: ResNet-50 and Inception-v3.

`load_network(path)` tells the network and its input scaling by the names and shapes in the file:

    layout of the names            network                   input, three equal channels
    backbone.0.weight ...          ResNet-50, RadImageNet    [-1, 1], 224 x 224
    backbone.0.conv.weight ...     Inception-v3, RadImageNet [-1, 1], 299 x 299
    conv1.weight, conv1.bias ...   ResNet-50 converted from  [0, 1] minus ImageNet's mean, BGR,
                                   Keras (strides on the     224 x 224
                                   first 1 x 1 convolution)
    conv1.weight ...               ResNet-50, torchvision    ImageNet mean and deviation, 224 x 224
    Conv2d_1a_3x3.conv.weight ...  Inception-v3 of torchvision, or with fc of 1008 classes the one
                                   of the original FID (other pooling); [-1, 1], 299 x 299

Nothing is ever downloaded. Sources: He et al. 2016, Szegedy et al. 2016, Mei et al. 2022
(RadImageNet), Heusel et al. 2017 (FID).
"""

import pickle
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from tubesynth.models.pretrained_layers import FID_CLASSES, InceptionV3, ResNet50
from tubesynth.runtime.errors import InputError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)
ONE = (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class PretrainedNetwork:
    """A network with its weights, and the input that they expect.

    size: side of its square pictures; mean, std: of each channel of a picture in [0, 1].
    """

    network: nn.Module
    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    name: str


def load_network(path: str | Path) -> PretrainedNetwork:
    """The network of a weights file; InputError where it is missing or another network."""
    return recognise(read_weights(path), path)


def recognise(state: dict[str, Tensor], path: str | Path) -> PretrainedNetwork:
    """The network that a state dict is of; InputError where it is none of those above."""
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
            "the layouts named in tubesynth/models/pretrained.py"
        )
    fill(network, renamed, path)
    return PretrainedNetwork(network, *scaling)


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a file, on the CPU; InputError where it is no file of tensors alone."""
    path = Path(path)
    if not path.is_file():
        raise InputError(
            f"{path}: no such weights file; download it yourself, nothing is fetched here, or "
            "leave the option out for the default without trained weights"
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
    tensors = isinstance(state, dict) and all(isinstance(v, Tensor) for v in state.values())
    if not tensors or not state:
        raise InputError(f"{path}: not a state dict of tensors; save model.state_dict()")
    return {name.removeprefix("module."): value for name, value in state.items()}


def _renamed(state, children: dict[int, str]) -> dict[str, Tensor]:
    """RadImageNet's networks are a list of children: backbone.4.0.x -> layer1.0.x."""
    renamed = {}
    for name, value in state.items():
        _, index, rest = name.split(".", 2)
        renamed[f"{children.get(int(index), index)}.{rest}"] = value
    return renamed


def fill(network: nn.Module, state: dict[str, Tensor], path: str | Path) -> None:
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
