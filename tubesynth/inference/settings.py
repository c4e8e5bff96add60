"""The settings of a synthesis: those of the model, changed by the command line."""

import argparse
from dataclasses import replace

from tubesynth.config.loading import config_from_plain, load_config
from tubesynth.config.overrides import build_with_overrides
from tubesynth.config.schema import Stage2Config
from tubesynth.config.strict import to_plain
from tubesynth.data.volumes import TOKEN_FORMAT
from tubesynth.runtime.errors import InputError
from tubesynth.runtime.log import warn_once


def replace_settings(config: Stage2Config, args: argparse.Namespace) -> Stage2Config:
    """The model's config with the sections data and sampling of --config and key=value items."""
    for item in args.overrides:
        if item.partition(".")[0] not in ("data", "sampling"):
            raise InputError(
                f"command line, '{item}': a trained model takes data.KEY=value and"
                " sampling.KEY=value"
            )
    if args.config:
        other, source = load_config(args.config, args.overrides), args.config
    else:
        source = str(args.model)
        plain = to_plain(config)
        other = build_with_overrides(plain, args.overrides, source, config_from_plain)
    if not isinstance(other, Stage2Config) or other.stage != config.stage:
        raise InputError(
            f"{source}: for stage {other.stage}, the model is of stage {config.stage}:"
            " give a config of that stage"
        )
    for key, value, trained in (
        ("number of classes", other.labels.num_classes, config.labels.num_classes),
        ("labels.vessel", other.labels.vessel, config.labels.vessel),
        ("data.hu_window", other.data.hu_window, config.data.hu_window),
    ):
        if value != trained:
            raise InputError(
                f"{source}: {key}: {value}, the model was trained with {trained}: make them equal"
            )
    for key in ("resolution", "spacing"):
        value, trained = getattr(other.data, key), getattr(config.data, key)
        if args.config and value != trained:
            warn_once(f"{source}: data.{key}: {value}, the model was trained with {trained}")
    return replace(config, data=other.data, sampling=other.sampling)


def common_settings(args: argparse.Namespace, config: Stage2Config, digest: str) -> dict:
    """The settings that decide the voxels of all samples; digest: of the model's weights."""
    data = config.data
    settings = {
        "model_digest": digest,
        "seed": args.seed,
        "sampling": vars(config.sampling).copy(),
        "guidance_label": args.guidance_label,
        "guidance_vessel": args.guidance_vessel,
        "resolution": list(args.resolution or data.resolution),
        "spacing": args.spacing or data.default_spacing,
        "precision": args.precision,
        "label_map": data.label_map and [f"{v}={label}" for v, label in data.label_map.items()],
    }
    if data.token_step_mm is not None:  # for the U-Net, the decoder or both
        settings["vessels"] = {"token_step_mm": data.token_step_mm, "format": TOKEN_FORMAT}
    if config.stage == 3 or args.control_scale != 1.0:
        settings["control_scale"] = args.control_scale
    if args.latent_tile is not None:
        settings["latent_tile"] = args.latent_tile
    return settings
