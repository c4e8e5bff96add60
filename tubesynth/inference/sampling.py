"""Sampling of a latent generator: the noise of a batch, and the guided velocity of its cases."""

from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from tubesynth.generative.guidance import GuidanceTerm, Velocity, guided
from tubesynth.models.blended_tiles import blend, blended_tiles
from tubesynth.models.conditions import Conditions, rows_of
from tubesynth.models.controlnet import ControlledUNet
from tubesynth.models.tiling import largest_tile
from tubesynth.models.unet import UNet
from tubesynth.models.vqvae import VQVAE
from tubesynth.models.window import Window
from tubesynth.runtime.errors import InputError
from tubesynth.runtime.memory import free_bytes

# Side in voxels of the autoencoder's tiles; "auto" fits the free memory, None: no tiles.
Tile = int | Literal["auto"] | None


def batch_noise(
    generators: Sequence[torch.Generator],
    channels: int,
    size: tuple[int, ...],
    device: torch.device,
) -> Tensor:
    """White noise (B, channels, *size) on a device, from one CPU generator per case.

    A seed therefore gives the same noise on every device and in every batch.
    """
    shape = (1, channels, *size)
    return torch.cat([torch.randn(shape, generator=each) for each in generators]).to(device)


def guided_velocity(
    unet: UNet | ControlledUNet,
    conditions: Conditions,
    terms: Sequence[GuidanceTerm],
    size: tuple[int, ...],
    spacing_mm: Tensor,
    interval: tuple[float, float],
    tile: int | None = None,
) -> Velocity:
    """The guided velocity of B cases; features that do not depend on t are computed once.

    size: of the latents. spacing_mm: (B, dim) of the image. interval: the times with guidance.
    tile: side in cells of the tiles that are evaluated and averaged; None: the whole grid at once.
    The features of as many tiles as fit half of the free memory are cached; those of the others are
    computed at every evaluation, which a GPU does faster than it copies them from the host.
    """
    num_cases = len(spacing_mm)
    # (S, 2) -> 2 x (S B,): the conditions of each row of the network's batch, term by term.
    keep = torch.tensor([[term.label, term.vessels] for term in terms], device=spacing_mm.device)
    keep_label, keep_vessels = keep.float().repeat_interleave(num_cases, dim=0).unbind(1)
    conditions = replace(conditions, keep_label=keep_label, keep_vessels=keep_vessels)
    spacing = spacing_mm.repeat(len(terms), 1)  # (S B, dim)

    def within(window: Window) -> tuple[Velocity, int]:
        """The velocity of a window, and the bytes of its cached features."""
        cached = unet.cache_conditions(conditions, window, spacing)
        cached_first = None
        if interval[0] > 0 or interval[1] < 1:
            # The first term has all conditions: it is the velocity outside of the interval.
            cached_first = rows_of(cached, torch.arange(num_cases, device=spacing.device))

        def all_terms(x: Tensor, t: Tensor) -> Tensor:
            return unet(x, t, spacing, cached).float()

        def first_term(x: Tensor, t: Tensor) -> Tensor:
            return unet(x, t, spacing[:num_cases], cached_first).float()

        weights = [term.weight for term in terms]
        velocity = guided(all_terms, weights, first_term, interval)
        return velocity, num_bytes([cached, cached_first])

    if tile is None or max(size) <= tile:
        return within(Window.of(size))[0]
    tiles = blended_tiles(size, tile, unet.multiple, spacing.device)
    kept: dict[int, Velocity] = {}
    free = left = free_bytes(spacing.device)

    def of_tile(index: int) -> Velocity:
        nonlocal left
        if index in kept:
            return kept[index]
        velocity, used = within(tiles[index].window)
        if left - used >= max(free / 2, 3 * used):  # room for a tile's features and activations
            kept[index], left = velocity, left - used
        return velocity

    return lambda x, t: blend(lambda index, part: of_tile(index)(part, t), x, tiles)


def num_bytes(features: Any) -> int:
    """The bytes of all tensors in lists and data classes."""
    if isinstance(features, Tensor):
        return features.nbytes
    if is_dataclass(features):
        features = [getattr(features, field.name) for field in fields(features)]
    return sum(map(num_bytes, features)) if isinstance(features, list | tuple) else 0


def fitting_tile(autoencoder: VQVAE, size: Sequence[int], device: torch.device) -> int | None:
    """Side in voxels of the largest tiles that fit half of the free memory; None: no tiles."""
    factor = autoencoder.factor
    halo = max(autoencoder.encoder_halo, autoencoder.decoder_halo * factor)
    budget = free_bytes(device) / 2 / autoencoder.bytes_per_voxel
    return largest_tile(tuple(size), halo, factor, budget)


def require_finite(values: Tensor, source: str) -> Tensor:
    """Returns latents or an image; InputError if any value is not finite: a codebook, or rounding
    to HU, would hide it in a valid CT.

    source: the network that computed them, for the message.
    """
    if not values.isfinite().all():
        raise InputError(
            f'the {source} of this model gives values that are not finite: use precision="32", or'
            " a checkpoint from before its training diverged"
        )
    return values
