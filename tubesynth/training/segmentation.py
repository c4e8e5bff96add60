"""The segmenter: a small U-Net for the vessels, to ask whether synthetic data helps.

Loss: soft Dice and cross-entropy, the common pair (nnU-Net, Isensee et al. 2021). Scores are those
of whole real volumes that it has not seen.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tubesynth.config import SegmenterConfig, vessel_class
from tubesynth.config_loading import config_from_plain
from tubesynth.losses import dice_loss
from tubesynth.metrics.overlap import centreline_overlap, dice
from tubesynth.models.segmenter import SegmentationUNet
from tubesynth.runtime import checkpoint, dist
from tubesynth.runtime.ema import weights_to_use
from tubesynth.training.inputs import Volumes
from tubesynth.training.phase import Phase
from tubesynth.volume.grid import Volume
from tubesynth.volume.intensity import hu_to_unit
from tubesynth.volume.resample import resample_image, target_grid


def build_segmenter(config: SegmenterConfig) -> SegmentationUNet:
    return SegmentationUNet(config.dim, tuple(config.segmenter.channels))


class VesselSegmenter:
    """A trained segmenter: a CT in HU -> the mask (uint8) of its vessels on the CT's own grid.

    The mask is 0 outside of the model's field of view.
    """

    def __init__(self, config: SegmenterConfig, net: SegmentationUNet, device: torch.device):
        self.data, self.device = config.data, device
        self.net = net.to(device).eval()

    @classmethod
    def load(cls, path: str | Path, device: torch.device) -> "VesselSegmenter":
        state = checkpoint.load(path, stage="segmenter")
        config = config_from_plain(state["config"], str(path))
        net = build_segmenter(config)
        phase = state["phases"]["segmenter"]
        net.load_state_dict(weights_to_use(phase))
        return cls(config, net, device)

    @torch.no_grad()
    def __call__(self, ct: Volume) -> Volume:
        shape, affine = target_grid(ct, self.data.spacing, self.data.resolution)
        prepared = resample_image(ct, shape, affine, fill=self.data.hu_window[0])
        unit = hu_to_unit(prepared.array.astype(np.float32), self.data.hu_window)
        logits = self.net(torch.from_numpy(unit)[None, None].to(self.device))[0, 0]
        logits = Volume(logits.float().cpu().numpy(), affine)
        found = resample_image(logits, ct.shape, ct.affine, fill=-10.0)
        return Volume((found.array > 0).astype(np.uint8), ct.affine)


class SegmentationStage:
    """The segmenter as the loop sees it."""

    shown = ("dice_loss", "cross_entropy")
    told = ("loss", "dice")

    def __init__(self, config: SegmenterConfig, volumes: Volumes, device: torch.device):
        self.config, self.volumes, self.device = config, volumes, device
        self.vessel = vessel_class(config.data)
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

    def batches(self, draw: int, end_draw: int) -> Iterator[dict]:
        return self.volumes.batches(draw, end_draw, self.device)

    @torch.no_grad()
    def masks(self) -> Iterator[tuple[dict, np.ndarray, np.ndarray]]:
        """This rank's validation cases: (batch of one, found, true) with masks (X, Y, Z) bool."""
        self.segmenter.eval()
        for batch in self.volumes.validation_batches(self.device):
            found = self.segmenter(batch["image"])[0, 0] > 0
            yield batch, found.cpu().numpy(), (batch["label"][0] == self.vessel).cpu().numpy()
        self.segmenter.train()

    def case_scores(self, wanted: Callable[[], bool]) -> list[dict]:
        """Dice and clDice of each of this rank's validation cases, while they are wanted."""
        rows = []
        for batch, found, truth in self.masks():
            if not wanted():
                break
            spacing = batch["spacing"][0].cpu().numpy()
            cldice = centreline_overlap(found, truth, spacing)["cldice"]
            rows.append({"case": batch["case"][0], "dice": dice(found, truth), "cldice": cldice})
        return rows

    def validate(self) -> dict[str, float]:
        """Means over the validation cases: loss is 1 - Dice, so that less is better here too."""
        values = [dice(found, truth) for _, found, truth in self.masks()]
        known = [value for value in values if value == value]  # no vessel and none found: no Dice
        total, count = dist.sum_over_ranks(sum(known), len(known))
        mean = total / count if count else float("nan")
        return {"loss": 1 - mean, "dice": mean}

    @torch.no_grad()
    def preview(self) -> dict:
        return self.volumes.previews(self.config.train.panel_cases, self._panel)

    def _panel(self, index: int) -> np.ndarray:
        batch = self.volumes.validation_batch(index, self.device)
        self.segmenter.eval()
        found = self.segmenter(batch["image"]).sigmoid()
        self.segmenter.train()
        return self.volumes.panel(batch, {"real": batch["image"], "found": found})

    def extra_state(self) -> dict:
        return {}

    def check_resumed(self, state: dict, path: Path) -> None:
        """Nothing but the phase belongs to this stage."""
