"""The networks of all stages from a config, with initial weights."""

from torch import nn

from tubesynth.config.schema import (
    AutoencoderConfig,
    Config,
    SegmenterConfig,
    Stage1Config,
    Stage2Config,
    Stage3Config,
    vessel_levels,
)
from tubesynth.models.controlnet import ControlledUNet, ControlNet
from tubesynth.models.discriminator import PatchDiscriminator
from tubesynth.models.segmenter import SegmentationUNet
from tubesynth.models.unet import UNet
from tubesynth.models.vqvae import VQVAE


def build_autoencoder(config: Stage1Config) -> VQVAE:
    model = config.autoencoder
    return VQVAE(
        config.dim,
        channels=tuple(model.channels),
        residual_channels=tuple(model.residual_channels),
        num_residual_layers=model.num_residual_layers,
        embedding_dim=model.embedding_dim,
        quantizer=model.quantizer,
        codebook_size=model.codebook_size,
        commitment=model.commitment,
        codebook_decay=model.codebook_decay,
        revive_after=model.revive_after,
        fsq_levels=tuple(model.fsq_levels),
        kl_weight=model.kl_weight,
        checkpointing=config.train.checkpointing,
        decoder_condition=model.decoder_condition,
        num_classes=config.labels.num_classes,
    )


def build_discriminator(config: Stage1Config) -> PatchDiscriminator:
    settings = config.discriminator
    return PatchDiscriminator(config.dim, settings.channels, settings.num_layers)


def build_unet(config: Stage2Config, latent_channels: int, factor: int) -> UNet:
    settings = config.unet
    return UNet(
        config.dim,
        in_channels=latent_channels,
        channels=tuple(settings.channels),
        num_res_blocks=settings.num_res_blocks,
        attention_levels=tuple(settings.attention_levels),
        head_channels=settings.head_channels,
        num_classes=config.labels.num_classes,
        label_channels=tuple(settings.label_channels),
        label_factor=factor,
        spade_hidden=settings.spade_hidden,
        dropout=settings.dropout,
        checkpointing=config.train.checkpointing,
        vessel_attention=settings.vessel_attention,
        vessel_levels=tuple(vessel_levels(settings)),
        vessel_channels=settings.vessel_channels,
        vessel_fields=settings.vessel_fields,
        hidden_class=None if settings.label_map_vessels else config.labels.vessel,
    )


def build_network(config: Stage2Config, latent_channels: int, factor: int) -> UNet | ControlledUNet:
    """The network of stage 2, or the U-Net with its ControlNet of stage 3."""
    base = build_unet(config, latent_channels, factor)
    if not isinstance(config, Stage3Config):
        return base
    settings, of_vessels = config.unet, config.control.condition == "vessel"
    controlnet = ControlNet(
        config.dim,
        channels=tuple(settings.channels),
        num_classes=2 if of_vessels else config.labels.num_classes,
        label_channels=tuple(settings.label_channels),
        label_factor=factor,
        in_channels=latent_channels,
        num_res_blocks=settings.num_res_blocks,
        attention_levels=tuple(settings.attention_levels),
        head_channels=settings.head_channels,
        vessel_attention=settings.vessel_attention,
        vessel_levels=tuple(vessel_levels(settings)),
        vessel_channels=settings.vessel_channels,
        dropout=settings.dropout,
        checkpointing=config.train.checkpointing,
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
