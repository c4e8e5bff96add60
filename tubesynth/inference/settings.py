"""The settings of a synthesis: those of the model, changed by the command line."""

import argparse
from dataclasses import replace

from tubesynth.config.labels import with_label_section
from tubesynth.config.loading import config_from_plain, load_config
from tubesynth.config.overrides import build_with_overrides
from tubesynth.config.packaged import find_config
from tubesynth.config.schema import Stage2Config
from tubesynth.config.strict import read_yaml, to_plain
from tubesynth.data.volumes import TOKEN_FORMAT
from tubesynth.runtime.errors import InputError
from tubesynth.runtime.log import warn_once


def replace_settings(config: Stage2Config, args: argparse.Namespace) -> Stage2Config:
    """The model's config with what the file of --config has in its sections data and sampling, and
    with the key=value items. The file is a whole config, or has these sections alone.
    """
    for item in args.overrides:
        if item.partition(".")[0] not in ("data", "sampling"):
            raise InputError(
                f"command line, '{item}': a trained model takes data.KEY=value and"
                " sampling.KEY=value"
            )
    source, of_file = args.config or str(args.model), {}
    if args.config:
        of_file = read_yaml(find_config(args.config))
        if "stage" in of_file and (whole := load_config(args.config)).stage != config.stage:
            raise InputError(
                f"{source}: for stage {whole.stage}, the model is of stage {config.stage}:"
                " give a config of that stage, or one of the sections data and sampling alone"
            )
    plain = with_sections(to_plain(config), with_label_section(of_file, source), source)
    other = build_with_overrides(plain, args.overrides, source, config_from_plain)
    assert isinstance(other, Stage2Config)
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
        if key in of_file.get("data", {}) and value != trained:
            warn_once(f"{source}: data.{key}: {value}, the model was trained with {trained}")
    return replace(config, data=other.data, sampling=other.sampling)


def with_sections(plain: dict, of_file: dict, source: str) -> dict:
    """The plain values of a model's config with the keys that a file has of data and sampling."""
    unknown = sorted(of_file.keys() - {"data", "sampling", "labels"})
    if unknown and "stage" not in of_file:
        raise InputError(
            f"{source}: {unknown[0]}: expected the sections data and sampling alone, or a whole"
            " config with its stage"
        )
    sections = {}
    for name in ("data", "sampling"):
        sections[name] = of_file.get(name, {})
        if not isinstance(sections[name], dict):
            raise InputError(f"{source}: {name}: expected keys and values: give them, or remove it")
    if "steps" in sections["sampling"]:  # a time grid has its own number of steps
        sections["sampling"] = {"time_grid": None, **sections["sampling"]}
    labels = of_file.get("labels", plain["labels"])
    return {**plain, "labels": labels, **{n: {**plain[n], **keys} for n, keys in sections.items()}}


def common_settings(
    args: argparse.Namespace, config: Stage2Config, digest: str, precision: str
) -> dict:
    """The settings that decide the voxels of all samples.

    digest: of the model's weights. precision: that --precision stands for.
    """
    data = config.data
    settings = {
        "model_digest": digest,
        "seed": args.seed,
        "sampling": vars(config.sampling).copy(),
        "guidance_label": args.guidance_label,
        "guidance_vessel": args.guidance_vessel,
        "resolution": list(args.resolution or data.resolution),
        "spacing": args.spacing or data.default_spacing,
        "precision": precision,
        "label_map": data.label_map and [f"{v}={label}" for v, label in data.label_map.items()],
    }
    if data.token_step_mm is not None:  # for the U-Net, the decoder or both
        settings["vessels"] = {"token_step_mm": data.token_step_mm, "format": TOKEN_FORMAT}
    if config.stage == 3 or args.control_scale != 1.0:
        settings["control_scale"] = args.control_scale
    if args.latent_tile is not None:
        settings["latent_tile"] = args.latent_tile
    return settings
