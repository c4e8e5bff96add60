"""Small networks that tests share, what goes into them, and a published layout of weights."""

import torch

from tubesynth.models.conditions import Conditions
from tubesynth.models.pretrained_layers import ResNet50
from tubesynth.models.unet import UNet

ENCODER = dict(
    in_channels=4, channels=(16, 32), num_res_blocks=1, attention_levels=(1,), head_channels=16
)
LABELS = dict(num_classes=3, label_channels=(8, 8, 16), label_factor=4)


def randomize_zeros(module, deviation: float) -> None:
    """Random values for zero-initialized parameters, which would hide every dependence."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.abs().max() == 0:
                parameter.normal_(0, deviation)


def small_unet(dim=3, **changes) -> UNet:
    """In evaluation mode, with no zero-initialized branch."""
    torch.manual_seed(0)
    net = UNet(dim, **{**ENCODER, **LABELS, "spade_hidden": 8, **changes}).eval()
    randomize_zeros(net, 0.05)
    return net


def labelled_inputs(dim=3, size=8, batch=2):
    """x, t, spacing and the conditions of a batch, drawn from torch's own generator."""
    x = torch.randn(batch, 4, *[size] * dim)
    labels = torch.randint(0, 3, (batch, *[4 * size] * dim), dtype=torch.uint8)
    return x, torch.rand(batch), torch.full((batch, dim), 0.7), Conditions(labels)


def radimagenet_layout(network: ResNet50) -> dict:
    """Its state dict as RadImageNet publishes it: a list of children without names."""
    index = {name: i for i, name in ResNet50.CHILDREN.items()}
    state = {}
    for name, value in network.state_dict().items():
        child, rest = name.split(".", 1)
        state[f"backbone.{index[child]}.{rest}"] = value
    return state
