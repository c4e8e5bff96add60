"""Training of the vessel segmenter, a small U-Net that measures whether synthetic data helps.

The loss is soft Dice plus cross-entropy, as in nnU-Net (Isensee et al. 2021). The scores are those
of whole real validation volumes.
"""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tubesynth.build.networks import build_segmenter
from tubesynth.config.schema import SegmenterConfig
from tubesynth.losses.segmentation import dice_loss
from tubesynth.metrics.overlap import centreline_overlap, dice
from tubesynth.runtime import dist
from tubesynth.runtime.precision import autocast
from tubesynth.training.inputs import Volumes
from tubesynth.training.phase import Phase


class SegmentationStage:
    """The segmenter for the training loop: its phase, batches, validation and panels."""

    progress_terms: tuple[str, ...] = ("dice_loss", "cross_entropy")
    printed_scores: tuple[str, ...] = ("loss", "dice")
    latents = None

    def __init__(self, config: SegmenterConfig, volumes: Volumes, device: torch.device):
        self.config, self.volumes, self.device = config, volumes, device
        self.vessel = config.labels.vessel
        self.segmenter = build_segmenter(config)
        train = config.train
        phase = Phase(
            "segmenter", self.segmenter, self.loss, train.learning_rate, train.ema_half_life
        )
        phase.place(device, train)
        self.phases = [phase]

    def loss(self, forward: nn.Module, batch: dict) -> dict[str, Tensor]:
        logits = forward(batch["image"]).float()
        target = (batch["label"] == self.vessel)[:, None].float()
        return {
            "dice_loss": dice_loss(logits, target),
            "cross_entropy": F.binary_cross_entropy_with_logits(logits, target),
        }

    def batches(self, start: int, end: int) -> Iterator[dict]:
        return self.volumes.batches(start, end, self.device)

    @torch.no_grad()
    def masks(self) -> Iterator[tuple[dict, np.ndarray, np.ndarray]]:
        """This rank's validation cases: (batch of one, mask, true mask), masks (X, Y, Z) bool."""
        self.segmenter.eval()
        for batch in self.volumes.validation_batches(self.device):
            mask = self._logits(batch["image"])[0, 0] > 0
            yield batch, mask.cpu().numpy(), (batch["label"][0] == self.vessel).cpu().numpy()
        self.segmenter.train()

    def _logits(self, image: Tensor) -> Tensor:
        with autocast(self.device, self.config.train.precision):
            return self.phases[0].sampled(image).float()

    def case_scores(self) -> list[dict]:
        """Dice and clDice of this rank's validation cases."""
        rows = []
        for batch, mask, truth in self.masks():
            spacing = batch["spacing"][0].numpy()
            cldice = centreline_overlap(mask, truth, spacing)["cldice"]
            rows.append({"case": batch["case"][0], "dice": dice(mask, truth), "cldice": cldice})
        return rows

    def validate(self) -> dict[str, float]:
        """Mean Dice over the validation cases, and the loss 1 - Dice."""
        values = dist.interruptible(
            lambda: [dice(mask, truth) for _, mask, truth in self.masks()], "in a validation"
        )
        defined = [value for value in values if value == value]  # NaN where both masks are empty
        total, count = dist.sum_over_ranks(sum(defined), len(defined))
        mean = total / count if count else float("nan")
        return {"loss": 1 - mean, "dice": mean}

    @torch.no_grad()
    def preview(self) -> dict:
        return self.volumes.previews(self.config.train.panel_cases, self._panel)

    def _panel(self, index: int) -> np.ndarray:
        batch = self.volumes.validation_batch(index, self.device)
        self.segmenter.eval()
        probability = self._logits(batch["image"]).sigmoid()
        self.segmenter.train()
        return self.volumes.panel(batch, {"real": batch["image"], "probability": probability})
