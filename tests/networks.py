"""Small networks that tests share, their inputs, and a published layout of weights."""

import pytest
import torch

from tubesynth.build.objective import build_objective
from tubesynth.config.schema import (
    AutoencoderConfig,
    DiffusionConfig,
    FlowConfig,
    Stage2Config,
    UNetConfig,
)
from tubesynth.models import res_block, unet
from tubesynth.models.conditions import Conditions
from tubesynth.models.quantizers.codebook import EmaQuantizer
from tubesynth.models.unet import UNet
from tubesynth.models.vqvae import VQVAE

ENCODER = dict(
    in_channels=4, channels=(16, 32), num_res_blocks=1, attention_levels=(1,), head_channels=16
)
LABELS = dict(num_classes=3, label_channels=(8, 8, 16), label_factor=4)


def published(section, *names: str) -> dict:
    """The defaults of a config's section for these keys."""
    return {name: getattr(section, name) for name in names}


def make_vqvae(dim=3, **changes) -> VQVAE:
    """The published autoencoder with changes."""
    settings = {**vars(AutoencoderConfig()), "checkpointing": False, "num_classes": 9, **changes}
    del settings["condition_dropout"]
    return VQVAE(dim, **settings)


def make_ema_quantizer(codes: int, channels: int, **changes) -> EmaQuantizer:
    """A codebook with the published decay, whose unused codes are not revived."""
    return EmaQuantizer(
        codes, channels, **{"commitment": 0.25, "decay": 0.5, "revive_after": 0, **changes}
    )


def encoder_settings(**changes) -> dict:
    """The arguments that UNet and ControlNet share: published sizes with changes."""
    names = ("channels", "num_res_blocks", "attention_levels", "head_channels", "dropout")
    names += ("label_channels", "vessel_attention", "vessel_channels")
    others = dict(in_channels=8, num_classes=9, label_factor=4, checkpointing=False)
    return {**published(UNetConfig(), *names), **others, "vessel_levels": (), **changes}


def make_unet(dim=3, **changes) -> UNet:
    """The published U-Net with changes."""
    settings = published(UNetConfig(), "spade_hidden", "vessel_fields")
    return UNet(dim, **{**encoder_settings(), **settings, "hidden_class": None, **changes})


def make_flow(**changes):
    """Flow matching by the defaults of the config with changes."""
    return build_objective(Stage2Config(stage=2, flow=FlowConfig(**changes)))


def make_diffusion(**changes):
    """Diffusion by the defaults of the config with changes."""
    diffusion = DiffusionConfig(**changes)
    return build_objective(Stage2Config(stage=2, latent_mode="diffusion", diffusion=diffusion))


def autograd_norm_silu(norm, x, *modulations):
    """norm_silu of any layer in place of the norm, whose steps autograd stores."""
    h = norm(x)
    for modulation in modulations:
        scale, shift = modulation.chunk(2, dim=1)
        h = h * (1 + scale) + shift
    return torch.nn.functional.silu(h)


def with_autograd_norms(monkeypatch) -> None:
    """Networks store the steps of their norms for the backward pass, as before norm_silu."""
    for module in (res_block, unet):
        monkeypatch.setattr(module, "norm_silu", autograd_norm_silu)


def randomize_zeros(module, deviation: float) -> None:
    """Sets zero-initialized parameters, which hide every dependence, to random values."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.abs().max() == 0:
                parameter.normal_(0, deviation)


def small_unet(dim=3, **changes) -> UNet:
    """A U-Net in evaluation mode with no zero-initialized branch."""
    torch.manual_seed(0)
    net = make_unet(dim, **{**ENCODER, **LABELS, "spade_hidden": 8, **changes}).eval()
    randomize_zeros(net, 0.05)
    return net


def labelled_inputs(dim=3, size=8, batch=2):
    """x, t, spacing and the conditions of a batch, random by torch's global generator."""
    x = torch.randn(batch, 4, *[size] * dim)
    labels = torch.randint(0, 3, (batch, *[4 * size] * dim), dtype=torch.uint8)
    return x, torch.rand(batch), torch.full((batch, dim), 0.7), Conditions(labels)


def _torchvision_error() -> str:
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError) as error:  # RuntimeError: built for another torch
        return str(error)
    return ""


TORCHVISION_ERROR = _torchvision_error()
needs_torchvision = pytest.mark.skipif(
    bool(TORCHVISION_ERROR), reason=f"torchvision cannot be imported: {TORCHVISION_ERROR}"
)


def random_resnet() -> torch.nn.Module:
    """torchvision's ResNet-50 at evaluation, with random weights and running means."""
    from torchvision.models import resnet50

    torch.manual_seed(0)
    network = resnet50(weights=None).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
    return network


def radimagenet_layout(network: torch.nn.Module) -> dict:
    """Its state dict as RadImageNet publishes it: a list of children without names or fc."""
    index = {name: i for i, (name, _) in enumerate(network.named_children())}
    state = {}
    for name, value in network.state_dict().items():
        child, rest = name.split(".", 1)
        if child != "fc":
            state[f"backbone.{index[child]}.{rest}"] = value
    return state
