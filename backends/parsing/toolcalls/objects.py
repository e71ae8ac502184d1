"""A call as a JSON object: `{"name": ..., "arguments": {...}}`, with the spellings that models use for its keys."""

from __future__ import annotations

import msgspec

from backends.parsing.toolcalls.reading import Calls, Malformed, Reader, Steps, decoded, expect, peek, space, value

_NAME = frozenset({"name", "tool_name", "tool", "function_name"})
_ARGUMENTS = frozenset({"arguments", "parameters", "args"})
_ID = frozenset({"id", "tool_call_id"})
_KNOWN = _NAME | _ARGUMENTS | _ID | {"type", "function"}


class _Found(msgspec.Struct):
    name: str = ""
    id: str = ""
    arguments: str | None = None


def call_object(reader: Reader, calls: Calls, *, sure: bool = True) -> Steps[None]:
    """One call. `sure`: a marker said that it is one; else it must look like one: known keys only, arguments stated.

    Raises:
        Malformed: it is none.
    """
    found = _Found()
    yield from expect(reader, "{")
    while True:
        yield from space(reader)
        if (yield from peek(reader)) != '"':
            raise Malformed
        key = decoded((yield from value(reader)))
        if not sure and key not in _KNOWN:
            raise Malformed
        yield from space(reader)
        yield from expect(reader, ":")
        yield from space(reader)
        yield from _entry(reader, calls, str(key), found)
        yield from space(reader)
        if (yield from expect(reader, ",", "}")) == "}":
            break
    if found.arguments is None and not sure:
        raise Malformed
    calls.call(found.name, found.arguments or "{}", found.id)


def _entry(reader: Reader, calls: Calls, key: str, found: _Found) -> Steps[None]:
    if key in _ARGUMENTS and found.arguments is None:
        if found.name and (yield from peek(reader)) == "{":
            calls.begin(found.name, found.id)
            found.arguments = yield from value(reader)
            calls.arguments_end()
        else:
            found.arguments = _as_object((yield from value(reader)))
        return
    got = decoded((yield from value(reader)))
    if key in _NAME or (key == "function" and isinstance(got, str)):
        if not isinstance(got, str):
            raise Malformed
        found.name = found.name or got
    elif key == "function" and isinstance(got, dict):
        _nested(got, found)
    elif key in _ID and isinstance(got, str):
        found.id = got


def _nested(function: dict[str, object], found: _Found) -> None:
    """`{"type": "function", "function": {"name": ..., "arguments": ...}}`."""
    name = function.get("name")
    if not isinstance(name, str):
        raise Malformed
    found.name = name
    for key in _ARGUMENTS & function.keys():
        found.arguments = _as_object(msgspec.json.encode(function[key]).decode())


def _as_object(text: str) -> str:
    """Arguments that came as JSON text within a string, or as null."""
    got = decoded(text)
    if isinstance(got, str):
        text, got = got, decoded(got)
    if got is None:
        return "{}"
    if not isinstance(got, dict):
        raise Malformed
    return text


def array(reader: Reader, calls: Calls, *, sure: bool = True) -> Steps[None]:
    """A list of calls.

    Raises:
        Malformed: from where on it is none.
    """
    yield from expect(reader, "[")
    while True:
        yield from space(reader)
        yield from call_object(reader, calls, sure=sure)
        yield from space(reader)
        if (yield from expect(reader, ",", "]")) == "]":
            reader.mark = reader.position
            return
