"""The transformer of the published U-Net: self-attention, cross-attention to the vessel tokens and
an MLP, between two 1x1 convolutions (the spatial transformer of Rombach et al. 2022).

Positions of voxels and tokens are sinusoids of coordinates in [0, 1]. What differs from the
published code: padding gets no attention, a case without tokens gets none, and dropout ends with
training. There the bias by distance was -exp(d^2 / r^2), minus infinity for nearly every pair; here
it is -d^2 / r^2 in millimeters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tubesynth.models.blocks import PUBLISHED_GROUPS, conv, filled, group_norm, zero_init
from tubesynth.models.dropout import SampleDropout
from tubesynth.models.vessel_attention import (
    CachedKeysValues,
    LevelTokens,
    attention_bias,
    join_bias,
)
from tubesynth.models.vessel_tokens import unit_position_features

MLP_RATIO = 4
BIAS_SCALE = math.sqrt(0.5)  # s of the bias -d^2 / (2 (s r)^2)


class Attention(nn.Module):
    """Multi-head attention of x (B, N, C) to keys and values; projections without bias."""

    def __init__(self, channels: int, context_channels: int, num_heads: int, dropout: float):
        super().__init__()
        self.num_heads = num_heads
        self.to_query = nn.Linear(channels, channels, bias=False)
        self.to_key = nn.Linear(context_channels, channels, bias=False)
        self.to_value = nn.Linear(context_channels, channels, bias=False)
        self.to_out = nn.Linear(channels, channels)
        self.dropout = SampleDropout(dropout)

    def keys_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, context_channels) -> keys, divided by the root of their width, and values: both
        (B, heads, T, C / heads).
        """
        key, value = self._heads(self.to_key(context)), self._heads(self.to_value(context))
        return key / math.sqrt(key.shape[-1]), value

    def forward(
        self,
        x: Tensor,
        key: Tensor,
        value: Tensor,
        seeds: Tensor | None,
        query_bias: Tensor | None = None,
    ) -> Tensor:
        """query_bias: (B, N, c) channels before those of the query, where the keys have them."""
        query = self._heads(self.to_query(x))
        if query_bias is not None:
            query = join_bias(query_bias[:, None], query)
        # The kernel's random numbers follow the global seed, which the loop sets at every step.
        dropped = self.dropout.share if self.training else 0.0
        attended = F.scaled_dot_product_attention(query, key, value, dropout_p=dropped, scale=1.0)
        return self.dropout(self.to_out(attended.transpose(1, 2).flatten(2)), seeds)

    def _heads(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, heads, N, C / heads)."""
        return x.unflatten(2, (self.num_heads, -1)).transpose(1, 2)


class GatedMlp(nn.Module):
    """x -> W2 (a gelu(b)), a and b the halves of W1 x (GEGLU, Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, channels: int, dropout: float):
        super().__init__()
        self.expand = nn.Linear(channels, 2 * MLP_RATIO * channels)
        self.reduce = nn.Linear(MLP_RATIO * channels, channels)
        self.dropout_hidden, self.dropout = SampleDropout(dropout), SampleDropout(dropout)

    def forward(self, x: Tensor, seeds: Tensor | None) -> Tensor:
        values, gates = self.expand(x).chunk(2, dim=-1)
        return self.dropout(self.reduce(self.dropout_hidden(values * F.gelu(gates), seeds)), seeds)


class VesselTransformer(nn.Module):
    """(B, C, X, ...) -> the same shape. The residual branch is zero-initialized.

    distance: whether cross-attention is biased by the distance of a token. dropout: of attention
    weights, of the output of both attentions, and within and after the MLP.
    """

    def __init__(
        self,
        dim: int,
        channels: int,
        head_channels: int,
        token_channels: int,
        distance: bool,
        dropout: float,
    ):
        super().__init__()
        heads = channels // head_channels
        self.distance = distance
        self.norm = group_norm(channels, groups=PUBLISHED_GROUPS)
        self.conv_in = conv(dim, channels, channels, kernel=1)
        self.norm_self = nn.LayerNorm(channels)
        self.self_attention = Attention(channels, channels, heads, dropout)
        self.norm_cross = nn.LayerNorm(channels)
        self.cross_attention = Attention(channels, token_channels, heads, dropout)
        self.norm_mlp = nn.LayerNorm(channels)
        self.mlp = GatedMlp(channels, dropout)
        self.conv_out = zero_init(conv(dim, channels, channels, kernel=1))

    @staticmethod
    def cache_keys_values(
        layers: Sequence[VesselTransformer], level: LevelTokens
    ) -> list[CachedKeysValues]:
        """Keys and values of all layers of a level, which share positions and biases."""
        first, tokens, cell_mm = layers[0], level.tokens, level.cell_mm
        sides = filled(level.window.size, cell_mm.device, torch.float64)
        indices = level.index() + (sides - 1) / 2
        position = unit_position_features(indices / sides, first.conv_in.out_channels)
        position = position.expand(len(cell_mm), -1, -1)
        pairs = [layer.cross_attention.keys_values(tokens.features) for layer in layers]
        scale = None
        if first.distance:
            scale = cell_mm.new_full((first.cross_attention.num_heads,), BIAS_SCALE)
        # Fused kernels of 16 bits take multiples of eight channels.
        channels = attention_bias(level, scale, pairs[0][0].dtype)
        query_bias, key_bias = (F.pad(bias, (0, -bias.shape[-1] % 8)) for bias in channels)
        # With zero values, a case whose tokens are all padding gets nothing from them.
        mask = tokens.mask[:, None, :, None]
        return [
            CachedKeysValues(position, query_bias, join_bias(key_bias, key), value * mask)
            for key, value in pairs
        ]

    def forward(self, x: Tensor, cached: CachedKeysValues, seeds: Tensor | None = None) -> Tensor:
        h = self.conv_in(self.norm(x))
        tokens = h.flatten(2).transpose(1, 2) + cached.query_position  # (B, N, C)
        normed = self.norm_self(tokens)
        own = self.self_attention.keys_values(normed)
        tokens = tokens + self.self_attention(normed, *own, seeds)
        vessels = (cached.key, cached.value, seeds, cached.query_bias)
        tokens = tokens + self.cross_attention(self.norm_cross(tokens), *vessels)
        tokens = tokens + self.mlp(self.norm_mlp(tokens), seeds)
        return x + self.conv_out(tokens.transpose(1, 2).reshape(h.shape))
