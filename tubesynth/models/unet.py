"""The latent U-Net of stages 2 and 3, with all its conditions, in two or three dimensions.

Residual blocks with time and spacing embedding, self-attention at the coarse levels (Ho et al.
2020; Rombach et al. 2022), cross-attention to the vessel tokens, and in the decoder SPADE on the
label map and on the closeness and radius fields of the vessels. `cache_conditions` computes the
features that depend on the conditions alone; a sampler calls it once for all its steps.
"""

from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from tubesynth.models.blocks import (
    PUBLISHED_GROUPS,
    conv,
    expand_to,
    group_norm,
    repeat_cases,
    without_autocast,
    zero_init,
)
from tubesynth.models.conditions import CachedConditions, Conditions
from tubesynth.models.dropout import number_dropouts
from tubesynth.models.norm_silu import norm_silu
from tubesynth.models.res_block import ResBlock, Upsample
from tubesynth.models.spade import (
    FieldEncoder,
    LabelEncoder,
    LabelSampler,
    hidden_layers,
    resized,
)
from tubesynth.models.unet_encoder import UNetEncoder, blocks_of, vessels_of
from tubesynth.models.window import Window


class UNet(UNetEncoder):
    """x (R, C, X, ...), t (R,) in [0, 1], spacing (R, dim) mm of the image -> (R, C, X, ...).

    R rows: the B cases once, or once per guidance term. `encoder` holds the arguments of
    UNetEncoder; the others belong to the decoder. label_encoder: convolutions, sampled (one-hot
    labels at latent resolution), or none: the network is not conditioned on labels, without SPADE.
    spade: full, a hidden map for each norm, or shared, one for all norms of a level.
    vessel_fields: SPADE is conditioned on the vessel fields too. hidden_class: SPADE sees this
    class of the label map as background (None: no class is hidden).
    """

    def __init__(
        self,
        dim: int,
        *,
        in_channels: int,
        channels: tuple[int, ...],
        num_res_blocks: int,
        num_classes: int,
        label_channels: tuple[int, ...],
        label_factor: int,
        spade_hidden: int,
        dropout: float,
        vessel_fields: bool,
        hidden_class: int | None,
        label_encoder: str = "convolutions",
        spade: str = "full",
        published: bool = False,
        **encoder,
    ):
        super().__init__(
            dim,
            in_channels=in_channels,
            channels=channels,
            num_res_blocks=num_res_blocks,
            label_factor=label_factor,
            dropout=dropout,
            published=published,
            **encoder,
        )
        self.hidden_class = hidden_class
        self.label_encoder, self.field_encoder, self.spade_hidden = None, None, None
        of_norms: tuple[int | None, int] | None = None
        if label_encoder == "sampled":
            self.label_encoder = LabelSampler(num_classes, label_factor)
        elif label_encoder == "convolutions":
            self.label_encoder = LabelEncoder(
                dim, num_classes, label_channels, label_factor, published
            )
        if self.label_encoder:
            width = self.label_encoder.channels
            of_norms = (width, spade_hidden)
            if vessel_fields:
                self.field_encoder = FieldEncoder(dim, width)
            if spade == "shared":
                of_norms = (None, spade_hidden)
                self.spade_hidden = nn.ModuleList(
                    hidden_layers(dim, width, spade_hidden) for _ in channels
                )
            if published:  # its decoder with SPADE has no dropout
                self.attention_dropout = 0.0
        width, skip_widths = channels[-1], list(self.skip_widths)

        self.up = nn.ModuleList()
        for level, level_width in reversed(list(enumerate(channels))):
            for i in range(num_res_blocks + 1):
                cin = width + skip_widths.pop()
                res = ResBlock(
                    dim, cin, level_width, self.embedding_dim, dropout, of_norms, published
                )
                block = self._block(res, level, level_width)
                if level > 0 and i == num_res_blocks:
                    block["grow"] = Upsample(dim, level_width)
                self.up.append(block)
                width = level_width
        self.norm_out = group_norm(width, groups=PUBLISHED_GROUPS if published else None)
        self.conv_out = zero_init(conv(dim, width, in_channels))
        number_dropouts(self)

    def cache_conditions(
        self, conditions: Conditions, size: tuple[int, ...] | Window, spacing: Tensor
    ) -> CachedConditions:
        """The features of the conditions, which do not depend on t.

        size: of the latents, or a window of them that is evaluated alone; the conditions are those
        of the whole. spacing: (R, dim) mm of the image, one row per row of the batch.
        """
        window = Window.of(size)
        cached = self.cache_keys_values(conditions, window, spacing)
        shapes = [each.shape for each in self.level_windows(window)]
        conditions = conditions.within(window, self.label_factor)
        features = self._label_features(conditions, shapes[0], spacing)
        features = self._level_features(features, shapes)
        level, spade, decoder_vessels = len(shapes) - 1, [], []
        in_blocks = self.checkpointing and torch.is_grad_enabled()  # which compute the maps again
        for block in blocks_of(self.up):
            res = cast(ResBlock, block["res"])
            of_level = None if features is None else features[level]
            maps = of_level is not None and not in_blocks and res.modulations(of_level)
            spade.append(maps or of_level)
            decoder_vessels.append(vessels_of(block, cached))
            level -= "grow" in block
        encoder = self.cache_encoder(cached)
        return replace(encoder, spade=spade, decoder_vessels=decoder_vessels)

    def _label_features(self, conditions: Conditions, size, spacing: Tensor) -> Tensor | None:
        """(R, channels, *size): the sum over label map and fields, zero where dropped; None where
        the decoder has no SPADE.
        """
        if self.label_encoder is None:
            return None

        def masked(features: Tensor, keep: Tensor | None) -> Tensor:
            features = repeat_cases(features, len(spacing))
            return features if keep is None else features * expand_to(keep, features)

        features = spacing.new_zeros(len(spacing), self.label_encoder.channels, *size)
        if conditions.labels is not None:
            labels = conditions.labels
            if self.hidden_class is not None:
                labels = labels.masked_fill(labels == self.hidden_class, 0)
            features = features + masked(
                self._run(self.label_encoder, labels), conditions.keep_label
            )
        if self.field_encoder and conditions.fields is not None:
            fields = self.field_encoder(conditions.fields)
            features = features + masked(fields, conditions.keep_vessels)
        return features

    def _level_features(self, features: Tensor | None, sizes) -> list[Tensor] | None:
        """Label features on the grid of each level, or the hidden map of the level of them."""
        if features is None:
            return None
        levels = [resized(features, size, self.published) for size in sizes]
        if self.spade_hidden is None:
            return levels
        return [layers(level) for layers, level in zip(self.spade_hidden, levels, strict=True)]

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        spacing: Tensor,
        conditions: Conditions | CachedConditions | None = None,
        residuals: list[Tensor] | None = None,
        dropout_seeds: Tensor | None = None,
    ) -> Tensor:
        """conditions: of the cases, or the output of `cache_conditions`; None: unconditional.

        residuals: of a ControlNet, one for each skip and a last one for the output of the middle.
        dropout_seeds: (R,) int64 below 2^32, which decide the dropout of training.
        """
        if not isinstance(conditions, CachedConditions):
            conditions = self.cache_conditions(conditions or Conditions(), x.shape[2:], spacing)
        state = self.embed(t, spacing, dropout_seeds)
        h, skips = self.encode(self.conv_in(x), state, conditions)
        if residuals is not None:
            features = [*skips, h]  # under autocast their types differ; no type may change
            *skips, h = (f + r.to(f.dtype) for f, r in zip(features, residuals, strict=True))
        caches = (conditions.spade, conditions.decoder_vessels)
        for block, modulations, vessels in zip(blocks_of(self.up), *caches, strict=True):
            h = torch.cat([h, skips.pop()], dim=1)
            h = self._run_level(block, h, state, vessels, modulations)
            if "grow" in block:
                h = block["grow"](h, skips[-1].shape[2:])
        return without_autocast(self.conv_out, norm_silu(self.norm_out, h))
