"""A configuration made from another program's: its tree, and what of theirs has no place in ours. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

_ENGINE_NAME = re.compile(r"[^A-Za-z0-9._-]+")
_NAME = re.compile(r"[^A-Za-z0-9._:/-]+")
#: Bytes of a file that is imported.
MAX_BYTES = 8 << 20


class NotImportable(Exception):
    """The file is not what it is said to be; the message is for the person who named it."""


@dataclass
class Imported:
    """`tree`: the configuration file's. `notes`: one sentence each, what a person has to know or do."""

    tree: dict[str, Any] = field(default_factory=lambda: {"engines": {}, "deployments": {}, "models": {}})
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Say something once."""
        line = " ".join(text.split())
        if line not in self.notes:
            self.notes.append(line)

    def lacks(self, where: str, keys: Collection[str]) -> None:
        """These keys have no equivalent."""
        for key in sorted(keys):
            self.note(f"{where}: {key!r} has no equivalent and is left out")

    def text(self) -> str:
        """The file, with the notes as comments at its head."""
        tree = {key: value for key, value in self.tree.items() if value}
        head = "".join(f"# {note}\n" for note in self.notes)
        return head + yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=120)


def engine_name(wish: str, taken: Collection[str]) -> str:
    """A name that an engine may have, unlike the taken ones."""
    return _unlike(_ENGINE_NAME.sub("-", wish).lstrip(".")[:32] or "engine", taken, 32)


def public_name(wish: str, taken: Collection[str] = ()) -> str:
    """A name that a model or deployment may have, unlike the taken ones."""
    return _unlike(_NAME.sub("-", wish)[:128] or "model", taken, 128)


def _unlike(name: str, taken: Collection[str], most: int) -> str:
    number, found = 1, name
    while found in taken:
        number += 1
        tail = f"-{number}"
        found = name[: most - len(tail)] + tail
    return found


def read_yaml(data: bytes) -> dict[str, Any]:
    """A YAML mapping.

    Raises:
        NotImportable: it is none.
    """
    try:
        found = yaml.safe_load(data)
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise NotImportable(f"it is no YAML: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(found, dict):
        raise NotImportable("it is no mapping at its top")
    return found


def read_json(data: bytes) -> Any:
    """A JSON value.

    Raises:
        NotImportable: it is none.
    """
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise NotImportable(f"it is no JSON: {error}") from None


def mapping(value: object) -> Mapping[str, Any]:
    """The value when it is a mapping, else an empty one."""
    return value if isinstance(value, dict) else {}


def whole(value: object, least: int, most: int) -> int | None:
    """The value when it is a whole number in this range."""
    return value if isinstance(value, int) and not isinstance(value, bool) and least <= value <= most else None
