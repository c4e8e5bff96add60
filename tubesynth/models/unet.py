"""The latent U-Net: one network for every condition, in two or three dimensions.

Residual blocks with time and spacing embedding, self-attention at the coarse levels (Ho et al.
2020; Rombach et al. 2022), cross-attention to the vessel tokens, and in the decoder SPADE on the
label map and on the vessels' distance and radius fields. What the conditions alone decide is made
by `prepare` and may be handed in again: a sampler does that work once, not at every step.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from tubesynth.models.attention import SelfAttention
from tubesynth.models.blocks import conv, group_norm, repeat_cases, run, sinusoidal, zero_init
from tubesynth.models.conditions import CachedConditions, Conditions
from tubesynth.models.spade import FieldEncoder, LabelEncoder, Spade
from tubesynth.models.vessel_attention import CachedKeysValues, VesselAttention
from tubesynth.models.vessel_tokens import TokenEncoder, no_tokens

# Of t in [0, 1] before it is embedded, so the shortest wavelength is 0.06. Ten times as much, as
# is usual, lets the velocity ripple faster in t than a solver steps: docs/results.md, Solvers.
TIME_SCALE = 100.0


class ResBlock(nn.Module):
    """Two convolutions around the embedding; in the decoder both norms are SPADE."""

    def __init__(self, dim, cin, cout, embedding_dim, dropout=0.0, spade=None):
        super().__init__()
        self.spade = spade is not None
        self.norm1 = Spade(dim, cin, *spade) if self.spade else group_norm(cin)
        self.conv1 = conv(dim, cin, cout)
        self.embed = nn.Linear(embedding_dim, 2 * cout)
        self.norm2 = Spade(dim, cout, *spade) if self.spade else group_norm(cout)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zero_init(conv(dim, cout, cout))
        self.skip = conv(dim, cin, cout, kernel=1) if cin != cout else nn.Identity()
        self.act = nn.SiLU()

    def modulations(self, label_features: Tensor, size: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        return tuple(norm.modulation(label_features, size) for norm in (self.norm1, self.norm2))

    def forward(self, x: Tensor, embedding: Tensor, modulations=None) -> Tensor:
        first, second = ((m,) for m in modulations) if self.spade else ((), ())
        h = self.conv1(self.act(self.norm1(x, *first)))
        # Scale and shift after the norm: an offset before it would be normalised away.
        film = self.embed(self.act(embedding))
        scale, shift = film.reshape(*film.shape, *[1] * (h.ndim - 2)).chunk(2, dim=1)
        h = self.norm2(h, *second) * (1 + scale) + shift
        return self.skip(x) + self.conv2(self.dropout(self.act(h)))


class Upsample(nn.Module):
    """To the size of the skip that comes next (odd sizes too), then a convolution."""

    def __init__(self, dim: int, channels: int):
        super().__init__()
        self.conv = conv(dim, channels, channels)

    def forward(self, x: Tensor, size: tuple[int, ...]) -> Tensor:
        return self.conv(nn.functional.interpolate(x, size=size, mode="nearest"))


class Encoder(nn.Module):
    """The half of a U-Net that shrinks, and its middle: what a ControlNet copies.

    vessel_attention: off, plain (no bias) or distance, after self-attention in the levels of
    vessel_levels; label_factor: voxels of the image a side of a latent cell.
    """

    def __init__(
        self,
        dim: int = 3,
        in_channels: int = 8,
        channels: tuple[int, ...] = (64, 128, 256, 512),
        num_res_blocks: int = 2,
        attention_levels: tuple[int, ...] = (2, 3),
        head_channels: int = 32,
        label_factor: int = 4,
        dropout: float = 0.0,
        checkpointing: bool = False,
        vessel_attention: str = "off",
        vessel_levels: tuple[int, ...] = (),
        vessel_channels: int = 256,
    ):
        super().__init__()
        self.recompute = checkpointing
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
        """A residual block with the attention of its level behind it."""
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
        """The cells of every level, for latents of a size."""
        sizes = [tuple(size)]
        for _ in range(sum("shrink" in block for block in self.down)):
            sizes.append(tuple((n + 1) // 2 for n in sizes[-1]))
        return sizes

    def memories(self, conditions: Conditions, size: tuple[int, ...], spacing: Tensor):
        """(vessel attention or None, level) -> what it needs of the conditions, or None."""
        sizes, tokens = self.level_sizes(size), None
        if self.token_encoder:
            given = conditions.tokens or no_tokens(len(spacing), spacing.device)
            tokens = self.token_encoder(given).repeat_cases(len(spacing), conditions.keep_vessels)

        def memory(attention: VesselAttention | None, level: int) -> CachedKeysValues | None:
            if attention is None:
                return None
            # A coarse cell is the share of the grid that resizing gives it, on odd sizes too.
            shares = [n * self.label_factor / m for n, m in zip(size, sizes[level], strict=True)]
            cell_mm = spacing * spacing.new_tensor(shares)
            return attention.memory(tokens, sizes[level], cell_mm)

        return memory

    def cache_encoder(self, memory) -> CachedConditions:
        """The encoder's and the middle's share of what time does not change."""
        level, encoder_vessels = 0, []
        for block in self.down:
            level += "shrink" in block
            encoder_vessels.append(memory(_vessels_of(block), level))
        return CachedConditions([], encoder_vessels, memory(self.middle_vessels, level), [])

    def embed(self, t: Tensor, spacing: Tensor) -> Tensor:
        """t (B,), spacing (B, dim) mm -> (B, 4 channels[0])."""
        times = sinusoidal(TIME_SCALE * t, self.time_channels, max_period=10 * TIME_SCALE)
        embedding = self.embed_time(times)
        return embedding + self.embed_spacing(torch.log(spacing.float()))

    def encode(
        self, h: Tensor, embedding: Tensor, prepared: CachedConditions
    ) -> tuple[Tensor, list[Tensor]]:
        """What conv_in made of x -> the middle's output, and the skips of every block before it."""
        skips = [h]
        for block, vessels in zip(self.down, prepared.encoder_vessels, strict=True):
            if "shrink" in block:
                h = block["shrink"](h)
            else:
                h = self._run(block, h, embedding, vessels)
            skips.append(h)
        h = run(self.middle_in, h, embedding, recompute=self.recompute)
        h = run(self.middle_attention, h, recompute=self.recompute)
        if self.middle_vessels:
            h = run(self.middle_vessels, h, prepared.middle_vessels, recompute=self.recompute)
        return run(self.middle_out, h, embedding, recompute=self.recompute), skips

    def _run(self, block, h: Tensor, embedding: Tensor, vessels, modulations=None) -> Tensor:
        h = run(block["res"], h, embedding, modulations, recompute=self.recompute)
        if "attention" in block:
            h = run(block["attention"], h, recompute=self.recompute)
        if "vessels" in block:
            h = run(block["vessels"], h, vessels, recompute=self.recompute)
        return h


def _vessels_of(block: nn.ModuleDict) -> VesselAttention | None:
    return block["vessels"] if "vessels" in block else None


class UNet(Encoder):
    """x (B, C, X, ...), t (B,) in [0, 1], spacing (B, dim) mm of the image -> (B, C, X, ...).

    What it shares with a ControlNet is said by Encoder, whose arguments `encoder` are; the rest is
    the decoder's. vessel_fields: SPADE takes the rasterised vessels too. hidden_class: SPADE sees
    background where the label map has this class (None: it sees all of it).
    """

    def __init__(
        self,
        dim: int = 3,
        in_channels: int = 8,
        channels: tuple[int, ...] = (64, 128, 256, 512),
        num_res_blocks: int = 2,
        num_classes: int = 9,
        label_channels: tuple[int, ...] = (32, 64, 128),
        label_factor: int = 4,
        spade_hidden: int = 128,
        dropout: float = 0.0,
        vessel_fields: bool = False,
        hidden_class: int | None = None,
        **encoder,
    ):
        super().__init__(
            dim,
            in_channels,
            channels,
            num_res_blocks,
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
        self.act = nn.SiLU()

    def cache_conditions(
        self, conditions: Conditions, size: tuple[int, ...], spacing: Tensor
    ) -> CachedConditions:
        """Everything that time does not change, for latents of a size and images of a spacing (one
        for each row).
        """
        memory, sizes = self.memories(conditions, size, spacing), self.level_sizes(size)
        features = self._label_features(conditions, sizes[0], spacing)
        level, spade, decoder_vessels = len(sizes) - 1, [], []
        for block in self.up:
            spade.append(block["res"].modulations(features, sizes[level]))
            decoder_vessels.append(memory(_vessels_of(block), level))
            level -= "grow" in block
        encoder = self.cache_encoder(memory)
        return replace(encoder, spade=spade, decoder_vessels=decoder_vessels)

    def _label_features(self, conditions: Conditions, size, spacing: Tensor) -> Tensor:
        """(B, label_channels[-1], *size): of labels and fields; zero is the missing condition."""

        def kept(features: Tensor, keep: Tensor | None) -> Tensor:
            features = repeat_cases(features, len(spacing))
            if keep is None:
                return features
            return features * keep.reshape(-1, *[1] * (features.ndim - 1))

        features = spacing.new_zeros(len(spacing), self.label_encoder.channels, *size)
        if conditions.labels is not None:
            labels = conditions.labels
            if self.hidden_class is not None:
                labels = labels.masked_fill(labels == self.hidden_class, 0)
            features = features + kept(self.label_encoder(labels), conditions.keep_label)
        if self.field_encoder and conditions.fields is not None:
            fields = self.field_encoder(conditions.fields)
            features = features + kept(fields, conditions.keep_vessels)
        return features

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        spacing: Tensor,
        conditions: Conditions | CachedConditions | None = None,
        residuals: list[Tensor] | None = None,
    ) -> Tensor:
        """conditions: of the cases, or what `prepare` has made of them; None: none at all.

        residuals: what a ControlNet adds to each skip and, last, to the middle's output.
        """
        if not isinstance(conditions, CachedConditions):
            conditions = self.cache_conditions(conditions or Conditions(), x.shape[2:], spacing)
        embedding = self.embed(t, spacing)
        h, skips = self.encode(self.conv_in(x), embedding, conditions)
        if residuals is not None:
            features = [*skips, h]  # of mixed types under autocast: each keeps its own
            *skips, h = (f + r.to(f.dtype) for f, r in zip(features, residuals, strict=True))
        decoder = zip(self.up, conditions.spade, conditions.decoder_vessels, strict=True)
        for block, modulations, vessels in decoder:
            h = torch.cat([h, skips.pop()], dim=1)
            h = self._run(block, h, embedding, vessels, modulations)
            if "grow" in block:
                h = block["grow"](h, skips[-1].shape[2:])
        return self.conv_out(self.act(self.norm_out(h)))
