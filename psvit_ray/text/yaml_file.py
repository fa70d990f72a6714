"""YAML and JSON files that a user writes. They are refused if they are large, if aliases make them
large, or if YAML reads a value otherwise than a person does."""

from __future__ import annotations

import codecs
import re
import stat
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError
from yaml.nodes import MappingNode, Node, ScalarNode

from psvit_ray.text.messages import short_repr

MAX_FILE_BYTES = 64 * 1024
"""Largest size of a file: thirty times that of the longest recipe."""
MAX_VALUES = 10_000
"""Most values in a file; those that an alias repeats count each time."""
MAX_LEVELS = 20
"""Deepest nesting of lists and mappings: three times that of a recipe. Parsing and checking are
recursive."""
DECIMAL = re.compile(r"[-+]?(?:0|[1-9][0-9_]{0,39})")


def read_text(path: Path, what: str, hint: str = "") -> str:
    """The text of a small file: UTF-8, or UTF-16 with its byte order mark.

    Raises ValueError for anything else. Its message begins with `what`, the name of the file in
    words, and ends with `hint` if there is no such file.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a FIFO would wait, a device never end
            reason = "Is a directory" if path.is_dir() else "it is not a regular file"
            raise ValueError(f"{what} cannot be read: {reason}")
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{what} does not exist{hint}") from None
    except OSError as error:
        raise ValueError(f"{what} cannot be read: {error.strerror}") from None
    if len(content) > MAX_FILE_BYTES:
        raise ValueError(f"{what} must have at most {MAX_FILE_BYTES:,} bytes")
    marked = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return content.decode("utf-16" if marked else "utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{what} cannot be read: it is not text") from None


def read_yaml(path: Path, what: str, hint: str = "") -> Any:
    """The value that a YAML file holds. Raises ValueError as `read_text` does, with the line of a
    syntax error."""
    text = read_text(path, what, hint)
    try:
        return yaml.load(text, _Loader)  # a SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error).partition("\n")[0]
        line = f" at line {mark.line + 1}" if mark else ""
        raise ValueError(f"{what} is not YAML{line}: {problem}") from None


class _Loader(yaml.SafeLoader):
    """PyYAML's SafeLoader for the types of JSON only, with a bound on what it builds."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._level = 0
        self._values: dict[Node, int] = {}
        """Number of values that each complete node stands for."""
        self._levels: dict[Node, int] = {}

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        event = self.peek_event()
        if getattr(event, "tag", None):
            raise _fault(event, f"the tag {short_repr(event.tag)} is not allowed")
        self._level += 1
        self._check_level(event, self._level)
        node: Node | None = super().compose_node(parent, index)
        self._level -= 1
        if isinstance(event, yaml.AliasEvent) and node not in self._values:
            raise _fault(event, "a value must not contain itself")
        if node is not None and node not in self._values:
            self._measure(event, node)
        return node

    def _measure(self, event: Any, node: Node) -> None:
        """Raises ConstructorError if the node, its aliases written out, is too large."""
        inner: list[Node] = []
        if isinstance(node, MappingNode):
            inner = [part for pair in node.value for part in pair]
            self._check_keys(node)
        elif not isinstance(node, ScalarNode):
            inner = node.value
        self._values[node] = 1 + sum(self._values[part] for part in inner)
        self._levels[node] = 1 + max((self._levels[part] for part in inner), default=0)
        self._check_level(event, self._levels[node])
        if self._values[node] > MAX_VALUES:
            raise _fault(event, f"there are more than {MAX_VALUES:,} values, aliases written out")

    def _check_level(self, event: Any, level: int) -> None:
        if level > MAX_LEVELS:
            raise _fault(event, f"there are more than {MAX_LEVELS} nested lists and mappings")

    def _check_keys(self, node: MappingNode) -> None:
        keys: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, ScalarNode):
                raise _fault(key, "a key must be a word")
            if key.value in keys:
                raise _fault(key, f"the key {short_repr(key.value)} is given twice")
            keys.add(key.value)

    def _whole_number(self, node: ScalarNode) -> int:
        """YAML 1.1 reads 010 as 8 and 1:30 as 90."""
        if not DECIMAL.fullmatch(node.value):
            raise _fault(
                node, f"a whole number must be of at most 40 decimal digits, got {node.value:.50}"
            )
        return int(node.value)

    def _number(self, node: ScalarNode) -> float:
        if ":" in node.value:
            raise _fault(node, f"a number must be decimal, got {node.value:.50}")
        return float(self.construct_yaml_float(node))


def _fault(place: Any, problem: str) -> ConstructorError:
    return ConstructorError(None, None, problem, place.start_mark)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader._whole_number)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader._number)
# A date stays the text that it is: no setting is one, and there is no 30 February.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, rule) for tag, rule in rules if tag != "tag:yaml.org,2002:timestamp"]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
