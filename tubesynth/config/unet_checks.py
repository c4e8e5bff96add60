"""Checks of the section unet: widths, attention, conditions, and what the published layers need."""

from tubesynth.config.limits import Require
from tubesynth.config.schema import (
    Stage2Config,
    UNetConfig,
    head_channels,
    uses_labels,
    uses_vessels,
    vessel_levels,
)

PUBLISHED_GROUPS = 32  # models/blocks.py, which needs torch


def check_unet(config: Stage2Config, require: Require) -> None:
    """The U-Net of stage 2 and its conditions."""
    unet = config.unet
    require(
        unet.channels[0] % 2 == 0,
        f"unet.channels: {unet.channels}: the first is also the size of the time embedding, which"
        " is made of pairs: make it even",
    )
    check_attention(config, require)
    check_conditions(config, require)
    if unet.architecture == "published":
        check_published(unet, config.dim, require)
    else:
        require(
            unet.attention_dropout == 0,
            f"unet.attention_dropout: {unet.attention_dropout}: only the transformers of"
            " unet.architecture=published have it: set it to 0, or use unet.dropout",
        )


def check_attention(config: Stage2Config, require: Require) -> None:
    """Levels and heads of self-attention and of cross-attention."""
    unet, levels, heads = config.unet, len(config.unet.channels), head_channels(config.unet)
    require(
        len(heads) == levels,
        f"unet.head_channels: {heads}: expected one width, or one for each of the {levels} levels",
    )
    for key, attended in (
        ("attention_levels", [*unet.attention_levels, levels - 1]),  # the middle has attention
        ("vessel_levels", vessel_levels(unet)),
    ):
        for level in attended:
            require(
                0 <= level < levels,
                f"unet.{key}: level {level} does not exist (levels 0 to {levels - 1})",
            )
            require(
                heads[level] >= 1,
                f"unet.head_channels: must be at least 1 at level {level}, which has attention",
            )
            require(
                unet.channels[level] % heads[level] == 0,
                f"unet.head_channels: {heads[level]} does not divide the"
                f" {unet.channels[level]} channels of level {level}",
            )
    require(
        unet.vessel_attention == "off" or len(vessel_levels(unet)) > 0,
        f"unet.vessel_levels: empty, so unet.vessel_attention {unet.vessel_attention} would have no"
        " effect: name a level, or set unet.vessel_attention=off",
    )
    bias = 2 * config.dim + 8  # models/distance_bias.py: bias_channels, which needs torch
    require(
        unet.vessel_attention != "distance"
        or unet.architecture == "published"  # its bias channels are additional ones
        or min(heads[level] for level in vessel_levels(unet)) > bias,
        f"unet.head_channels: {unet.head_channels} is not above the {bias} channels of the distance"
        " bias: set at least 16; 32 to 64 are usual",
    )


def check_conditions(config: Stage2Config, require: Require) -> None:
    """The conditions of the U-Net, and the data that they need."""
    unet = config.unet
    require(
        not uses_vessels(unet) or config.data.token_step_mm is not None,
        "data.token_step_mm: not set, but unet.vessel_attention or unet.vessel_fields needs"
        " vessel tokens: give the length between two of them in mm, e.g. 1.0",
    )
    if unet.label_encoder == "none":
        require(
            not unet.vessel_fields,
            "unet.vessel_fields: SPADE takes them, and unet.label_encoder=none has no SPADE: set"
            " unet.vessel_fields=false, or another label encoder",
        )
        require(
            config.objective.label_dropout == 0 or uses_labels(config),
            f"{config.latent_mode}.label_dropout: {config.objective.label_dropout}, but"
            " unet.label_encoder=none takes no label map: set it to 0",
        )


def check_published(unet: UNetConfig, dim: int, require: Require) -> None:
    """The published layers: GroupNorm of 32 groups, and transformers in the attention levels."""
    require(
        all(width % PUBLISHED_GROUPS == 0 for width in unet.channels),
        f"unet.channels: {unet.channels}: unet.architecture=published has norms of"
        f" {PUBLISHED_GROUPS} groups: give multiples of {PUBLISHED_GROUPS}",
    )
    require(
        unet.spade == "full",
        f"unet.spade: {unet.spade}: unet.architecture=published has a hidden map for each norm: set"
        " unet.spade=full",
    )
    if unet.vessel_attention == "off":
        return
    last = len(unet.channels) - 1
    require(
        sorted(vessel_levels(unet)) == sorted(unet.attention_levels)
        and last in unet.attention_levels,
        f"unet.vessel_levels: {vessel_levels(unet)}: the transformers of"
        " unet.architecture=published hold self-attention too: set null, and attention_levels"
        f" with the last level, {last}",
    )
    pairs = f"positions are pairs of sine and cosine for each axis: give a multiple of {2 * dim}"
    require(
        (unet.vessel_channels - 1) % (2 * dim) == 0,
        f"unet.vessel_channels: {unet.vessel_channels}: {pairs}, and 1 for the radius",
    )
    for level in unet.attention_levels:
        width = unet.channels[level]
        require(
            width % (2 * dim) == 0,
            f"unet.channels: {width} of level {level}, with vessels: {pairs}",
        )
