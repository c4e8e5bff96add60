"""Weights and inputs by formula, for which outputs of the published code are recorded in tests."""

from typing import Any

import torch
from torch import Tensor, nn

from tubesynth.build.checkpoint import Position
from tubesynth.build.networks import build_unet
from tubesynth.config.schema import (
    AutoencoderConfig,
    AutoencoderLossConfig,
    DiffusionConfig,
    DiscriminatorConfig,
    FlowConfig,
    Stage1Config,
    Stage2Config,
    UNetConfig,
)
from tubesynth.models.conditions import Conditions
from tubesynth.models.quantizers.codebook import EmaQuantizer
from tubesynth.models.unet import UNet
from tubesynth.training.autoencoder import AutoencoderStage

SIDE, FACTOR, CHANNELS = 8, 4, 4  # latent cells, voxels per cell, latent channels
SPACING = torch.tensor([[0.7, 0.8, 1.05]])  # mm

# Small U-Nets of the published layers: latent_mode, dim, and changes of the section unet.
SMALL = dict(channels=[32, 64], num_res_blocks=1, attention_levels=[1], head_channels=[0, 32])
SMALL |= dict(label_channels=[8, 16, 16], spade_hidden=16, architecture="published")
WITH_VESSELS = dict(channels=[32, 96], head_channels=[0, 96], vessel_channels=97)
UNETS = {
    "base": ("flow", 3, {}),
    "in two dimensions": ("flow", 2, {}),
    "diffusion": ("diffusion", 3, {}),
    "no labels": ("flow", 3, {"label_encoder": "none"}),
    "sampled labels": ("flow", 3, {"label_encoder": "sampled"}),
    "cross-attention": ("flow", 3, {"vessel_attention": "plain", **WITH_VESSELS}),
}


def unet_config(name: str) -> Stage2Config:
    """The config of an entry of UNETS, with the published objective."""
    mode, dim, changes = UNETS[name]
    return Stage2Config(
        stage=2,
        dim=dim,
        latent_mode=mode,
        unet=UNetConfig(**{**SMALL, **changes}),
        flow=FlowConfig(sigma_min=0.0),
        diffusion=DiffusionConfig(loss="l1"),
    )


def filled_unet(name: str) -> tuple[UNet, Conditions, Tensor]:
    """The U-Net of an entry of UNETS with weights by formula, its conditions and its spacing."""
    config = unet_config(name)
    unet = build_unet(config, CHANNELS, FACTOR).eval()
    fill(unet)
    image, spacing = (SIDE * FACTOR,) * config.dim, SPACING[:, : config.dim]
    labels = label_map(image, config.labels.num_classes)
    tokens = vessel_tokens(image, spacing[0]) if "attention" in name else None
    return unet, Conditions(labels=labels, tokens=tokens), spacing


def noise_of(shape: tuple[int, ...], number: int, scale: float = 1.0) -> Tensor:
    """Numbers of mean 0 and deviation `scale` that look random: the fraction of a large sine."""
    index = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    uniform = torch.frac(10_000 * torch.sin(12.9898 * index + 78.233 * number)).abs()
    return (scale * 12**0.5 * (uniform - 0.5)).reshape(shape).float()


def fill(module: nn.Module) -> None:
    """Set all parameters by formula, in the order of their names; the weights of norms are near 1,
    those of convolutions and linear layers keep the size of their inputs.
    """
    norms = (nn.GroupNorm, nn.LayerNorm, nn.InstanceNorm2d, nn.InstanceNorm3d)
    near_one = {id(m.weight) for m in module.modules() if isinstance(m, norms)}
    with torch.no_grad():
        for number, (_, parameter) in enumerate(sorted(module.named_parameters())):
            shape = tuple(parameter.shape)
            scale = (2 / parameter[0].numel()) ** 0.5 if parameter.ndim > 1 else 0.1
            parameter.copy_(noise_of(shape, number, scale) + (id(parameter) in near_one))


def label_map(size: tuple[int, ...], num_classes: int) -> Tensor:
    """(1, X, ...) uint8 with structures of a few voxels and larger ones."""
    index = torch.arange(torch.Size(size).numel()).reshape(size)
    return ((index // 5 + index // 37) % num_classes).to(torch.uint8)[None]


def vessel_tokens(size: tuple[int, ...], spacing: Tensor) -> dict[str, Tensor]:
    """40 tokens in voxels of an image of this size; spacing (dim,) mm."""
    number = torch.arange(40)
    index = torch.stack([number * step % size[0] for step in (3, 5, 7)], dim=-1).float()
    radius = 1 + number % 4 * 0.5  # voxels
    return {
        "position_mm": ((index - (torch.tensor(size) - 1) / 2) * spacing)[None],
        "radius_mm": (radius * spacing.mean())[None],
        "tangent": torch.zeros(1, 40, 3),
        "root_distance_mm": torch.zeros(1, 40),
        "mask": torch.ones(1, 40, dtype=torch.bool),
    }


SIZES = dict(channels=[8, 16], residual_channels=[8, 16], embedding_dim=4, codebook_size=32)
PUBLISHED_LOSSES = dict(adversarial_objective="lsgan_leaky", discriminator=0.005, vessel_l1=10)
WASSERSTEIN = dict(adversarial_objective="wasserstein", adversarial_weighting="adaptive_published")


def filled_stage_1(**losses) -> AutoencoderStage:
    """A small published stage 1 with weights by formula."""
    config = Stage1Config(
        stage=1,
        autoencoder=AutoencoderConfig(
            **SIZES, quantizer="published_vq", initialization="published"
        ),
        discriminator=DiscriminatorConfig(channels=8, initialization="published"),
        losses=AutoencoderLossConfig(**losses),
    )
    volumes: Any = None  # the losses read none
    stage = AutoencoderStage(config, volumes, Position(), torch.device("cpu"))
    fill(stage.autoencoder)
    fill(stage.discriminator)
    quantizer = stage.autoencoder.quantizer
    assert isinstance(quantizer, EmaQuantizer)
    quantizer.codebook.copy_(noise_of((32, 4), 5))
    quantizer.ema_sum.copy_(quantizer.codebook)
    return stage


def stage_1_batch() -> dict:
    """One image of 32 voxels a side, and its label map."""
    size = (SIDE * FACTOR,) * 3
    image = (0.5 + 0.2 * noise_of((1, 1, *size), 6)).clamp(0, 1)
    return {"image": image, "label": label_map(size, 9), "sample_index": [0], "spacing": SPACING}
