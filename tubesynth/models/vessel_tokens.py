"""The encoder of vessel tokens: points of a centreline as feature vectors.

Positions and distances in mm are embedded by sines and cosines with fixed wavelengths in mm, so the
encoding of a token does not depend on the resolution. Tokens are encoded once per sample; every
cross-attention layer projects its keys and values from the result.
"""

import math
from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tubesynth.models.blocks import filled, repeat_cases, sinusoidal

LONGEST_MM = 512.0  # longest wavelength of a position; each next one is half as long, to 4 mm
WAVELENGTHS = 8
ROOT_DISTANCE_CHANNELS = 32
THINNEST_MM = 0.25  # lower bound of the radius, which the distance bias divides by

Tokens = dict[str, Tensor]  # the fields of volume.vessels.VesselTokens, padded, and "mask"


@dataclass(frozen=True)
class EncodedTokens:
    """features (B, T, C), position_mm (B, T, dim), radius_mm (B, T), mask (B, T) of real tokens."""

    features: Tensor
    position_mm: Tensor
    radius_mm: Tensor
    mask: Tensor

    def repeat_cases(self, count: int, keep: Tensor | None) -> "EncodedTokens":
        """The cases once per guidance term; keep (count,) of 0 or 1: a row with 0 has no tokens."""
        rows = EncodedTokens(*(repeat_cases(getattr(self, f.name), count) for f in fields(self)))
        return rows if keep is None else replace(rows, mask=rows.mask & keep.bool()[:, None])

    def padded(self, min_tokens: int) -> "EncodedTokens":
        """The same with at least min_tokens tokens; the padding is masked."""
        count = max(0, min_tokens - self.mask.shape[1])
        return EncodedTokens(
            F.pad(self.features, (0, 0, 0, count)),
            F.pad(self.position_mm, (0, 0, 0, count)),
            F.pad(self.radius_mm, (0, count), value=1.0),
            F.pad(self.mask, (0, count), value=False),
        )


class TokenEncoder(nn.Module):
    """Position, log radius, tangent and distance from the root of a token -> `channels`."""

    def __init__(self, dim: int, channels: int):
        super().__init__()
        self.dim = dim
        width = position_channels(dim) + 1 + dim + ROOT_DISTANCE_CHANNELS
        self.layers = nn.Sequential(
            nn.Linear(width, channels),
            nn.SiLU(),
            nn.Linear(channels, channels),
            nn.LayerNorm(channels),
        )

    def forward(self, tokens: Tokens, voxels: tuple[int, ...], spacing: Tensor) -> EncodedTokens:
        """voxels: sides of the image. spacing: (B, dim) mm. This encoding depends on neither."""
        position = tokens["position_mm"][..., : self.dim]
        radius = tokens["radius_mm"].clamp_min(THINNEST_MM)
        distance = tokens["root_distance_mm"]
        root = sinusoidal(distance.flatten(), ROOT_DISTANCE_CHANNELS)
        features = [
            position_features(position),
            radius.log()[..., None],
            tokens["tangent"][..., : self.dim],
            root.unflatten(0, distance.shape),
        ]
        features = self.layers(torch.cat(features, dim=-1))
        return EncodedTokens(features, position, radius, tokens["mask"])


class PublishedTokenEncoder(nn.Module):
    """Position in [0, 1] of the image as sines and cosines, and the radius -> `channels`.

    The radius is in voxels, of the mean spacing, divided by the mean side. It has no weights.
    """

    def __init__(self, dim: int, channels: int):
        super().__init__()
        self.dim, self.position_channels = dim, channels - 1

    def forward(self, tokens: Tokens, voxels: tuple[int, ...], spacing: Tensor) -> EncodedTokens:
        """voxels: sides of the image. spacing: (B, dim) mm."""
        position, radius = tokens["position_mm"][..., : self.dim], tokens["radius_mm"]
        sides = filled(voxels, spacing.device, torch.float64)
        # The index of a voxel divided by the side; positions are counted from the center.
        coordinates = position / (spacing.double() * sides)[:, None] + (sides - 1) / (2 * sides)
        sinusoids = unit_position_features(coordinates, self.position_channels)
        share = radius / (spacing.mean(1) * sides.float().mean())[:, None]
        features = torch.cat([sinusoids, share[..., None]], dim=-1)
        return EncodedTokens(features, position, radius.clamp_min(THINNEST_MM), tokens["mask"])


def unit_position_features(coordinates: Tensor, channels: int) -> Tensor:
    """(..., dim) in [0, 1] -> (..., channels) float32, per axis the sines and then the cosines.

    Wavelengths 2 pi 10,000^(2 i dim / channels), as for word positions (Vaswani et al. 2017): in
    [0, 1] few of them vary.
    """
    width = channels // coordinates.shape[-1]  # per axis
    even = torch.arange(0, width, 2, dtype=torch.float64, device=coordinates.device)
    angles = coordinates.double()[..., None] * 10_000 ** (-even / width)
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2).float()


def position_channels(dim: int) -> int:
    return 2 * WAVELENGTHS * dim


def position_features(position_mm: Tensor) -> Tensor:
    """(..., dim) mm -> (..., 16 dim): sines and cosines, wavelengths from 512 mm down to 4 mm."""
    octaves = torch.arange(WAVELENGTHS, device=position_mm.device, dtype=torch.float32)
    angles = position_mm.float()[..., None] * (2 * math.pi / LONGEST_MM * 2**octaves)
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)


def no_tokens(batch: int, device) -> Tokens:
    """A batch of cases without tokens."""
    shapes = {"position_mm": (3,), "radius_mm": (), "tangent": (3,), "root_distance_mm": ()}
    empty = {name: torch.zeros(batch, 0, *shape, device=device) for name, shape in shapes.items()}
    return {**empty, "mask": torch.zeros(batch, 0, dtype=torch.bool, device=device)}
