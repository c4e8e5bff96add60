"""A trained vessel segmenter applied to a CT."""

from pathlib import Path

import numpy as np
import torch

from tubesynth.build.checkpoint import Checkpoint, weights_digest
from tubesynth.build.networks import build_segmenter
from tubesynth.conditioning.model_grid import ModelGrid
from tubesynth.config.schema import SegmenterConfig
from tubesynth.models.segmenter import SegmentationUNet
from tubesynth.volume.grid import Volume
from tubesynth.volume.resample import resample_image


class VesselSegmenter:
    """A trained segmenter: a CT in HU -> the mask (uint8) of its vessels on the CT's own grid.

    The mask is 0 outside of the model's field of view. digest: of the weights.
    """

    def __init__(self, config: SegmenterConfig, net: SegmentationUNet, device: torch.device):
        self.digest = weights_digest(net.state_dict())
        self.grid = ModelGrid(config, device)
        self.net = net.to(device).eval()

    @classmethod
    def load(cls, path: str | Path, device: torch.device) -> "VesselSegmenter":
        checkpoint = Checkpoint.load(path, stage="segmenter")
        assert isinstance(checkpoint.config, SegmenterConfig)
        net = build_segmenter(checkpoint.config)
        net.load_state_dict(checkpoint.weights())
        return cls(checkpoint.config, net, device)

    def __call__(self, ct: Volume) -> Volume:
        return mask_on_ct(self.logits(self.grid.image(ct)), ct)

    @torch.no_grad()
    def logits(self, image: Volume) -> Volume:
        """A CT on the model's grid -> the logits of the vessel class."""
        logits = self.net(self.grid.unit_image(image))[0, 0].float().cpu().numpy()
        return Volume(logits, image.affine)


def mask_on_ct(logits: Volume, ct: Volume) -> Volume:
    """The mask of logits on the grid of a CT."""
    outside = -10.0  # logit of the background
    on_ct = resample_image(logits, ct.shape, ct.affine, fill=outside)
    return Volume((on_ct.array > 0).astype(np.uint8), ct.affine)
