"""The settings in which two configs differ, and those that give weights their meaning."""

from typing import Any

from tubesynth.config.schema import Config, Stage1Config, Stage2Config, uses_labels, uses_vessels
from tubesynth.config.strict import flatten, to_plain

NUM_CLASSES = "the number of classes"  # a key of `differences`; their names may differ

DATA_KEYS = ("data.hu_window", "data.antialias", "dim")
OBJECTIVE_KEYS = {  # by latent_mode
    "flow": ("sigma_min", "offset_noise"),
    "diffusion": (
        "num_timesteps",
        "schedule",
        "beta_start",
        "beta_end",
        "prediction",
        "zero_terminal_snr",
    ),
}


def differences(config: Config, stored: Config) -> dict[str, tuple[Any, Any]]:
    """{dotted key: (value in config, value in stored)} of the settings that are not equal."""
    flat, flat_stored = (
        {NUM_CLASSES: each.labels.num_classes, **flatten(to_plain(each))}
        for each in (config, stored)
    )
    return {
        key: (flat.get(key), flat_stored.get(key))
        for key in {**flat, **flat_stored}
        if flat.get(key) != flat_stored.get(key)
    }


def label_keys(config: Config) -> tuple[str, ...]:
    """The keys of the labels that the weights of a config depend on."""
    labels = vessels = False
    if isinstance(config, Stage1Config):
        labels = config.autoencoder.decoder_condition == "labels"
        vessels = config.autoencoder.decoder_condition != "none"
    elif isinstance(config, Stage2Config):
        labels, vessels = uses_labels(config), uses_vessels(config.unet)
    return (*[NUM_CLASSES] * labels, *["labels.vessel"] * (labels or vessels))


def objective_keys(config: Config) -> list[str]:
    """The keys of flow or diffusion that the weights of a config depend on."""
    if not isinstance(config, Stage2Config):
        return []
    return [f"{config.latent_mode}.{name}" for name in OBJECTIVE_KEYS[config.latent_mode]]
