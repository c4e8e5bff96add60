"""The autoencoder of stage 1: strided convolutions down, residual units, a quantizer, and back.

As published (reference sizes: channels [64, 128], two residual units a level, codebook 8192 x 8:
5.60 M parameters). There is no normalisation, so what a voxel becomes depends on its neighbourhood
alone.
"""

import math
from fractions import Fraction
from typing import Protocol

import torch
from torch import Tensor, nn

from tubesynth.models.blocks import CONV, CONV_TRANSPOSE, conv, he_init, run
from tubesynth.models.quantizers.codebook import EmaQuantizer
from tubesynth.models.quantizers.finite_scalar import FiniteScalarQuantizer
from tubesynth.models.quantizers.gaussian import GaussianPosterior
from tubesynth.models.tiling import run_tiled


class ResidualUnit(nn.Module):
    """relu(x + conv(relu(conv(x))))."""

    def __init__(self, dim: int, channels: int, hidden: int):
        super().__init__()
        self.conv_in = conv(dim, channels, hidden)
        self.conv_out = conv(dim, hidden, channels)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x + self.conv_out(self.act(self.conv_in(x))))


class Encoder(nn.Module):
    """(B, in, X, ...) -> (B, out, X / f, ...), f = 2 ** levels."""

    def __init__(self, dim, in_channels, channels, residual_channels, num_residual, out_channels):
        super().__init__()
        blocks, width = [], in_channels
        for level_width, hidden in zip(channels, residual_channels, strict=True):
            down = CONV[dim](width, level_width, kernel_size=4, stride=2, padding=1)
            blocks.append(nn.Sequential(down, nn.ReLU()))
            blocks += [ResidualUnit(dim, level_width, hidden) for _ in range(num_residual)]
            width = level_width
        blocks.append(conv(dim, width, out_channels))
        self.blocks = nn.ModuleList(blocks)
        self.recompute = False

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = run(block, x, recompute=self.recompute)
        return x


class Decoder(nn.Module):
    """(B, embedding_dim, x, ...) -> (B, out, f x, ...).

    mask_channels: further channels of the input that a decoder with a vessel mask has.
    """

    def __init__(
        self,
        dim,
        out_channels,
        channels,
        residual_channels,
        num_residual,
        embedding_dim,
        mask_channels=0,
    ):
        super().__init__()
        blocks = [conv(dim, embedding_dim + mask_channels, channels[-1])]
        widths = [out_channels, *channels]
        for level in reversed(range(len(channels))):
            width, hidden = channels[level], residual_channels[level]
            blocks += [ResidualUnit(dim, width, hidden) for _ in range(num_residual)]
            up = CONV_TRANSPOSE[dim](width, widths[level], kernel_size=4, stride=2, padding=1)
            blocks.append(up if level == 0 else nn.Sequential(up, nn.ReLU()))
        self.blocks = nn.ModuleList(blocks)
        self.recompute = False

    def forward(self, z: Tensor) -> Tensor:
        for block in self.blocks:
            z = run(block, z, recompute=self.recompute)
        return z


def _initialise(module: nn.Module) -> None:
    """As ReLU needs it, and silent residual branches.

    With PyTorch's default, codes collapse to one and hundreds of steps go by before the decoder
    hears anything.
    """
    he_init(module)
    if isinstance(module, ResidualUnit):
        nn.init.zeros_(module.conv_out.weight)


def space_to_depth(mask: Tensor, factor: int) -> Tensor:
    """(B, X, ...) -> (B, f ** dim, X / f, ...): the f ** dim voxels of each cell as channels."""
    dim = mask.ndim - 1
    cells = [part for n in mask.shape[1:] for part in (n // factor, factor)]
    split = mask.reshape(len(mask), *cells)
    outer, inner = range(1, 2 * dim, 2), range(2, 2 * dim + 1, 2)
    return split.permute(0, *inner, *outer).flatten(1, dim)


class Quantizer(Protocol):
    """What VQVAE asks of models/quantizers/."""

    in_channels: int  # what the encoder has to give
    num_codes: int | None  # None: latents are continuous

    def forward(self, encoded: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor | None]:
        """(B, in_channels, ...) -> what the decoder gets in this step (B, D, ...), named and
        weighted loss terms, and the indices of the codes (B, ...), if there are any.
        """

    def latents(self, encoded: Tensor) -> Tensor:
        """(B, in_channels, ...) -> (B, D, ...) that stage 2 models."""

    def quantize(self, latents: Tensor) -> Tensor:
        """(B, D, ...) latents, encoded or synthetic -> what the decoder gets (B, D, ...)."""


class VQVAE(nn.Module):
    """Images in [0, 1] of shape (B, 1, X, ...); every side a multiple of `factor`.

    quantizer: ema_vq (codebook_size, commitment, codebook_decay, revive_after), fsq (fsq_levels, as
    many as embedding_dim) or kl (kl_weight).
    vessel_mask: the decoder is told where the vessels are, by the mask (B, X, ...) bool at the
    image's resolution. It comes in with the latents, as f ** dim channels of a cell: not a voxel of
    a thin vessel is lost, and nothing runs at full resolution for it.
    """

    def __init__(
        self,
        dim: int = 3,
        channels: tuple[int, ...] = (64, 128),
        residual_channels: tuple[int, ...] = (64, 128),
        num_residual_layers: int = 2,
        embedding_dim: int = 8,
        quantizer: str = "ema_vq",
        codebook_size: int = 8192,
        commitment: float = 0.25,
        codebook_decay: float = 0.5,
        revive_after: int = 0,
        fsq_levels: tuple[int, ...] = (8, 8, 8, 6, 5),
        kl_weight: float = 1e-6,
        checkpointing: bool = False,
        vessel_mask: bool = False,
    ):
        super().__init__()
        self.vessel_mask = vessel_mask
        self.levels, self.num_residual = len(channels), num_residual_layers
        # Encoding or decoding without gradients holds about four maps of the widest level.
        widest = max(width / 2 ** (dim * (i + 1)) for i, width in enumerate(channels))
        self.bytes_per_voxel = math.ceil(4 * (4 * widest + 2))
        self.factor = 2**self.levels
        self.embedding_dim = embedding_dim
        if quantizer == "fsq":
            assert len(fsq_levels) == embedding_dim
            self.quantizer: Quantizer = FiniteScalarQuantizer(fsq_levels)
        elif quantizer == "kl":
            self.quantizer = GaussianPosterior(embedding_dim, kl_weight)
        else:
            assert quantizer == "ema_vq"
            self.quantizer = EmaQuantizer(
                codebook_size, embedding_dim, commitment, codebook_decay, revive_after
            )
        sizes = (channels, residual_channels, num_residual_layers)
        self.encoder = Encoder(dim, 1, *sizes, self.quantizer.in_channels)
        mask_channels = self.factor**dim if vessel_mask else 0
        self.decoder = Decoder(dim, 1, *sizes, embedding_dim, mask_channels)
        self.encoder.recompute = self.decoder.recompute = checkpointing
        self.apply(_initialise)
        last = self.last_layer
        nn.init.normal_(last.weight, std=0.01)  # start from an even grey, not from noise
        nn.init.constant_(last.bias, 0.35)
        if vessel_mask:  # start as the autoencoder that hears no mask
            first = self.decoder.blocks[0].weight
            with torch.no_grad():
                first.mul_(math.sqrt(first.shape[1] / embedding_dim))
                first[:, embedding_dim:] = 0

    def encode(self, image: Tensor, tile: int | None = None) -> Tensor:
        """(B, 1, X, ...) -> continuous latents (B, D, X / f, ...); no code is looked for.

        tile: side in voxels, a multiple of f, of the pieces that are worked on one by one.
        """
        if tile is None:
            encoded = self.encoder(image)
        else:
            scale = Fraction(1, self.factor)
            encoded = run_tiled(self.encoder, image, tile, self.encoder_halo, scale)
        return self.quantizer.latents(encoded)

    def decode(
        self,
        latents: Tensor,
        quantize: bool = True,
        tile: int | None = None,
        vessels: Tensor | None = None,
    ) -> Tensor:
        """Latents (B, D, x, ...) -> (B, 1, f x, ...), by default through the quantizer.

        tile: side in voxels, a multiple of f, of the pieces that are worked on one by one.
        vessels: (B, f x, ...) bool, for a decoder with a vessel mask; others do not look at it.
        """
        if quantize:
            latents = self.quantizer.quantize(latents)
        latents = self._with_vessels(latents, vessels)
        if tile is None:
            return self.decoder(latents)
        cells = max(1, tile // self.factor)
        return run_tiled(self.decoder, latents, cells, self.decoder_halo, Fraction(self.factor))

    def _with_vessels(self, latents: Tensor, vessels: Tensor | None) -> Tensor:
        """(B, D, x, ...) -> what the decoder takes: f ** dim channels more with a vessel mask."""
        if not self.vessel_mask:
            return latents
        assert vessels is not None, "this decoder takes a vessel mask"
        return torch.cat([latents, space_to_depth(vessels, self.factor).to(latents.dtype)], 1)

    @property
    def last_layer(self) -> nn.Module:
        """The convolution whose output is the image."""
        return self.decoder.blocks[-1]

    @property
    def encoder_halo(self) -> int:
        """How far beyond a tile's end its last latent cell hears: voxels, a multiple of f.

        Walked back from the end: a convolution of 3 hears one on; one of 4 with stride 2 hears
        2 n + 1 where n cells are needed.
        """
        reach = 1
        for _ in range(self.levels):
            reach = 2 * (reach + 2 * self.num_residual) + 1
        return math.ceil(reach / self.factor) * self.factor

    @property
    def decoder_halo(self) -> int:
        """How far beyond a tile's end its last voxel hears: latent cells."""
        reach = 0
        for _ in range(self.levels):
            reach = reach // 2 + 1 + 2 * self.num_residual
        return reach + 1

    def forward(
        self, image: Tensor, vessels: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor], Tensor | None]:
        """Image (and vessel mask, see decode) -> reconstruction, the quantizer's loss terms, and
        indices or None: the one forward of a training step.
        """
        quantized, terms, indices = self.quantizer(self.encoder(image))
        return self.decoder(self._with_vessels(quantized, vessels)), terms, indices
