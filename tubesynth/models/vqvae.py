"""The autoencoder of stage 1 (VQ-VAE): convolutional encoder, quantizer, convolutional decoder.

van den Oord et al. 2017 (arXiv 1711.00937), with residual units as in its published 3D version:
channels [64, 128], two residual units per level and a codebook of 8192 x 8 give 5.60 M parameters.
There are no normalization layers, so the receptive field of a voxel is finite and tiles can equal
the whole volume (tiling.py).
"""

import math
from fractions import Fraction
from functools import partial
from typing import cast

from torch import Tensor, nn

from tubesynth.models.blocks import (
    CONV,
    CONV_TRANSPOSE,
    conv,
    he_init,
    run_block,
    without_autocast,
    zero_init,
)
from tubesynth.models.decoder_condition import (
    ConditionEncoder,
    ConditionLayer,
    DecoderCondition,
)
from tubesynth.models.quantizers.codebook import EmaQuantizer, PublishedEmaQuantizer
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
    """(B, in_channels, X, ...) -> (B, out_channels, X / f, ...), with f = 2 ** levels."""

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
        self.checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = run_block(block, x, checkpointing=self.checkpointing)
        return x


class Decoder(nn.Module):
    """(B, embedding_dim, x, ...) -> (B, out_channels, f x, ...).

    condition_channels: of the condition at image resolution; 0: the decoder has none.
    """

    def __init__(
        self,
        dim,
        out_channels,
        channels,
        residual_channels,
        num_residual,
        embedding_dim,
        condition_channels=0,
    ):
        super().__init__()
        blocks: list[nn.Module] = [conv(dim, embedding_dim, channels[-1])]
        widths = [out_channels, *channels]
        for level in reversed(range(len(channels))):
            width, hidden = channels[level], residual_channels[level]
            if condition_channels:
                blocks.append(ConditionLayer(dim, condition_channels, 2 ** (level + 1), width))
            blocks += [ResidualUnit(dim, width, hidden) for _ in range(num_residual)]
            up = CONV_TRANSPOSE[dim](width, widths[level], kernel_size=4, stride=2, padding=1)
            blocks.append(up if level == 0 else nn.Sequential(up, nn.ReLU()))
        self.blocks = nn.ModuleList(blocks)
        self.checkpointing = False

    def forward(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """condition: (B, condition_channels, f x, ...); None where the decoder has none."""
        *blocks, last = self.blocks
        for block in blocks:
            inputs = (z, condition) if isinstance(block, ConditionLayer) else (z,)
            z = run_block(block, *inputs, checkpointing=self.checkpointing)
        last_layer = partial(without_autocast, last)
        return run_block(last_layer, z, checkpointing=self.checkpointing)


def _initialize(module: nn.Module) -> None:
    """He initialization, with the last convolution of each residual branch at zero.

    With PyTorch's default initialization all codes collapse to one, and for hundreds of steps the
    decoder's output does not depend on its input.
    """
    he_init(module)
    if isinstance(module, ResidualUnit):
        nn.init.zeros_(module.conv_out.weight)
    elif isinstance(module, ConditionLayer):
        zero_init(module)


Quantizer = EmaQuantizer | FiniteScalarQuantizer | GaussianPosterior


class VQVAE(nn.Module):
    """Autoencoder of images (B, 1, X, ...) in [0, 1]; every side must be a multiple of `factor`.

    quantizer: ema_vq (codebook_size, commitment, codebook_decay, revive_after), published_vq (the
    same without revive_after), fsq (fsq_levels, as many as embedding_dim) or kl (kl_weight).
    initialization: he, or published, which is PyTorch's default.
    decoder_condition: none, vessels, or labels (which includes vessels): the decoder gets the
    anatomy at image resolution, so the latents need only carry what it does not determine. The
    encoder never gets it: latents are a property of the image. contrast_pool: see ContrastPool.
    num_classes: of the label map.
    """

    def __init__(
        self,
        dim: int,
        *,
        channels: tuple[int, ...],
        residual_channels: tuple[int, ...],
        num_residual_layers: int,
        embedding_dim: int,
        quantizer: str,
        codebook_size: int,
        commitment: float,
        codebook_decay: float,
        revive_after: int,
        fsq_levels: tuple[int, ...],
        kl_weight: float,
        checkpointing: bool,
        decoder_condition: str,
        contrast_pool: bool,
        num_classes: int,
        initialization: str,
    ):
        super().__init__()
        self.condition = None
        if decoder_condition != "none":
            self.condition = ConditionEncoder(
                dim,
                num_classes if decoder_condition == "labels" else None,
                embedding_dim if contrast_pool else None,
            )
        self.levels, self.num_residual = len(channels), num_residual_layers
        # Without gradients, encoding or decoding holds about four feature maps of the widest level;
        # the decoder's condition is held three times while it is encoded.
        widest = max(width / 2 ** (dim * (i + 1)) for i, width in enumerate(channels))
        condition_channels = self.condition.channels if self.condition else 0
        self.bytes_per_voxel = math.ceil(4 * (4 * widest + 2 + 3 * condition_channels))
        self.factor = 2**self.levels
        self.embedding_dim = embedding_dim
        if quantizer == "fsq":
            assert len(fsq_levels) == embedding_dim
            self.quantizer: Quantizer = FiniteScalarQuantizer(fsq_levels)
        elif quantizer == "kl":
            self.quantizer = GaussianPosterior(embedding_dim, kl_weight)
        else:
            codebook = dict(commitment=commitment, decay=codebook_decay)
            size = (codebook_size, embedding_dim)
            if quantizer == "published_vq":
                self.quantizer = PublishedEmaQuantizer(*size, **codebook)
            else:
                assert quantizer == "ema_vq"
                self.quantizer = EmaQuantizer(*size, **codebook, revive_after=revive_after)
        sizes = (channels, residual_channels, num_residual_layers)
        self.encoder = Encoder(dim, 1, *sizes, self.quantizer.in_channels)
        self.decoder = Decoder(dim, 1, *sizes, embedding_dim, condition_channels)
        self.encoder.checkpointing = self.decoder.checkpointing = checkpointing
        self.encoder_frozen = False
        if initialization == "published":
            return
        self.apply(_initialize)
        last = self.last_layer
        nn.init.normal_(last.weight, std=0.01)  # start from a constant gray image, not from noise
        assert last.bias is not None
        nn.init.constant_(last.bias, 0.35)

    def freeze_encoder(self) -> None:
        """From now on train the decoder alone: the latents of an image stay what they are."""
        self.encoder.requires_grad_(False)
        self.encoder_frozen = True
        self.train(self.training)

    def train(self, mode: bool = True) -> "VQVAE":
        """As usual, but the quantizer of a frozen encoder changes no code and adds no noise."""
        super().train(mode)
        if self.encoder_frozen:
            self.quantizer.eval()
        return self

    def encode(self, image: Tensor, tile: int | None = None) -> Tensor:
        """(B, 1, X, ...) -> continuous latents (B, D, X / f, ...), before any code is looked up.

        tile: side of the tiles in voxels, rounded up to a multiple of f; None for the whole volume
            at once.
        """
        if tile is None:
            encoded = self.encoder(image)
        else:
            scale = Fraction(1, self.factor)
            side = math.ceil(tile * scale) * self.factor
            encoded = run_tiled(self.encoder, image, side, self.encoder_halo, scale)
        return self.quantizer.latents(encoded)

    def decode(
        self,
        latents: Tensor,
        quantize: bool = True,
        tile: int | None = None,
        condition: DecoderCondition | None = None,
    ) -> Tensor:
        """Latents (B, D, x, ...) -> image (B, 1, f x, ...), by default quantized first.

        tile: as in encode. condition: ignored by a decoder without one; None drops it.
        """
        if quantize:
            latents = self.quantizer.quantize(latents)
        features = self._condition_features(latents, condition)
        if tile is None:
            return self.decoder(latents, features)
        cells, scale = math.ceil(tile / self.factor), Fraction(self.factor)
        return run_tiled(self.decoder, latents, cells, self.decoder_halo, scale, features)

    def _condition_features(
        self, latents: Tensor, condition: DecoderCondition | None
    ) -> Tensor | None:
        """(B, channels, f x, ...) for latents (B, D, x, ...); None for an unconditioned decoder."""
        if self.condition is None:
            return None
        size = [n * self.factor for n in latents.shape[2:]]
        absent = latents.new_zeros(len(latents), self.condition.channels, *size)
        return self.condition(condition or DecoderCondition(), latents, absent)

    @property
    def last_layer(self) -> nn.ConvTranspose2d | nn.ConvTranspose3d:
        """The transposed convolution whose output is the image."""
        return cast(nn.ConvTranspose3d, self.decoder.blocks[-1])

    @property
    def encoder_halo(self) -> int:
        """Receptive-field radius of the encoder in voxels, rounded up to a multiple of f.

        From the last layer back: a convolution of kernel 3 adds 1; one of kernel 4 and stride 2
        turns a radius of n cells into 2 n + 1.
        """
        radius = 1
        for _ in range(self.levels):
            radius = 2 * (radius + 2 * self.num_residual) + 1
        return math.ceil(radius / self.factor) * self.factor

    @property
    def decoder_halo(self) -> int:
        """Receptive-field radius of the decoder in latent cells.

        From the last layer back: a transposed convolution of kernel 4 and stride 2 turns a radius
        of n voxels into n // 2 + 1; a convolution of kernel 3 adds 1.
        """
        radius = 0
        for _ in range(self.levels):
            radius = radius // 2 + 1 + 2 * self.num_residual
        return radius + 1

    def forward(
        self, image: Tensor, condition: DecoderCondition | None = None
    ) -> tuple[Tensor, dict[str, Tensor], Tensor | None]:
        """One training step: image and the decoder's condition -> reconstruction, the quantizer's
        loss terms, and code indices or None.
        """
        quantized, terms, indices = self.quantizer(self.encoder(image))
        features = self._condition_features(quantized, condition)
        return self.decoder(quantized, features), terms, indices
