"""Stage 1: the VQ-VAE against a patch discriminator.

Losses as published: L1 + spectral amplitude + the quantizer's own + 0.005 x least-squares GAN +
0.001 x perceptual; and those that the config adds or puts in their place. The generator's phase
leaves its reconstruction in the batch, and the discriminator's phase takes it from there: one
forward per module and step.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from tubesynth.build.checkpoint import Position
from tubesynth.build.networks import build_autoencoder, build_discriminator
from tubesynth.config.schema import Stage1Config
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
from tubesynth.metrics.vessel_fidelity import (
    VesselSurroundings,
    mean_fidelity,
    vessel_fidelity,
)
from tubesynth.runtime import dist
from tubesynth.training.codebook import CodebookUsage, CollapseWarning
from tubesynth.training.inputs import Volumes
from tubesynth.training.perceptual import Perceptual
from tubesynth.training.phase import Phase
from tubesynth.volume.intensity import unit_to_hu


class AutoencoderStage:
    """Stage 1 as the loop sees it."""

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
            codes = self.autoencoder.quantizer.num_codes
            self.collapse = CollapseWarning(codes, config.train.warmup_steps)
        rate = config.train.learning_rate
        self.phases = [
            Phase(
                "autoencoder",
                self.autoencoder,
                self.generator_loss,
                rate,
                statistics=self.codebook_scores if self.usage else dict,
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
        if config.losses.perceptual > 0:
            self.perceptual = Perceptual(config.losses, config.seed, device)
        # By validation case, worked out when it is first asked for; None: it has no vessels.
        self.surroundings: dict[str, VesselSurroundings | None] = {}

    def generator_loss(self, forward: nn.Module, batch: dict) -> dict[str, Tensor]:
        weights = self.config.losses
        image = batch["image"]
        reconstruction, quantizer_terms, indices = forward(image, self.vessels(batch))
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

    def vessels(self, batch: dict) -> Tensor:
        """(B, X, ...) bool."""
        return batch["label"] == self.config.labels.vessel

    def reconstruction_terms(self, reconstruction: Tensor, batch: dict) -> dict[str, Tensor]:
        """What compares voxel by voxel and frequency by frequency."""
        weights, spacing, image = self.config.losses, self.config.data.spacing, batch["image"]
        voxels = None
        if weights.vessel_weight != 1:
            reach_mm = max(weights.vessel_margin_mm, *spacing)
            near = dilated(self.vessels(batch), spacing, reach_mm)
            voxels = region_weights(near, weights.vessel_weight)
        terms = {}
        if weights.l1:
            terms["l1"] = weights.l1 * l1_loss(reconstruction, image, voxels)
        if weights.l2:
            terms["l2"] = weights.l2 * l2_loss(reconstruction, image, voxels)
        if weights.spectral:
            terms["spectral"] = weights.spectral * spectral_loss(reconstruction, image)
        return terms

    def adversarial_terms(
        self, reconstruction: Tensor, image: Tensor, others: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """What the discriminator says; `others` are the terms that its share is balanced with."""
        weights, terms = self.config.losses, {}
        # The raw module with frozen weights: this pass is for the generator's gradient alone.
        self.discriminator.requires_grad_(False)
        features, scores = self.discriminator.features(reconstruction)
        if weights.feature_matching:
            real_features, _ = self.discriminator.features(image)
            matching = feature_matching_loss(features, real_features)
            terms["feature_matching"] = weights.feature_matching * matching
        self.discriminator.requires_grad_(True)
        loss = GENERATOR_LOSS[weights.adversarial_objective](scores)
        if weights.adversarial_weighting == "adaptive":
            reconstruction_loss = sum({**others, **terms}.values())
            loss = loss * adaptive_weight(
                self.last_layer_gradient(reconstruction_loss), self.last_layer_gradient(loss)
            )
        return {**terms, "generator": weights.adversarial * loss}

    def last_layer_gradient(self, loss: Tensor) -> Tensor:
        """Of the decoder's last weights, averaged over the ranks as the step's gradient will be."""
        # Scaled like the step's own loss, or 16-bit gradients vanish on their way.
        scale = self.phases[0].scaler.scale(torch.ones((), device=loss.device))
        weight = self.autoencoder.last_layer.weight
        with torch.autocast(loss.device.type, enabled=False):
            (gradient,) = torch.autograd.grad(loss * scale, weight, retain_graph=True)
        return dist.mean_over_ranks(gradient / scale)

    def discriminator_loss(self, forward: nn.Module, batch: dict) -> dict[str, Tensor]:
        if not self._adversarial():
            return {}
        loss = DISCRIMINATOR_LOSS[self.config.losses.adversarial_objective]
        pair = torch.cat([batch["image"], batch["reconstruction"]])
        real_scores, fake_scores = forward(pair).chunk(2)
        return {"discriminator": loss(real_scores, fake_scores)}

    def codebook_scores(self) -> dict[str, float]:
        """Of the training steps since they were asked for last."""
        scores = self.usage.scores()
        self.collapse.check(self.position.step, scores["codebook_perplexity"])
        return scores

    def _codebook_usage(self) -> CodebookUsage | None:
        """A fresh count; None where latents are continuous."""
        codes = self.autoencoder.quantizer.num_codes
        return None if codes is None else CodebookUsage(codes, self.device)

    def _adversarial(self) -> bool:
        losses = self.config.losses
        return losses.adversarial > 0 and self.position.step >= losses.adversarial_from_step

    def batches(self, draw: int, end_draw: int) -> Iterator[dict]:
        return self.volumes.batches(draw, end_draw, self.device)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Means over the validation cases, whole volumes: loss (of reconstruction_terms), psnr,
        ssim; how the codes are used, where there are any; and what metrics/vessel_fidelity.py finds
        near the vessels.
        """
        weights = self.config.losses
        terms = [name for name in ("l1", "l2", "spectral") if getattr(weights, name)]
        # Fixed before the first case: a rank may have none, and sums what the others sum.
        sums = dict.fromkeys(("loss", *terms, "psnr", "ssim"), 0.0)
        rows = []
        usage = self._codebook_usage()
        cases = 0
        self.autoencoder.eval()
        for batch in self.volumes.validation_batches(self.device):
            image = batch["image"]
            cases += 1
            reconstruction, _, indices = self.autoencoder(image, self.vessels(batch))
            for name, term in self.reconstruction_terms(reconstruction, batch).items():
                sums[name] += term.item()
                sums["loss"] += term.item()
            clipped = reconstruction.clamp(0, 1)
            sums["psnr"] += psnr(clipped, image, 1.0)[0]
            sums["ssim"] += ssim(clipped, image, 1.0)[0]
            rows += self.vessel_rows(batch, clipped)
            if usage:
                usage.add(indices)
        self.autoencoder.train()
        *totals, number = dist.sum_over_ranks(*sums.values(), cases)
        scores = {name: total / number for name, total in zip(sums, totals, strict=True)}
        scores |= usage.scores() if usage else {}
        return scores | mean_fidelity(dist.gather_rows(rows))

    def vessel_rows(self, batch: dict, reconstruction: Tensor) -> list[dict]:
        """The row of a validation case, none where it has no vessels."""
        flat = (...,) if self.config.dim == 3 else (..., None)
        case = batch["case"][0]
        if case not in self.surroundings:
            vessels = self.vessels(batch)[0].cpu().numpy()[flat]
            spacing = batch["spacing"][0].cpu().numpy()
            self.surroundings[case] = VesselSurroundings.of(vessels, spacing)
        around, window = self.surroundings[case], self.config.data.hu_window
        if around is None:
            return []
        real, made = (
            unit_to_hu(x[0, 0].float().cpu().numpy(), window)[flat]
            for x in (batch["image"], reconstruction)
        )
        return [vessel_fidelity(real, made, around, window[1] - window[0])]

    @torch.no_grad()
    def preview(self) -> dict:
        return self.volumes.previews(self.config.train.panel_cases, self._panel)

    def _panel(self, index: int) -> np.ndarray:
        batch = self.volumes.validation_batch(index, self.device)
        self.autoencoder.eval()
        reconstruction = self.autoencoder(batch["image"], self.vessels(batch))[0]
        self.autoencoder.train()
        pictures = {"real": batch["image"], "reconstruction": reconstruction}
        return self.volumes.panel(batch, pictures)
