"""JSON Schema (2020-12, and what of earlier drafts is in use) as a list of flat alternatives. Pure.

References are followed inside the document only. `allOf`, and what stands beside `$ref`, `anyOf` or `oneOf`, is merged, so
that a writer sees keywords of one value and nothing else. Keywords that are no assertions are left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from decimal import Decimal
from math import isfinite, lcm
from typing import Any
from urllib.parse import unquote

Flat = dict[str, Any]
TYPES = ("null", "boolean", "object", "array", "number", "integer", "string")
#: Alternatives that one schema may come to.
MAX_WAYS = 256
#: What is asserted and cannot be said by a grammar.
UNSAID = (
    "not", "if", "contains", "minContains", "maxContains", "uniqueItems", "dependentRequired", "dependentSchemas",
    "dependencies", "$dynamicRef", "$recursiveRef", "unevaluatedItems", "unevaluatedProperties",
)  # fmt: skip
_SAID = (
    "type", "enum", "const", "pattern", "format", "minLength", "maxLength", "minimum", "maximum", "exclusiveMinimum",
    "exclusiveMaximum", "multipleOf", "properties", "required", "additionalProperties", "patternProperties",
    "propertyNames", "minProperties", "maxProperties", "items", "prefixItems", "additionalItems", "minItems", "maxItems",
)  # fmt: skip
COMBINED = ("$ref", "allOf", "anyOf", "oneOf")
_ASSERTIONS = frozenset((*_SAID, *UNSAID, *COMBINED))
_LARGER = ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties")
_SMALLER = ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties")
_COUNTS = ("minLength", "minItems", "minProperties", "maxLength", "maxItems", "maxProperties")
_OF_NUMBERS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_KINDS: dict[type, tuple[str, ...]] = {
    dict: ("properties", "patternProperties"),
    list: ("prefixItems", "enum"),
    str: ("pattern", "format", "$ref"),
}
_WORDS: dict[type, str] = {dict: "an object", list: "a list", str: "a text"}


class SchemaError(ValueError):
    """The schema is none, or cannot be said by a grammar; the message is for the client."""


class NothingFits(SchemaError):
    """No value fits."""

    def __init__(self, path: tuple[str, ...], why: str = "") -> None:
        super().__init__(f"nothing fits at {placed(path)}" + (f": {why}" if why else ""))


def placed(path: tuple[str, ...]) -> str:
    """Where in a schema, for people."""
    return "/" + "/".join(path) if path else "its top"


def spelled(value: Any) -> str:
    """One text for equal schemas whose keys are in one order."""
    return json.dumps(value)


def asserted(schema: Any) -> Any:
    """A schema without what asserts nothing; its keywords have the types that they must have. Its inner schemas are left.

    Raises:
        SchemaError: it is none.
    """
    if isinstance(schema, bool):
        return schema
    if not isinstance(schema, dict):
        raise SchemaError("a schema must be an object, true or false")
    found = {key: value for key, value in schema.items() if key in _ASSERTIONS}
    for key, value in found.items():
        if (problem := _problem(key, value)) is not None:
            raise SchemaError(f"{key!r} {problem}")
    return found


def _problem(key: str, value: Any) -> str | None:
    number = isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
    if key in _COUNTS:
        return None if number and 0 <= value < 2**53 and value == int(value) else "must be a whole number from 0 on"
    if key in _OF_NUMBERS:
        draft_4 = isinstance(value, bool) and key.startswith("exclusive")
        return None if number or draft_4 else "must be a number"
    if key == "type":
        names = _names(value) - set(TYPES)
        return f"has an unknown value {min(names)!r}" if names else None
    for kind, keys in _KINDS.items():
        if key in keys:
            return None if isinstance(value, kind) else f"must be {_WORDS[kind]}"
    if key in ("anyOf", "oneOf", "allOf"):
        return None if isinstance(value, list) and value else "must be a list of schemas"
    if key == "required":
        good = isinstance(value, list) and all(isinstance(one, str) for one in value)
        return None if good else "must be a list of names"
    return None


def _names(value: Any) -> set[str]:
    return {one if isinstance(one, str) else spelled(one) for one in listed(value)}


class Document:
    """One whole schema, for its references."""

    def __init__(self, root: Any) -> None:
        self.root = root

    def at(self, reference: str) -> Any:
        """What a reference names. Raises SchemaError."""
        if reference == "#":
            return self.root
        if not reference.startswith("#/"):
            raise SchemaError(f"'$ref' {reference!r} is not inside the schema")
        found = self.root
        for step in reference[2:].split("/"):
            name = unquote(step).replace("~1", "/").replace("~0", "~")
            if isinstance(found, list) and name.isascii() and name.isdigit() and int(name) < len(found):
                found = found[int(name)]
            elif isinstance(found, dict) and name in found:
                found = found[name]
            else:
                raise SchemaError(f"'$ref' {reference!r} leads nowhere")
        return found

    def ways(self, schema: Any, through: frozenset[str] = frozenset()) -> list[Flat]:
        """A schema as alternatives without references and combinations; [] where nothing fits.

        Raises:
            SchemaError: it is none, or comes to too many ways.
        """
        schema = asserted(schema)
        if isinstance(schema, bool):
            return [{}] if schema else []
        found = [{key: value for key, value in schema.items() if key not in COMBINED}]
        if (reference := schema.get("$ref")) is not None:
            if reference in through:
                raise SchemaError(f"'$ref' {reference!r} leads back to itself")
            found = _product(found, self.ways(self.at(reference), through | {reference}))
        for one in schema.get("allOf", ()):
            found = _product(found, self.ways(one, through))
        for key in ("anyOf", "oneOf"):
            if key in schema:
                found = _product(found, [way for one in schema[key] for way in self.ways(one, through)])
        return found


def _product(ones: list[Flat], others: list[Flat]) -> list[Flat]:
    found = [both for one in ones for other in others if (both := merged(one, other)) is not None]
    if len(found) > MAX_WAYS:
        raise SchemaError(f"its combinations come to more than {MAX_WAYS} alternatives")
    return found


def merged(one: Flat, other: Flat) -> Flat | None:
    """Both at once; None where that is impossible.

    Raises:
        SchemaError: it cannot be said.
    """
    if not one or not other:
        return one or other
    found = {**one, **other}
    for key in sorted(one.keys() & other.keys()):
        a, b = one[key], other[key]
        if a == b and type(a) is type(b):
            continue
        if key in _LARGER:
            found[key] = max(a, b)
        elif key in _SMALLER:
            found[key] = min(a, b)
        elif key == "type":
            found[key] = _common_types(a, b)
        elif key == "required":
            found[key] = list(dict.fromkeys([*a, *b]))
        elif key == "enum":
            found[key] = [value for value in a if any(same(value, its) for its in b)]
        elif key == "const":
            found["enum"] = []
        elif key == "multipleOf" and isinstance(a, int) and isinstance(b, int):
            found[key] = lcm(a, b)
        elif key == "uniqueItems":
            found[key] = a or b
        elif key in ("unevaluatedProperties", "unevaluatedItems") and isinstance(a, bool) and isinstance(b, bool):
            found[key] = False
        elif key in ("format", "properties", "additionalProperties", "prefixItems", "items"):
            pass  # below, or the latter's
        elif key == "propertyNames":
            found[key] = {"allOf": [a, b]}
        else:
            raise SchemaError(f"{key!r} stands twice, in schemas that must both hold")
    _merge_properties(found, one, other)
    _merge_items(found, one, other)
    return None if found.get("type") == [] or found.get("enum") == [] else found


def _common_types(a: Any, b: Any) -> list[str]:
    ours, theirs = listed(a), listed(b)
    found = [name for name in ours if name in theirs or (name == "integer" and "number" in theirs)]
    return found + (["integer"] if "integer" in theirs and "number" in ours and "integer" not in found else [])


def _merge_properties(found: Flat, one: Flat, other: Flat) -> None:
    """A property must fit what each says of it, which may be what it says of all others."""
    if not ({"properties", "additionalProperties"} & one.keys() and {"properties", "additionalProperties"} & other.keys()):
        return
    mine, its = one.get("properties", {}), other.get("properties", {})
    beside, others = one.get("additionalProperties", True), other.get("additionalProperties", True)
    found["properties"] = {name: _both(mine.get(name, beside), its.get(name, others)) for name in dict.fromkeys([*mine, *its])}
    if "additionalProperties" in one or "additionalProperties" in other:
        found["additionalProperties"] = _both(beside, others)


def _merge_items(found: Flat, one: Flat, other: Flat) -> None:
    if not ({"items", "prefixItems"} & one.keys() and {"items", "prefixItems"} & other.keys()):
        return
    if any(isinstance(schema.get("items"), list) for schema in (one, other)):
        raise SchemaError("'items' stands twice, in schemas that must both hold")
    firsts, others = one.get("prefixItems", []), other.get("prefixItems", [])
    rest, their_rest = one.get("items", True), other.get("items", True)
    count = max(len(firsts), len(others))
    prefix = [_both(firsts[n] if n < len(firsts) else rest, others[n] if n < len(others) else their_rest) for n in range(count)]
    if prefix:
        found["prefixItems"] = prefix
    if "items" in one or "items" in other:
        found["items"] = _both(rest, their_rest)


def _both(a: Any, b: Any) -> Any:
    """One schema for two that must hold; merged when it is looked at."""
    if a is True or a == b:
        return b
    if b is True:
        return a
    if a is False or b is False:
        return False
    return {"allOf": [a, b]}


def listed(types: Any) -> list[str]:
    """One or several types."""
    return list(types) if isinstance(types, list) else [types]


def same(a: Any, b: Any) -> bool:
    """Whether two JSON values are equal: true is not 1."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return bool(a == b)


def kind_of(value: Any) -> str:
    """The type of a JSON value."""
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case str():
            return "string"
        case list():
            return "array"
        case dict():
            return "object"
    return "integer" if value == int(value) else "number"


def fitting(values: Iterable[Any], flat: Flat) -> list[Any]:
    """Those of the values of an `enum` that the simple keywords beside it allow."""
    return [value for value in values if _fits(value, flat)]


def _fits(value: Any, flat: Flat) -> bool:
    kind = kind_of(value)
    types = listed(flat["type"]) if "type" in flat else list(TYPES)
    if kind not in types and not (kind == "integer" and "number" in types):
        return False
    if "const" in flat and not same(value, flat["const"]):
        return False
    if kind in ("integer", "number"):
        number, low, high = exact(value), flat.get("exclusiveMinimum"), flat.get("exclusiveMaximum")
        return not (
            ("minimum" in flat and number < exact(flat["minimum"]))
            or ("maximum" in flat and number > exact(flat["maximum"]))
            or (low is not True and "exclusiveMinimum" in flat and number <= exact(low or 0))
            or (high is not True and "exclusiveMaximum" in flat and number >= exact(high or 0))
        )
    if kind in ("string", "array", "object"):
        least, most = {"string": _COUNTS[0::3], "array": _COUNTS[1::3], "object": _COUNTS[2::3]}[kind]
        return bool(flat.get(least, 0) <= len(value) <= flat.get(most, len(value)))
    return True


def exact(number: float) -> Decimal:
    """A JSON number as it was written, nearly."""
    return Decimal(number) if isinstance(number, int) else Decimal(repr(number))
