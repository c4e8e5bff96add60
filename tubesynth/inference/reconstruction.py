"""CTs through a trained autoencoder: onto the model's grid on the host, then through the networks.

The two steps are apart so that a command can place the next CT while the device has the last one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tubesynth.conditioning.model_grid import ModelGrid, pad_to_multiple
from tubesynth.conditioning.request import PlacedRequest, decoder_condition, trace
from tubesynth.inference.sampling import Tile, fitting_tile, require_finite
from tubesynth.models.decoder_condition import DecoderCondition
from tubesynth.models.vqvae import VQVAE
from tubesynth.runtime.log import warn_once
from tubesynth.runtime.precision import autocast
from tubesynth.volume.grid import Volume
from tubesynth.volume.vessels import place_tokens


@dataclass(frozen=True)
class PlacedImage:
    """A CT on the model's grid, and the decoder's condition, padded to multiples of f; on the host.

    condition: None without a label map, and for a decoder that is not conditioned.
    """

    image: Volume
    condition: DecoderCondition | None


@dataclass(frozen=True)
class Codec:
    """A trained autoencoder on the device of its grid.

    tile: see Pipeline.load. condition_dropout: of its training.
    """

    net: VQVAE
    grid: ModelGrid
    precision: str
    tile: Tile
    condition_dropout: float | None

    @property
    def window(self) -> tuple[float, float]:
        """The HU that are 0 and 1 in the model."""
        low, high = self.grid.config.data.hu_window
        return low, high

    def place(
        self,
        volume: Volume,
        labels: Volume | None,
        spacing: Sequence[float] | None,
        resolution: Sequence[int] | None,
    ) -> PlacedImage:
        """A CT, and its label map if any, on the model's grid; see Pipeline.reconstruct."""
        image = self.grid.image(volume, spacing, resolution)
        if self.net.condition is None or labels is None:
            return PlacedImage(image, None)
        on_grid = self.grid.labels(labels, spacing, resolution, image)
        tokens = trace(labels, self.grid.config)
        tokens = place_tokens(tokens, labels, on_grid.shape, on_grid.affine)
        condition = decoder_condition(PlacedRequest(on_grid, tokens, True), self.grid)
        assert condition.fields is not None and condition.labels is not None
        fields, _ = pad_to_multiple(condition.fields, self.net.factor)
        label, _ = pad_to_multiple(condition.labels[None].float(), self.net.factor)
        label = label[0].to(condition.labels.dtype)
        return PlacedImage(image, DecoderCondition(fields, label))

    @torch.no_grad()
    def reconstruct(self, placed: PlacedImage) -> Volume:
        """The reconstruction in int16 HU, on the grid of the placed CT."""
        self.warn_without_condition(placed.condition is not None)
        padded, crop = pad_to_multiple(self.grid.unit_image(placed.image), self.net.factor)
        with self.autocast():
            tile = self._tile_side(padded.shape[2:])
            latents = require_finite(self.net.encode(padded, tile), "encoder")
            decoded = self._decode(latents, placed.condition)
        return self.grid.volume(decoded[crop], placed.image.affine)

    def decode(self, latents: Tensor, labels: Volume, condition: DecoderCondition | None) -> Volume:
        """Latents (1, D, x, ...) as a CT in int16 HU on the grid of the label map."""
        return self.grid.volume(self._decode(latents, condition), labels.affine)

    def _decode(self, latents: Tensor, condition: DecoderCondition | None) -> Tensor:
        tile = self._tile_side([n * self.net.factor for n in latents.shape[2:]])
        condition = condition and condition.to(self.grid.device)
        decoded = self.net.decode(latents, tile=tile, condition=condition)
        return require_finite(decoded, "decoder")

    def _tile_side(self, size: Sequence[int]) -> int | None:
        return fitting_tile(self.net, size, self.grid.device) if self.tile == "auto" else self.tile

    def autocast(self):
        return autocast(self.grid.device, self.precision)

    def warn_without_condition(self, has_labels: bool) -> None:
        """Warn once where the decoder is conditioned on the anatomy and gets no label map."""
        if self.net.condition is None or has_labels:
            return
        if self.condition_dropout == 0:
            warn_once(
                "the decoder of this model is conditioned on the anatomy, and was trained with"
                " autoencoder.condition_dropout 0: without a label map it decodes what it has"
                " never seen; give labels"
            )
        else:
            warn_once(
                "the decoder of this model is conditioned on the anatomy: without a label map its"
                " vessels are far fainter; give labels"
            )
