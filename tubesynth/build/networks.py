"""The networks of all stages from a config, with initial weights."""

from typing import Any

from torch import nn

from tubesynth.config.schema import (
    AutoencoderConfig,
    Config,
    SegmenterConfig,
    Stage1Config,
    Stage2Config,
    Stage3Config,
    head_channels,
    vessel_levels,
)
from tubesynth.models.controlnet import ControlledUNet, ControlNet
from tubesynth.models.discriminator import PatchDiscriminator
from tubesynth.models.segmenter import SegmentationUNet
from tubesynth.models.unet import UNet
from tubesynth.models.unet_encoder import TIME_CODE, TimeCode
from tubesynth.models.vqvae import VQVAE

PUBLISHED_MAX_PERIOD = 10_000.0  # longest wavelength of the published time code, over 2 pi


def build_autoencoder(config: Stage1Config) -> VQVAE:
    settings = {**vars(config.autoencoder)}
    del settings["condition_dropout"]  # of the training
    checkpointing, num_classes = config.train.checkpointing, config.labels.num_classes
    autoencoder = VQVAE(
        config.dim, **settings, checkpointing=checkpointing, num_classes=num_classes
    )
    if config.train.frozen_encoder:
        autoencoder.freeze_encoder()
    return autoencoder


def build_discriminator(config: Stage1Config) -> PatchDiscriminator:
    settings = config.discriminator
    published = settings.initialization == "published"
    return PatchDiscriminator(config.dim, settings.channels, settings.num_layers, published)


def build_unet(config: Stage2Config, latent_channels: int, factor: int) -> UNet:
    settings = config.unet
    return UNet(
        config.dim,
        **_encoder_settings(config, latent_channels, factor),
        num_classes=config.labels.num_classes,
        label_encoder=settings.label_encoder,
        spade=settings.spade,
        spade_hidden=settings.spade_hidden,
        vessel_fields=settings.vessel_fields,
        hidden_class=None if settings.label_map_vessels else config.labels.vessel,
    )


def _encoder_settings(config: Stage2Config, latent_channels: int, factor: int) -> dict[str, Any]:
    """The arguments that UNet and ControlNet share."""
    settings = config.unet
    return dict(
        in_channels=latent_channels,
        channels=tuple(settings.channels),
        num_res_blocks=settings.num_res_blocks,
        attention_levels=tuple(settings.attention_levels),
        head_channels=tuple(head_channels(settings)),
        label_channels=tuple(settings.label_channels),
        label_factor=factor,
        dropout=settings.dropout,
        checkpointing=config.train.checkpointing,
        vessel_attention=settings.vessel_attention,
        vessel_levels=tuple(vessel_levels(settings)),
        vessel_channels=settings.vessel_channels,
        published=settings.architecture == "published",
        attention_dropout=settings.attention_dropout,
        time_code=_time_code(config),
    )


def _time_code(config: Stage2Config) -> TimeCode:
    """That of the network, or the published one: of t, or of the timestep k = T (1 - t) - 1."""
    if config.unet.architecture == "default":
        return TIME_CODE
    steps = config.diffusion.num_timesteps
    scale, offset = (1, 0) if config.latent_mode == "flow" else (-steps, steps - 1)
    return TimeCode(scale, offset, PUBLISHED_MAX_PERIOD)


def build_network(config: Stage2Config, latent_channels: int, factor: int) -> UNet | ControlledUNet:
    """The network of stage 2, or the U-Net with its ControlNet of stage 3."""
    base = build_unet(config, latent_channels, factor)
    if not isinstance(config, Stage3Config):
        return base
    of_vessels = config.control.condition == "vessel"
    controlnet = ControlNet(
        config.dim,
        **_encoder_settings(config, latent_channels, factor),
        num_classes=2 if of_vessels else config.labels.num_classes,
    )
    return ControlledUNet(base, controlnet, config.labels.vessel if of_vessels else None)


def build_segmenter(config: SegmenterConfig) -> SegmentationUNet:
    return SegmentationUNet(config.dim, tuple(config.segmenter.channels))


def build_phases(config: Config, latents: AutoencoderConfig | None) -> dict[str, nn.Module]:
    """The networks of a config by the names of their phases; latents: for stages 2 and 3."""
    if isinstance(config, Stage1Config):
        return {
            "autoencoder": build_autoencoder(config),
            "discriminator": build_discriminator(config),
        }
    if isinstance(config, SegmenterConfig):
        return {"segmenter": build_segmenter(config)}
    assert isinstance(config, Stage2Config) and latents
    return {"unet": build_network(config, latents.embedding_dim, latents.factor)}
