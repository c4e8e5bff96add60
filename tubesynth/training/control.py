"""Stage 3: a ControlNet on a frozen stage-2 model, trained on noised latents with its objective.

The checkpoint holds all that sampling needs: ControlNet, base model, autoencoder. Averaged and
trained weights share one copy of the base.
"""

from pathlib import Path

import torch
from torch import nn

from tubesynth.build.base_models import check_autoencoder, load_base
from tubesynth.build.networks import build_network
from tubesynth.config.schema import (
    Stage3Config,
)
from tubesynth.runtime.ema import weights_to_use
from tubesynth.training.inputs import Volumes
from tubesynth.training.latent import LatentStage
from tubesynth.training.loop import Position


class ControlStage(LatentStage):
    """Stage 3 as the loop sees it: stage 2 with another network, of which a part is trained."""

    def __init__(
        self, config: Stage3Config, volumes: Volumes, position: Position, device: torch.device
    ):
        self.base_state = load_base(config)
        check_autoencoder(config, self.base_state, Path(config.control.base))
        super().__init__(config, volumes, position, device)
        self.latents.check_resumed(self.base_state, Path(config.control.base))
        for ema in self.phases[0].averages:
            ema.module.base = self.unet.base
        del self.base_state

    def build_network(self, latent_channels: int, factor: int) -> nn.Module:
        network = build_network(self.config, latent_channels, factor)
        network.base.load_state_dict(weights_to_use(self.base_state["phases"]["unet"]))
        network.controlnet.copy_from(network.base)
        return network
