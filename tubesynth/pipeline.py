"""The Python API: load a checkpoint, then reconstruct or synthesize volumes.

    from tubesynth import Pipeline, Volume

    pipeline = Pipeline.load("runs/stage_2_3d_f4_lfm_base/checkpoints/last.ckpt")
    volume = pipeline.synthesize(Volume.from_file("1.label.nii.gz", labels=True), seed=0)
    volume.save("new.img.nii.gz")

A checkpoint of stage 2 or 3 holds the autoencoder of its latents, and one of stage 3 its base model
too, so one file is enough.
"""

from __future__ import annotations  # `help` then shows `Solver | None`, not its expansion

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

import numpy as np
import torch

from tubesynth.build.checkpoint import Checkpoint, weights_digest
from tubesynth.build.networks import build_network
from tubesynth.conditioning.model_grid import ModelGrid
from tubesynth.conditioning.request import PlacedRequest, SampleRequest, place_request, trace
from tubesynth.config.schema import (
    Config,
    Precision,
    SamplingConfig,
    Stage1Config,
    Stage2Config,
)
from tubesynth.inference.arguments import (
    checked_ct,
    checked_labels,
    require_numbers,
    require_seed,
    require_tile,
    suggests_names,
    usable_device,
)
from tubesynth.inference.reconstruction import Codec
from tubesynth.inference.sampling import Tile
from tubesynth.inference.synthesis import (
    Sample,
    SampleOptions,
    Solver,
    Synthesizer,
    depends_on_labels,
)
from tubesynth.models.controlnet import ControlledUNet
from tubesynth.models.scale import LatentScale
from tubesynth.models.unet import UNet
from tubesynth.models.vqvae import VQVAE
from tubesynth.runtime.errors import InputError
from tubesynth.runtime.log import logger
from tubesynth.runtime.precision import resolved
from tubesynth.runtime.seeding import generator
from tubesynth.volume.anatomy import Comparison, Ranges, describe
from tubesynth.volume.files import check_same_grid
from tubesynth.volume.grid import Volume
from tubesynth.volume.vessels import VesselTokens

DEFAULTS = SampleOptions()
COARSE = 1.8  # times the model's voxels: a label map of such voxels is named

__all__ = ["Pipeline", "Sample", "SampleOptions", "SampleRequest", "Solver"]


class Pipeline:
    """A trained model on a device, which takes and returns volumes.

    config: that of the model. digest: of all its weights and its latent scale. conditions: what the
    label maps of its training were like, None for stage 1 and models of older versions.
    """

    def __init__(
        self,
        config: Config,
        autoencoder: VQVAE,
        unet: UNet | ControlledUNet | None,
        scale: LatentScale | None,
        digest: str,
        device: torch.device,
        precision: Precision = "auto",
        tile: Tile = "auto",
        conditions: Ranges | None = None,
        condition_dropout: float | None = None,
    ):
        if precision not in get_args(Precision):
            raise InputError(f"precision {precision}: choose {', '.join(get_args(Precision))}")
        self.config, self.digest, self.device = config, digest, device
        require_tile(tile)
        self.precision = resolved(precision, device)
        if self.precision == "16-mixed" and device.type == "cpu":
            logger.warning("precision 16-mixed is several times slower than 32 on a CPU")
        self.tile: Tile = tile
        self.autoencoder = autoencoder.to(device).eval().requires_grad_(False)
        self.unet = unet.to(device).eval().requires_grad_(False) if unet else None
        self.scale, self.conditions = scale and scale.to(self.device), conditions
        self.condition_dropout = condition_dropout

    @classmethod
    @suggests_names
    def load(
        cls,
        path: str | Path,
        *,
        device: str | torch.device | None = None,
        precision: Precision = "auto",
        tile: Tile = "auto",
        ema: float | None = None,
    ) -> Pipeline:
        """A model from a checkpoint: stage 1 reconstructs, stages 2 and 3 synthesize as well.

        path: a .ckpt of training, a .safetensors of tubesynth export, or the name of a packaged
            model: "heart-phantom".
        device: default: the GPU if there is one, else the CPU.
        precision: that of the networks, "32", "bf16-mixed" or "16-mixed"; "auto": bf16-mixed on a
            GPU that has bf16, else 32.
        tile: side in voxels of the autoencoder's tiles; "auto" fits the free memory, None is the
            whole volume at once. The result is the same to rounding.
        ema: half-life in steps of the averaged weights to sample from; default: those of
            train.swa, or else the first of train.ema_half_life.

        InputError (a ValueError) if the file is not a checkpoint, or has no such average.
        """
        device = usable_device(device)
        if not isinstance(path, str | Path):
            raise InputError(f"path is {path!r}: give that of a checkpoint, or a model's name")
        if ema is not None:
            require_numbers(ema=ema)
        checkpoint = Checkpoint.load(path)
        config = checkpoint.config
        if not isinstance(config, Stage1Config | Stage2Config):
            raise InputError(f"{path}: stage {config.stage}: give a checkpoint of stage 1, 2 or 3")
        stored = checkpoint.trained_autoencoder
        autoencoder = stored.restore()
        dropout = stored.config.autoencoder.condition_dropout
        options = (device, precision, tile)
        if isinstance(config, Stage1Config):
            return cls(config, autoencoder, None, None, stored.digest, *options, None, dropout)
        unet = build_network(config, autoencoder.embedding_dim, autoencoder.factor)
        weights = checkpoint.weights(ema)
        unet.load_state_dict(weights)
        scale, conditions = checkpoint.latent_scale, checkpoint.conditions
        assert scale is not None  # checked when the file was read
        digests = [weights_digest(weights), stored.digest, weights_digest(scale.state())]
        digest = hashlib.sha256("".join(digests).encode()).hexdigest()[:16]
        return cls(config, autoencoder, unet, scale, digest, *options, conditions, dropout)

    @property
    def grid(self) -> ModelGrid:
        """The model's grid, with data.spacing and data.resolution of its config."""
        return ModelGrid(self.config, self.device)

    @property
    def takes_labels(self) -> bool:
        """Whether a label map, or its vessels, can change a sample."""
        config = self.config
        return isinstance(config, Stage2Config) and depends_on_labels(config, self.autoencoder)

    @property
    def codec(self) -> Codec:
        """The autoencoder, with the steps of `reconstruct`."""
        dropout = self.condition_dropout
        return Codec(self.autoencoder, self.grid, self.precision, self.tile, dropout)

    @property
    def synthesizer(self) -> Synthesizer:
        """The generator, with the steps of `synthesize`; InputError for a model of stage 1."""
        if self.unet is None or self.scale is None or not isinstance(self.config, Stage2Config):
            raise InputError("a stage-1 checkpoint cannot synthesize: load one of stage 2 or 3")
        return Synthesizer(self.config, self.unet, self.scale, self.codec)

    @suggests_names
    def reconstruct(
        self,
        volume: Volume,
        *,
        labels: Volume | None = None,
        spacing: Sequence[float] | None = None,
        resolution: Sequence[int] | None = None,
    ) -> Volume:
        """CT -> autoencoder -> CT on the model's grid around the same center, int16 HU.

        volume: a CT in HU with any spacing and orientation.
        labels: its label map, for a decoder that is conditioned on the anatomy; others
            ignore it. Without it, such a decoder works on the latents alone.
        spacing: (3,) mm of the result; default: data.spacing of the model's config, of a range
            its middle, and for null that which fits the resolution to the input.
        resolution: (3,) voxels of the result; default: data.resolution of the model's config.

        InputError (a ValueError) if an argument does not fit the model.
        """
        codec = self.codec
        volume = checked_ct(volume, "volume", codec.window)
        if labels is not None:
            labels = checked_labels(labels, "labels")
            check_same_grid(volume, labels, "volume", "labels")
        return codec.reconstruct(codec.place(volume, labels, spacing, resolution))

    @suggests_names
    def synthesize(
        self,
        labels: Volume | None,
        *,
        seed: int = 0,
        vessels: VesselTokens | None = None,
        solver: Solver | None = None,
        steps: int | None = None,
        sampling: SamplingConfig | None = None,
        guidance_label: float = 1.0,
        guidance_vessel: float = 1.0,
        control_scale: float = 1.0,
        spacing: Sequence[float] | None = None,
        resolution: Sequence[int] | None = None,
        latent_tile: int | None = None,
        callback: Callable[[float, Volume], None] | None = None,
        force: bool = False,
    ) -> Volume:
        """A new CT (int16 HU) conditioned on a label map, on the model's grid around its center.

        labels: class indices with any spacing and orientation; None samples without a label map,
            if the model was trained with label_dropout.
        seed: seeds the noise. The same seed gives the same volume.
        vessels: centrelines in place of the vessels of the label map, from `trace` or from
            volume.centreline_file.user_centreline_tokens; mm relative to the center of the map.
        solver: "euler", "midpoint", "heun", "rk4", "adams" or "dopri5" for flow matching, "ddpm" or
            "ddim" for diffusion; default: that of `sampling`.
        steps: solver steps (ignored by dopri5); default: those of `sampling`.
        sampling: all settings of the solver; default: config.sampling of the model.
        guidance_label, guidance_vessel: weights of the two conditions: 1 is the conditional model,
            above 1 follows the condition more closely, 0 drops it, in the decoder too. Other
            weights than 1 need a model that was trained with dropout of that condition.
        control_scale: factor of the residuals of a stage-3 model's ControlNet; 0: the base model.
        spacing: (3,) mm of the result; default: data.spacing of the model's config, of a range
            its middle, and for null that which fits the resolution to the input.
        resolution: (3,) voxels of the result, multiples of the autoencoder's factor; default:
            data.resolution of the model's config.
        latent_tile: side in latent cells of the overlapping tiles in which the generator sees the
            grid, for one that does not fit the memory, best at least as large as those of its
            training; the volume differs from that of the whole grid. Default: the whole grid.
        callback: is called as callback(t, volume) after every solver step; t ends at 1.
        force: take a label map without any structure of the training, and log nothing of one that
            is unlike those of the training (`compare_with_training`).

        InputError (a ValueError) if an argument does not fit the model.
        """
        require_seed(seed)
        require_numbers(
            guidance_label=guidance_label,
            guidance_vessel=guidance_vessel,
            control_scale=control_scale,
        )
        if vessels is not None and not isinstance(vessels, VesselTokens):
            raise InputError(f"vessels is a {type(vessels).__name__}: give those of trace")
        if callback is not None and not callable(callback):
            raise InputError(f"callback is {callback!r}: give a function of (t, volume)")
        if sampling is not None and not isinstance(sampling, SamplingConfig):
            raise InputError(f"sampling is a {type(sampling).__name__}: give a SamplingConfig")
        steps = int(steps) if isinstance(steps, np.integer) else steps
        weights = guidance_label, guidance_vessel, control_scale
        options = SampleOptions(solver, steps, sampling, *weights, spacing, resolution, latent_tile)
        request = SampleRequest(labels, generator(torch.device("cpu"), seed), vessels)
        synthesizer = self.synthesizer
        placed = synthesizer.place([request], options)
        if labels is not None and not force:
            self._warn_of_unusual(request, placed.requests[0], options)
        of_case = None if callback is None else lambda index, t, volume: callback(t, volume)
        return synthesizer.sample(placed, of_case)[0].volume

    @suggests_names
    def sample(
        self,
        labels: Volume | None,
        random: torch.Generator,
        options: SampleOptions = DEFAULTS,
        *,
        vessels: VesselTokens | None = None,
        callback: Callable[[float, Volume], None] | None = None,
    ) -> Sample:
        """Like `synthesize`, with noise from a CPU generator; returns labels and latents too."""
        of_case = None if callback is None else lambda index, t, volume: callback(t, volume)
        requests = [SampleRequest(labels, random, vessels)]
        return self.sample_batch(requests, options, callback=of_case)[0]

    @suggests_names
    def sample_batch(
        self,
        requests: Sequence[SampleRequest],
        options: SampleOptions = DEFAULTS,
        *,
        callback: Callable[[int, float, Volume], None] | None = None,
    ) -> list[Sample]:
        """Samples that go through the network together; options: those of `synthesize`.

        requests: label map, CPU generator and vessels of each sample; all are conditioned on the
            same things. A sample equals that of a batch of one, to rounding, or to the tolerance
            of dopri5, whose step sizes depend on rounding.
        callback: is called as callback(index, t, volume) after every solver step.
        """
        synthesizer = self.synthesizer
        return synthesizer.sample(synthesizer.place(requests, options), callback)

    def compare_with_training(
        self,
        labels: Volume,
        *,
        vessels: VesselTokens | None = None,
        spacing: Sequence[float] | None = None,
        resolution: Sequence[int] | None = None,
    ) -> Comparison:
        """In which points a label map is unlike those of the training, on the model's grid.

        Arguments: those of `synthesize`. Nothing is unusual to a model that does not know its
        training, as of older versions.
        """
        if self.conditions is None:
            return Comparison([], False)
        labels = checked_labels(labels, "labels")
        request = SampleRequest(labels, torch.Generator(), vessels)
        with_tokens = self.config.data.token_step_mm is not None
        placed = place_request(request, self.grid, with_tokens, spacing, resolution)
        return self._comparison(request, placed)

    def _comparison(self, request: SampleRequest, placed: PlacedRequest) -> Comparison:
        assert self.conditions is not None and request.labels is not None
        on_grid, scheme = placed.labels, self.config.labels
        comparison = self.conditions.compare(
            describe(on_grid.array, on_grid.spacing, placed.tokens, scheme)
        )
        coarsest, of_model = request.labels.spacing.max(), on_grid.spacing.max()
        if request.vessels is None and coarsest > COARSE * of_model:
            comparison.unusual.append(
                f"voxels of {coarsest:.3g} mm, where the model's are {of_model:.3g}: vessels"
                " thinner than a voxel are lost or in pieces"
            )
        return comparison

    def _warn_of_unusual(
        self, request: SampleRequest, placed: PlacedRequest, options: SampleOptions
    ) -> None:
        if self.conditions is None:
            return
        if placed.tokens is None and self.config.data.token_step_mm is not None:
            on_grid = options.spacing, options.resolution
            placed = place_request(request, self.grid, True, *on_grid)
        comparison = self._comparison(request, placed)
        if comparison.is_empty:
            raise InputError(
                "labels has none of the structures that the model was trained with: give a label"
                " map with its classes, or force=True"
            )
        for line in comparison.unusual:
            logger.warning(f"labels: {line}")

    def trace(self, labels: Volume) -> VesselTokens:
        """The vessels of a label map as tokens, which can be edited and passed to `synthesize`."""
        return trace(checked_labels(labels, "labels"), self.config)
