"""YAML into typed dataclasses: an unknown, repeated or mistyped key is an error that names it.

PyYAML alone reads `1e-4` as text, uses the last of two equal keys and has no schema. This reader
accepts `1e-4` for a number, refuses a repeated key with its line, and suggests the nearest key for
an unknown one.
"""

import dataclasses
import difflib
import types
import typing
from pathlib import Path
from typing import Any

import yaml

from tubesynth.runtime.errors import InputError


class _UniqueKeyLoader(yaml.SafeLoader):
    """SafeLoader that refuses a repeated key; PyYAML would use its last value."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                line = key_node.start_mark.line + 1
                raise InputError(f"{self.name}, line {line}: key '{key}' is repeated: keep one")
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(path: str | Path) -> dict:
    """The mapping in a YAML file; InputError where the file is missing or holds no mapping."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot read this config ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a text file (expected UTF-8 YAML)") from error
    loader = _UniqueKeyLoader(text)
    loader.name = str(path)
    try:
        content = loader.get_single_data()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or error
        raise InputError(f"{path}{line}: not valid YAML ({problem})") from error
    finally:
        loader.dispose()
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected keys and values at the top level")
    return content


def apply_overrides(content: dict, overrides: list[str]) -> dict:
    """A copy of the mapping with the `section.key=value` items set; values are read as YAML."""
    content = _deep_copy(content)
    for item in overrides:
        key, equals, text = item.partition("=")
        if not equals or not key:
            raise InputError(
                f"override '{item}': expected key=value, e.g. train.learning_rate=1e-4"
            )
        try:
            value = yaml.safe_load(text) if text else None
        except yaml.YAMLError as error:
            raise InputError(f"override '{item}': the value is not valid YAML") from error
        *sections, leaf = key.split(".")
        target = content
        for name in sections:
            if target.get(name) is None:
                target[name] = {}
            target = target[name]
            if not isinstance(target, dict):
                raise InputError(f"override '{item}': '{name}' is a value, not a section")
        target[leaf] = value
    return content


def _deep_copy(content):
    if isinstance(content, dict):
        return {key: _deep_copy(value) for key, value in content.items()}
    return content


def build(schema: type, content: dict, source: str, prefix: str = ""):
    """The dataclass `schema` filled from a mapping; InputError names source and dotted key."""
    fields = {field.name: field for field in dataclasses.fields(schema)}
    hints = typing.get_type_hints(schema)
    for key in content:
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1, cutoff=0.5)
            remedy = (
                f"did you mean '{prefix}{near[0]}'?"
                if near
                else f"the keys of this section are {', '.join(sorted(fields))}"
            )
            raise InputError(f"{source}: unknown key '{prefix}{key}': {remedy}")
    values = {}
    for name, field in fields.items():
        if name in content:
            values[name] = _convert(hints[name], content[name], source, prefix + name)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise InputError(f"{source}: key '{prefix}{name}' is missing: add it")
    return schema(**values)


def _convert(kind, value, source: str, key: str) -> Any:
    def wrong(expected: str):
        return InputError(f"{source}: {key}: expected {expected}, got {value!r}")

    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        if value is None:
            value = {}
        if not isinstance(value, dict):
            raise wrong("a section of keys and values")
        return build(kind, value, source, key + ".")
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        options = typing.get_args(kind)
        if value is None and type(None) in options:
            return None
        inner = [option for option in options if option is not type(None)]
        if len(inner) > 1:  # one value or a list of them: `float | list[float]`
            listed = isinstance(value, list | tuple)
            inner = [option for option in inner if (typing.get_origin(option) is list) == listed]
        (kind,) = inner
        return _convert(kind, value, source, key)
    if origin is typing.Literal:
        options = typing.get_args(kind)
        if type(value) is int and value not in options:
            value = str(value)  # YAML reads `precision: 32` as a number,
        elif value is False and "off" in options:
            value = "off"  # and `vessel_attention: off` as false
        if value not in options:
            raise wrong("one of " + ", ".join(map(str, options)))
        return value
    if origin in (list, tuple):
        inner = typing.get_args(kind)[0]  # of list[int] and of tuple[int, ...]
        if not isinstance(value, list | tuple):
            raise wrong("a list such as [1, 2, 3]")
        return origin(_convert(inner, item, source, f"{key}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        inner = typing.get_args(kind)[1]  # of dict[str, T]
        if not isinstance(value, dict):
            raise wrong("names with values")
        return {str(k): _convert(inner, item, source, f"{key}.{k}") for k, item in value.items()}
    if kind is bool:
        if not isinstance(value, bool):
            raise wrong("true or false")
        return value
    if kind is int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise wrong("a whole number")
        return value
    if kind is float:
        number = _as_float(value)
        if number is None:
            raise wrong("a number")
        return number
    if kind is str:
        if not isinstance(value, str | int | float) or isinstance(value, bool):
            raise wrong("text")
        return str(value)
    raise AssertionError(f"{key}: strict.py does not support the type {kind} of the schema")


def _as_float(value) -> float | None:
    if isinstance(value, bool):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def to_plain(config) -> dict:
    """A dataclass as nested dicts, lists and values, in the order of its fields."""
    return _with_lists(dataclasses.asdict(config))


def _with_lists(value) -> Any:
    if isinstance(value, dict):
        return {key: _with_lists(item) for key, item in value.items()}
    return [_with_lists(item) for item in value] if isinstance(value, list | tuple) else value


def flatten(plain: dict, prefix: str = "") -> dict:
    """{"train": {"epochs": 3}} -> {"train.epochs": 3}."""
    flat = {}
    for key, value in plain.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def dump(config) -> str:
    """A dataclass as YAML that `read_yaml` and `build` read back to an equal one."""

    class Dumper(yaml.SafeDumper):
        pass

    # Lists of numbers on one line, as people write them.
    Dumper.add_representer(
        list,
        lambda dumper, items: dumper.represent_sequence(
            "tag:yaml.org,2002:seq", items, flow_style=True
        ),
    )
    return yaml.dump(to_plain(config), Dumper=Dumper, sort_keys=False, width=100)
