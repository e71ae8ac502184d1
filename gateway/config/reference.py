"""The reference of all configuration keys, made from the models: `python -m gateway.config.reference > docs/configuration.md`.

A test compares the committed page and `config.example.yaml` with what is made here.
"""

from __future__ import annotations

import sys
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from gateway.config.dynamic import Dynamic
from gateway.config.entries import Limit
from gateway.config.static import ENV_PREFIX, Static

_HEAD = """# Configuration

Made from the models by `python -m gateway.config.reference`; do not edit.

A configuration is one YAML file: `switchyard serve --config config.yaml`. Without one the embedded default runs (two
local models, one worker, SQLite, nothing listening beyond this machine). `switchyard check config.yaml` names every
mistake with file, line, key and mend. Unknown keys, duplicate keys and names that lead nowhere are mistakes.

**Static** keys take effect at the start. Each can also come from the environment, which wins over the file: capitals,
`SWITCHYARD_` before, `__` between levels, lists as JSON. **Dynamic** keys are read again when the file changes or on
SIGHUP; a file with a mistake changes nothing.

Secrets never stand in the file: write `env:NAME` or `file:PATH`. Relative paths start at the file's folder. A name has
1 to 128 of the characters `A-Z a-z 0-9 . _ : / -` (an engine's 1 to 32, without `:` and `/`). `<name>` below is a name
of your choice, `[]` a list's entry.
"""


_ABOUT_LIMITS = """One entry of every `limits` list above. What limits promise is in [limits.md](limits.md).

"""


class Key(NamedTuple):
    """One key as the reference shows it. `path` has `<name>` for chosen names and `[]` for list entries."""

    path: str
    kind: str
    default: str
    meaning: str


def keys(model: type[BaseModel], prefix: str = "") -> Iterator[Key]:
    """Every key below a model that holds a value, in the models' order."""
    for name, field in model.model_fields.items():
        path = f"{prefix}{name}"
        inner = _inner_model(field.annotation)
        if inner is None or inner[1] is Limit:
            meaning, default = _meaning(field)
            kind = kind_text(field.annotation) if inner is None else "list of [limits](#a-limit)"
            yield Key(path, kind, default, meaning)
        else:
            suffix, below = inner
            yield from keys(below, f"{path}{suffix}.")


def kind_text(annotation: Any) -> str:
    """A type in a user's words."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return " or ".join(kind_text(one) for one in arguments if one is not type(None))
    if origin is Literal:
        return " \\| ".join(str(one) for one in arguments)
    if origin is typing.Annotated:
        return kind_text(arguments[0])
    if origin is tuple:
        return f"list of {kind_text(arguments[0])}"
    if origin is dict:
        return f"mapping to {kind_text(arguments[1])}"
    names = {str: "text", int: "integer", float: "number", bool: "true \\| false", SecretStr: "text"}
    return names.get(annotation, {"Decimal": "number", "datetime": "date"}.get(getattr(annotation, "__name__", ""), "text"))


def page() -> str:
    """The whole Markdown page."""
    parts = [_HEAD, "\n## Static\n", _table(keys(Static), environment=True)]
    for name, field in Dynamic.model_fields.items():
        inner = _inner_model(field.annotation)
        if inner is None:
            raise TypeError(f"{name} is no section")
        suffix, model = inner
        about = (model.__doc__ or "").strip().splitlines()[0]
        parts += [f"\n## Dynamic: {name}\n\n{about}\n\n", _table(keys(model, f"{name}{suffix}."), environment=False)]
    parts += ["\n## A limit\n\n", _ABOUT_LIMITS, _table(keys(Limit), environment=False)]
    return "".join(parts)


def variable(path: str) -> str:
    """The environment variable of a static key."""
    return ENV_PREFIX + path.replace(".", "__").upper()


def _table(rows: Iterator[Key], *, environment: bool) -> str:
    head = "| key | type | default | meaning |\n| --- | --- | --- | --- |\n"
    lines = []
    for key in rows:
        place = f"`{key.path}`<br>`{variable(key.path)}`" if environment else f"`{key.path}`"
        lines.append(f"| {place} | {key.kind} | {key.default} | {key.meaning} |\n")
    return ("\n" if environment else "") + head + "".join(lines)


def _inner_model(annotation: Any) -> tuple[str, type[BaseModel]] | None:
    """The model inside a section, a mapping of names or a list, with what its path adds; None for a plain value."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "", annotation
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType, typing.Annotated):
        return next((found for one in arguments if (found := _inner_model(one)) is not None), None)
    if origin in (tuple, dict):
        found = _inner_model(arguments[1 if origin is dict else 0])
        return None if found is None else (f".<name>{found[0]}" if origin is dict else f"[]{found[0]}", found[1])
    return None


def _meaning(field: FieldInfo) -> tuple[str, str]:
    """Description and default; where None means something, the description says `(default: …)`."""
    text = field.description or ""
    if field.is_required():
        return text, "required"
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is None:
        before, found, after = text.partition("(default: ")
        if not found:
            return text, "none"
        stated, _, rest = after.rpartition(")")
        return (before + rest).strip(), stated
    return text, _value_text(value)


def _value_text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, tuple | Mapping) and not value:
        return "empty"
    return str(value)


if __name__ == "__main__":
    sys.stdout.write(page())
