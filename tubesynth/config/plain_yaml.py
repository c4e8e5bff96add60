"""YAML text as plain values: text, numbers, true, false, null, lists, and sections with text keys.

Everything else that YAML has is refused with its line (tags of other types, keys that are lists) or
is text (dates, merge keys). Whatever the text, reading it ends soon: nesting is limited, and so is
the size of the values with all aliases expanded, which grows exponentially with a text's length.
"""

from typing import Any, NoReturn

import yaml

from tubesynth.runtime.errors import InputError, is_utf_8, short

MOST_BYTES = 2**19  # of a config's file; PyYAML reads 2**18 in a second
MOST_SIZE = 2**20  # of all values with their aliases expanded: characters, and VALUE for each
VALUE = 16
MOST_BITS = 1000  # of a whole number; a float has up to 1024
DEEPEST = 32  # lists and sections within each other

_TAG = "tag:yaml.org,2002:"
_SCALARS = {_TAG + name: name for name in ("null", "bool", "int", "float", "str")}


def parse_yaml(text: str, source: str) -> Any:
    """The plain value of a YAML text; InputError with the source and the line of the error."""
    try:
        loader = _PlainLoader(text, source)
        node = loader.get_single_node()
        return None if node is None else loader.plain(node)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise InputError(
            f"{source}, line {line}: not valid YAML (character U+{error.character:04X}): remove it"
        ) from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise InputError(f"{source}{line}: not valid YAML ({error.problem}): correct it") from error


class _PlainLoader(yaml.SafeLoader):
    """Composes nodes to a limited depth, and makes plain values of them."""

    # The patterns by which an untagged text becomes a number, a truth value or null; no others.
    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag in _SCALARS]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def __init__(self, text: str, source: str):
        super().__init__(text)
        self.source = source
        self.depth = 0
        self.size = 0

    def compose_node(self, parent, index):
        self._require_depth(self.depth, self.peek_event().start_mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def plain(self, node: yaml.Node, depth: int = 0) -> Any:
        """The value of a node. An alias is the same node again, so that a node may hold itself."""
        self._require_depth(depth, node.start_mark)
        self.size += VALUE + (len(node.value) if isinstance(node, yaml.ScalarNode) else 0)
        if self.size > MOST_SIZE:
            self._refuse(node, "too many values, with each alias in full")
        if isinstance(node, yaml.ScalarNode) and node.tag in _SCALARS:
            return self._scalar(node)
        if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            return [self.plain(item, depth + 1) for item in node.value]
        if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            return self._section(node, depth)
        self._refuse(node, f"values have no type {short(node.tag.removeprefix(_TAG))}")

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        if "\0" in node.value or not is_utf_8(node.value):  # of escapes
            self._refuse(node, "text with a character that no file can have")
        try:
            value = self.yaml_constructors[node.tag](self, node)
        except (ValueError, KeyError, IndexError):  # of int, of the table of bool, of empty text
            self._refuse(node, f"{short(node.value)} is no {_SCALARS[node.tag]}")
        if isinstance(value, int) and value.bit_length() > MOST_BITS:
            self._refuse(node, "a whole number of too many digits")
        return value

    def _section(self, node: yaml.MappingNode, depth: int) -> dict[str, Any]:
        section: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self._refuse(key_node, "a key is a list or a section, not text")
            key = key_node.value
            if key in section:
                line = key_node.start_mark.line + 1
                raise InputError(
                    f"{self.source}, line {line}: key {short(key)} is repeated: keep one"
                )
            section[key] = self.plain(value_node, depth + 1)
        return section

    def _require_depth(self, depth: int, mark: yaml.Mark) -> None:
        if depth > DEEPEST:
            problem = f"nested over {DEEPEST} deep, or an anchor holds its own alias"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)

    def _refuse(self, node: yaml.Node, problem: str) -> NoReturn:
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
