"""Cross-attention from voxels to vessel tokens, biased by distance in units of the vessel's radius.

The bias is -d^2 / (2 (s r)^2), with d the distance of voxel and token, r the radius of the vessel
and s a learned scale per head (distance_bias.py: how fused kernels evaluate it). One more key, the
null token, has the same learned bias everywhere: voxels far from all vessels attend to it, and so
do all voxels of a case without vessels.

The bias channels replace channels of a head's query and key, so a head keeps its width: kernels are
fastest at 64, and would run 78 as 96. Values use the whole head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tubesynth.models.blocks import group_norm, zero_init
from tubesynth.models.distance_bias import (
    CONSTANT,
    MASKED,
    bias_channels,
    constant_channels,
    key_channels,
    lattice,
    query_channels,
)
from tubesynth.models.vessel_tokens import EncodedTokens, position_channels, position_features
from tubesynth.models.window import Window

# Initial scales s of the heads in radii, from the vessel and its wall to its surroundings. A cell
# of 6 mm is many radii wide; with s = 1 it would not attend to a thin vessel away from its center.
NARROWEST, WIDEST = 2.0, 16.0
# A matrix product with fewer columns than about ten is summed in another order on a CPU. The bias
# channels would then cancel with an error of 3e-4 of a score in 32 bits instead of 1e-5.
LEAST_TOKENS = 31


@dataclass(frozen=True)
class CachedKeysValues:
    """Cached keys and values of one cross-attention layer; they do not depend on t.

    query_position: (B, N, heads * content), added to the queries of the voxels. query_bias:
    (B, N, bias channels), concatenated before the queries. key, value: (B, heads, T + 1, head
    channels) of the tokens and, last, of the null token.
    """

    query_position: Tensor
    query_bias: Tensor
    key: Tensor
    value: Tensor


class LevelTokens:
    """The tokens and the grid of one level of the U-Net.

    size: of the grid, or a window of it. cell_mm: (B, dim), the cells' sides; the grid is centered
    at the origin.
    """

    def __init__(self, tokens: EncodedTokens, size: tuple[int, ...] | Window, cell_mm: Tensor):
        self.tokens = tokens.padded(LEAST_TOKENS)
        self.window, self.cell_mm = Window.of(size), cell_mm

    def index(self) -> Tensor:
        """(N, dim) float64: see lattice."""
        return lattice(self.window, self.cell_mm.device)


class VesselAttention(nn.Module):
    """(B, C, X, ...) -> the same shape. The residual branch is zero-initialized.

    distance: whether attention is biased by the distance of a token.
    """

    def __init__(
        self, dim: int, channels: int, head_channels: int, token_channels: int, distance: bool
    ):
        super().__init__()
        self.dim, self.distance = dim, distance
        self.num_heads = heads = channels // head_channels
        self.content = head_channels - (bias_channels(dim) if distance else 1)
        assert channels % head_channels == 0 and self.content > 0
        self.norm = group_norm(channels)
        self.to_query = nn.Linear(channels, heads * self.content)
        self.position_to_query = nn.Linear(position_channels(dim), heads * self.content, bias=False)
        self.to_key = nn.Linear(token_channels, heads * self.content)
        self.to_value = nn.Linear(token_channels, channels)
        self.null_key = nn.Parameter(torch.zeros(heads, self.content))
        self.null_value = nn.Parameter(torch.zeros(heads, head_channels))
        self.null_bias = nn.Parameter(torch.zeros(heads))
        if distance:
            share = (torch.arange(heads) + 0.5) / heads
            self.log_scale = nn.Parameter(
                math.log(NARROWEST) + share * math.log(WIDEST / NARROWEST)
            )
        self.to_out = zero_init(nn.Linear(channels, channels))

    @staticmethod
    def cache_keys_values(
        layers: Sequence[VesselAttention], level: LevelTokens
    ) -> list[CachedKeysValues]:
        """Keys and values of all layers of a level.

        They share positions and biases: a GPU waits for the host, which queues hundreds of small
        operations for the bias of a layer.
        """
        features = level.tokens.features
        positions = position_features(level.index() * level.cell_mm.double()[:, None])
        # The kernel is called with scale = 1, since it must not scale the bias.
        keys = [la._heads(la.to_key(features)) / math.sqrt(la.content) for la in layers]
        dtype = keys[0].dtype
        query_bias, key_biases, null_biases = biases(layers, level, dtype)
        cached = []
        for layer, key, bias, null_bias in zip(layers, keys, key_biases, null_biases, strict=True):
            null_key = torch.cat([null_bias, layer.null_key.to(dtype)], dim=-1)
            value = layer._heads(layer.to_value(features))
            cached.append(
                CachedKeysValues(
                    layer.position_to_query(positions),
                    query_bias,
                    layer._with_null(join_bias(bias, key), null_key),
                    layer._with_null(value, layer.null_value.to(dtype)),
                )
            )
        return cached

    def forward(self, x: Tensor, cached: CachedKeysValues) -> Tensor:
        batch, channels = x.shape[:2]
        voxels = self.norm(x).flatten(2).transpose(1, 2)  # (B, N, C)
        query = self._heads(self.to_query(voxels) + cached.query_position)
        assert query.dtype == cached.key.dtype, "cached keys have another precision"
        query = join_bias(cached.query_bias[:, None], query)
        attended = F.scaled_dot_product_attention(query, cached.key, cached.value, scale=1.0)
        attended = self.to_out(attended.transpose(1, 2).flatten(2))
        return x + attended.transpose(1, 2).reshape(batch, channels, *x.shape[2:])

    def _heads(self, x: Tensor) -> Tensor:
        """(B, N, heads * c) -> (B, heads, N, c)."""
        return x.unflatten(2, (self.num_heads, -1)).transpose(1, 2)

    @staticmethod
    def _with_null(x: Tensor, null: Tensor) -> Tensor:
        """(B, heads, T, c) and the null token's (heads, c) -> (B, heads, T + 1, c)."""
        return torch.cat([x, null[:, None].expand(len(x), -1, -1, -1)], dim=2)


def biases(
    layers: Sequence[VesselAttention], level: LevelTokens, dtype: torch.dtype
) -> tuple[Tensor, Sequence[Tensor], Sequence[Tensor]]:
    """Bias channels of the queries; of the keys, and of the null key, for each layer of a level."""
    heads, scale = [layer.num_heads for layer in layers], None
    null_bias = torch.cat([layer.null_bias for layer in layers])
    if layers[0].distance:
        scale = torch.cat([layer.log_scale for layer in layers]).exp()
        null_bias = constant_channels(null_bias, layers[0].dim, dtype)
    else:
        null_bias = (null_bias / CONSTANT).to(dtype)[:, None]
    query_bias, key_bias = attention_bias(level, scale, dtype)
    of_layers = key_bias.split(heads, dim=1) if scale is not None else [key_bias] * len(layers)
    return query_bias, of_layers, null_bias.split(heads)


def attention_bias(
    level: LevelTokens, scale: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Channels of the queries (B, N, c) and of the keys (B, heads or 1, T, c) that exclude padding.

    scale: (heads,) of the bias by distance, in radii; None: there is none.
    """
    tokens, cell_mm = level.tokens, level.cell_mm
    if scale is not None:
        key_bias = key_channels(
            tokens.position_mm, tokens.radius_mm, scale, tokens.mask, cell_mm, dtype
        )
        return query_channels(level.window, cell_mm, dtype), key_bias
    num_voxels = math.prod(level.window.shape)
    query_bias = cell_mm.new_full((len(cell_mm), num_voxels, 1), CONSTANT, dtype=dtype)
    return query_bias, (MASKED * ~tokens.mask).to(dtype)[:, None, :, None]


def join_bias(bias: Tensor, x: Tensor) -> Tensor:
    """The bias channels (B, heads or 1, N, c), then those of x (B, heads, N, C).

    The bias comes first: its large terms must cancel before others are summed.
    """
    return torch.cat([bias.expand(-1, x.shape[1], -1, -1), x], dim=-1)
