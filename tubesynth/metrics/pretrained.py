"""Published networks as feature functions: 2048 averages of the last layer for each slice."""

import torch
import torch.nn.functional as F

from tubesynth.models.pretrained import PretrainedNetwork, load_network

AT_ONCE = 16  # slices through the network together


class PretrainedFeatures:
    """Slices (N, 1, H, W) in [0, 1] -> (N, 2048): resized, scaled as the weights expect, averaged.

    standardise is False: Frechet distances are then those that others report for the network.
    """

    standardise = False

    def __init__(self, loaded: PretrainedNetwork):
        self.network = loaded.network.eval().requires_grad_(False)
        self.size, self.name = loaded.size, loaded.name
        self.mean, self.std = (torch.tensor(v).view(1, 3, 1, 1) for v in (loaded.mean, loaded.std))

    @torch.no_grad()
    def __call__(self, slices: torch.Tensor) -> torch.Tensor:
        self.network.to(slices.device)
        mean, std = (v.to(slices.device) for v in (self.mean, self.std))
        parts = []
        for part in slices.float().split(AT_ONCE):
            shape = (self.size, self.size)
            part = F.interpolate(part, shape, mode="bilinear", align_corners=False)
            parts.append(self.network((part.expand(-1, 3, -1, -1) - mean) / std))
        return torch.cat(parts)


def load_features(path) -> PretrainedFeatures:
    """The feature function of a weights file; InputError where it is missing or another network."""
    return PretrainedFeatures(load_network(path))
