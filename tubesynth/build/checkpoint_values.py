"""Dataclasses as nested dictionaries of plain values and tensors, and back with checked types.

An error names the file and the dotted key of the value.
"""

import types
import typing
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

from tubesynth.config.loading import config_from_plain
from tubesynth.config.schema import Config
from tubesynth.config.strict import to_plain
from tubesynth.runtime.errors import InputError

OLD_KEYS = {"sample_index": "draw", "optimizer": "optimiser"}  # {key: its name in version 0.1.0}


def require(condition: bool, path: Path | None, key: str, problem: str) -> None:
    """InputError on a value of a checkpoint, unless the condition holds."""
    if not condition:
        raise InputError(f"{path}: damaged checkpoint: its '{key}' {problem}: use another file")


def values_of(value: Any) -> Any:
    """Dataclasses as dictionaries; tensors and state dicts as they are."""
    if isinstance(value, Config):
        return to_plain(value)
    if is_dataclass(value):
        return {f.name: values_of(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, dict) and any(map(is_dataclass, value.values())):
        return {name: values_of(item) for name, item in value.items()}
    return value


def from_values(kind: Any, value: Any, path: Path, key: str) -> Any:
    """The value as its annotated type; InputError names the file and the key of a wrong value."""
    options = typing.get_args(kind)
    if isinstance(kind, types.UnionType):  # T | None
        return None if value is None else from_values(options[0], value, path, key)
    if kind is Any:
        return value
    expected = typing.get_origin(kind) or (dict if is_dataclass(kind) else kind)
    problem = f"is {type(value).__name__}, not {expected.__name__}"
    require(_is_instance(value, expected), path, key, problem)
    if typing.get_origin(kind) is dict:
        for name in value:
            from_values(options[0], name, path, f"{key}.{name} (as a key)")
        items = {n: from_values(options[1], item, path, f"{key}.{n}") for n, item in value.items()}
        # A state dict is returned itself: it has an attribute _metadata.
        return items if is_dataclass(options[1]) else value
    if not is_dataclass(kind):
        return value
    assert isinstance(kind, type)
    if issubclass(kind, Config):
        config = config_from_plain(_without_removed_keys(value, path), f"{path}: {key}")
        require(isinstance(config, kind), path, key, f"is of stage {config.stage}")
        return config
    hints, arguments = typing.get_type_hints(kind), {}
    for each in fields(kind):
        name = f"{key}.{each.name}".lstrip(".")
        old_key = OLD_KEYS.get(each.name)
        if each.name in value or old_key in value:
            item = value[each.name if each.name in value else old_key]
            arguments[each.name] = from_values(hints[each.name], item, path, name)
        else:
            require(each.default is not MISSING, path, name, "is missing")
    return kind(**arguments)


def _is_instance(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)  # which is an int for Python


def _without_removed_keys(config: dict[str, Any], path: Path) -> dict[str, Any]:
    """A stored config without the keys of version 0.2.0 that no longer exist."""
    section = config.get("autoencoder")
    if not isinstance(section, dict) or "vessel_mask_in_decoder" not in section:
        return config
    section = dict(section)
    if section.pop("vessel_mask_in_decoder"):
        raise InputError(
            f"{path}: trained with autoencoder.vessel_mask_in_decoder, which became"
            " autoencoder.decoder_condition: train again, or use version 0.2.0"
        )
    return {**config, "autoencoder": section}
