"""Stage 1: the VQ-VAE against a patch discriminator.

Losses as published: L1 + spectral amplitude + the quantiser's own + 0.005 x least-squares GAN. The
generator's phase leaves its reconstruction in the batch, and the discriminator's phase takes it
from there: one forward per module and step.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tubesynth.config import Stage1Config
from tubesynth.losses import lsgan_discriminator_loss, lsgan_generator_loss, spectral_loss
from tubesynth.metrics.image import psnr, ssim
from tubesynth.models.discriminator import PatchDiscriminator
from tubesynth.models.vqvae import VQVAE
from tubesynth.runtime import dist
from tubesynth.training.codebook import CodebookUsage
from tubesynth.training.inputs import Volumes
from tubesynth.training.loop import Phase, Position


def build_autoencoder(config: Stage1Config) -> VQVAE:
    model = config.autoencoder
    return VQVAE(
        dim=config.dim,
        channels=tuple(model.channels),
        residual_channels=tuple(model.residual_channels),
        num_residual_layers=model.num_residual_layers,
        embedding_dim=model.embedding_dim,
        quantizer=model.quantizer,
        codebook_size=model.codebook_size,
        commitment=model.commitment,
        codebook_decay=model.codebook_decay,
        revive_after=model.revive_after,
        fsq_levels=tuple(model.fsq_levels),
        kl_weight=model.kl_weight,
        checkpointing=config.train.checkpointing,
    )


def build_discriminator(config: Stage1Config) -> PatchDiscriminator:
    settings = config.discriminator
    return PatchDiscriminator(config.dim, settings.channels, settings.num_layers)


class AutoencoderStage:
    """Stage 1 as the loop sees it."""

    shown = ("l1", "spectral", "generator", "discriminator")

    def __init__(self, config: Stage1Config, volumes: Volumes, position: Position, device):
        self.config, self.volumes, self.position, self.device = config, volumes, position, device
        self.autoencoder = build_autoencoder(config)
        self.discriminator = build_discriminator(config)
        self.usage = self._codebook_usage()
        rate = config.train.learning_rate
        self.phases = [
            Phase(
                "autoencoder",
                self.autoencoder,
                self.generator_loss,
                rate,
                statistics=self.usage.scores if self.usage else dict,
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

    def generator_loss(self, forward: nn.Module, batch: dict) -> dict[str, Tensor]:
        weights = self.config.losses
        image = batch["image"]
        reconstruction, quantiser_terms, indices = forward(image)
        if self.usage:
            self.usage.add(indices)
        batch["reconstruction"] = reconstruction.detach()
        terms = {
            "l1": weights.l1 * F.l1_loss(reconstruction.float(), image),
            "spectral": weights.spectral * spectral_loss(reconstruction, image),
            **quantiser_terms,
        }
        if self._adversarial():
            # The raw module with frozen weights: this pass is for the generator's gradient alone.
            self.discriminator.requires_grad_(False)
            scores = self.discriminator(reconstruction)
            self.discriminator.requires_grad_(True)
            terms["generator"] = weights.adversarial * lsgan_generator_loss(scores)
        return terms

    def discriminator_loss(self, forward: nn.Module, batch: dict) -> dict[str, Tensor]:
        if not self._adversarial():
            return {}
        pair = torch.cat([batch["image"], batch["reconstruction"]])
        real_scores, fake_scores = forward(pair).chunk(2)
        return {"discriminator": lsgan_discriminator_loss(real_scores, fake_scores)}

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
        """Means over the validation cases, whole volumes: loss (l1 + spectral), psnr, ssim; how the
        codes are used, where there are any.
        """
        weights = self.config.losses
        sums = dict.fromkeys(("loss", "l1", "spectral", "psnr", "ssim"), 0.0)
        usage = self._codebook_usage()
        cases = 0
        self.autoencoder.eval()
        for batch in self.volumes.validation_batches(self.device):
            image = batch["image"]
            cases += 1
            reconstruction, _, indices = self.autoencoder(image)
            l1 = weights.l1 * F.l1_loss(reconstruction, image).item()
            spectral = weights.spectral * spectral_loss(reconstruction, image).item()
            clipped = reconstruction.clamp(0, 1)
            sums["l1"] += l1
            sums["spectral"] += spectral
            sums["loss"] += l1 + spectral
            sums["psnr"] += psnr(clipped, image, 1.0)[0]
            sums["ssim"] += ssim(clipped, image, 1.0)[0]
            if usage:
                usage.add(indices)
        self.autoencoder.train()
        *totals, number = dist.sum_over_ranks(*sums.values(), cases)
        scores = {name: total / number for name, total in zip(sums, totals, strict=True)}
        return scores | (usage.scores() if usage else {})

    @torch.no_grad()
    def preview(self) -> dict:
        if not dist.is_main():
            return {}
        return self.volumes.previews(self.config.train.panel_cases, self._panel)

    def _panel(self, index: int) -> np.ndarray:
        batch = self.volumes.validation_batch(index, self.device)
        self.autoencoder.eval()
        reconstruction = self.autoencoder(batch["image"])[0]
        self.autoencoder.train()
        pictures = {"real": batch["image"], "reconstruction": reconstruction}
        return self.volumes.panel(batch, pictures)

    def extra_state(self) -> dict:
        return {}

    def check_resumed(self, state: dict, path: Path) -> None:
        """Nothing but the phases belongs to this stage."""
