"""The latent U-Net: one network for every condition, in two or three dimensions.

Residual blocks with time and spacing embedding, self-attention at the coarse levels (Ho et al.
2020; Rombach et al. 2022), and in the decoder SPADE on the label map. What the conditions alone
decide is computed by `conditions` and may be handed in again: a sampler does that work once, not at
every step.
"""

import torch
from torch import Tensor, nn

from tubesynth.models.attention import SelfAttention
from tubesynth.models.blocks import conv, group_norm, run, sinusoidal, zero_init
from tubesynth.models.spade import LabelEncoder, Spade


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


class UNet(nn.Module):
    """x (B, C, X, ...), t (B,) in [0, 1], spacing (B, dim) mm, labels (B, fX, ...) -> (B, C, X,
    ...).
    """

    def __init__(
        self,
        dim: int = 3,
        in_channels: int = 8,
        channels: tuple[int, ...] = (64, 128, 256, 512),
        num_res_blocks: int = 2,
        attention_levels: tuple[int, ...] = (2, 3),
        head_channels: int = 32,
        num_classes: int = 9,
        label_channels: tuple[int, ...] = (32, 64, 128),
        label_factor: int = 4,
        spade_hidden: int = 128,
        dropout: float = 0.0,
        checkpointing: bool = False,
    ):
        super().__init__()
        self.recompute = checkpointing
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
        self.label_encoder = LabelEncoder(dim, num_classes, label_channels, label_factor)
        spade = (label_channels[-1], spade_hidden)

        def res_block(cin, cout, **kwargs):
            return ResBlock(dim, cin, cout, embedding_dim, dropout, **kwargs)

        def attention(level, width):
            return SelfAttention(width, head_channels) if level in attention_levels else None

        self.conv_in = conv(dim, in_channels, channels[0])
        self.down = nn.ModuleList()
        skip_widths, width = [channels[0]], channels[0]
        for level, level_width in enumerate(channels):
            for _ in range(num_res_blocks):
                block = nn.ModuleDict({"res": res_block(width, level_width)})
                if attn := attention(level, level_width):
                    block["attention"] = attn
                self.down.append(block)
                width = level_width
                skip_widths.append(width)
            if level < len(channels) - 1:
                self.down.append(nn.ModuleDict({"shrink": conv(dim, width, width, stride=2)}))
                skip_widths.append(width)

        self.middle_in = res_block(width, width)
        self.middle_attention = SelfAttention(width, head_channels)
        self.middle_out = res_block(width, width)

        self.up = nn.ModuleList()
        for level, level_width in reversed(list(enumerate(channels))):
            for i in range(num_res_blocks + 1):
                block = nn.ModuleDict(
                    {"res": res_block(width + skip_widths.pop(), level_width, spade=spade)}
                )
                if attn := attention(level, level_width):
                    block["attention"] = attn
                if level > 0 and i == num_res_blocks:
                    block["grow"] = Upsample(dim, level_width)
                self.up.append(block)
                width = level_width
        self.norm_out = group_norm(width)
        self.conv_out = zero_init(conv(dim, width, in_channels))
        self.act = nn.SiLU()

    def conditions(self, labels: Tensor, keep_label: Tensor | None, latent_size) -> list:
        """Scale and shift maps of every decoder block, from labels alone.

        labels (B, fX, ...) uint8; keep_label (B,) in {0, 1}: zero makes a case unconditional.
        """
        features = self.label_encoder(labels)
        if keep_label is not None:
            features = features * keep_label.reshape(-1, *[1] * (features.ndim - 1))
        size, sizes = tuple(latent_size), []
        for block in self.down:
            if "shrink" in block:
                sizes.append(size)
                size = tuple((n + 1) // 2 for n in size)
        modulations = []
        for block in self.up:
            modulations.append(block["res"].modulations(features, size))
            if "grow" in block:
                size = sizes.pop()
        return modulations

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        spacing: Tensor,
        labels: Tensor | None = None,
        keep_label: Tensor | None = None,
        conditions: list | None = None,
    ) -> Tensor:
        if conditions is None:
            conditions = self.conditions(labels, keep_label, x.shape[2:])
        embedding = self.embed_time(sinusoidal(1000 * t, self.time_channels))
        embedding = embedding + self.embed_spacing(torch.log(spacing.float()))

        h = self.conv_in(x)
        skips = [h]
        for block in self.down:
            if "shrink" in block:
                h = block["shrink"](h)
            else:
                h = self._run(block, h, embedding)
            skips.append(h)

        h = run(self.middle_in, h, embedding, recompute=self.recompute)
        h = run(self.middle_attention, h, recompute=self.recompute)
        h = run(self.middle_out, h, embedding, recompute=self.recompute)

        for block, modulations in zip(self.up, conditions, strict=True):
            h = torch.cat([h, skips.pop()], dim=1)
            h = self._run(block, h, embedding, modulations)
            if "grow" in block:
                h = block["grow"](h, skips[-1].shape[2:])
        return self.conv_out(self.act(self.norm_out(h)))

    def _run(self, block: nn.ModuleDict, h: Tensor, embedding: Tensor, modulations=None) -> Tensor:
        h = run(block["res"], h, embedding, modulations, recompute=self.recompute)
        if "attention" in block:
            h = run(block["attention"], h, recompute=self.recompute)
        return h
