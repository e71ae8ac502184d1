"""A YAML file as plain values and the line of every key; hostile or ambiguous YAML is refused.

Refused: more than `MAX_BYTES`, duplicate keys (YAML keeps the last one silently), keys that are not text, tags other
than YAML's own, anchors that contain themselves, and anything that grows beyond `MAX_VALUES` once its aliases are
expanded (the "billion laughs").
"""

from __future__ import annotations

from typing import NamedTuple

import yaml

from gateway.config.problems import ConfigError, KeyPath, Problem, dotted

MAX_BYTES = 4 * 1024 * 1024
MAX_VALUES = 200_000
MAX_DEPTH = 32


class Document(NamedTuple):
    """`tree` is made of dict, list, str, int, float, bool, None and dates. `lines` has the line of every key path."""

    file: str
    tree: dict[str, object]
    lines: dict[KeyPath, int]

    def line(self, path: KeyPath) -> int:
        """The line of a key, or of the nearest key above it; 0 when there is none."""
        while path:
            if path in self.lines:
                return self.lines[path]
            path = path[:-1]
        return 0


def read_document(data: bytes, file: str) -> Document:
    """Parse a YAML file. An empty file is an empty mapping.

    Raises:
        ConfigError: it is no YAML, no mapping, or one of the things that the module refuses.
    """
    if len(data) > MAX_BYTES:
        raise _refusal(file, f"the file has more than {MAX_BYTES} bytes", "make it smaller; minted keys live in the ledger")
    try:
        loader = yaml.SafeLoader(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise _refusal(file, "the file is not UTF-8", "save it as UTF-8") from error
    except yaml.YAMLError as error:
        raise _unreadable(file, error) from error
    try:
        node = loader.get_single_node()
        if node is None:
            return Document(file, {}, {})
        walk = _Walk(file)
        walk.visit(node, (), 0)
        if walk.problems:
            raise ConfigError(walk.problems)
        tree = loader.construct_document(node)
    except (yaml.YAMLError, ValueError) as error:
        raise _unreadable(file, error) from error
    except RecursionError as error:
        raise _refusal(file, "the file is nested too deeply", f"at most {MAX_DEPTH} levels") from error
    finally:
        loader.dispose()
    if not isinstance(tree, dict):
        raise _refusal(file, "the file is not a mapping of keys", "begin with a section such as `server:`")
    return Document(file, tree, walk.lines)


class _Walk:
    """Checks a node tree before any value is made of it."""

    def __init__(self, file: str) -> None:
        self.lines: dict[KeyPath, int] = {}
        self.problems: list[Problem] = []
        self._file = file
        self._values = 0
        self._open: set[int] = set()

    def visit(self, node: yaml.Node, path: KeyPath, depth: int) -> None:
        self._values += 1
        if self._values > MAX_VALUES:
            raise _refusal(self._file, f"more than {MAX_VALUES} values after aliases are expanded", "use fewer aliases")
        if id(node) in self._open:
            raise _refusal(self._file, "an anchor contains itself", "remove the alias", node.start_mark.line + 1)
        if depth > MAX_DEPTH:
            raise _refusal(self._file, "the file is nested too deeply", f"at most {MAX_DEPTH} levels", node.start_mark.line + 1)
        self._open.add(id(node))
        if isinstance(node, yaml.MappingNode):
            self._mapping(node, path, depth)
        elif isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                self.lines.setdefault((*path, index), item.start_mark.line + 1)
                self.visit(item, (*path, index), depth + 1)
        self._open.discard(id(node))

    def _mapping(self, node: yaml.MappingNode, path: KeyPath, depth: int) -> None:
        seen: set[str] = set()
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.tag == "tag:yaml.org,2002:merge":
                self.visit(value, path, depth + 1)
                continue
            if not isinstance(key, yaml.ScalarNode) or key.tag != "tag:yaml.org,2002:str":
                self._problem(path, "a key that is not text", "put the key in quotes", line)
                continue
            if key.value in seen:
                self._problem((*path, key.value), "the key is there twice", "keep one of them", line)
            seen.add(key.value)
            self.lines[(*path, key.value)] = line
            self.visit(value, (*path, key.value), depth + 1)

    def _problem(self, path: KeyPath, problem: str, mend: str, line: int) -> None:
        self.problems.append(Problem(self._file, dotted(path), problem, mend, line))


def _refusal(file: str, problem: str, mend: str, line: int = 0) -> ConfigError:
    return ConfigError([Problem(file, "", problem, mend, line)])


def _unreadable(file: str, error: Exception) -> ConfigError:
    mark = getattr(error, "problem_mark", None)
    what = getattr(error, "problem", None) or "a value that YAML cannot read"
    return _refusal(
        file, f"not valid YAML: {what}", "check indentation, quotes and brackets there", mark.line + 1 if mark else 0
    )
