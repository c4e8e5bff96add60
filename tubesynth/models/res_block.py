"""The residual block and the upsampling of the U-Net.

The published block differs in where the embedding enters and in its norms: an offset before the
second norm, 32 groups whatever the width.
"""

from typing import NamedTuple, cast

from torch import Tensor, nn

from tubesynth.models.blocks import PUBLISHED_GROUPS, conv, expand_to, group_norm, zero_init
from tubesynth.models.dropout import SampleDropout
from tubesynth.models.norm_silu import norm_silu
from tubesynth.models.spade import Spade


class RowState(NamedTuple):
    """What every residual block reads besides its input, one row per row of the batch.

    embedding: (R, E) of time and spacing. dropout_seeds: (R,) int64 below 2^32, or None.
    """

    embedding: Tensor
    dropout_seeds: Tensor | None = None


class ResBlock(nn.Module):
    """Two convolutions, scaled and shifted by the embedding; in the decoder the norms are SPADE.

    spade: label_channels and hidden of Spade; None: plain norms. published: the
    embedding is an offset (Ho et al. 2020), which the norm behind it partly removes.
    """

    def __init__(
        self,
        dim: int,
        cin: int,
        cout: int,
        embedding_dim: int,
        dropout: float = 0.0,
        spade: tuple[int | None, int] | None = None,
        published: bool = False,
    ):
        super().__init__()
        self.published = published

        def norm(channels: int) -> nn.Module:
            if spade:
                return Spade(dim, channels, *spade, published=published)
            return group_norm(channels, groups=PUBLISHED_GROUPS if published else None)

        self.norm1 = norm(cin)
        self.conv1 = conv(dim, cin, cout)
        self.embed = nn.Linear(embedding_dim, cout if published else 2 * cout)
        self.norm2 = norm(cout)
        self.dropout = SampleDropout(dropout)
        self.conv2 = zero_init(conv(dim, cout, cout))
        self.skip = conv(dim, cin, cout, kernel=1) if cin != cout else nn.Identity()
        self.act = nn.SiLU()

    def modulations(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """The SPADE maps of both norms."""
        assert isinstance(self.norm1, Spade) and isinstance(self.norm2, Spade)
        return self.norm1.modulation(features), self.norm2.modulation(features)

    def forward(
        self, x: Tensor, state: RowState, spade: tuple[Tensor, Tensor] | Tensor | None = None
    ) -> Tensor:
        """spade: the maps of both norms, or the features of which they are made."""
        maps = self.modulations(spade) if isinstance(spade, Tensor) else spade
        first, second = ((m,) for m in maps) if maps else ((), ())
        h = self.conv1(norm_silu(_norm_of(self.norm1), x, *first))
        film = expand_to(self.embed(self.act(state.embedding)), h)  # (B, cout or 2 cout, 1, ...)
        if self.published:
            h = norm_silu(_norm_of(self.norm2), h + film, *second)
        else:  # scale and shift come after the norm, which would remove an offset added before it
            h = norm_silu(_norm_of(self.norm2), h, *second, film)
        return self.skip(x) + self.conv2(self.dropout(h, state.dropout_seeds))


def _norm_of(layer: nn.Module) -> nn.GroupNorm:
    return cast(nn.GroupNorm, layer.norm if isinstance(layer, Spade) else layer)


class Upsample(nn.Module):
    """Nearest-neighbor upsampling to the size of the next skip (also odd), then a convolution."""

    def __init__(self, dim: int, channels: int):
        super().__init__()
        self.conv = conv(dim, channels, channels)

    def forward(self, x: Tensor, size: tuple[int, ...]) -> Tensor:
        return self.conv(nn.functional.interpolate(x, size=size, mode="nearest"))
