"""YAML into typed dataclasses: an unknown or mistyped key is an error that names it.

YAML 1.1 has no schema, and `1e-4` is text in it. Here `1e-4` is a number where one is expected, and
the error of an unknown key suggests the nearest key of its section, or of another one.
"""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tubesynth.config.plain_yaml import MOST_BYTES, parse_yaml
from tubesynth.runtime.errors import InputError, short
from tubesynth.runtime.reading import read_text


def read_yaml(path: str | Path) -> dict:
    """The mapping in a YAML file; InputError where the file is missing or holds no mapping."""
    content = parse_yaml(read_text(path, "give a config: a YAML file", MOST_BYTES), str(path))
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected keys and values at the top level: add stage: 1")
    return content


def build(schema: type, content: dict, source: str, prefix: str = "", root: type | None = None):
    """The dataclass `schema` filled from a mapping; InputError names source and dotted key.

    root: the schema of the whole config, of which an unknown key may belong to another section.
    """
    root = root or schema
    fields = {field.name: field for field in dataclasses.fields(schema)}
    hints = typing.get_type_hints(schema)
    for key in content:
        if key not in fields:
            near = _nearest_key(str(key), [prefix + name for name in fields], root)
            remedy = (
                f"did you mean '{near}'?"
                if near
                else f"the keys of this section are {', '.join(sorted(fields))}"
            )
            name = short(f"{prefix}{key}")
            raise InputError(f"{source}: unknown key {name}: {remedy}")
    values = {}
    for name, field in fields.items():
        if name in content:
            values[name] = _convert(hints[name], content[name], source, prefix + name, root)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise InputError(f"{source}: key '{prefix}{name}' is missing: add it")
    return schema(**values)


def _nearest_key(name: str, section: list[str], root: type) -> str | None:
    """The dotted key that an unknown name may mean: one of its own section, or of another one."""
    in_section = {key.rpartition(".")[2]: key for key in section}
    anywhere = {key.rpartition(".")[2]: key for key in reversed(list(_dotted_keys(root)))}
    for keys, cutoff in ((anywhere, 1.0), (in_section, 0.5), (anywhere, 0.8)):
        if near := difflib.get_close_matches(name, keys, n=1, cutoff=cutoff):
            return keys[near[0]]
    return None


def _dotted_keys(schema: type, prefix: str = "") -> Iterator[str]:
    """The keys of a schema and its sections, without those of items of lists and mappings."""
    for name, kind in typing.get_type_hints(schema).items():
        sections = [each for each in (kind, *typing.get_args(kind)) if _is_section(each)]
        if not sections:
            yield prefix + name
        for section in sections:
            yield from _dotted_keys(section, f"{prefix}{name}.")


def _is_section(kind: object) -> bool:
    return isinstance(kind, type) and dataclasses.is_dataclass(kind)


def _convert(kind, value, source: str, key: str, root: type) -> Any:
    def wrong(expected: str):
        return InputError(f"{source}: {key}: expected {expected}, got {short(value)}")

    if _is_section(kind):
        if value is None:
            raise InputError(
                f"{source}: {key}: an empty section: give its keys, or leave it out for the"
                " defaults"
            )
        if not isinstance(value, dict):
            raise wrong("a section of keys and values")
        return build(kind, value, source, key + ".", root)
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
        return _convert(kind, value, source, key, root)
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
        return origin(
            _convert(inner, item, source, f"{key}[{i}]", root) for i, item in enumerate(value)
        )
    if origin is dict:
        name_kind, inner = typing.get_args(kind)  # of dict[str, T] and dict[int, T]
        if not isinstance(value, dict):
            raise wrong("names with values")
        if name_kind is int and not all(str(name).isdecimal() for name in value):
            raise wrong("whole numbers with values, such as {1: 8}")
        return {
            name_kind(name): _convert(inner, item, source, f"{key}.{name}", root)
            for name, item in value.items()
        }
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
            raise wrong("a finite number")
        return number
    if kind is str:
        if not isinstance(value, str | int | float) or isinstance(value, bool) or value == "":
            raise wrong("text")
        return str(value)
    raise AssertionError(f"{key}: strict.py does not support the type {kind} of the schema")


def _as_float(value) -> float | None:
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


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
            flat[f"{prefix}{key}"] = value
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
