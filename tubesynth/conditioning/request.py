"""Requests for samples: their conditions on the model's grid, and their guidance terms."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tubesynth.conditioning.conditions import case_conditions
from tubesynth.conditioning.model_grid import ModelGrid
from tubesynth.config.schema import Config, Stage2Config, uses_labels, uses_vessels
from tubesynth.data.dataset import collate
from tubesynth.data.volumes import TokenSource
from tubesynth.generative.guidance import GuidanceTerm, guidance_terms
from tubesynth.models.decoder_condition import DecoderCondition
from tubesynth.runtime.errors import InputError
from tubesynth.volume.grid import Volume
from tubesynth.volume.rasterize import condition_fields, rasterize_vessels
from tubesynth.volume.vessels import VesselTokens, place_tokens


@dataclass(frozen=True)
class SampleRequest:
    """One sample to synthesize, with its noise from a CPU generator.

    labels: the label map, or None for a sample without a label map. vessels: tokens with positions
    in mm relative to the center of the label map, which replace its vessels. Without them, a model
    with a vessel condition traces the vessel class of the label map, which may have no vessels.
    """

    labels: Volume | None
    random: torch.Generator
    vessels: VesselTokens | None = None


def request_terms(
    requests: list[SampleRequest],
    config: Stage2Config,
    guidance_label: float,
    guidance_vessel: float,
    interval: Sequence[float] = (0.0, 1.0),
) -> list[GuidanceTerm]:
    """The guidance terms of all requests; InputError for a term the model was not trained for, and
    for a weight of a condition that they do not have. interval: the times with guidance.
    """
    kinds = {
        (r.labels is not None, r.labels is not None or r.vessels is not None) for r in requests
    }
    if len(kinds) != 1:
        raise InputError(
            f"a batch of {len(requests)} samples: all must be conditioned on the same things: label"
            " map, vessels only, or nothing; sample the others in another batch"
        )
    ((has_label, has_vessels),) = kinds
    takes_labels, takes_vessels = uses_labels(config), uses_vessels(config.unet)
    if not takes_labels and guidance_label != 1.0:
        raise InputError(
            "this model is not conditioned on label maps (unet.label_encoder=none): leave"
            " guidance_label at 1"
        )
    if not takes_vessels and (guidance_vessel != 1.0 or has_vessels and not has_label):
        condition = (
            "its only condition is a label map: give labels" if takes_labels else "give none"
        )
        raise InputError(
            "this model was trained without unet.vessel_attention and unet.vessel_fields:"
            f" {condition}, and leave guidance_vessel at 1"
        )
    for name, weight, has_condition, condition in (
        ("guidance_label", guidance_label, has_label, "label map"),
        ("guidance_vessel", guidance_vessel, has_vessels, "vessels"),
    ):
        if not has_condition and weight not in (0.0, 1.0):
            raise InputError(
                f"{name} is {weight:g}, but the sample has no {condition}, so that the weight has"
                " no effect: leave it at 1"
            )
    has_label, has_vessels = has_label and takes_labels, has_vessels and takes_vessels
    is_whole = interval[0] <= 0 and interval[1] >= 1
    terms = guidance_terms(
        guidance_label if has_label else None,
        guidance_vessel if has_vessels else None,
        with_conditional=not is_whole,
    )
    mode, objective = config.latent_mode, config.objective
    if takes_labels and objective.label_dropout == 0 and not all(term.label for term in terms):
        raise InputError(
            f"this model was trained without {mode}.label_dropout, so it has no term without"
            " labels: give labels, and leave guidance_label at 1"
        )
    if takes_vessels and objective.vessel_dropout == 0 and not all(term.vessels for term in terms):
        raise InputError(
            f"this model was trained without {mode}.vessel_dropout, so it has no term without"
            " vessels: give a label map or centrelines, and leave guidance_label and"
            " guidance_vessel at 1"
        )
    return terms


@dataclass(frozen=True)
class PlacedRequest:
    """A request on the model's grid.

    labels: with the user's vessels, if any; background for a sample without a label map. tokens:
    relative to the center of `labels`; None if they were not asked for.
    """

    labels: Volume
    tokens: VesselTokens | None
    has_label_map: bool


def place_request(
    request: SampleRequest,
    grid: ModelGrid,
    with_tokens: bool,
    spacing: Sequence[float] | None = None,
    resolution: Sequence[int] | None = None,
) -> PlacedRequest:
    """A request on the model's grid.

    with_tokens: trace the vessels of a label map.
    """
    source = request.labels
    if source is None:
        source = grid.blank_labels(spacing, resolution)
    labels = grid.labels(source, spacing, resolution)
    tokens = request.vessels
    if tokens is not None:
        tokens = place_tokens(tokens, source, labels.shape, labels.affine)
        labels = rasterize_vessels(labels, tokens, grid.config.labels.vessel)
    elif with_tokens:
        tokens = place_tokens(trace(source, grid.config), source, labels.shape, labels.affine)
    return PlacedRequest(labels, tokens, request.labels is not None)


def collate_requests(
    requests: Sequence[PlacedRequest], dim: int, factor: int, with_vessels: bool
) -> dict:
    """The conditions of a batch on the host; with_vessels: include vessel tokens and fields."""
    samples = []
    for request in requests:
        labels, tokens = request.labels, request.tokens if with_vessels else None
        label = labels.array[..., 0] if dim == 2 else labels.array
        samples.append(case_conditions(label, tokens, labels.spacing, factor))
    return collate(samples)


def decoder_condition(
    request: PlacedRequest, grid: ModelGrid, with_labels: bool = True, with_vessels: bool = True
) -> DecoderCondition:
    """The condition of the decoder for one request with tokens, as a batch of one on the host.

    with_labels, with_vessels: False drops that condition. Without a label map there are no labels,
    and no vessels but those of the user.
    """
    labels, tokens, fields = request.labels, request.tokens, None
    assert tokens is not None
    if with_vessels and (request.has_label_map or len(tokens) > 0):
        fields = condition_fields(tokens, labels.shape, labels.spacing, factor=1)
        fields = torch.from_numpy(fields)[None]
    has_labels = with_labels and request.has_label_map
    return DecoderCondition(fields, grid.tensor(labels.array)[None] if has_labels else None)


def trace(labels: Volume, config: Config) -> VesselTokens:
    """The vessel tokens of a label map on the grid of its file, traced as for training."""
    step_mm = config.data.token_step_mm
    if step_mm is None:
        raise InputError(
            "data.token_step_mm: not set in the config of this model, so it cannot trace vessels:"
            " set it, e.g. to 1.0"
        )
    return TokenSource(config.labels.vessel, step_mm).trace(labels)
