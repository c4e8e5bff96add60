"""The Python API: load a checkpoint, then reconstruct or synthesise one Volume at a time.

    from tubesynth.pipeline import Pipeline
    from tubesynth.volume.files import read_labels, write_volume

    pipeline = Pipeline.load("runs/stage_2_3d_f4_lfm_base/checkpoints/last.ckpt")
    volume = pipeline.synthesize(read_labels("1.label.nii.gz"), seed=0)
    write_volume("new.img.nii.gz", volume, "int16")

A checkpoint of stage 2 or 3 holds the autoencoder that made its latents, and one of stage 3 its
base model too, so one file is all there is to carry.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tubesynth.config import Config, SamplingConfig, Stage2Config, uses_vessels, vessel_class
from tubesynth.config_checks import check_sampling
from tubesynth.config_loading import config_from_plain
from tubesynth.data.dataset import pad_tokens
from tubesynth.data.tokens import latent_fields
from tubesynth.errors import InputError
from tubesynth.generative.guidance import Side, guided, sides
from tubesynth.model_grid import ModelGrid, pad_to_multiple
from tubesynth.models.conditions import Conditions
from tubesynth.models.controlnet import ControlledUNet
from tubesynth.models.scale import LatentScale
from tubesynth.models.tiling import largest_tile
from tubesynth.models.unet import UNet
from tubesynth.models.vqvae import VQVAE
from tubesynth.runtime import checkpoint
from tubesynth.runtime.ema import weights_to_use
from tubesynth.runtime.memory import free_bytes
from tubesynth.runtime.seeding import generator
from tubesynth.training.autoencoder import build_autoencoder
from tubesynth.training.control import build_network
from tubesynth.training.latent import build_objective
from tubesynth.training.loop import AUTOCAST_DTYPE
from tubesynth.volume.files import check_labels
from tubesynth.volume.grid import Volume
from tubesynth.volume.intensity import hu_to_unit
from tubesynth.volume.resample import resample_labels
from tubesynth.volume.vessels import VesselTokens, extract_tokens, paint_vessels, place_tokens


@dataclass
class Sample:
    """A synthetic volume (int16 HU), its labels (uint8) on the same grid, and what it cost.

    latents: (1, C, x, ...), normalised, where the solver ended.
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
        self.tile, self.grid = tile, ModelGrid(config, device)
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
        state = checkpoint.load(path)
        config = config_from_plain(state["config"], str(path))
        if config.stage == 1:
            weights = state["phases"]["autoencoder"]["module"]
            autoencoder = build_autoencoder(config)
            autoencoder.load_state_dict(weights)
            digest = checkpoint.digest(weights)
            return cls(config, autoencoder, None, None, digest, device, precision, tile)
        if not isinstance(config, Stage2Config):
            raise InputError(f"{path}: of stage {config.stage}: it makes no images")
        stored = state["autoencoder"]
        autoencoder = build_autoencoder(config_from_plain(stored["config"], str(path)))
        autoencoder.load_state_dict(stored["module"])
        unet = build_network(config, autoencoder.embedding_dim, autoencoder.factor)
        phase = state["phases"]["unet"]
        weights = weights_to_use(phase, ema)
        unet.load_state_dict(weights)
        scale = LatentScale(**state["latent_scale"])
        digest = checkpoint.digest(weights)
        return cls(config, autoencoder, unet, scale, digest, device, precision, tile)

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
        prepared = self.grid.prepare_image(volume, spacing, resolution)
        unit = hu_to_unit(prepared.array.astype(np.float32), self.config.data.hu_window)
        padded, crop = pad_to_multiple(self.grid.tensor(unit)[None, None], net.factor)
        vessels = None
        if net.vessel_mask:
            check_labels(labels.array, self.config.data.num_classes, "label map")
            on_grid = resample_labels(labels, prepared.shape, prepared.affine)
            label, _ = pad_to_multiple(
                self.grid.tensor(on_grid.array)[None, None].float(), net.factor
            )
            vessels = self._vessels(label[:, 0])
        tile = self._tile_for(padded.shape[2:])
        with self._autocast():
            out = net.decode(net.encode(padded, tile), tile=tile, vessels=vessels)
        return self.grid.volume(out[crop], prepared.affine)

    def _vessels(self, label: Tensor) -> Tensor:
        """Labels (B, X, ...) -> (B, X, ...) bool."""
        return label == vessel_class(self.config.data)

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

    @torch.no_grad()
    def sample(
        self,
        labels: Volume | None,
        random: torch.Generator,
        sampling: SamplingConfig | None = None,
        vessels: VesselTokens | None = None,
        guidance_label: float = 1.0,
        guidance_vessel: float = 1.0,
        control_scale: float = 1.0,
        spacing=None,
        resolution=None,
        callback: Callable[[float, Volume], None] | None = None,
        **changes,
    ) -> Sample:
        """Like `synthesize`, with the cost. `changes`: fields of SamplingConfig (solver, steps,
        ...).

        vessels: in mm from the middle of the label map, instead of its own, which are painted over;
        by default the model's vessel class is traced in the label map. A map without vessels is a
        case without vessels.
        guidance_*: 1 is the conditional model; other weights are guidance (generative/guidance.py),
        for a model that was trained with that condition dropped. 0 leaves the condition out.
        control_scale: of what the ControlNet of a stage-3 model says; 0 is the base model.
        """
        if self.unet is None:
            raise InputError("a stage-1 checkpoint cannot synthesise: give one of stage 2 or 3")
        if isinstance(self.unet, ControlledUNet):
            self.unet.scale = control_scale
        elif control_scale != 1.0:
            raise InputError(
                f"control scale {control_scale}: this model has no ControlNet (stage 3)"
            )
        config = self.config
        if "steps" in changes:
            changes = {"time_grid": None, **changes}  # a grid that is given says its own number
        sampling = replace(sampling or config.sampling, **changes)
        check_sampling(config, sampling, "this model")
        has_vessels = uses_vessels(config.unet) and not (labels is None and vessels is None)
        if not uses_vessels(config.unet) and (labels is None and vessels or guidance_vessel != 1.0):
            raise InputError(
                "this model was trained without vessels (unet.vessel_attention, vessel_fields): it"
                " has them from a label map alone; leave --guidance-vessel at 1"
            )
        parts = sides(
            None if labels is None else guidance_label, guidance_vessel if has_vessels else None
        )
        self._check_sides(parts)
        asked = self.grid.blank_labels(spacing, resolution) if labels is None else labels
        prepared = self.grid.prepare_labels(asked, spacing, resolution)
        if vessels is not None:
            vessels = place_tokens(vessels, asked, prepared.shape, prepared.affine)
            prepared = paint_vessels(prepared, vessels, vessel_class(config.data))
        factor = self.autoencoder.factor
        label = self.grid.tensor(prepared.array)[None]
        if any(n % factor for n in label.shape[1:]):
            raise InputError(
                f"--resolution {' '.join(map(str, prepared.shape))}: every side must be a multiple"
                f" of {factor}"
            )
        size = tuple(n // factor for n in label.shape[1:])
        # Noise is drawn on the CPU: the same seed is the same noise on every device.
        noise = torch.randn((1, self.autoencoder.embedding_dim, *size), generator=random)
        spacing_mm = torch.tensor(prepared.spacing[: self.config.dim], dtype=torch.float32)
        spacing_mm = spacing_mm[None].to(self.device)
        tokens = fields = None
        if has_vessels:
            if vessels is None:
                traced = self.trace(labels)
                vessels = place_tokens(traced, labels, prepared.shape, prepared.affine)
            tokens, fields = self._vessel_tensors(vessels, prepared)
        conditions = Conditions(label, tokens, fields)

        def decode(latents: Tensor) -> Volume:
            tile = self._tile_for(label.shape[1:])
            restored = self.scale.restore(latents)
            image = self.autoencoder.decode(restored, tile=tile, vessels=self._vessels(label))
            return self.grid.volume(image, prepared.affine)

        with self._autocast():
            latents, evaluations = build_objective(config).sample(
                self._velocity(conditions, size, spacing_mm, parts, sampling.guidance_interval),
                noise.to(self.device),
                sampling,
                random,
                (lambda t, x: callback(t, decode(x))) if callback else None,
            )
            return Sample(decode(latents), prepared, evaluations, latents)

    def _check_sides(self, parts: list[Side]) -> None:
        """InputError where a side leaves out a condition that the model never had to do without."""
        mode, objective = self.config.latent_mode, self.config.objective
        if objective.label_dropout == 0 and not all(side.label for side in parts):
            raise InputError(
                f"this model was trained without {mode}.label_dropout, so it has no side without"
                " labels: give labels, and leave --guidance-label at 1"
            )
        if not uses_vessels(self.config.unet):
            return
        if objective.vessel_dropout == 0 and not all(side.vessels for side in parts):
            raise InputError(
                f"this model was trained without {mode}.vessel_dropout, so it has no side without"
                " vessels: leave --guidance-label and --guidance-vessel at 1"
            )

    def trace(self, labels: Volume) -> VesselTokens:
        """The tokens of a label map in its own voxels, as training has them: to be changed and
        handed to `sample` as its vessels.
        """
        data = self.config.data
        if data.token_step_mm is None:
            raise InputError("data.token_step_mm: not set, but this model takes vessel tokens")
        mask = labels.array == vessel_class(data)
        return extract_tokens(mask, labels.affine, data.token_step_mm)

    def _vessel_tensors(self, vessels: VesselTokens, labels: Volume) -> tuple[dict, Tensor]:
        """Padded tokens and the vessel fields (1, 2, x, ...), both of one case."""
        tokens = {k: v.to(self.device) for k, v in pad_tokens([vars(vessels)]).items()}
        fields = latent_fields(vessels, labels.shape, labels.spacing, self.autoencoder.factor)
        fields = fields[..., 0] if self.config.dim == 2 else fields
        return tokens, torch.from_numpy(fields)[None].to(self.device)

    def _velocity(
        self, conditions: Conditions, size, spacing_mm: Tensor, parts: list[Side], interval
    ):
        """The guided velocity of one case; what time does not change is computed here, once."""
        count = len(parts)
        kept = torch.tensor([[side.label, side.vessels] for side in parts], device=self.device)
        told = conditions.told(*kept.float().unbind(1))
        prepared = self.unet.prepare(told, size, spacing_mm.expand(count, -1))
        fullest = prepared.rows(torch.tensor([0], device=self.device))

        def network(x, t):
            return self.unet(x, t, spacing_mm.expand(count, -1), prepared).float()

        def conditional(x, t):
            return self.unet(x, t, spacing_mm, fullest).float()

        return guided(network, [side.weight for side in parts], conditional, tuple(interval))
