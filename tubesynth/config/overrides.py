"""The `section.key=value` items of a command line: set in a config, and named in its errors."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate

from tubesynth.config.plain_yaml import parse_yaml
from tubesynth.runtime.errors import InputError, short


def apply_overrides(content: dict, overrides: Sequence[str]) -> dict:
    """A copy of the mapping with the items set; values are read as YAML.

    InputError for an item that is no key=value, or sets what another item sets.
    """
    content = _deep_copy(content)
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
        target[leaf] = parse_yaml(text, _source(item)) if text else None
    return content


@contextmanager
def naming_overrides(source: str, overrides: Sequence[str]) -> Iterator[None]:
    """Raise the errors of a config with the items that they are about, if any, for its source.

    An error is `SOURCE: KEY: ...`, and the text after the key may name further keys.
    """
    try:
        yield
    except InputError as error:
        problem = str(error).removeprefix(f"{source}: ")
        keys = zip(overrides, _keys(overrides), strict=True)
        places = {item: place for item, key in keys if (place := _mention(key, problem)) >= 0}
        if not places or problem == str(error):
            raise
        named = ", ".join(map(_source, places))
        # The first key of the message has the wrong value; others contradict it.
        is_first = min(places.values()) in (0, len("key '"))
        raise InputError(f"{named if is_first else f'{source}, {named}'}: {problem}") from error


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


def _mention(key: str, message: str) -> int:
    """Where a message names a key, one below it, or first of all one above; -1 if nowhere."""
    above = "|".join(map(re.escape, accumulate(key.split("."), "{}.{}".format)))
    if re.match(rf"unknown key '({above})'|({above}):", message):
        return 0
    end = r"(?!\w)" if "." in key else r"(?=[:'\[]|\.\w)"  # data, seed are words of sentences too
    found = re.search(rf"(?<![\w.]){re.escape(key)}{end}", message)
    return found.start() if found else -1


def _source(item: str) -> str:
    return f"command line, {short(item)}"


def _deep_copy(content):
    if isinstance(content, dict):
        return {key: _deep_copy(value) for key, value in content.items()}
    return content
