"""A trained vessel segmenter applied to a CT."""

from pathlib import Path

import numpy as np
import torch

from tubesynth.build.checkpoint import Checkpoint
from tubesynth.build.networks import build_segmenter
from tubesynth.config.schema import SegmenterConfig
from tubesynth.models.segmenter import SegmentationUNet
from tubesynth.volume.grid import Volume
from tubesynth.volume.intensity import hu_to_unit
from tubesynth.volume.resample import resample_image, target_grid


class VesselSegmenter:
    """A trained segmenter: a CT in HU -> the mask (uint8) of its vessels on the CT's own grid.

    The mask is 0 outside of the model's field of view.
    """

    def __init__(self, config: SegmenterConfig, net: SegmentationUNet, device: torch.device):
        self.data, self.device = config.data, device
        self.net = net.to(device).eval()

    @classmethod
    def load(cls, path: str | Path, device: torch.device) -> "VesselSegmenter":
        checkpoint = Checkpoint.load(path, stage="segmenter")
        assert isinstance(checkpoint.config, SegmenterConfig)
        net = build_segmenter(checkpoint.config)
        net.load_state_dict(checkpoint.weights())
        return cls(checkpoint.config, net, device)

    @torch.no_grad()
    def __call__(self, ct: Volume) -> Volume:
        shape, affine = target_grid(ct, self.data.spacing, self.data.resolution)
        prepared = resample_image(ct, shape, affine, fill=self.data.hu_window[0])
        unit = hu_to_unit(prepared.array.astype(np.float32), self.data.hu_window)
        logits = self.net(torch.from_numpy(unit)[None, None].to(self.device))[0, 0]
        logits = Volume(logits.float().cpu().numpy(), affine)
        found = resample_image(logits, ct.shape, ct.affine, fill=-10.0)
        return Volume((found.array > 0).astype(np.uint8), ct.affine)
