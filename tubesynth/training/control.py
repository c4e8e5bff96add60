"""Stage 3: a ControlNet on a frozen stage-2 model, trained on noised latents with its objective.

The checkpoint holds all that sampling needs: ControlNet, base model, autoencoder. Averaged and
trained weights share one copy of the base.
"""

from pathlib import Path

import torch
from torch import nn

from tubesynth.config import (
    Stage2Config,
    Stage3Config,
    uses_vessels,
    vessel_class,
    vessel_levels,
)
from tubesynth.config_loading import config_from_plain
from tubesynth.errors import InputError
from tubesynth.models.controlnet import ControlledUNet, ControlNet
from tubesynth.models.unet import UNet
from tubesynth.runtime import checkpoint
from tubesynth.runtime.ema import weights_to_use
from tubesynth.strict import to_plain
from tubesynth.training.inputs import Volumes
from tubesynth.training.latent import LatentStage, build_unet
from tubesynth.training.latents import check_autoencoder
from tubesynth.training.loop import Position

# What the base model has learned by, section by section: the same here, or it would not be heard.
FLOW_KEYS = ("sigma_min",)
DIFFUSION_KEYS = (
    "num_timesteps",
    "schedule",
    "beta_start",
    "beta_end",
    "prediction",
    "zero_terminal_snr",
)


def build_network(config: Stage2Config, latent_channels: int, factor: int) -> UNet | ControlledUNet:
    """What a config of stage 2 or 3 samples from."""
    base = build_unet(config, latent_channels, factor)
    if not isinstance(config, Stage3Config):
        return base
    settings, of_vessels = config.unet, config.control.condition == "vessel"
    controlnet = ControlNet(
        config.dim,
        tuple(settings.channels),
        2 if of_vessels else config.data.num_classes,
        tuple(settings.label_channels),
        factor,
        in_channels=latent_channels,
        num_res_blocks=settings.num_res_blocks,
        attention_levels=tuple(settings.attention_levels),
        head_channels=settings.head_channels,
        vessel_attention=settings.vessel_attention,
        vessel_levels=tuple(vessel_levels(settings)),
        vessel_channels=settings.vessel_channels,
        dropout=settings.dropout,
        checkpointing=config.train.checkpointing,
    )
    return ControlledUNet(base, controlnet, vessel_class(config.data) if of_vessels else None)


def load_base(config: Stage3Config) -> dict:
    """The state of control.base, a stage-2 checkpoint; InputError where this config differs."""
    path = config.control.base
    if path is None:
        raise InputError("control.base: not set: give the path of a stage-2 checkpoint")
    state = checkpoint.load(path, stage=2)
    base = config_from_plain(state["config"], path)
    mine, theirs = ({**to_plain(c), "vessel_class": vessel_class(c.data)} for c in (config, base))
    unet_keys = [key for key in theirs["unet"] if key != "dropout"]
    mode_keys = FLOW_KEYS if config.latent_mode == "flow" else DIFFUSION_KEYS
    compared = [("dim",), ("latent_mode",), ("data", "num_classes"), ("vessel_class",)]
    if uses_vessels(config.unet):
        compared.append(("data", "token_step_mm"))
    compared += [("unet", key) for key in unet_keys]
    compared += [(config.latent_mode, key) for key in mode_keys]
    for names in compared:
        here, there = mine, theirs
        for name in names:
            here, there = here[name], there[name]
        if here != there:
            raise InputError(
                f"control.base: {path} was trained with {'.'.join(names)} {there}, this config has"
                f" {here}: make them equal"
            )
    for key in ("label_dropout", "vessel_dropout"):
        mode = config.latent_mode
        if mine[mode][key] > 0 and theirs[mode][key] == 0:
            raise InputError(
                f"{mode}.{key}: {mine[mode][key]}, but {path} was trained without: set it to 0, or"
                " train the base with it"
            )
    return state


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
