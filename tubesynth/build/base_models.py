"""The checkpoints that stages 2 and 3 need: opened, and checked to fit the config.

Training stops at the first problem, doctor lists all of them, and a dry run, which accepts missing
files, states them; the messages are the same.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch

from tubesynth.build.checkpoint import Checkpoint
from tubesynth.config.differences import (
    DATA_KEYS,
    NUM_CLASSES,
    differences,
    label_keys,
    objective_keys,
)
from tubesynth.config.packaged import find_model
from tubesynth.config.schema import (
    AutoencoderConfig,
    Config,
    Stage1Config,
    Stage2Config,
    Stage3Config,
    uses_vessels,
)
from tubesynth.runtime.errors import InputError
from tubesynth.runtime.log import logger

STAGE_OF = {"latents.autoencoder": 1, "control.base": 2}  # config keys of checkpoints

DROPOUTS = ("unet.dropout", "unet.attention_dropout")  # may differ: the base model is frozen


@dataclass
class BaseModels:
    """The checkpoints that a config names.

    autoencoder: that of latents.autoencoder (stages 2 and 3). base: that of control.base (stage 3).
    missing: one line for each checkpoint that is not set or does not exist. misfits: one line for
    each reason why a checkpoint cannot be used.
    """

    autoencoder: Checkpoint | None = None
    base: Checkpoint | None = None
    missing: list[str] = field(default_factory=list)
    misfits: list[str] = field(default_factory=list)

    @property
    def problems(self) -> list[str]:
        return self.missing + self.misfits


def open_base_models(config: Config, keys: Collection[str] = tuple(STAGE_OF)) -> BaseModels:
    """Open the checkpoints that these keys of a config name, and compare them with the config."""
    models = BaseModels()
    if isinstance(config, Stage2Config) and "latents.autoencoder" in keys:
        models.autoencoder = _open(models, "latents.autoencoder", config.latents.autoencoder)
        if models.autoencoder:
            models.misfits += _autoencoder_misfits(config, models.autoencoder)
    if isinstance(config, Stage3Config) and "control.base" in keys:
        models.base = _open(models, "control.base", config.control.base)
        if models.base:
            models.misfits += _base_misfits(config, models.base)
            if models.autoencoder and not models.misfits:
                models.misfits += _other_autoencoder(models.autoencoder, models.base)
    return models


def require_base_models(
    config: Config, keys: Collection[str] = tuple(STAGE_OF), may_be_missing: bool = False
) -> BaseModels:
    """Open the checkpoints that these keys of a config name; InputError with the first problem."""
    models = open_base_models(config, keys)
    if problems := models.misfits if may_be_missing else models.problems:
        raise InputError(problems[0])
    return models


def latent_sizes(config: Config, models: BaseModels) -> AutoencoderConfig:
    """The sizes of a config's autoencoder; the published sizes if its checkpoint is missing."""
    trained = models.autoencoder.config if models.autoencoder else config
    return trained.autoencoder if isinstance(trained, Stage1Config) else AutoencoderConfig()


def _open(models: BaseModels, key: str, path: str | None) -> Checkpoint | None:
    stage = STAGE_OF[key]
    if path is None:
        models.missing.append(f"{key}: not set: give a stage-{stage} checkpoint, by path or name")
        return None
    try:
        find_model(path, stage)
    except InputError as error:
        models.missing.append(f"{key}: {error}")
        return None
    try:
        return Checkpoint.load(path, stage)
    except InputError as error:
        models.misfits.append(f"{key}: {error}")
    return None


def _autoencoder_misfits(config: Stage2Config, autoencoder: Checkpoint) -> Iterator[str]:
    stored, path, key = autoencoder.config, autoencoder.path, "latents.autoencoder"
    assert isinstance(stored, Stage1Config)
    yield from _misfits(config, autoencoder, key, DATA_KEYS)
    differing = differences(config, stored)
    conditions = label_keys(stored)
    for name in (*conditions, *["data.token_step_mm"] * len(conditions)):
        if name in differing:
            value, stored_value = differing[name]
            yield (
                f"{key}: the decoder of {path} is conditioned on the anatomy, with {name}"
                f" {stored_value}, this config has {value}: make them equal"
            )
    factor = stored.autoencoder.factor
    if any(n % factor for n in config.data.resolution):
        yield (
            f"data.resolution: {config.data.resolution} must be multiples of {factor}, the f of"
            f" {path}"
        )
    halvings, widths = len(stored.autoencoder.channels), config.unet.label_channels
    if len(widths) <= halvings and (
        config.unet.label_encoder == "convolutions" or isinstance(config, Stage3Config)
    ):
        yield (
            f"unet.label_channels: {widths}: {path} has f {factor}, so the label map is halved"
            f" {halvings} times: give at least {halvings + 1} widths"
        )


def _misfits(
    config: Config, checkpoint: Checkpoint, key: str, names: Sequence[str]
) -> Iterator[str]:
    differing = differences(config, checkpoint.config)
    for name in names:
        if name in differing:
            value, stored = differing[name]
            yield (
                f"{key}: {checkpoint.path} was trained with {name} {stored}, this config has"
                f" {value}: make them equal"
            )


def _base_misfits(config: Stage3Config, base: Checkpoint) -> Iterator[str]:
    mode, differing = config.latent_mode, differences(config, base.config)
    compared = [*DATA_KEYS, "latent_mode", NUM_CLASSES, "labels.vessel"]
    if uses_vessels(config.unet):
        compared.append("data.token_step_mm")
    compared += [name for name in differing if name.startswith("unet.") and name not in DROPOUTS]
    compared += objective_keys(config)
    yield from _misfits(config, base, "control.base", compared)
    for name in (f"{mode}.label_dropout", f"{mode}.vessel_dropout"):
        value, stored = differing.get(name, (0, 0))
        if value > 0 and stored == 0:
            yield (
                f"{name}: {value}, but {base.path} was trained without: set it to 0, or train the"
                " base with it"
            )


def require_same_autoencoder(autoencoder: Checkpoint, checkpoint: Checkpoint) -> None:
    """InputError if a checkpoint of stage 2 or 3 has latents of another autoencoder.

    Weights alone of stage 2 may start on the latents of their autoencoder after further training:
    only the settings must be equal. Those of stage 3 contain their base model, which is frozen.
    """
    settings, stored = (
        each.trained_autoencoder.config.autoencoder for each in (autoencoder, checkpoint)
    )
    starts_from_weights = checkpoint.config.stage == 2 and checkpoint.position is None
    progress = autoencoder.position
    was_trained_on = progress is not None and progress.started_from == str(checkpoint.path)
    for misfit in _other_autoencoder(autoencoder, checkpoint):
        if not (starts_from_weights and settings == stored):
            raise InputError(misfit)
        log = logger.info if was_trained_on else logger.warning
        log(
            f"{checkpoint.path}: trained on latents of its own autoencoder; those of"
            f" {autoencoder.path} fit it only if that was trained on from the same weights"
        )


def require_same_base(base: Checkpoint, checkpoint: Checkpoint) -> None:
    """InputError if a stage-3 checkpoint contains other weights than those of its control.base."""
    weights = checkpoint.phases["unet"].module
    for name, weight in base.weights().items():
        if not torch.equal(weight, weights[f"base.{name}"]):
            raise InputError(
                f"control.base: {base.path} has other weights ({name}) than the base model in"
                f" {checkpoint.path}: give the base of this checkpoint"
            )


def with_decoder_of(autoencoder: Checkpoint, checkpoint: Checkpoint) -> Checkpoint:
    """A checkpoint of stage 2 or 3 with the decoder of another autoencoder; InputError unless its
    latents are the same, that is if it was trained on with train.frozen_encoder.
    """
    stored = checkpoint.autoencoder
    if stored is None or isinstance(checkpoint.config, Stage1Config):
        raise InputError(f"{checkpoint.path}: has no latents, so no decoder to exchange")
    assert isinstance(checkpoint.config, Stage2Config)
    for misfit in _autoencoder_misfits(checkpoint.config, autoencoder):
        raise InputError(misfit)
    weights = autoencoder.weights()
    for name, weight in stored.module.items():
        same = name in weights and torch.equal(weights[name].float(), weight.float())
        if name.startswith(("encoder.", "quantizer.")) and not same:
            raise InputError(
                f"{autoencoder.path}: has another encoder ({name}) than {checkpoint.path}: give one"
                " that was trained on from its autoencoder with train.frozen_encoder"
            )
    return replace(checkpoint, autoencoder=autoencoder.trained_autoencoder)


def _other_autoencoder(autoencoder: Checkpoint, checkpoint: Checkpoint) -> Iterator[str]:
    digest, stored = (each.trained_autoencoder.digest for each in (autoencoder, checkpoint))
    if digest != stored:
        yield (
            f"{checkpoint.path}: trained on latents of autoencoder {stored}, but"
            f" latents.autoencoder is {digest}: give the autoencoder of this checkpoint"
        )
