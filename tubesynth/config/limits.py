"""The largest values of the settings that decide how much memory and time a run takes.

A slip of a finger (channels: [64, 12800000]) is refused, where it would otherwise end the machine.
"""

from collections.abc import Callable

from tubesynth.config.schema import Config

Require = Callable[[bool, str], None]  # (condition, message): InputError if the condition is false

WIDTH, DEPTH, LEVELS = 2**15, 100, 12
MOST = {
    "data.resolution": 2**12,
    "data.spacing_draws": 2**10,
    "data.num_workers": 2**10,
    "data.batch_size": 2**16,
    "latents.variants": 2**16,
    "autoencoder.channels": WIDTH,
    "autoencoder.residual_channels": WIDTH,
    "autoencoder.embedding_dim": WIDTH,
    "autoencoder.num_residual_layers": DEPTH,
    "autoencoder.codebook_size": 2**22,
    "autoencoder.fsq_levels": 2**10,
    "discriminator.channels": WIDTH,
    "discriminator.num_layers": LEVELS,
    "losses.perceptual_slices": 2**12,
    "segmenter.channels": WIDTH,
    "unet.channels": WIDTH,
    "unet.head_channels": WIDTH,
    "unet.label_channels": WIDTH,
    "unet.num_res_blocks": DEPTH,
    "unet.spade_hidden": WIDTH,
    "unet.vessel_channels": WIDTH,
    "diffusion.num_timesteps": 10**6,
    "sampling.steps": 10**6,
    "train.epochs": 10**9,
}


def check_limits(config: Config, require: Require) -> None:
    """Require every number, and the length of every list, to be sensible."""
    for key, most in MOST.items():
        section, name = key.split(".")
        if hasattr(config, section):
            value = getattr(getattr(config, section), name)
            numbers = value if isinstance(value, list) else [value]
            require(len(numbers) <= LEVELS, f"{key}: {len(numbers)} numbers: at most {LEVELS}")
            for number in numbers:
                require(number <= most, f"{key}: {number}: must be at most {most}")


def check_widths(section, name: str, keys: tuple[str, ...], require: Require) -> None:
    """Each key holds a number, or a list of numbers, of at least 1: channels, layers."""
    for key in keys:
        value = getattr(section, key)
        numbers = value if isinstance(value, list) else [value]
        require(
            len(numbers) > 0 and min(numbers) >= 1,
            f"{name}.{key}: expected at least 1, got {value}",
        )
