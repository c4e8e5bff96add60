"""What a model is told of the cases of a batch: their label maps and vessels on its grid, and the
sides of its guidance, as far as it was trained for them.
"""

from dataclasses import dataclass

import numpy as np
import torch

from tubesynth.conditioning.model_grid import ModelGrid
from tubesynth.config.schema import Config, Stage2Config, uses_vessels
from tubesynth.data.dataset import pad_tokens
from tubesynth.data.tokens import latent_fields
from tubesynth.generative.guidance import GuidanceTerm, guidance_terms
from tubesynth.models.conditions import Conditions
from tubesynth.runtime.errors import InputError
from tubesynth.volume.grid import Volume
from tubesynth.volume.rasterize import rasterize_vessels
from tubesynth.volume.vessels import VesselTokens, extract_tokens, place_tokens


@dataclass(frozen=True)
class Request:
    """One sample to be made: of a label map (None: without one), from the noise of a CPU generator.

    vessels: in mm from the middle of the label map, instead of its own, which are painted over; by
    default the model's vessel class is traced in the label map. A map without vessels is a case
    without vessels.
    """

    labels: Volume | None
    random: torch.Generator
    vessels: VesselTokens | None = None


def guidance_terms_of(
    requests: list[Request], config: Stage2Config, guidance_label: float, guidance_vessel: float
) -> list[GuidanceTerm]:
    """The sides to evaluate, of every request alike; InputError where the model knows no such."""
    told = {(r.labels is not None, r.labels is not None or r.vessels is not None) for r in requests}
    if len(told) != 1:
        raise InputError(
            f"a batch of {len(requests)} samples: all must have a label map, or all vessels alone,"
            " or none of them either: sample those that differ by themselves"
        )
    ((label, vessels),) = told
    takes_vessels = uses_vessels(config.unet)
    if not takes_vessels and (guidance_vessel != 1.0 or vessels and not label):
        raise InputError(
            "this model was trained without vessels (unet.vessel_attention, vessel_fields): it has"
            " them from a label map alone; leave --guidance-vessel at 1"
        )
    vessels = vessels and takes_vessels
    parts = guidance_terms(guidance_label if label else None, guidance_vessel if vessels else None)
    mode, objective = config.latent_mode, config.objective
    if objective.label_dropout == 0 and not all(term.label for term in parts):
        raise InputError(
            f"this model was trained without {mode}.label_dropout, so it has no side without"
            " labels: give labels, and leave --guidance-label at 1"
        )
    if takes_vessels and objective.vessel_dropout == 0 and not all(term.vessels for term in parts):
        raise InputError(
            f"this model was trained without {mode}.vessel_dropout, so it has no side without"
            " vessels: leave --guidance-label and --guidance-vessel at 1"
        )
    return parts


def conditions_on_grid(
    requests: list[Request],
    grid: ModelGrid,
    factor: int,
    with_vessels: bool,
    spacing=None,
    resolution=None,
) -> tuple[list[Volume], Conditions]:
    """The label map of every request on the model's grid, and the conditions of all of them.

    factor: voxels a side of a latent cell; with_vessels: tokens and fields are among them.
    """
    maps, vessels = [], []
    for request in requests:
        asked = request.labels
        if asked is None:
            asked = grid.blank_labels(spacing, resolution)
        prepared, drawn = grid.prepare_labels(asked, spacing, resolution), request.vessels
        if drawn is not None:
            drawn = place_tokens(drawn, asked, prepared.shape, prepared.affine)
            prepared = rasterize_vessels(prepared, drawn, grid.config.labels.vessel)
        elif with_vessels:
            traced = trace(asked, grid.config)
            drawn = place_tokens(traced, asked, prepared.shape, prepared.affine)
        maps.append(prepared)
        vessels.append(drawn)
    shape = maps[0].shape
    if any(n % factor for n in shape[: grid.config.dim]):
        raise InputError(
            f"--resolution {' '.join(map(str, shape))}: every side must be a multiple of {factor}"
        )
    labels = torch.stack([grid.tensor(prepared.array) for prepared in maps])
    if not with_vessels:
        return maps, Conditions(labels)
    tokens = pad_tokens([vars(each) for each in vessels])
    fields = np.stack([latent_fields(v, shape, maps[0].spacing, factor) for v in vessels])
    fields = fields[..., 0] if grid.config.dim == 2 else fields
    return maps, Conditions(
        labels,
        {name: values.to(grid.device) for name, values in tokens.items()},
        torch.from_numpy(fields).to(grid.device),
    )


def trace(labels: Volume, config: Config) -> VesselTokens:
    """The tokens of a label map in its own voxels, as training has them."""
    step_mm = config.data.token_step_mm
    if step_mm is None:
        raise InputError("data.token_step_mm: not set, but this model takes vessel tokens")
    return extract_tokens(labels.array == config.labels.vessel, labels.affine, step_mm)
