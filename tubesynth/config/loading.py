"""A config from a YAML file or a checkpoint: built by the schema, then checked.

`section.key=value` items of a command line replace values of the file (overrides.py). strict.py
refuses unknown keys and wrong types; checks.py refuses values that contradict each other.

    config = load_config("configs/stage_1_3d_f4.yml", ["train.epochs=10"])
"""

from collections.abc import Iterable
from dataclasses import fields, replace
from pathlib import Path

from tubesynth.config.checks import check
from tubesynth.config.labels import with_label_section
from tubesynth.config.overrides import build_with_overrides
from tubesynth.config.packaged import find_config
from tubesynth.config.published import refuse_published
from tubesynth.config.schema import STAGES, Config
from tubesynth.config.strict import build, read_yaml
from tubesynth.runtime.errors import InputError, short

RENAMED_RESTARTS = {"optimisers": "optimizers"}  # the spelling of version 0.1.0 is still read


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """Read a config, apply the overrides and check it; InputError names file and key.

    path: a file, or the name of a packaged config (config/packaged.py).
    """
    file = find_config(path)
    overrides = list(overrides)
    content = read_yaml(file)
    refuse_published(content, str(file))
    return build_with_overrides(content, overrides, str(file), _new_config)


def _new_config(content: dict, source: str) -> Config:
    """A config that is to be trained: checkpoints of older versions may have what it may not."""
    config = config_from_plain(content, source)
    if config.train.keep == 0:
        raise InputError(
            f"{source}: train.keep: 0 would delete every periodic checkpoint as it is written: give"
            " the number that stays, null for all, or a larger train.save_every for fewer"
        )
    return config


def config_from_plain(content: dict, source: str) -> Config:
    """A checked config from nested plain values; source: the file that errors name."""
    stage = content.get("stage")
    if stage not in list(STAGES):  # not a lookup: a list in the file is unhashable
        expected = ", ".join(map(str, STAGES))
        raise InputError(f"{source}: stage: expected one of {expected}, got {short(stage)}")
    keys_of = {name: {each.name for each in fields(schema)} for name, schema in STAGES.items()}
    for key in content:
        others = [str(name) for name, keys in keys_of.items() if key in keys]
        if others and key not in keys_of[stage]:
            raise InputError(
                f"{source}: unknown key '{key}' in a config of stage {stage}: it is of stage"
                f" {' or '.join(others)}: remove it, or choose the config that fits"
            )
    config = build(STAGES[stage], with_label_section(content, source), source)
    restart = [RENAMED_RESTARTS.get(item, item) for item in config.train.restart]
    config = replace(config, train=replace(config.train, restart=restart))
    check(config, source)
    return config
