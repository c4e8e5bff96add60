"""Trained models that a stage builds on, and whether they fit its config."""

from pathlib import Path

from tubesynth.build.networks import build_autoencoder
from tubesynth.config.loading import config_from_plain
from tubesynth.config.schema import (
    Stage1Config,
    Stage2Config,
    Stage3Config,
    uses_vessels,
    vessel_class,
)
from tubesynth.config.strict import to_plain
from tubesynth.models.vqvae import VQVAE
from tubesynth.runtime import checkpoint
from tubesynth.runtime.errors import InputError

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


class FrozenAutoencoder:
    """The autoencoder of a stage-1 checkpoint, with what identifies it."""

    def __init__(self, path: str | None, config: Stage2Config):
        if path is None:
            raise InputError("latents.autoencoder: not set: give the path of a stage-1 checkpoint")
        state = checkpoint.load(path, stage=1)
        self.config: Stage1Config = config_from_plain(state["config"], path)
        mine, theirs = config.data, self.config.data
        if mine.hu_window != theirs.hu_window or config.dim != self.config.dim:
            raise InputError(
                f"{path}: trained with data.hu_window {theirs.hu_window} and dim {self.config.dim},"
                f" this config has {mine.hu_window} and {config.dim}: make them equal"
            )
        if self.config.autoencoder.vessel_mask_in_decoder:
            classes = [vessel_class(data) for data in (mine, theirs)]
            if classes[0] != classes[1]:
                raise InputError(
                    f"{path}: its decoder takes the mask of data.vessel_class {classes[1]}, here it"
                    f" is {classes[0]}: make them equal"
                )
        self.plain_config = state["config"]
        weights = state["phases"]["autoencoder"]["module"]
        self.digest = checkpoint.digest(weights)
        self.module: VQVAE = build_autoencoder(self.config)
        self.module.load_state_dict(weights)
        self.module.eval().requires_grad_(False)
        if any(n % self.module.factor for n in mine.resolution):
            raise InputError(
                f"data.resolution: {mine.resolution} must be multiples of {self.module.factor},"
                f" the f of {path}"
            )
        halvings = self.module.factor.bit_length() - 1
        if len(config.unet.label_channels) <= halvings:
            raise InputError(
                f"unet.label_channels: {config.unet.label_channels}: {path} has f"
                f" {self.module.factor}, so the label map is halved {halvings} times: give at least"
                f" {halvings + 1} widths"
            )


def check_autoencoder(config: Stage2Config, state: dict, path: Path) -> None:
    """InputError where a checkpoint of stage 2 or 3 was trained on another autoencoder's latents;
    before anything is encoded.
    """
    require_same_autoencoder(
        FrozenAutoencoder(config.latents.autoencoder, config).digest, state, path
    )


def require_same_autoencoder(digest: str, state: dict, path: Path) -> None:
    theirs = state["autoencoder"]["digest"]
    if theirs != digest:
        raise InputError(
            f"{path}: trained on latents of autoencoder {theirs}, but latents.autoencoder is"
            f" {digest}: give the one it was made with"
        )


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
