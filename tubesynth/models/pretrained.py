"""Published networks from a weights file on disk: ResNet-50 and Inception-v3 of torchvision.

`load_network(path)` recognizes the network and its input scaling by the names and shapes of the
weights:

    layout of the names            network                   input, three equal channels
    backbone.0.weight ...          ResNet-50, RadImageNet    [-1, 1], 224 x 224
    backbone.0.conv.weight ...     Inception-v3, RadImageNet [-1, 1], 299 x 299
    conv1.weight, conv1.bias ...   ResNet-50 converted from  [0, 1] minus ImageNet's mean, BGR,
                                   Keras (strides on the     224 x 224
                                   first 1 x 1 convolution)
    conv1.weight ...               ResNet-50, torchvision    ImageNet mean and deviation, 224 x 224
    Conv2d_1a_3x3.conv.weight ...  Inception-v3 of torchvision, or with fc of 1008 classes the one
                                   of the original FID (other pooling); [-1, 1], 299 x 299

Needs torchvision: pip install 'tubesynth[pretrained]'. Nothing is ever downloaded. Sources: He et
al. 2016, Szegedy et al. 2016, Mei et al. 2022 (RadImageNet), Heusel et al. 2017 (FID).
"""

import pickle
import struct
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tubesynth.runtime.errors import InputError
from tubesynth.runtime.reading import no_such

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGENET_MEAN_BGR = (0.406, 0.456, 0.485)
HALVES, UNIT_STD = (0.5, 0.5, 0.5), (1.0, 1.0, 1.0)
FID_CLASSES = 1008  # of the TensorFlow network that the FID was defined with
SLICES_AT_ONCE = 16
# What torch.load raises for a file of another kind.
UNREADABLE = (
    *(RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError, AttributeError),
    *(struct.error, pickle.UnpicklingError),
)
RESNET_HEAD, INCEPTION_HEAD = 2, 3  # last layers that are not used: averages, dropout, classifier


class PretrainedNetwork(nn.Module):
    """A frozen network up to its last maps, with the input that its weights expect.

    size: side of its square images; mean, std: of each channel of an image in [0, 1].
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        layers: nn.Module,
        size: int,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        name: str,
    ):
        super().__init__()
        self.layers, self.size, self.name = layers, size, name
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))
        self.eval().requires_grad_(False)

    def maps(self, images: Tensor) -> Tensor:
        """(N, 1, H, W) in [0, 1] -> (N, 2048, H / 32, W / 32), rounded up (Inception: down)."""
        return self.layers((images - self.mean) / self.std)

    @torch.no_grad()
    def raw_features(self, slices: Tensor) -> Tensor:
        """(N, 1, H, W) -> (N, 2048): the same at their own size, and not scaled for the weights."""
        self.to(slices.device)
        chunks = slices.float().expand(-1, 3, -1, -1).split(SLICES_AT_ONCE)
        return torch.cat([self.layers(chunk).mean((2, 3)) for chunk in chunks])

    @torch.no_grad()
    def slice_features(self, slices: Tensor) -> Tensor:
        """(N, 1, H, W) in [0, 1] -> (N, 2048): averages of the maps of resized slices."""
        self.to(slices.device)
        resize = partial(F.interpolate, size=(self.size, self.size), mode="bilinear")
        chunks = slices.float().split(SLICES_AT_ONCE)
        return torch.cat([self.maps(resize(chunk)).mean((2, 3)) for chunk in chunks])


def load_network(path: str | Path) -> PretrainedNetwork:
    """The network of a weights file; InputError where the file is missing or of another network."""
    return recognize(read_weights(path), path)


def recognize(state: dict[str, Tensor], path: str | Path) -> PretrainedNetwork:
    """The network of a state dict; InputError where its layout is none of those above."""
    inception = "backbone.0.conv.weight" in state or "Conv2d_1a_3x3.conv.weight" in state
    if not inception and "backbone.0.weight" not in state and "conv1.weight" not in state:
        names = ", ".join(list(state)[:3])
        raise InputError(
            f"{path}: neither a ResNet-50 nor an Inception-v3 (it holds {names}, ...); give one of "
            "the layouts named in tubesynth/models/pretrained.py"
        )
    models = _torchvision_models(path)
    if inception:
        network = models.inception_v3(weights=None, aux_logits=False, init_weights=False)
        fid = len(state.get("fc.weight", ())) == FID_CLASSES
        scaling = (299, HALVES, HALVES, "FID Inception-v3" if fid else "Inception-v3")
        if fid:
            _use_fid_pooling(network)
    else:
        network = models.resnet50(weights=None)
        scaling = (224, IMAGENET_MEAN, IMAGENET_STD, "ResNet-50")
        if "conv1.bias" in state:
            _use_keras_layers(network)
            scaling = (224, IMAGENET_MEAN_BGR, UNIT_STD, "RadImageNet ResNet-50 (from Keras)")
    head = INCEPTION_HEAD if inception else RESNET_HEAD
    layers = nn.Sequential(*list(network.children())[:-head])
    if any(name.startswith("backbone.") for name in state):  # a list of children without names
        scaling = (scaling[0], HALVES, HALVES, f"RadImageNet {scaling[3]}")
        fill(layers, {k.removeprefix("backbone."): v for k, v in state.items()}, path)
    else:
        network.fc = nn.Identity()
        fill(network, state, path)
    return PretrainedNetwork(layers, *scaling)


def _torchvision_models(path: str | Path) -> Any:
    """torchvision.models; InputError where it cannot be imported."""
    try:
        return import_module("torchvision.models")
    except (ImportError, RuntimeError) as error:  # RuntimeError: built for another torch
        raise InputError(
            f"{path}: its network needs torchvision ({str(error).splitlines()[0]}); install it: "
            "pip install 'tubesynth[pretrained]'"
        ) from None


def _use_keras_layers(network: nn.Module) -> None:
    """Changes ResNet-50 into that of Keras: biases, eps 1.001e-5, strides on a block's first
    convolution."""
    module: Any
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.bias = nn.Parameter(torch.zeros(module.out_channels))
        elif isinstance(module, nn.BatchNorm2d):
            module.eps = 1.001e-5
        elif hasattr(module, "conv3"):
            module.conv1.stride, module.conv2.stride = module.conv2.stride, module.conv1.stride


def _use_fid_pooling(network: nn.Module) -> None:
    """Changes the pooling branches into those of the FID's network: averages without padding, and a
    maximum in the last block."""

    def replace_pooling(block: Any, pool: Callable[[Tensor], Tensor]) -> None:
        branches = block._forward  # of torchvision: the list of branches, the pooling one last
        block._forward = lambda x: [*branches(x)[:-1], block.branch_pool(pool(x))]

    for name, block in network.named_children():
        if hasattr(block, "branch_pool"):
            average = nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)
            replace_pooling(block, nn.MaxPool2d(3, 1, 1) if name == "Mixed_7c" else average)


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The state dict of a file, on the CPU; InputError where it holds anything but tensors."""
    path = Path(path)
    if not path.is_file():
        raise InputError(
            f"{path}: {no_such(path, 'weights file')}; nothing is downloaded: download it yourself,"
            " or leave its setting out for the default without trained weights"
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        reason = (str(error).splitlines() or [""])[0]
        reason = type(error).__name__ if len(reason) > 80 or not reason else reason  # of torch
        raise InputError(
            f"{path}: not a file of plain weights ({reason}); save it again with"
            " torch.save(model.state_dict(), ...), or download it again"
        ) from None
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    tensors = isinstance(state, dict) and all(isinstance(v, Tensor) for v in state.values())
    if not tensors or not state:
        raise InputError(f"{path}: not a state dict of tensors; save model.state_dict()")
    return {name.removeprefix("module."): value for name, value in state.items()}


def fill(network: nn.Module, state: dict[str, Tensor], path: str | Path) -> None:
    """Loads every weight of the network from a state dict, which may hold more (a classifier).

    InputError for a weight that is missing or of another shape.
    """
    weights = network.state_dict()
    for name, tensor in weights.items():
        if name.endswith("num_batches_tracked"):
            state.setdefault(name, tensor)
        if name not in state:
            raise InputError(f"{path}: the weight {name} is missing; is the file complete?")
        if state[name].shape != tensor.shape:
            shapes = f"{tuple(state[name].shape)}, not {tuple(tensor.shape)}"
            raise InputError(f"{path}: {name} has shape {shapes}; it is another network")
    network.load_state_dict({name: state[name] for name in weights})
