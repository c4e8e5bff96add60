"""The plan of a run for --dry-run: config, parameters, steps and shapes; needs no GPU."""

import math
from pathlib import Path

import torch
from torch import nn

from tubesynth.build.base_models import BaseModels, latent_sizes
from tubesynth.build.networks import build_phases
from tubesynth.config.length import num_steps, samples_per_step
from tubesynth.config.schema import AutoencoderConfig, Config, Stage1Config, Stage2Config
from tubesynth.config.strict import dump
from tubesynth.models.controlnet import ControlledUNet
from tubesynth.runtime.errors import InputError
from tubesynth.training.inputs import find_splits
from tubesynth.training.warnings import config_warnings, run_warnings


def describe_plan(config: Config, models: BaseModels, run_dir: Path) -> str:
    """The resolved config, and the sizes and number of steps that follow from it, as text.

    models: the checkpoints that the config names. They and the folder of images may be missing,
    which is stated: other commands make them first. InputError for images that cannot be read.
    """
    sizes = latent_sizes(config, models)
    lines = [dump(config)]
    for name, module in _modules(config, sizes).items():
        number = sum(parameter.numel() for parameter in module.parameters())
        lines.append(f"{name + ' parameters:':28}{number:,} ({number / 1e6:.2f} M)")
    if isinstance(config, Stage1Config):
        lines.append(f"{'quantizer:':28}{_quantizer(config.autoencoder)}")
    latent = [sizes.embedding_dim, *(n // sizes.factor for n in config.data.resolution)]
    shape = f"{' x '.join(map(str, latent))} (f{sizes.factor})"
    if isinstance(config, Stage2Config) and models.autoencoder is None:
        shape += ", for the published autoencoder"
    lines.append(f"{'latent shape (C, X, Y, Z):':28}{shape}")
    missing = models.missing
    try:
        training, validation = find_splits(config)
    except InputError as error:
        if config.data.folders("training")[0].exists():
            raise
        missing, warnings = [*missing, str(error)], config_warnings(config)
    else:
        lines.append(f"{'steps per epoch:':28}{_steps(config, len(training))}")
        warnings = run_warnings(config, training, validation)
    lines += [f"{'missing:':28}{problem}" for problem in missing]
    lines += [f"{'warning:':28}{message}" for message in warnings]
    lines.append(f"{'run folder:':28}{run_dir}")
    return "\n".join(lines)


def _quantizer(model: AutoencoderConfig) -> str:
    if model.quantizer in ("ema_vq", "published_vq"):
        return f"{model.quantizer}, a codebook of {model.codebook_size} x {model.embedding_dim}"
    if model.quantizer == "fsq":
        levels = " x ".join(map(str, model.fsq_levels))
        return f"fsq, {math.prod(model.fsq_levels)} codes ({levels} levels)"
    return f"kl, continuous latents (weight {model.kl_weight:g})"


def _modules(config: Config, sizes: AutoencoderConfig) -> dict[str, nn.Module]:
    """Modules on the meta device, which has shapes but no memory."""
    with torch.device("meta"):
        modules = build_phases(config, sizes)
    network = modules.get("unet")
    if isinstance(network, ControlledUNet):
        return {"frozen unet": network.base, "controlnet": network.controlnet}
    return modules


def _steps(config: Config, cases: int) -> str:
    batch = samples_per_step(config)
    return (
        f"{cases / batch:.4g} ({cases} cases, {batch} a step and process),"
        f" {num_steps(config, cases)} in {config.train.epochs} epochs"
    )
