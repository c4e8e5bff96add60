"""The downsampling half of the latent U-Net and its middle, which a ControlNet copies.

published: the layers of the published model (res_block.py, transformer.py) in place of this
project's own.
"""

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from tubesynth.models.attention import SelfAttention
from tubesynth.models.blocks import conv, filled, run_block, sinusoidal
from tubesynth.models.conditions import CachedConditions, Conditions
from tubesynth.models.res_block import ResBlock, RowState
from tubesynth.models.transformer import VesselTransformer
from tubesynth.models.vessel_attention import CachedKeysValues, LevelTokens, VesselAttention
from tubesynth.models.vessel_tokens import PublishedTokenEncoder, TokenEncoder, no_tokens
from tubesynth.models.window import Window

# Factor of t in [0, 1] before the embedding; the shortest wavelength in t is 2 pi / 100 = 0.06.
# With the usual factor of 1000 the velocity ripples in t faster than a solver steps
# (docs/results.md, A slower time embedding).
TIME_SCALE = 100.0

VesselLayer = VesselAttention | VesselTransformer
KeysValues = dict[VesselLayer, CachedKeysValues]  # cached, of all vessel attention layers


class TimeCode(NamedTuple):
    """The sinusoids of t get scale * t + offset."""

    scale: float
    offset: float
    max_period: float


TIME_CODE = TimeCode(TIME_SCALE, 0.0, 10 * TIME_SCALE)


class UNetEncoder(nn.Module):
    """The downsampling half of a U-Net and its middle.

    channels: widths by level. attention_levels: levels with self-attention; the middle always has
    it. head_channels: width of a head, or one width per level. vessel_attention: off, plain (no
    bias) or distance, in the levels of vessel_levels. attention_dropout: in the transformers that
    are the vessel attention of the published network, which have self-attention themselves.
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
        head_channels: int | tuple[int, ...],
        label_factor: int,
        dropout: float,
        checkpointing: bool,
        vessel_attention: str,
        vessel_levels: tuple[int, ...],
        vessel_channels: int,
        published: bool = False,
        attention_dropout: float = 0.0,
        time_code: TimeCode = TIME_CODE,
    ):
        super().__init__()
        self.checkpointing, self.published = checkpointing, published
        self.dim, self.label_factor = dim, label_factor
        if isinstance(head_channels, int):
            head_channels = (head_channels,) * len(channels)
        self.attention_levels, self.head_channels = attention_levels, head_channels
        self.vessel_levels = vessel_levels if vessel_attention != "off" else ()
        self.vessel_channels, self.vessel_bias = vessel_channels, vessel_attention == "distance"
        self.vessel_layers: dict[int, list[VesselLayer]] = {}  # by level
        self.attention_dropout = attention_dropout
        self.time_channels, self.time_code = channels[0], time_code
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
            encoder = PublishedTokenEncoder if published else TokenEncoder
            self.token_encoder = encoder(dim, vessel_channels)
        # The published network concatenates the embeddings of time and spacing.
        self.embedding_dim = 2 * embedding_dim if published else embedding_dim

        def res_block(cin, cout):
            return ResBlock(dim, cin, cout, self.embedding_dim, dropout, published=published)

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

        last = len(channels) - 1
        self.middle_in = res_block(width, width)
        self.middle_attention = self._self_attention(last, width)
        self.middle_vessels = self._vessel_attention(last, width)
        self.middle_out = res_block(width, width)

    def _block(self, res: ResBlock, level: int, width: int) -> nn.ModuleDict:
        """A residual block, followed by the attention layers of its level."""
        block = nn.ModuleDict({"res": res})
        if level in self.attention_levels and (attention := self._self_attention(level, width)):
            block["attention"] = attention
        if vessels := self._vessel_attention(level, width):
            block["vessels"] = vessels
        return block

    def _self_attention(self, level: int, width: int) -> SelfAttention | None:
        if self.published and level in self.vessel_levels:
            return None  # its transformer has self-attention
        return SelfAttention(width, self.head_channels[level], self.published)

    def _vessel_attention(self, level: int, width: int) -> VesselLayer | None:
        if level not in self.vessel_levels:
            return None
        sizes = (self.dim, width, self.head_channels[level], self.vessel_channels)
        if self.published:
            layer = VesselTransformer(*sizes, self.vessel_bias, self.attention_dropout)
        else:
            layer = VesselAttention(*sizes, self.vessel_bias)
        self.vessel_layers.setdefault(level, []).append(layer)
        return layer

    @property
    def multiple(self) -> int:
        """Cells of the latents along a side of a cell of the coarsest level."""
        return 2 ** sum("shrink" in block for block in blocks_of(self.down))

    def level_windows(self, window: Window) -> list[Window]:
        """A window of the latents at every level."""
        windows = [window]
        while len(windows) < self.multiple.bit_length():
            windows.append(windows[-1].halved())
        return windows

    def cache_keys_values(
        self, conditions: Conditions, window: Window, spacing: Tensor
    ) -> KeysValues:
        """Keys and values of every vessel attention layer.

        window: of the latents. spacing: (R, dim) mm of the image, one row per row of the batch.
        """
        if self.token_encoder is None:
            return {}
        size = window.size
        raw_tokens = conditions.tokens or no_tokens(len(spacing), spacing.device)
        image = tuple(n * self.label_factor for n in size)
        of_cases = spacing[: len(raw_tokens["mask"])]  # the rows are the cases, repeated
        encoded = self.token_encoder(raw_tokens, image, of_cases)
        tokens = encoded.repeat_cases(len(spacing), conditions.keep_vessels)
        cached: KeysValues = {}
        for level, each in enumerate(self.level_windows(window)):
            layers: list[Any] = self.vessel_layers.get(level, [])
            if layers:
                # Image voxels per cell of this level; fractional where an odd size was halved.
                voxels = [n * self.label_factor / m for n, m in zip(size, each.size, strict=True)]
                grid = LevelTokens(tokens, each, spacing * filled(voxels, spacing.device))
                of_level = layers[0].cache_keys_values(layers, grid)
                cached |= dict(zip(layers, of_level, strict=True))
        return cached

    def cache_encoder(self, cached: KeysValues) -> CachedConditions:
        """The cached conditions of the encoder and the middle."""
        encoder_vessels = [vessels_of(block, cached) for block in blocks_of(self.down)]
        middle = self.middle_vessels and cached[self.middle_vessels]
        return CachedConditions([], encoder_vessels, middle, [])

    def embed(self, t: Tensor, spacing: Tensor, dropout_seeds: Tensor | None = None) -> RowState:
        """t (R,), spacing (R, dim) mm -> an embedding (R, embedding_dim), with the seeds."""
        scale, offset, max_period = self.time_code
        embedding = self.embed_time(
            sinusoidal(scale * t + offset, self.time_channels, max_period=max_period)
        )
        if self.published:
            embedding = torch.cat([embedding, self.embed_spacing(spacing.float())], dim=1)
        else:
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
        if self.middle_attention:
            h = self._run(self.middle_attention, h)
        if self.middle_vessels:
            h = self._run_vessels(self.middle_vessels, h, state, cached.middle_vessels)
        return self._run(self.middle_out, h, state), skips

    def _run(self, layer: nn.Module, *inputs) -> Tensor:
        return run_block(layer, *inputs, checkpointing=self.checkpointing)

    def _run_level(self, block, h: Tensor, state: RowState, vessels, modulations=None) -> Tensor:
        """A residual block and the attention layers behind it."""
        h = self._run(block["res"], h, state, modulations)
        if "attention" in block:
            h = self._run(block["attention"], h)
        if "vessels" in block:
            h = self._run_vessels(block["vessels"], h, state, vessels)
        return h

    def _run_vessels(self, layer: nn.Module, h: Tensor, state: RowState, cached) -> Tensor:
        seeds = (state.dropout_seeds,) if self.published else ()
        return self._run(layer, h, cached, *seeds)


def blocks_of(modules: nn.ModuleList) -> list[nn.ModuleDict]:
    """The entries of a list of module dictionaries, typed."""
    return cast(list[nn.ModuleDict], list(modules))


def vessels_of(block: nn.ModuleDict, cached: KeysValues) -> CachedKeysValues | None:
    """The keys and values of a block's vessel attention; None without one."""
    return cached[cast(VesselLayer, block["vessels"])] if "vessels" in block else None
