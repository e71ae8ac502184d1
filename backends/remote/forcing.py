"""The JSON schema of a call that must be made: of one of these tools, with arguments that fit what it says of them. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from backends.core.request import Output, Tool

#: Keywords whose value is data, not schemas.
_DATA = frozenset({"enum", "const", "default", "examples"})
_COMBINED = frozenset({"$ref", "anyOf", "oneOf", "allOf"})


def forced(tools: Sequence[Tool]) -> Output:
    """The form of an answer that is one call. What cannot be held to is refused where a tool is `strict`, else left out."""
    strict = any(tool.strict for tool in tools)
    return Output("json_schema", name="call", schema=msgspec.Raw(forced_call(tools)), strict=strict, asked_as="tools")


def forced_call(tools: Sequence[Tool]) -> bytes:
    """The schema. Definitions of the tools' schemas move to its top, under other names where two tools use the same."""
    definitions: dict[str, dict[str, object]] = {}
    calls: list[dict[str, object]] = []
    for number, tool in enumerate(tools):
        parameters = dict(msgspec.json.decode(tool.parameters, type=dict[str, Any]))
        place = "#/properties/arguments" if len(tools) == 1 else f"#/anyOf/{number}/properties/arguments"
        moved: dict[str, str] = {}
        own: list[tuple[str, str, object]] = []
        for key in ("$defs", "definitions"):
            if isinstance(found := parameters.pop(key, None), dict):
                for name, schema in found.items():
                    free = name
                    while free in definitions.get(key, {}):
                        free += "_"
                    moved[f"#/{key}/{_step(name)}"] = f"#/{key}/{_step(free)}"
                    own.append((key, free, schema))
        for key, free, schema in own:
            definitions.setdefault(key, {})[free] = _pointed(schema, moved, place)
        if parameters.get("type") != "object" and not parameters.keys() & _COMBINED:
            parameters = {"type": "object", **parameters}
        calls.append(
            {
                "type": "object",
                "properties": {"name": {"const": tool.name}, "arguments": _pointed(parameters, moved, place)},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    return msgspec.json.encode({**(calls[0] if len(calls) == 1 else {"anyOf": calls}), **definitions})


def _step(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


def _pointed(value: Any, moved: Mapping[str, str], place: str) -> Any:
    """A schema whose references lead to where what they mean now is."""
    if isinstance(value, list):
        return [_pointed(one, moved, place) for one in value]
    if not isinstance(value, dict):
        return value
    return {
        key: _reference(one, moved, place)
        if key == "$ref" and isinstance(one, str)
        else one
        if key in _DATA
        else _pointed(one, moved, place)
        for key, one in value.items()
    }


def _reference(reference: str, moved: Mapping[str, str], place: str) -> str:
    if not reference.startswith("#") or reference[1:2] not in ("", "/"):
        return reference
    definition = "/".join(reference.split("/")[:3])
    if definition in moved:
        return moved[definition] + reference[len(definition) :]
    return place + reference[1:]
