"""Client JSON to typed values, and every way it can be wrong to one kind of error that names the parameter.

msgspec decodes in strict mode: NaN and Infinity are no JSON, numbers beyond a double are refused, strings must be
valid UTF-8 without lone surrogates, a BOM or another encoding is malformed. Depth: typed values are as deep as their
types; what is skipped is bounded by msgspec's recursion guard; what is kept as JSON (schemas) by `checked_schema`.
Duplicate names: refused in the outermost object and in kept JSON; elsewhere the last one counts, for us and for every
backend alike, because only decoded values travel on.

Codes and wording follow OpenAI's API: `invalid_type`, `invalid_value`, `unknown_parameter`,
`missing_required_parameter`; `invalid_json` for a body that is no JSON.
"""

from __future__ import annotations

import json
import math
import operator
import re
from typing import Any, NoReturn, TypeVar

import msgspec

from backends.core.errors import BadRequest

T = TypeVar("T")

#: How deep a JSON schema of a client may be nested.
MAX_DEPTH = 64
#: Most bytes of all such schemas of one parameter (`tools`, `response_format`) together.
MAX_SCHEMA_BYTES = 1 << 19
#: Most commas of a body: what bounds the time that decoding takes the event loop, whatever `max_body_mb` says. Commas in
#: texts count too; no model's context holds a text with so many.
MAX_COMMAS = 500_000
#: Longest parameter name that an error repeats.
_NAME_SHOWN = 128

_AT = re.compile(r" - at `\$\.?([^`]*)`\Z", re.DOTALL)
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`\Z", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(.*)`\Z", re.DOTALL)
_TYPES = {
    "int": "an integer",
    "float": "a number",
    "str": "a string",
    "bool": "a boolean",
    "array": "an array",
    "object": "an object",
    "null": "null",
}


class _Name(str):
    """An object's key that equals only itself, so that a dict keeps duplicates."""

    __slots__ = ()
    __eq__ = object.__eq__
    __hash__ = object.__hash__


_names = msgspec.json.Decoder(dict[_Name, msgspec.Raw], dec_hook=operator.call)  # _Name(text), with no step of Python
#: How far apart long texts are looked for, and what is long; each more than any name has.
_STRIDE, _LONG = 8192, 1024
#: What JSON has in strings only.
_within_string = re.compile(rb'[^][{}:,.+\-0-9eEtrufalsn \t\r\n"]').search


def decoded(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """The typed value of a JSON body.

    Raises:
        BadRequest: with `param` in the client's spelling, e.g. `messages[0].content`.
    """
    if len(body) > MAX_COMMAS and body.count(b",") > MAX_COMMAS:
        raise BadRequest(f"The request has more than {MAX_COMMAS} values.")
    try:
        value = decoder.decode(body)
        names = _names.decode(body if len(body) < _STRIDE else _without_texts(body))
    except msgspec.ValidationError as error:
        _refuse(str(error))
    except msgspec.DecodeError as error:
        raise _malformed(_reason(str(error), body)) from None
    except UnicodeDecodeError:
        raise _malformed("it is not valid UTF-8") from None
    except RecursionError:
        raise _malformed("it is nested too deeply") from None
    if len(set(map(str, names))) != len(names):
        texts = [str(name) for name in names]
        twice = next(text for text in texts if texts.count(text) > 1)
        raise BadRequest(f"The parameter {_shown(twice)} is given twice.", param=twice[:_NAME_SHOWN])
    return value


def _without_texts(body: bytes) -> bytes:
    """JSON that was read already, without the insides of most of its long texts, so that its names are found sooner.

    What stands between two quotes is part of one string, or of none at all.
    """
    pieces: list[bytes] = []
    kept_to, at = 0, _STRIDE
    while (end := body.find(b'"', at)) > 0:
        start = body.rfind(b'"', kept_to, at) + 1
        if end - start > _LONG and _within_string(body, start, start + _LONG):
            pieces.append(body[kept_to:start])
            kept_to = start + len(body[start:end].rstrip(b"\\"))  # they may be the quote's escape
        at = end + _STRIDE
    pieces.append(body[kept_to:])
    return b"".join(pieces)


def decoded_part(
    decoder: msgspec.json.Decoder[T], raw: msgspec.Raw | msgspec.UnsetType, param: str, max_bytes: int
) -> T | None:
    """The typed value of a parameter that was kept as JSON; None when it is absent or null.

    Raises:
        BadRequest: it is longer than `max_bytes`, or wrong; names the parameter.
    """
    if raw is msgspec.UNSET or (part := stated(raw)) is None:
        return None
    text = bytes(part)
    if len(text) > max_bytes:
        raise BadRequest(f"'{param}' is longer than {max_bytes} bytes.", param=param)
    try:
        return decoder.decode(text)
    except msgspec.ValidationError as error:
        _refuse(str(error), param)
    except (UnicodeDecodeError, RecursionError):
        raise BadRequest(f"'{param}' is not valid JSON.", param=param) from None


def stated(raw: msgspec.Raw | msgspec.UnsetType) -> msgspec.Raw | None:
    """A value kept as JSON, or None when it is absent or null."""
    return None if isinstance(raw, msgspec.UnsetType) or bytes(raw) == b"null" else raw


def checked_schema(raw: msgspec.Raw, param: str) -> msgspec.Raw:
    """A JSON object kept as JSON, as its own copy: not deeper than MAX_DEPTH, no name twice, finite numbers.

    A `$ref` to another document is refused: whoever compiles the schema behind us might fetch it.

    Raises:
        BadRequest: names `param`.
    """
    text = bytes(raw)
    if len(text) > MAX_SCHEMA_BYTES:
        raise BadRequest(f"'{param}' is longer than {MAX_SCHEMA_BYTES} bytes.", param=param)
    if not text.lstrip().startswith(b"{"):
        raise BadRequest(f"Invalid type for '{param}': expected an object.", param=param, code="invalid_type")
    if text.count(b"{") + text.count(b"[") > MAX_DEPTH and _depth(text) > MAX_DEPTH:
        raise BadRequest(f"'{param}' is nested more than {MAX_DEPTH} levels deep.", param=param)
    try:
        _strictly.decode(text.decode())
    except _RemoteReference:
        raise BadRequest(f"Invalid value for '{param}': a $ref must begin with '#'.", param=param) from None
    except (ValueError, RecursionError):
        raise BadRequest(f"Invalid value for '{param}': a name is given twice or a value is no JSON.", param=param) from None
    return msgspec.Raw(text)


_STRINGS = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"')


def _depth(text: bytes) -> int:
    deepest = depth = 0
    for char in _STRINGS.sub(b"", text):
        if char in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        elif char in b"]}":
            depth -= 1
    return deepest


class _RemoteReference(Exception):
    """A reference that leads out of the schema."""


def _object_once(pairs: list[tuple[str, Any]]) -> None:
    if len({name for name, _ in pairs}) != len(pairs):
        raise ValueError("duplicate name")
    for name, value in pairs:
        if name in ("$ref", "$dynamicRef") and isinstance(value, str) and not value.startswith("#"):
            raise _RemoteReference


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError("not finite")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)


_strictly = json.JSONDecoder(object_pairs_hook=_object_once, parse_float=_finite, parse_constant=_no_constant)


def _reason(said: str, body: bytes) -> str:
    """msgspec says the same of a body that is empty, that is cut, and that has half a surrogate pair at its end."""
    if said != "Input data was truncated":
        return said
    return "it ends too early, or within an escape" if body.strip() else "it is empty"


def _malformed(reason: str) -> BadRequest:
    return BadRequest(f"The JSON body of your request could not be parsed: {reason}.", code="invalid_json")


def _shown(name: str) -> str:
    return repr(name[:_NAME_SHOWN])


def _refuse(text: str, within: str = "") -> NoReturn:
    """Turn msgspec's sentence into OpenAI's; `within` is the parameter that was decoded on its own."""
    path = within
    if at := _AT.search(text):
        path, text = _joined(within, at[1].removesuffix("[...]")), text[: at.start()]
    if unknown := _UNKNOWN.match(text):
        name = _joined(path, unknown[1])
        raise BadRequest(f"Unknown parameter: {_shown(name)}.", param=name, code="unknown_parameter")
    if missing := _MISSING.match(text):
        name = _joined(path, missing[1])
        raise BadRequest(f"Missing required parameter: {_shown(name)}.", param=name, code="missing_required_parameter")
    param = path[:_NAME_SHOWN] or None
    where = f" for {_shown(path)}" if path else ""
    expected, got, found = text.partition(", got ")
    if got or (text.startswith("Expected") and text.endswith("`")):
        found = f", but got {_words(found)} instead" if found else ""
        raise BadRequest(f"Invalid type{where}: {_words(expected)}{found}.", param=param, code="invalid_type")
    raise BadRequest(f"Invalid value{where}: {_words(text)[:256]}.", param=param)


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}"[:_NAME_SHOWN] if path and name else (path or name)[:_NAME_SHOWN]


def _words(text: str) -> str:
    """`int | null` to "an integer or null", and the sentence begun in lower case."""

    def kinds(match: re.Match[str]) -> str:
        return " or ".join(_TYPES.get(kind, kind) for kind in match[1].split(" | "))

    text = re.sub(r"`([a-z |]+)`", kinds, text)
    return text[:1].lower() + text[1:]
