"""The conditions of a case as arrays, and those of a batch as the input of a network.

Training and inference share every function of this file. The vessel condition has tokens, for
attention, and two fields on the grid of the latents, which are rendered from the tokens.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tubesynth.models.conditions import Conditions
from tubesynth.volume.rasterize import vessel_fields
from tubesynth.volume.vessels import VesselTokens

FIELD_REACH_CELLS = 3.0  # distance from a vessel's wall at which its fields end


def case_conditions(
    label: np.ndarray,
    tokens: VesselTokens | None,
    spacing: Sequence[float] | np.ndarray,
    factor: int,
) -> dict:
    """A label map and its tokens, both on the model's grid, as a sample for `collate`.

    label: (X, Y, Z) uint8, or (X, Y) of a picture; spacing: (3,) mm; factor: voxels per side of a
    latent cell. The sample has label and, unless tokens is None, tokens {name: (N, ...)} and fields
    float32 (2, X / factor, ...).
    """
    sample: dict = {"label": np.ascontiguousarray(label)}
    if tokens is not None:
        shape = (*label.shape, 1)[:3]  # a picture is a volume of one slice
        fields = latent_fields(tokens, shape, spacing, factor)
        sample["tokens"] = dict(vars(tokens))
        sample["fields"] = fields[..., 0] if label.ndim == 2 else fields
    return sample


def latent_fields(
    tokens: VesselTokens, shape: Sequence[int], spacing: Sequence[float] | np.ndarray, factor: int
) -> np.ndarray:
    """(2, x, y, z) float32 on the latent grid of a volume of shape (3,) voxels, spacing (3,) mm.

    [0] is the closeness to the nearest vessel: 1 on its wall, more inside it, falling linearly to 0
    at FIELD_REACH_CELLS. [1] is the radius of that vessel in cells (of the geometric mean of a
    cell's sides). Both are 0 out of reach. factor: voxels per cell along each axis; an axis of one
    voxel (two-dimensional data) stays one cell.
    """
    step = np.where(np.asarray(shape) > 1, factor, 1)
    cell_sides_mm = np.asarray(spacing) * step
    is_deep = step > 1
    cell_mm = float(np.prod(cell_sides_mm[is_deep]) ** (1 / max(1, is_deep.sum())))
    x, y, z = (int(n) for n in np.asarray(shape) // step)
    reach_mm = FIELD_REACH_CELLS * cell_mm
    distance_mm, radius_mm = vessel_fields(tokens, (x, y, z), cell_sides_mm, reach_mm)
    return np.stack([1 - distance_mm / reach_mm, radius_mm / cell_mm])


def conditions_to_device(batch: dict, device: torch.device) -> dict:
    """On a device: the label, and where the batch has them its tokens and its fields in float32."""
    on_device: dict = {"label": batch["label"].to(device, non_blocking=True)}
    if "tokens" in batch:
        on_device["tokens"] = {
            name: values.to(device, non_blocking=True) for name, values in batch["tokens"].items()
        }
    if "fields" in batch:
        on_device["fields"] = batch["fields"].to(device, non_blocking=True).float()
    return on_device


def conditions_of(
    batch: dict, keep_label: Tensor | None = None, keep_vessels: Tensor | None = None
) -> Conditions:
    """The conditions of a batch; keep_*: (B,) of 0 or 1, where 0 drops that condition of a case."""
    return Conditions(
        batch["label"], batch.get("tokens"), batch.get("fields"), keep_label, keep_vessels
    )
