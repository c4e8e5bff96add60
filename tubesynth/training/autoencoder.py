"""Stage 1: the VQ-VAE and its patch discriminator.

The published loss is L1 + spectral amplitude + the quantizer's terms + 0.005 x least-squares GAN +
0.001 x perceptual; the config can add or replace terms. The generator's phase stores its
reconstruction in the batch for the discriminator's phase, so each module runs forward once a step.
"""

from collections.abc import Iterator
from functools import reduce
from operator import add

import numpy as np
import torch
from torch import Tensor, nn

from tubesynth.build.checkpoint import Position
from tubesynth.build.networks import build_autoencoder, build_discriminator
from tubesynth.conditioning.conditions import decoder_condition_of
from tubesynth.config.schema import Stage1Config, uses_perceptual
from tubesynth.losses.autoencoder import (
    DISCRIMINATOR_LOSS,
    GENERATOR_LOSS,
    adaptive_weight,
    feature_matching_loss,
    l1_loss,
    l2_loss,
    region_weights,
    spectral_loss,
)
from tubesynth.metrics.dilation import dilated
from tubesynth.metrics.image import psnr, ssim
from tubesynth.metrics.vessel_fidelity import VesselSurroundings, mean_fidelity, vessel_fidelity
from tubesynth.runtime import dist
from tubesynth.runtime.precision import autocast
from tubesynth.runtime.seeding import generator
from tubesynth.training.codebook import CodebookUsage, CollapseWarning
from tubesynth.training.inputs import Volumes
from tubesynth.training.perceptual import Perceptual
from tubesynth.training.phase import Phase
from tubesynth.volume.intensity import unit_to_hu


class AutoencoderStage:
    """Stage 1 for the training loop: its phases, batches, validation and panels."""

    progress_terms: tuple[str, ...] = ("l1", "spectral", "generator", "discriminator")
    printed_scores: tuple[str, ...] = (
        "loss",
        "psnr",
        "ssim",
        "vessel_psnr",
        "vessel_contrast_kept",
    )
    latents = None

    def __init__(self, config: Stage1Config, volumes: Volumes, position: Position, device):
        self.config, self.volumes, self.position, self.device = config, volumes, position, device
        self.autoencoder = build_autoencoder(config)
        self.discriminator = build_discriminator(config)
        self.usage = self._codebook_usage()
        if self.usage:
            self.collapse = CollapseWarning(len(self.usage.counts), config.train.warmup_steps)
        rate = config.train.learning_rate
        self.phases = [
            Phase(
                "autoencoder",
                self.autoencoder,
                self.generator_loss,
                rate,
                statistics=self.codebook_scores if self.usage else dict,
                counts=self.usage.counts if self.usage else None,
            ),
            Phase(
                "discriminator",
                self.discriminator,
                self.discriminator_loss,
                rate * config.discriminator.learning_rate_ratio,
            ),
        ]
        for phase in self.phases:
            phase.place(device, config.train)
        self.perceptual = None
        if uses_perceptual(config.losses):
            self.perceptual = Perceptual(config.losses, config.seed, device)
        # By case id, computed when a case is first validated; None for a case without vessels.
        self.surroundings: dict[str, VesselSurroundings | None] = {}

    def generator_loss(self, forward: nn.Module, batch: dict) -> dict[str, Tensor]:
        """The weighted terms of the autoencoder; stores batch["reconstruction"], detached."""
        weights = self.config.losses
        image = batch["image"]
        condition = decoder_condition_of(batch, self._keep_condition(batch["sample_index"]))
        reconstruction, quantizer_terms, indices = forward(image, condition)
        if self.usage:
            self.usage.add(indices)
        batch["reconstruction"] = reconstruction.detach()
        terms = self.reconstruction_terms(reconstruction, batch)
        if self.perceptual:
            distance = self.perceptual(reconstruction, image, batch["sample_index"])
            terms["perceptual"] = weights.perceptual * distance
        if self._adversarial():
            terms |= self.adversarial_terms(reconstruction, image, terms)
        return {**terms, **quantizer_terms}

    def _keep_condition(self, sample_indices: list[int]) -> Tensor:
        """(B, 2) of 0 or 1, keyed by sample index: fields and labels, dropped independently."""
        seed, dropout = self.config.seed, self.config.autoencoder.condition_dropout
        randoms = [generator(self.device, seed, "condition", index) for index in sample_indices]
        values = [torch.rand(2, generator=random, device=self.device) for random in randoms]
        return (torch.stack(values) >= dropout).float()

    def vessels(self, batch: dict) -> Tensor:
        """The vessel mask of a batch, (B, X, ...) bool."""
        return batch["label"] == self.config.labels.vessel

    def near_vessels(self, batch: dict) -> Tensor:
        """(B, X, ...) bool: within losses.vessel_margin_mm of a vessel, one voxel at least."""
        least = self.config.losses.vessel_margin_mm
        # Turned samples of a batch have different spacings along the same axis.
        masks = zip(self.vessels(batch), batch["spacing"].tolist(), strict=True)
        return torch.cat(
            [
                dilated(mask[None], spacing[: mask.ndim], max(least, *spacing[: mask.ndim]))
                for mask, spacing in masks
            ]
        )

    def reconstruction_terms(self, reconstruction: Tensor, batch: dict) -> dict[str, Tensor]:
        """The weighted L1, L2 and spectral terms between image and reconstruction."""
        weights, image = self.config.losses, batch["image"]
        voxel_weights = None
        if weights.vessel_weight != 1:
            voxel_weights = region_weights(self.near_vessels(batch), weights.vessel_weight)
        terms = {}
        if weights.l1:
            terms["l1"] = weights.l1 * l1_loss(reconstruction, image, voxel_weights)
        if weights.l2:
            terms["l2"] = weights.l2 * l2_loss(reconstruction, image, voxel_weights)
        if weights.vessel_l1:
            mask = self.vessels(batch)[:, None].float()
            terms["vessel_l1"] = weights.vessel_l1 * l1_loss(reconstruction, image, mask)
        if weights.spectral:
            terms["spectral"] = weights.spectral * spectral_loss(reconstruction, image)
        return terms

    def adversarial_terms(
        self, reconstruction: Tensor, image: Tensor, reconstruction_terms: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """The weighted feature-matching and generator terms.

        reconstruction_terms: the adaptive weight is the ratio of their gradient to the generator's.
        """
        weights, terms = self.config.losses, {}
        # The raw module with frozen weights: only the generator gets a gradient from this pass.
        self.discriminator.requires_grad_(False)
        features, scores = self.discriminator.features(reconstruction)
        if weights.feature_matching:
            real_features, _ = self.discriminator.features(image)
            matching = feature_matching_loss(features, real_features)
            terms["feature_matching"] = weights.feature_matching * matching
        self.discriminator.requires_grad_(True)
        loss = GENERATOR_LOSS[weights.adversarial_objective](scores)
        if weights.adversarial_weighting != "fixed":
            references, offset = {**reconstruction_terms, **terms}, {}
            if weights.adversarial_weighting == "adaptive_published":
                references.pop("spectral", None)
                offset = {"offset": 1e-4}
            loss = loss * adaptive_weight(
                self.last_layer_gradient(reduce(add, references.values())),
                self.last_layer_gradient(loss),
                **offset,
            )
        return {**terms, "generator": weights.adversarial * loss}

    def last_layer_gradient(self, loss: Tensor) -> Tensor:
        """The gradient of the decoder's last weights, averaged over the ranks."""
        # Scaled like the loss of the step, or small gradients underflow in 16 bits.
        scale = self.phases[0].scaler.scale(torch.ones((), device=loss.device))
        weight = self.autoencoder.last_layer.weight
        with torch.autocast(loss.device.type, enabled=False):
            (gradient,) = torch.autograd.grad(loss * scale, weight, retain_graph=True)
        return dist.mean_over_ranks(gradient / scale)

    def discriminator_loss(self, forward: nn.Module, batch: dict) -> dict[str, Tensor]:
        """One term, from real and reconstructed images; none before adversarial_from_step."""
        if not self._adversarial():
            return {}
        loss = DISCRIMINATOR_LOSS[self.config.losses.adversarial_objective]
        pair = torch.cat([batch["image"], batch["reconstruction"]])
        real_scores, fake_scores = forward(pair).chunk(2)
        weight = self.config.losses.discriminator
        return {"discriminator": weight * loss(real_scores, fake_scores)}

    def codebook_scores(self) -> dict[str, float]:
        """Scores of the codebook in the training steps since the last call."""
        assert self.usage
        scores = self.usage.scores()
        self.collapse.check(self.position.step, scores["codebook_perplexity"])
        return scores

    def _codebook_usage(self) -> CodebookUsage | None:
        """A new counter of the codes; None for continuous latents, which have no codes."""
        codes = self.autoencoder.quantizer.num_codes
        return None if codes is None else CodebookUsage(codes, self.device)

    def _adversarial(self) -> bool:
        losses = self.config.losses
        return losses.adversarial > 0 and self.position.step >= losses.adversarial_from_step

    def batches(self, start: int, end: int) -> Iterator[dict]:
        return self.volumes.batches(start, end, self.device)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Means over the validation cases as whole volumes: loss (the sum of reconstruction_terms),
        psnr, ssim, the codebook scores, and the scores of metrics/vessel_fidelity.py near vessels.
        """
        sums, rows, usage, cases = dist.interruptible(self._validate_cases, "in a validation")
        *totals, number = dist.sum_over_ranks(*sums.values(), cases)
        scores = {name: total / number for name, total in zip(sums, totals, strict=True)}
        scores |= usage.scores() if usage else {}
        return scores | mean_fidelity(dist.gather_rows(rows))

    def _validate_cases(self) -> tuple[dict[str, float], list[dict], CodebookUsage | None, int]:
        """This rank's sums of the scores, rows near vessels, codes, and number of cases."""
        weights = self.config.losses
        names = ("l1", "l2", "vessel_l1", "spectral")
        terms = [name for name in names if getattr(weights, name)]
        # The same keys on every rank, also on one without a case: their sums are added up.
        sums = dict.fromkeys(("loss", *terms, "psnr", "ssim"), 0.0)
        rows = []
        usage = self._codebook_usage()
        cases = 0
        self.autoencoder.eval()
        for batch in self.volumes.validation_batches(self.device):
            image = batch["image"]
            cases += 1
            reconstruction, indices = self._reconstruct(batch)
            for name, term in self.reconstruction_terms(reconstruction, batch).items():
                sums[name] += term.item()
                sums["loss"] += term.item()
            clipped = reconstruction.clamp(0, 1)
            sums["psnr"] += psnr(clipped, image, 1.0)[0]
            sums["ssim"] += ssim(clipped, image, 1.0)[0]
            rows += self.vessel_rows(batch, clipped)
            if usage and indices is not None:
                usage.add(indices)
        self.autoencoder.train()
        return sums, rows, usage, cases

    def _reconstruct(self, batch: dict) -> tuple[Tensor, Tensor | None]:
        """Reconstruction in 32 bits and code indices, computed in the precision of the training."""
        with autocast(self.device, self.config.train.precision):
            condition = decoder_condition_of(batch)
            reconstruction, _, indices = self.autoencoder(batch["image"], condition)
        return reconstruction.float(), indices

    def vessel_rows(self, batch: dict, reconstruction: Tensor) -> list[dict]:
        """One row for a validation case with vessels, no row for a case without or unlabeled."""
        flat = (...,) if self.config.dim == 3 else (..., None)
        if "label" not in batch:
            return []
        case = batch["case"][0]
        if case not in self.surroundings:
            vessels = self.vessels(batch)[0].cpu().numpy()[flat]
            spacing = batch["spacing"][0].numpy()
            self.surroundings[case] = VesselSurroundings.of(vessels, spacing)
        surroundings, window = self.surroundings[case], self.config.data.hu_window
        if surroundings is None:
            return []
        real_hu, reconstruction_hu = (
            unit_to_hu(unit[0, 0].float().cpu().numpy(), window)[flat]
            for unit in (batch["image"], reconstruction)
        )
        return [vessel_fidelity(real_hu, reconstruction_hu, surroundings, window[1] - window[0])]

    @torch.no_grad()
    def preview(self) -> dict:
        return self.volumes.previews(self.config.train.panel_cases, self._panel)

    def _panel(self, index: int) -> np.ndarray:
        batch = self.volumes.validation_batch(index, self.device)
        self.autoencoder.eval()
        reconstruction, _ = self._reconstruct(batch)
        self.autoencoder.train()
        pictures = {"real": batch["image"], "reconstruction": reconstruction}
        return self.volumes.panel(batch, pictures)
