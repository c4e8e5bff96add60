"""The conditions of a case as arrays, and those of a batch as the input of a network.

Training and inference share every function of this file. The vessel condition has tokens, for
attention, and two fields on the grid of the latents, which are rendered from the tokens.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tubesynth.models.conditions import Conditions
from tubesynth.models.decoder_condition import DecoderCondition
from tubesynth.volume.rasterize import condition_fields
from tubesynth.volume.vessels import VesselTokens


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
        fields = condition_fields(tokens, shape, spacing, factor)
        sample["tokens"] = dict(vars(tokens))
        sample["fields"] = fields[..., 0] if label.ndim == 2 else fields
    return sample


def conditions_to_device(batch: dict, device: torch.device) -> dict:
    """On a device, where the batch has them: label, tokens, and fields in float32."""
    on_device: dict = {}
    if "label" in batch:
        on_device["label"] = batch["label"].to(device, non_blocking=True)
    if "tokens" in batch:
        on_device["tokens"] = {
            name: values.to(device, non_blocking=True) for name, values in batch["tokens"].items()
        }
    if "fields" in batch:
        on_device["fields"] = batch["fields"].to(device, non_blocking=True).float()
    return on_device


def decoder_condition_of(batch: dict, keep: Tensor | None = None) -> DecoderCondition:
    """The condition of a stage-1 decoder; keep: (B, 2) of 0 or 1 for its fields and its labels."""
    keep_fields, keep_labels = (None, None) if keep is None else keep.unbind(1)
    fields, labels = batch.get("image_fields"), batch.get("label")
    return DecoderCondition(fields, labels, keep_fields, keep_labels)


def conditions_of(
    batch: dict, keep_label: Tensor | None = None, keep_vessels: Tensor | None = None
) -> Conditions:
    """The conditions of a batch; keep_*: (B,) of 0 or 1, where 0 drops that condition of a case."""
    return Conditions(
        batch.get("label"), batch.get("tokens"), batch.get("fields"), keep_label, keep_vessels
    )
