"""The label scheme of a config: its section `labels`, or two older keys of its section `data`.

labels:
  names: [background, heart, vessels, aorta]
  vessel: 2
  heart: [1]
  aorta: 3
  sources: {heart: [heart_myocardium, heart_atrium_left, heart_ventricle_left]}
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tubesynth.config.packaged import find_config
from tubesynth.config.schema import (
    Config,
    DataConfig,
    Stage1Config,
    Stage2Config,
    Stage3Config,
)
from tubesynth.config.strict import build, flatten, read_yaml, to_plain
from tubesynth.runtime.errors import InputError
from tubesynth.volume.classes import NINE_CLASSES, LabelScheme, numbered_classes
from tubesynth.volume.files import MOST_LABEL


@dataclass(frozen=True)
class DataLabelKeys:
    """The older keys of the section `data` for the classes, which the section `labels` replaces."""

    num_classes: int | None = None
    vessel_class: int | None = None  # null: the highest class


def with_label_section(content: dict, source: str) -> dict:
    """The content of a config with its older label keys converted to the section `labels`.

    InputError if the config also has this section and the two contradict each other.
    """
    content, data = dict(content), content.get("data")
    if not isinstance(data, dict) or not data.keys() & set(DataLabelKeys.__annotations__):
        return content
    older_keys = {key: data[key] for key in DataLabelKeys.__annotations__ if key in data}
    content["data"] = {key: value for key, value in data.items() if key not in older_keys}
    keys = build(DataLabelKeys, older_keys, source, "data.")
    if "labels" in content:
        scheme = build(LabelScheme, section_of(content, source), source, "labels.")
        for key, value, section_value in (
            ("num_classes", keys.num_classes, scheme.num_classes),
            ("vessel_class", keys.vessel_class, scheme.vessel),
        ):
            if value not in (None, section_value):
                raise InputError(
                    f"{source}: data.{key}: {value}, but the section labels has {section_value}:"
                    f" remove data.{key}"
                )
        return content
    scheme = older_scheme(keys, source)
    if scheme != NINE_CLASSES:
        content["labels"] = to_plain(scheme)
    return content


def older_scheme(keys: DataLabelKeys, source: str) -> LabelScheme:
    """The scheme of data.num_classes and data.vessel_class; nine classes have names."""
    count = NINE_CLASSES.num_classes if keys.num_classes is None else keys.num_classes
    vessel = count - 1 if keys.vessel_class is None else keys.vessel_class
    if not 2 <= count <= 256:
        raise InputError(f"{source}: data.num_classes: expected 2 to 256, got {count}")
    if not 0 < vessel < count:
        raise InputError(
            f"{source}: data.vessel_class: {vessel}: expected a foreground class, 1 to {count - 1}"
        )
    if count != NINE_CLASSES.num_classes:
        return numbered_classes(count, vessel)
    if vessel == NINE_CLASSES.vessel:
        return NINE_CLASSES
    heart = tuple(value for value in NINE_CLASSES.heart if value != vessel)
    aorta = None if vessel == NINE_CLASSES.aorta else NINE_CLASSES.aorta
    return replace(NINE_CLASSES, vessel=vessel, heart=heart, aorta=aorta, plausible_ml={})


def section_of(content: dict, source: str) -> dict:
    """The section `labels` of a config; InputError if it is not a section."""
    if not isinstance(content["labels"], dict):
        raise InputError(f"{source}: labels: expected a section of keys and values")
    return content["labels"]


def check_scheme(scheme: LabelScheme, source: str) -> None:
    """InputError at the first value of the section that does not fit."""
    for problem in scheme.problems():
        raise InputError(f"{source}: labels.{problem}")


def check_label_map(label_map: Mapping[int, int], num_classes: int, source: str) -> None:
    """InputError at the first value or class that cannot be; source: the key or option."""
    for value, label in label_map.items():
        if value > MOST_LABEL:
            raise InputError(f"{source}: {value}: expected values from 0 to {MOST_LABEL}")
        if not 0 <= label < num_classes:
            raise InputError(
                f"{source}: {value} becomes {label}: choose a class from 0 to {num_classes - 1}"
            )


def load_label_map(path: str | Path | None, scheme: LabelScheme) -> dict[int, int] | None:
    """data.label_map of a config, or of a file without stage; None: it has none."""
    if path is None:
        return None
    source = str(find_config(path))
    data = read_yaml(source).get("data")
    if not isinstance(data, dict) or "label_map" not in data:
        return None
    label_map = build(DataConfig, {"label_map": data["label_map"]}, source, "data.").label_map
    if label_map is not None:
        check_label_map(label_map, scheme.num_classes, f"{source}: data.label_map")
    return label_map


def load_scheme(path: str | Path | None) -> LabelScheme:
    """The scheme of a config, or of a file with the section `labels` alone; None: nine classes.

    path: a file, or the name of a packaged config (config/packaged.py).
    """
    if path is None:
        return NINE_CLASSES
    source = str(find_config(path))
    content = with_label_section(read_yaml(source), source)
    if "labels" not in content:
        if "stage" not in content and "data" not in content:
            raise InputError(f"{source}: no section labels: add it, or give a config with a stage")
        return NINE_CLASSES
    scheme = build(LabelScheme, section_of(content, source), source, "labels.")
    check_scheme(scheme, source)
    return scheme


def label_remedy(config: Config) -> str | None:
    """What to do about missing label maps; None: the config trains on images alone."""
    if isinstance(config, Stage1Config):
        settings = _stage_1_label_settings(config)
    elif isinstance(config, Stage2Config) and not isinstance(config, Stage3Config):
        settings = _stage_2_label_settings(config)
    else:
        return "add them"
    needed = [setting for setting, is_needed in settings.items() if is_needed]
    return f"add them, or set {', '.join(needed)} to train on images alone" if needed else None


def _stage_1_label_settings(config: Stage1Config) -> dict[str, bool]:
    """{the setting without label maps: whether the config has another, which needs them}."""
    return {
        "losses.vessel_weight=1": config.losses.vessel_weight != 1,
        "losses.vessel_l1=0": config.losses.vessel_l1 != 0,
        "autoencoder.decoder_condition=none": config.autoencoder.decoder_condition != "none",
        "autoencoder.contrast_pool=false": config.autoencoder.contrast_pool,
        "train.best_score=loss": config.train.best_score.startswith("vessel_"),
    }


def _stage_2_label_settings(config: Stage2Config) -> dict[str, bool]:
    """{the setting of an unconditional model: whether the config has another}."""
    mode, objective, unet = config.latent_mode, config.objective, config.unet
    has_encoder = unet.label_encoder != "none"
    return {
        "unet.label_encoder=none": has_encoder,
        f"{mode}.label_dropout=0": has_encoder and objective.label_dropout > 0,
        "unet.vessel_attention=off": unet.vessel_attention != "off",
        "unet.vessel_fields=false": unet.vessel_fields,
        f"{mode}.vessel_weight=1": objective.vessel_weight != 1,
    }


def is_label_section(path: str | Path) -> bool:
    """Whether a YAML file holds labels, data.label_map or both alone: it is no training config."""
    keys = flatten(read_yaml(find_config(path)))
    return all(key.startswith(("labels", "data.label_map")) for key in keys)
