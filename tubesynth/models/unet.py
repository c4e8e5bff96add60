"""The latent U-Net of stages 2 and 3, with all its conditions, in two or three dimensions.

Residual blocks with time and spacing embedding, self-attention at the coarse levels (Ho et al.
2020; Rombach et al. 2022), cross-attention to the vessel tokens, and in the decoder SPADE on the
label map and on the closeness and radius fields of the vessels. `cache_conditions` computes the
features that depend on the conditions alone; a sampler calls it once for all its steps.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from tubesynth.models.attention import SelfAttention
from tubesynth.models.blocks import (
    conv,
    expand_to,
    group_norm,
    repeat_cases,
    run_block,
    sinusoidal,
    zero_init,
)
from tubesynth.models.conditions import CachedConditions, Conditions
from tubesynth.models.dropout import SampleDropout, number_dropouts
from tubesynth.models.spade import FieldEncoder, LabelEncoder, Spade
from tubesynth.models.vessel_attention import CachedKeysValues, VesselAttention
from tubesynth.models.vessel_tokens import TokenEncoder, no_tokens

# Factor of t in [0, 1] before the embedding; the shortest wavelength in t is 2 pi / 100 = 0.06.
# With the usual factor of 1000 the velocity ripples in t faster than a solver steps
# (docs/results.md, Solvers).
TIME_SCALE = 100.0


CacheKeysValues = Callable[[VesselAttention | None, int], CachedKeysValues | None]


class RowState(NamedTuple):
    """What every residual block reads besides its input, one row per row of the batch.

    embedding: (R, E) of time and spacing. dropout_seeds: (R,) int64 below 2^32, or None.
    """

    embedding: Tensor
    dropout_seeds: Tensor | None = None


class ResBlock(nn.Module):
    """Two convolutions, scaled and shifted by the embedding; in the decoder the norms are SPADE."""

    def __init__(self, dim, cin, cout, embedding_dim, dropout=0.0, spade=None):
        super().__init__()
        self.spade = spade is not None
        self.norm1 = Spade(dim, cin, *spade) if spade else group_norm(cin)
        self.conv1 = conv(dim, cin, cout)
        self.embed = nn.Linear(embedding_dim, 2 * cout)
        self.norm2 = Spade(dim, cout, *spade) if spade else group_norm(cout)
        self.dropout = SampleDropout(dropout)
        self.conv2 = zero_init(conv(dim, cout, cout))
        self.skip = conv(dim, cin, cout, kernel=1) if cin != cout else nn.Identity()
        self.act = nn.SiLU()

    def modulations(self, label_features: Tensor, size: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """The SPADE maps of both norms."""
        assert isinstance(self.norm1, Spade) and isinstance(self.norm2, Spade)
        first = self.norm1.modulation(label_features, size)
        return first, self.norm2.modulation(label_features, size)

    def forward(self, x: Tensor, state: RowState, modulations=None) -> Tensor:
        first, second = ((m,) for m in modulations) if modulations else ((), ())
        h = self.conv1(self.act(self.norm1(x, *first)))
        # Scale and shift come after the norm, which would remove an offset added before it.
        film = self.embed(self.act(state.embedding))  # (B, 2 cout)
        scale, shift = expand_to(film, h).chunk(2, dim=1)
        h = self.norm2(h, *second) * (1 + scale) + shift
        return self.skip(x) + self.conv2(self.dropout(self.act(h), state.dropout_seeds))


class Upsample(nn.Module):
    """Nearest-neighbor upsampling to the size of the next skip (also odd), then a convolution."""

    def __init__(self, dim: int, channels: int):
        super().__init__()
        self.conv = conv(dim, channels, channels)

    def forward(self, x: Tensor, size: tuple[int, ...]) -> Tensor:
        return self.conv(nn.functional.interpolate(x, size=size, mode="nearest"))


class Encoder(nn.Module):
    """The downsampling half of a U-Net and its middle: the part that a ControlNet copies.

    channels: widths by level. attention_levels: levels with self-attention; the middle always has
    it. vessel_attention: off, plain (no bias) or distance, in the levels of vessel_levels.
    label_factor: image voxels per latent cell along each axis.
    """

    def __init__(
        self,
        dim: int,
        *,
        in_channels: int,
        channels: tuple[int, ...],
        num_res_blocks: int,
        attention_levels: tuple[int, ...],
        head_channels: int,
        label_factor: int,
        dropout: float,
        checkpointing: bool,
        vessel_attention: str,
        vessel_levels: tuple[int, ...],
        vessel_channels: int,
    ):
        super().__init__()
        self.checkpointing = checkpointing
        self.dim, self.label_factor = dim, label_factor
        self.attention_levels, self.head_channels = attention_levels, head_channels
        self.vessel_levels = vessel_levels if vessel_attention != "off" else ()
        self.vessel_channels, self.vessel_bias = vessel_channels, vessel_attention == "distance"
        self.time_channels = channels[0]
        embedding_dim = 4 * channels[0]
        self.embed_time = nn.Sequential(
            nn.Linear(channels[0], embedding_dim),
            nn.SiLU(),
            nn.Linear(embedding_dim, embedding_dim),
        )
        self.embed_spacing = nn.Sequential(
            nn.Linear(dim, embedding_dim), nn.SiLU(), nn.Linear(embedding_dim, embedding_dim)
        )
        self.token_encoder = None
        if vessel_attention != "off":
            self.token_encoder = TokenEncoder(dim, vessel_channels)

        def res_block(cin, cout):
            return ResBlock(dim, cin, cout, embedding_dim, dropout)

        self.conv_in = conv(dim, in_channels, channels[0])
        self.down = nn.ModuleList()
        self.skip_widths, width = [channels[0]], channels[0]
        for level, level_width in enumerate(channels):
            for _ in range(num_res_blocks):
                self.down.append(self._block(res_block(width, level_width), level, level_width))
                width = level_width
                self.skip_widths.append(width)
            if level < len(channels) - 1:
                self.down.append(nn.ModuleDict({"shrink": conv(dim, width, width, stride=2)}))
                self.skip_widths.append(width)

        self.middle_in = res_block(width, width)
        self.middle_attention = SelfAttention(width, head_channels)
        self.middle_vessels = self._vessel_attention(len(channels) - 1, width)
        self.middle_out = res_block(width, width)

    def _block(self, res: ResBlock, level: int, width: int) -> nn.ModuleDict:
        """A residual block, followed by the attention layers of its level."""
        block = nn.ModuleDict({"res": res})
        if level in self.attention_levels:
            block["attention"] = SelfAttention(width, self.head_channels)
        if vessels := self._vessel_attention(level, width):
            block["vessels"] = vessels
        return block

    def _vessel_attention(self, level: int, width: int) -> VesselAttention | None:
        if level not in self.vessel_levels:
            return None
        return VesselAttention(
            self.dim, width, self.head_channels, self.vessel_channels, self.vessel_bias
        )

    def level_sizes(self, size: tuple[int, ...]) -> list[tuple[int, ...]]:
        """The grid of every level, for latents of this size."""
        sizes = [tuple(size)]
        for _ in range(sum("shrink" in block for block in blocks_of(self.down))):
            sizes.append(tuple((n + 1) // 2 for n in sizes[-1]))
        return sizes

    def keys_values_cache(
        self, conditions: Conditions, size: tuple[int, ...], spacing: Tensor
    ) -> CacheKeysValues:
        """The function that caches keys and values of a vessel attention layer (None: no layer).

        size: of the latents. spacing: (R, dim) mm of the image, one row per row of the batch.
        """
        sizes, tokens = self.level_sizes(size), None
        if self.token_encoder:
            raw_tokens = conditions.tokens or no_tokens(len(spacing), spacing.device)
            encoded = self.token_encoder(raw_tokens)
            tokens = encoded.repeat_cases(len(spacing), conditions.keep_vessels)

        def cache(attention: VesselAttention | None, level: int) -> CachedKeysValues | None:
            if attention is None:
                return None
            assert tokens is not None
            # Image voxels per cell of this level; fractional where an odd size was halved.
            voxels = [n * self.label_factor / m for n, m in zip(size, sizes[level], strict=True)]
            cell_mm = spacing * spacing.new_tensor(voxels)
            return attention.cache_keys_values(tokens, sizes[level], cell_mm)

        return cache

    def cache_encoder(self, cache: CacheKeysValues) -> CachedConditions:
        """The cached conditions of the encoder and the middle."""
        level, encoder_vessels = 0, []
        for block in blocks_of(self.down):
            level += "shrink" in block
            encoder_vessels.append(cache(_vessel_attention_of(block), level))
        return CachedConditions([], encoder_vessels, cache(self.middle_vessels, level), [])

    def embed(self, t: Tensor, spacing: Tensor, dropout_seeds: Tensor | None = None) -> RowState:
        """t (R,), spacing (R, dim) mm -> an embedding (R, 4 channels[0]), with the seeds."""
        times = sinusoidal(TIME_SCALE * t, self.time_channels, max_period=10 * TIME_SCALE)
        embedding = self.embed_time(times)
        embedding = embedding + self.embed_spacing(torch.log(spacing.float()))
        return RowState(embedding, dropout_seeds)

    def encode(
        self, h: Tensor, state: RowState, cached: CachedConditions
    ) -> tuple[Tensor, list[Tensor]]:
        """Features after conv_in -> output of the middle, and the skip of every encoder block."""
        skips = [h]
        for block, vessels in zip(blocks_of(self.down), cached.encoder_vessels, strict=True):
            if "shrink" in block:
                h = block["shrink"](h)
            else:
                h = self._run_level(block, h, state, vessels)
            skips.append(h)
        h = self._run(self.middle_in, h, state)
        h = self._run(self.middle_attention, h)
        if self.middle_vessels:
            h = self._run(self.middle_vessels, h, cached.middle_vessels)
        return self._run(self.middle_out, h, state), skips

    def _run(self, layer: nn.Module, *inputs) -> Tensor:
        return run_block(layer, *inputs, checkpointing=self.checkpointing)

    def _run_level(self, block, h: Tensor, state: RowState, vessels, modulations=None) -> Tensor:
        """A residual block and the attention layers behind it."""
        h = self._run(block["res"], h, state, modulations)
        if "attention" in block:
            h = self._run(block["attention"], h)
        if "vessels" in block:
            h = self._run(block["vessels"], h, vessels)
        return h


def blocks_of(modules: nn.ModuleList) -> list[nn.ModuleDict]:
    """The entries of a list of module dictionaries, typed."""
    return cast(list[nn.ModuleDict], list(modules))


def _vessel_attention_of(block: nn.ModuleDict) -> VesselAttention | None:
    return cast(VesselAttention, block["vessels"]) if "vessels" in block else None


class UNet(Encoder):
    """x (R, C, X, ...), t (R,) in [0, 1], spacing (R, dim) mm of the image -> (R, C, X, ...).

    R rows: the B cases once, or once per guidance term. `encoder` holds the arguments of Encoder;
    the others belong to the decoder. vessel_fields: SPADE is conditioned on the vessel fields too.
    hidden_class: SPADE sees this class of the label map as background (None: no class is hidden).
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
        **encoder,
    ):
        super().__init__(
            dim,
            in_channels=in_channels,
            channels=channels,
            num_res_blocks=num_res_blocks,
            label_factor=label_factor,
            dropout=dropout,
            **encoder,
        )
        self.hidden_class = hidden_class
        self.label_encoder = LabelEncoder(dim, num_classes, label_channels, label_factor)
        self.field_encoder = FieldEncoder(dim, label_channels[-1]) if vessel_fields else None
        spade = (label_channels[-1], spade_hidden)
        width, skip_widths = channels[-1], list(self.skip_widths)

        self.up = nn.ModuleList()
        for level, level_width in reversed(list(enumerate(channels))):
            for i in range(num_res_blocks + 1):
                cin = width + skip_widths.pop()
                res = ResBlock(dim, cin, level_width, 4 * channels[0], dropout, spade)
                block = self._block(res, level, level_width)
                if level > 0 and i == num_res_blocks:
                    block["grow"] = Upsample(dim, level_width)
                self.up.append(block)
                width = level_width
        self.norm_out = group_norm(width)
        self.conv_out = zero_init(conv(dim, width, in_channels))
        number_dropouts(self)
        self.act = nn.SiLU()

    def cache_conditions(
        self, conditions: Conditions, size: tuple[int, ...], spacing: Tensor
    ) -> CachedConditions:
        """The features of the conditions, which do not depend on t.

        size: of the latents. spacing: (R, dim) mm of the image, one row per row of the batch.
        """
        cache, sizes = self.keys_values_cache(conditions, size, spacing), self.level_sizes(size)
        features = self._label_features(conditions, sizes[0], spacing)
        level, spade, decoder_vessels = len(sizes) - 1, [], []
        for block in blocks_of(self.up):
            spade.append(cast(ResBlock, block["res"]).modulations(features, sizes[level]))
            decoder_vessels.append(cache(_vessel_attention_of(block), level))
            level -= "grow" in block
        encoder = self.cache_encoder(cache)
        return replace(encoder, spade=spade, decoder_vessels=decoder_vessels)

    def _label_features(self, conditions: Conditions, size, spacing: Tensor) -> Tensor:
        """(R, label_channels[-1], *size): the sum over label map and fields; zero where dropped."""

        def masked(features: Tensor, keep: Tensor | None) -> Tensor:
            features = repeat_cases(features, len(spacing))
            return features if keep is None else features * expand_to(keep, features)

        features = spacing.new_zeros(len(spacing), self.label_encoder.channels, *size)
        if conditions.labels is not None:
            labels = conditions.labels
            if self.hidden_class is not None:
                labels = labels.masked_fill(labels == self.hidden_class, 0)
            features = features + masked(self.label_encoder(labels), conditions.keep_label)
        if self.field_encoder and conditions.fields is not None:
            fields = self.field_encoder(conditions.fields)
            features = features + masked(fields, conditions.keep_vessels)
        return features

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
        return self.conv_out(self.act(self.norm_out(h)))
