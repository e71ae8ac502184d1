"""What xgrammar, vLLM's first choice for forms of answers, passes over in a JSON schema without a word. Pure.

Tried with the xgrammar that vLLM 0.32.0 brings, keyword by keyword: a text that the schema forbids was admitted. vLLM itself
hands what it knows of (uniqueItems, contains, multipleOf …) to another library, or refuses it.
"""

from __future__ import annotations

import json
import re
from typing import Any

from backends.core.errors import BadRequest
from backends.core.request import Output

_UNSAID = ("not", "if", "dependentRequired", "dependentSchemas", "dependencies")
_AROUND = re.compile(r"\(\?<?[=!]")
#: Keywords that assert nothing.
_NOTES = frozenset(
    {"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$defs", "definitions", "$schema"}
    | {"$id", "$comment", "$anchor"}
)
_DATA = frozenset({"enum", "const", "default", "examples"})
#: Keywords beside which xgrammar looks at nothing else.
_ALONE = ("$ref", "anyOf", "oneOf", "allOf")
_MAX_DEPTH = 200


def check(output: Output) -> None:
    """Refuse a schema that would not be kept to; with `strict: false` it is a wish.

    Raises:
        BadRequest: names the parameter, the keyword and its place.
    """
    if output.kind != "json_schema" or output.strict is False:
        return
    found = _first(json.loads(bytes(output.schema) or b"{}"), (), 0)
    if found is not None:
        what, place = found
        param = output.asked_as or "response_format"
        message = f"This model's engine cannot keep to '{param}': {what} (at /{'/'.join(place)}) is not looked at."
        raise BadRequest(message, param=param)


def _first(schema: Any, place: tuple[str, ...], depth: int) -> tuple[str, tuple[str, ...]] | None:
    """What is passed over first, and where."""
    if not isinstance(schema, dict) or depth > _MAX_DEPTH:
        return None
    for key in _UNSAID:
        if key in schema:
            return f"'{key}'", place
    if isinstance(pattern := schema.get("pattern"), str) and _AROUND.search(pattern):
        return "looking ahead or behind in 'pattern'", place
    for key in _ALONE:
        if key in schema and (beside := sorted(schema.keys() - _NOTES - {key, "type"})):
            return f"'{beside[0]}' beside '{key}'", place
    for key, value in schema.items():
        if key in _DATA:
            continue
        inner: list[tuple[tuple[str, ...], Any]] = [((*place, key), value)]
        if isinstance(value, list):
            inner = [((*place, key, str(number)), one) for number, one in enumerate(value)]
        elif isinstance(value, dict) and key in ("properties", "patternProperties", "$defs", "definitions"):
            inner = [((*place, name), one) for name, one in value.items()]
        for where, one in inner:
            if (found := _first(one, where, depth + 1)) is not None:
                return found
    return None
