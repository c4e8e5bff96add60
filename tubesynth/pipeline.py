"""The Python API: load a checkpoint, then reconstruct or synthesise one Volume at a time.

    from tubesynth.pipeline import Pipeline
    from tubesynth.volume.files import read_labels, write_volume

    pipeline = Pipeline.load("runs/stage_2_3d_f4_lfm_base/checkpoints/last.ckpt")
    volume = pipeline.synthesize(read_labels("1.label.nii.gz"), seed=0)
    write_volume("new.img.nii.gz", volume, "int16")

A checkpoint of stage 2 or 3 holds the autoencoder that made its latents, and one of stage 3 its
base model too, so one file is all there is to carry.
"""

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from tubesynth.build.checkpoint import Checkpoint, weights_digest
from tubesynth.build.networks import build_network, restore_autoencoder
from tubesynth.build.objective import build_objective
from tubesynth.conditioning.model_grid import ModelGrid, pad_to_multiple
from tubesynth.conditioning.request import SampleRequest, conditions_on_grid, request_terms, trace
from tubesynth.config.checks import check_sampling
from tubesynth.config.schema import Config, SamplingConfig, Stage1Config, Stage2Config
from tubesynth.generative.guidance import GuidanceTerm, Velocity, guided
from tubesynth.models.conditions import Conditions
from tubesynth.models.controlnet import ControlledUNet
from tubesynth.models.scale import LatentScale
from tubesynth.models.tiling import largest_tile
from tubesynth.models.unet import UNet
from tubesynth.models.vqvae import VQVAE
from tubesynth.runtime.errors import InputError
from tubesynth.runtime.memory import free_bytes
from tubesynth.runtime.precision import AUTOCAST_DTYPE
from tubesynth.runtime.seeding import generator
from tubesynth.volume.grid import Volume
from tubesynth.volume.vessels import VesselTokens


@dataclass
class Sample:
    """A synthetic volume (int16 HU), its labels (uint8) on the same grid, and what it cost.

    evaluations: of the network, which all samples of a batch share. latents: (1, C, x, ...),
    normalised, where the solver ended.
    """

    volume: Volume
    labels: Volume
    evaluations: int
    latents: Tensor


class Pipeline:
    """A trained model on a device. Volumes in and out; tensors stay inside."""

    def __init__(
        self,
        config: Config,
        autoencoder: VQVAE,
        unet: UNet | ControlledUNet | None,
        scale: LatentScale | None,
        digest: str,
        device: torch.device,
        precision: str = "32",
        tile: int | str | None = "auto",
    ):
        self.config, self.digest, self.device, self.precision = config, digest, device, precision
        self.tile = tile
        self.autoencoder = autoencoder.to(device).eval().requires_grad_(False)
        self.unet = unet.to(device).eval().requires_grad_(False) if unet else None
        self.scale = scale

    @classmethod
    def load(
        cls,
        path: str | Path,
        device=None,
        precision: str = "32",
        tile: int | str | None = "auto",
        ema: float | None = None,
    ) -> "Pipeline":
        """From a checkpoint of stage 1 (reconstructs), 2 or 3 (reconstructs and synthesises).

        tile: side in voxels of the pieces in which the autoencoder works, "auto" to fit the free
        memory, None for whole volumes. The result is the same to rounding.
        ema: half-life of the averaged weights to sample from, where several were kept; default:
        the first of train.ema_half_life.
        """
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        checkpoint = Checkpoint.load(path)
        config = checkpoint.config
        if not isinstance(config, Stage1Config | Stage2Config):
            raise InputError(f"{path}: of stage {config.stage}: it makes no images")
        stored = checkpoint.trained_autoencoder
        autoencoder = restore_autoencoder(stored)
        if isinstance(config, Stage1Config):
            return cls(config, autoencoder, None, None, stored.digest, device, precision, tile)
        unet = build_network(config, autoencoder.embedding_dim, autoencoder.factor)
        weights = checkpoint.weights(ema)
        unet.load_state_dict(weights)
        digest, scale = weights_digest(weights), checkpoint.latent_scale
        return cls(config, autoencoder, unet, scale, digest, device, precision, tile)

    @property
    def grid(self) -> ModelGrid:
        """The model's grid, by the config's data.spacing and data.resolution."""
        return ModelGrid(self.config, self.device)

    def _autocast(self):
        dtype = AUTOCAST_DTYPE.get(self.precision)
        return torch.autocast(self.device.type, dtype) if dtype else nullcontext()

    @torch.no_grad()
    def reconstruct(
        self, volume: Volume, spacing=None, resolution=None, labels: Volume | None = None
    ) -> Volume:
        """CT (HU) -> autoencoder -> CT (int16 HU) on the model's grid in the CT's own world.

        labels: the CT's label map, for an autoencoder whose decoder takes the vessel mask.
        """
        net = self.autoencoder
        if net.vessel_mask and labels is None:
            raise InputError(
                "trained with autoencoder.vessel_mask_in_decoder: give the CT's label"
                " map (reconstruct: --labels DIR)"
            )
        image = self.grid.image(volume, spacing, resolution)
        padded, crop = pad_to_multiple(self.grid.unit_image(image), net.factor)
        vessels = None
        if net.vessel_mask:
            on_grid = self.grid.labels(labels, spacing, resolution, image)
            label, _ = pad_to_multiple(
                self.grid.tensor(on_grid.array)[None, None].float(), net.factor
            )
            vessels = self._vessels(label[:, 0])
        tile = self._tile_for(padded.shape[2:])
        with self._autocast():
            latents = _finite(net.encode(padded, tile), "encoder")
            out = net.decode(latents, tile=tile, vessels=vessels)
        return self.grid.volume(out[crop], image.affine)

    def _vessels(self, label: Tensor) -> Tensor:
        """Labels (B, X, ...) -> (B, X, ...) bool."""
        return label == self.config.labels.vessel

    def _tile_for(self, size: tuple[int, ...]) -> int | None:
        if self.tile != "auto":
            return self.tile
        net = self.autoencoder
        halo = max(net.encoder_halo, net.decoder_halo * net.factor)
        budget = free_bytes(self.device) / 2 / net.bytes_per_voxel
        return largest_tile(tuple(size), halo, net.factor, budget)

    def synthesize(self, labels: Volume | None, seed: int = 0, **options) -> Volume:
        """Label map -> new CT (int16 HU) on the model's grid in the labels' own world.

        None instead of labels: a sample without them, where the model allows it. Options are those
        of `sample`, vessels among them. The same seed gives the same volume.
        """
        return self.sample(labels, generator(torch.device("cpu"), seed), **options).volume

    def sample(
        self,
        labels: Volume | None,
        random: torch.Generator,
        sampling: SamplingConfig | None = None,
        vessels: VesselTokens | None = None,
        callback: Callable[[float, Volume], None] | None = None,
        **options,
    ) -> Sample:
        """Like `synthesize`, with the cost. vessels: as in SampleRequest; other options: those of
        `sample_batch`.
        """
        request = SampleRequest(labels, random, vessels)
        show = callback and (lambda index, t, volume: callback(t, volume))
        return self.sample_batch([request], sampling, callback=show, **options)[0]

    @torch.no_grad()
    def sample_batch(
        self,
        requests: list[SampleRequest],
        sampling: SamplingConfig | None = None,
        guidance_label: float = 1.0,
        guidance_vessel: float = 1.0,
        control_scale: float = 1.0,
        spacing=None,
        resolution=None,
        callback: Callable[[int, float, Volume], None] | None = None,
        **changes,
    ) -> list[Sample]:
        """Samples that go through the network together; each is what it is alone, to rounding (with
        dopri5, whose steps follow the rounding, to its tolerance).

        guidance_*: 1 is the conditional model; other weights are guidance (generative/guidance.py),
        for a model that was trained with that condition dropped. guidance_vessel=0 leaves the
        vessels out, and with it guidance_label=0 the label map too.
        control_scale: of what the ControlNet of a stage-3 model says; 0 is the base model.
        callback(index, t, volume) sees every step of every sample. changes: fields of
        SamplingConfig (solver, steps, ...).
        """
        weights = {"label": guidance_label, "vessel": guidance_vessel, "control": control_scale}
        for name, value in weights.items():
            if not math.isfinite(value):
                raise InputError(f"the weight of {name} is {value}: give a number")
        self._set_control(control_scale)
        sampling = self._sampling(sampling, changes)
        parts = request_terms(requests, self.config, guidance_label, guidance_vessel)
        net, with_vessels = self.autoencoder, any(term.vessels for term in parts)
        maps, conditions = conditions_on_grid(
            requests, self.grid, net.factor, with_vessels, spacing, resolution
        )
        size = tuple(n // net.factor for n in conditions.labels.shape[1:])

        def normal() -> Tensor:
            # Drawn on the CPU, sample by sample: a seed is the same noise on every device.
            shape = (1, net.embedding_dim, *size)
            drawn = [torch.randn(shape, generator=request.random) for request in requests]
            return torch.cat(drawn).to(self.device)

        def decode(latents: Tensor, index: int) -> Volume:
            """One of the batch, by itself: an image takes far more memory than its latents."""
            label = conditions.labels[index : index + 1]
            tile, restored = self._tile_for(label.shape[1:]), self.scale.restore(latents)
            image = net.decode(restored[index : index + 1], tile=tile, vessels=self._vessels(label))
            return self.grid.volume(image, maps[index].affine)

        reached = [0.0] * len(requests)

        def show(times: Tensor, latents: Tensor) -> None:
            for index, t in enumerate(times.tolist()):
                if t > reached[index]:  # not every case has moved in a step of dopri5
                    reached[index] = t
                    callback(index, t, decode(latents, index))

        with self._autocast():
            latents, evaluations = build_objective(self.config).sample(
                self._velocity(conditions, size, maps[0].spacing, parts, sampling),
                normal(),
                sampling,
                normal,
                show if callback else None,
            )
            _finite(latents, "generator")
            return [
                Sample(decode(latents, i), labels, evaluations, latents[i : i + 1])
                for i, labels in enumerate(maps)
            ]

    def _set_control(self, scale: float) -> None:
        if self.unet is None:
            raise InputError("a stage-1 checkpoint cannot synthesise: give one of stage 2 or 3")
        if isinstance(self.unet, ControlledUNet):
            self.unet.scale = scale
        elif scale != 1.0:
            raise InputError(f"control scale {scale}: this model has no ControlNet (stage 3)")

    def _sampling(self, sampling: SamplingConfig | None, changes: dict) -> SamplingConfig:
        if "steps" in changes:
            changes = {"time_grid": None, **changes}  # a grid that is given says its own number
        sampling = replace(sampling or self.config.sampling, **changes)
        check_sampling(self.config, sampling, "this model")
        return sampling

    def trace(self, labels: Volume) -> VesselTokens:
        """The vessels of a label map: to be changed and handed to `sample`."""
        return trace(labels, self.config)

    def _velocity(
        self,
        conditions: Conditions,
        size,
        spacing,
        parts: list[GuidanceTerm],
        sampling: SamplingConfig,
    ) -> Velocity:
        """The guided velocity of a batch; what time does not change is computed here, once."""
        cases = len(conditions.labels)
        kept = torch.tensor([[term.label, term.vessels] for term in parts], device=self.device)
        keep_label, keep_vessels = kept.float().repeat_interleave(cases, dim=0).unbind(1)
        told = replace(conditions, keep_label=keep_label, keep_vessels=keep_vessels)
        spacing_mm = torch.tensor(spacing[: self.config.dim], dtype=torch.float32)
        spacing_mm = spacing_mm.to(self.device).expand(len(kept) * cases, -1)
        prepared = self.unet.cache_conditions(told, size, spacing_mm)
        fullest = prepared.rows(torch.arange(cases, device=self.device))

        def network(x, t):
            return self.unet(x, t, spacing_mm, prepared).float()

        def conditional(x, t):
            return self.unet(x, t, spacing_mm[:cases], fullest).float()

        interval = tuple(sampling.guidance_interval)
        return guided(network, [term.weight for term in parts], conditional, interval)


def _finite(latents: Tensor, source: str) -> Tensor:
    """The latents; InputError where they are not finite: a codebook would make a CT of them too."""
    if not latents.isfinite().all():
        raise InputError(
            f"the {source} of this model gives latents that are not finite: use --precision 32 if"
            " it was less, or a checkpoint from before its training went wrong"
        )
    return latents
