"""What a run would do, said without doing it: config, parameters, steps, shapes. Touches no GPU."""

import math
from pathlib import Path

import torch

from tubesynth.config.schema import (
    AutoencoderConfig,
    Config,
    Stage1Config,
    Stage2Config,
    Stage3Config,
)
from tubesynth.config.strict import dump
from tubesynth.runtime import checkpoint
from tubesynth.runtime.errors import InputError
from tubesynth.volume.cases import find_cases


def describe_plan(config: Config, run_dir: Path) -> str:
    """The resolved config and what follows from it, as text."""
    lines = [dump(config)]
    modules, autoencoder, note = _modules(config)
    for name, module in modules.items():
        number = sum(parameter.numel() for parameter in module.parameters())
        lines.append(f"{name + ' parameters:':28}{number:,} ({number / 1e6:.2f} M)")
    if isinstance(config, Stage1Config):
        lines.append(f"{'quantizer:':28}{_quantizer(config.autoencoder)}")
    factor = 2 ** len(autoencoder.channels)
    latent = [autoencoder.embedding_dim, *(n // factor for n in config.data.resolution)]
    lines.append(
        f"{'latent shape (C, X, Y, Z):':28}{' x '.join(map(str, latent))} (f{factor}){note}"
    )
    lines.append(f"{'steps per epoch:':28}{_steps(config)}")
    if isinstance(config, Stage3Config):
        base = config.control.base
        there = base and Path(base).is_file()
        found = base if there else f"{base} does not exist yet" if base else "not set"
        lines.append(f"{'control.base:':28}{found}")
    lines.append(f"{'run folder:':28}{run_dir}")
    return "\n".join(lines)


def _quantizer(model: AutoencoderConfig) -> str:
    if model.quantizer == "ema_vq":
        return f"ema_vq, a codebook of {model.codebook_size} x {model.embedding_dim}"
    if model.quantizer == "fsq":
        levels = " x ".join(map(str, model.fsq_levels))
        return f"fsq, {math.prod(model.fsq_levels)} codes ({levels} levels)"
    return f"kl, continuous latents (weight {model.kl_weight:g})"


def _modules(config: Config):
    """Modules on the meta device, which has shapes but no memory; the autoencoder's sizes."""
    with torch.device("meta"):
        if isinstance(config, Stage1Config):
            from tubesynth.build.networks import build_autoencoder, build_discriminator

            modules = {
                "autoencoder": build_autoencoder(config),
                "discriminator": build_discriminator(config),
            }
            return modules, config.autoencoder, ""
        assert isinstance(config, Stage2Config)
        from tubesynth.build.networks import build_network

        path, note = config.latents.autoencoder, ""
        sizes = AutoencoderConfig()
        if path and Path(path).is_file():
            stored = checkpoint.load(path, stage=1)["config"]["autoencoder"]
            sizes = AutoencoderConfig(**stored)
        else:
            found = f"{path} does not exist yet" if path else "latents.autoencoder is not set"
            note = f"; {found}: published sizes assumed"
        network = build_network(config, sizes.embedding_dim, 2 ** len(sizes.channels))
        if not isinstance(config, Stage3Config):
            return {"unet": network}, sizes, note
        return {"frozen unet": network.base, "controlnet": network.controlnet}, sizes, note


def _steps(config: Config) -> str:
    images = Path(config.data.root) / "training" / "images"
    try:
        cases = len(find_cases(images))
    except InputError:
        return f"unknown until {images} exists"
    batch = config.data.batch_size * config.train.accumulate
    return (
        f"{math.ceil(cases / batch)} ({cases} cases, {batch} a step and process),"
        f" {math.ceil(cases * config.train.epochs / batch)} in {config.train.epochs} epochs"
    )
