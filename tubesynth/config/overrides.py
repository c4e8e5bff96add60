"""The `section.key=value` items of a command line: set in a config, and named in its errors."""

import copy
import json
import re
from collections.abc import Callable, Sequence
from typing import TypeVar

from tubesynth.config.plain_yaml import parse_yaml
from tubesynth.config.strict import flatten
from tubesynth.runtime.errors import InputError, short

Built = TypeVar("Built")


class FlagItem(str):
    """A key=value item that an option of the command stands for; errors name the option."""

    option: str

    def __new__(cls, key: str, option: str, value: object) -> "FlagItem":
        text = json.dumps(value, ensure_ascii=False) if isinstance(value, str) else value
        item = super().__new__(cls, f"{key}={text}")
        item.option = f"{option} {value}"
        return item


def build_with_overrides(
    content: dict, overrides: Sequence[str], source: str, build: Callable[[dict, str], Built]
) -> Built:
    """build(content with the items set, source); its errors name the items that cause them.

    An error is `SOURCE: KEY: ...`. Items without which it is raised all the same do not cause it.
    """
    changed = apply_overrides(content, overrides)
    try:
        return build(changed, source)
    except InputError as error:
        causes = list(overrides)
        for item in overrides:
            others = [other for other in causes if other is not item]
            if _error(content, others, source, build) == str(error):
                causes = others
        if not causes:
            raise
        problem = str(error).removeprefix(f"{source}: ")
        named = _source(*causes)
        # The first key of the message has the wrong value, and the items may contradict it.
        key = re.sub(r"^(unknown )?key '|[^\w.].*", "", problem)
        of_items = any(f"{key}.".startswith(f"{other}.") for other in _keys(causes))
        of_file = key in flatten(content) or key in content
        named = f"{source}, {named}" if of_file and not of_items else named
        raise InputError(f"{named}: {problem}") from error


def _error(
    content: dict, overrides: Sequence[str], source: str, build: Callable[[dict, str], object]
) -> str | None:
    try:
        build(apply_overrides(content, overrides), source)
    except InputError as error:
        return str(error)
    return None


def apply_overrides(content: dict, overrides: Sequence[str]) -> dict:
    """A copy of the mapping with the items set; values are read as YAML.

    InputError for an item that is no key=value, sets what another item sets, or would reset keys of
    a section that it does not name.
    """
    content = copy.deepcopy(content)
    for item, key in zip(overrides, _keys(overrides), strict=True):
        *sections, leaf = key.split(".")
        target = content
        for name in sections:
            if target.get(name) is None:
                target[name] = {}
            target = target[name]
            if not isinstance(target, dict):
                raise InputError(f"{_source(item)}: '{name}' is a value, not a section")
        text = item.partition("=")[2]
        value = parse_yaml(text, _source(item)) if text else None
        if isinstance(value, dict) and isinstance(target.get(leaf), dict):
            named = flatten(value)
            for name in flatten(target[leaf]):
                # The keys of data.label_map are numbers: it is one value, not a section.
                if name not in named and not name.rpartition(".")[2].isdecimal():
                    raise InputError(
                        f"{_source(item)}: would reset {key}.{name} too: set single keys, such as"
                        f" {key}.{name}=..."
                    )
        target[leaf] = value
    return content


def _keys(overrides: Sequence[str]) -> list[str]:
    """The key of each item."""
    keys: list[str] = []
    for item in overrides:
        key, equals, _ = item.partition("=")
        if not equals or not key:
            raise InputError(f"{_source(item)}: expected key=value, e.g. train.learning_rate=1e-4")
        for other, other_item in zip(keys, overrides, strict=False):
            if f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}."):
                raise InputError(f"{_source(item)}: {short(other_item)} sets it too: keep one")
        keys.append(key)
    return keys


def _source(*items: str) -> str:
    """The items as errors name them."""
    names = [item.option if isinstance(item, FlagItem) else short(item) for item in items]
    only_flags = all(isinstance(item, FlagItem) for item in items)
    return ", ".join(names if only_flags else ["command line", *names])
