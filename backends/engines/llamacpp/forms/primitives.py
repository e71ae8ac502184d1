"""Rules that every JSON grammar shares, and what of JSON Schema is about which type. Pure."""

from __future__ import annotations

import json
from typing import Any

_HEX = "[0-9a-fA-F]"
#: One character of a string as JSON spells it, never half of a surrogate pair.
_CHARACTER = (
    r'[^\x22\x5C\x00-\x1F\x7F] | "\\" (["\\/bfnrt] | "u" ('
    + f"[0-9a-cA-CefEF] {_HEX} {_HEX} {_HEX} | [dD] [0-7] {_HEX} {_HEX}"
    + f' | [dD] [89abAB] {_HEX} {_HEX} "\\\\u" [dD] [c-fC-F] {_HEX} {_HEX}))'
)
PRIMITIVES = {
    "ws": '" "?',
    "character": _CHARACTER,
    "string": r'"\"" character* "\""',
    "integer": '"0" | "-"? [1-9] [0-9]{0,15}',
    "number": '"-"? ("0" | [1-9] [0-9]{0,15}) ("." [0-9]{1,15})? ([eE] [-+]? [0-9]{1,2})?',
    "boolean": '"true" | "false"',
    "null": '"null"',
    "value": "object | array | string | number | boolean | null",
    "object": '"{" ws (string ":" ws value ws ("," ws string ":" ws value ws)*)? "}"',
    "array": '"[" ws (value ws ("," ws value ws)*)? "]"',
}
NEEDS = {
    "string": ("character",), "object": ("ws", "string", "value"), "array": ("ws", "value"),
    "value": ("object", "array", "string", "number", "boolean", "null"),
}  # fmt: skip
_DATE = r"[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])"
_TIME = r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
_BYTE = r"(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
#: Formats that are kept to. A day of a month is one that every month has. Others are notes, as JSON Schema has them.
FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "uuid": r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}",
    "ipv4": rf"{_BYTE}(\.{_BYTE}){{3}}",
    "email": r"[A-Za-z0-9_+-]+(\.[A-Za-z0-9_+-]+)*@([A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?\.)+[A-Za-z]{2,24}",
}
# fmt: off
#: Keywords that are about a type.
HINTS = {
    "object": ("properties", "required", "additionalProperties", "patternProperties", "propertyNames", "minProperties",
               "maxProperties"),
    "array": ("items", "prefixItems", "minItems", "maxItems", "uniqueItems", "contains"),
    "string": ("pattern", "minLength", "maxLength", "format"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
}  # fmt: skip
ALL = ("object", "array", "string", "number", "boolean", "null")
#: Keywords that make a value of a type different from any.
RELEVANT = {
    "object": HINTS["object"],
    "array": (*HINTS["array"], "additionalItems"),
    "string": HINTS["string"],
    "integer": HINTS["number"],
    "number": HINTS["number"],
}


def literal(text: str) -> str:
    """A text as GBNF spells it."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + escaped.replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t") + '"'


def json_literal(value: Any) -> str:
    """A JSON value as GBNF spells its text."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        text = json.dumps(value)
    return literal(text)
