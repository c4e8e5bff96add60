"""Requests to samples: onto the model's grid on the host, then through the networks on the device.

The two steps are apart so that a command can place the next batch while the device has the last
one. Pipeline.synthesize explains the options.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from tubesynth.build.objective import build_objective
from tubesynth.conditioning.conditions import conditions_of, conditions_to_device
from tubesynth.conditioning.request import (
    PlacedRequest,
    SampleRequest,
    collate_requests,
    decoder_condition,
    place_request,
    request_terms,
)
from tubesynth.config.checks import check_sampling
from tubesynth.config.schema import (
    DiffusionSampler,
    FlowSolver,
    SamplingConfig,
    Stage2Config,
    uses_labels,
    uses_vessels,
)
from tubesynth.generative.guidance import GuidanceTerm
from tubesynth.inference.arguments import checked_labels
from tubesynth.inference.reconstruction import Codec
from tubesynth.inference.sampling import batch_noise, guided_velocity, require_finite
from tubesynth.models.controlnet import ControlledUNet
from tubesynth.models.decoder_condition import DecoderCondition
from tubesynth.models.scale import LatentScale
from tubesynth.models.unet import UNet
from tubesynth.models.vqvae import VQVAE
from tubesynth.runtime.errors import InputError
from tubesynth.volume.grid import Volume

Solver = FlowSolver | DiffusionSampler


@dataclass(frozen=True)
class Sample:
    """A synthetic volume with its labels and its cost.

    volume: int16 HU. labels: uint8, on the same grid. evaluations: the number of network
    evaluations of the batch. latents: (1, C, x, ...) normalized, at the end of the solver.
    """

    volume: Volume
    labels: Volume
    evaluations: int
    latents: Tensor


@dataclass(frozen=True)
class SampleOptions:
    """The options of Pipeline.synthesize, for all samples of a batch."""

    solver: Solver | None = None
    steps: int | None = None
    sampling: SamplingConfig | None = None
    guidance_label: float = 1.0
    guidance_vessel: float = 1.0
    control_scale: float = 1.0
    spacing: Sequence[float] | None = None
    resolution: Sequence[int] | None = None
    latent_tile: int | None = None


@dataclass(frozen=True)
class PlacedBatch:
    """Requests on the model's grid with all that sampling reads, on the host.

    generators: the noise of each request. conditions: collated; of each request its condition of
    the decoder, or None.
    """

    requests: list[PlacedRequest]
    generators: list[torch.Generator]
    conditions: dict
    decoder_conditions: list[DecoderCondition | None]
    terms: list[GuidanceTerm]
    sampling: SamplingConfig
    options: SampleOptions


@dataclass(frozen=True)
class Synthesizer:
    """A trained generator and the autoencoder of its latents; `codec` has the device."""

    config: Stage2Config
    unet: UNet | ControlledUNet
    scale: LatentScale
    codec: Codec

    def place(self, requests: Sequence[SampleRequest], options: SampleOptions) -> PlacedBatch:
        """Requests on the model's grid; InputError if one of them, or an option, does not fit."""
        config, net, grid = self.config, self.codec.net, self.codec.grid
        guidance = (options.guidance_label, options.guidance_vessel)
        self._check(requests, options)
        requests = [_checked(request) for request in requests]
        sampling = sampling_settings(config, options)
        low, high = sampling.guidance_interval
        terms = request_terms(list(requests), config, *guidance, (low, high))
        with_vessels = any(term.vessels for term in terms)
        with_tokens = with_vessels or net.condition is not None
        on_grid = (options.spacing, options.resolution)
        placed = [place_request(r, grid, with_tokens, *on_grid) for r in requests]
        for sides in (request.labels.shape[: config.dim] for request in placed):
            if any(n % net.factor for n in sides):
                raise InputError(
                    f"resolution {' '.join(map(str, sides))}: every side must be a multiple of"
                    f" {net.factor}"
                )
        self.codec.warn_without_condition(all(request.has_label_map for request in placed))
        decoder_conditions: list[DecoderCondition | None] = [None] * len(placed)
        if net.condition:  # what a weight of 0 drops, the decoder does not get either
            keep = [weight != 0 for weight in guidance]
            decoder_conditions = [decoder_condition(request, grid, *keep) for request in placed]
        return PlacedBatch(
            placed,
            [request.random for request in requests],
            collate_requests(placed, config.dim, net.factor, with_vessels),
            decoder_conditions,
            terms,
            sampling,
            options,
        )

    @torch.no_grad()
    def sample(
        self, batch: PlacedBatch, callback: Callable[[int, float, Volume], None] | None = None
    ) -> list[Sample]:
        """The samples of a placed batch; callback: see Pipeline.sample_batch."""
        codec, device = self.codec, self.codec.grid.device
        if isinstance(self.unet, ControlledUNet):
            self.unet.scale = batch.options.control_scale
        label_maps = [request.labels for request in batch.requests]
        conditions = conditions_of(conditions_to_device(batch.conditions, device))
        assert conditions.labels is not None
        size = tuple(n // codec.net.factor for n in conditions.labels.shape[1:])

        def noise() -> Tensor:
            return batch_noise(batch.generators, codec.net.embedding_dim, size, device)

        def decode(latents: Tensor, index: int) -> Volume:
            """The CT of one case; decoding one at a time, since a CT needs much more memory."""
            restored = self.scale.restore(latents[index : index + 1])
            return codec.decode(restored, label_maps[index], batch.decoder_conditions[index])

        last_t = [0.0] * len(label_maps)

        def report_step(t: Tensor, latents: Tensor) -> None:
            assert callback is not None
            for index, case_t in enumerate(t.tolist()):
                if case_t > last_t[index]:  # a step of dopri5 may be rejected for some cases
                    last_t[index] = case_t
                    callback(index, case_t, decode(latents, index))

        spacings = np.array([label_map.spacing[: self.config.dim] for label_map in label_maps])
        spacing_mm = torch.tensor(spacings, dtype=torch.float32).to(device)
        low, high = batch.sampling.guidance_interval
        tile = batch.options.latent_tile
        with codec.autocast():
            velocity = guided_velocity(
                self.unet, conditions, batch.terms, size, spacing_mm, (low, high), tile
            )
            latents, evaluations = build_objective(self.config).sample(
                velocity, noise(), batch.sampling, noise, report_step if callback else None
            )
            require_finite(latents, "generator")
            return [
                Sample(decode(latents, i), label_map, evaluations, latents[i : i + 1])
                for i, label_map in enumerate(label_maps)
            ]

    def _check(self, requests: Sequence[SampleRequest], options: SampleOptions) -> None:
        """InputError for a request or an option that no sample of this model can have."""
        for name in ("guidance_label", "guidance_vessel", "control_scale"):
            weight = getattr(options, name)
            if not 0 <= weight < math.inf:
                raise InputError(f"{name} is {weight}: give a finite number from 0 on")
        if options.control_scale != 1.0 and not isinstance(self.unet, ControlledUNet):
            raise InputError(
                f"control_scale is {options.control_scale}, but this model has no ControlNet"
            )
        tile, multiple = options.latent_tile, self.unet.multiple
        is_int = isinstance(tile, int)
        if tile is not None and (not is_int or tile < 2 * multiple or tile % multiple):
            raise InputError(
                f"latent_tile is {tile}: give a multiple of {multiple} from {2 * multiple} on, the"
                " side of a tile in latent cells"
            )
        takes_labels = depends_on_labels(self.config, self.codec.net)
        if not takes_labels and any(request.labels is not None for request in requests):
            raise InputError(
                "this model was trained without label maps (unet.label_encoder=none), which would"
                " have no effect: sample without labels (labels=None, --unconditional)"
            )


def _checked(request: SampleRequest) -> SampleRequest:
    """The request with its label map in RAS+ order, which its vessels must have been."""
    if request.labels is None:
        return request
    labels = checked_labels(request.labels, "labels")
    if request.vessels is not None and not np.allclose(labels.affine, request.labels.affine):
        raise InputError(
            "labels is not in RAS+ order, in which its vessels are: read it by Volume.from_file, or"
            " give it nibabel.as_closest_canonical"
        )
    return replace(request, labels=labels)


def depends_on_labels(config: Stage2Config, autoencoder: VQVAE) -> bool:
    """Whether a label map, or its vessels, can change a sample of a model."""
    conditioned = uses_labels(config) or uses_vessels(config.unet)
    return conditioned or autoencoder.condition is not None


def sampling_settings(config: Stage2Config, options: SampleOptions) -> SamplingConfig:
    """The settings of the solver; InputError where they do not fit the model."""
    settings = options.sampling or config.sampling
    if options.solver is not None:
        settings = replace(settings, solver=options.solver)
    if options.steps is not None:  # a time grid has its own number of steps
        settings = replace(settings, steps=options.steps, time_grid=None)
    check_sampling(config, settings, "this model")
    return settings
