"""JSON schemas, regular expressions and clients' grammars as GBNF: what it admits fits, and what it cannot say is refused."""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema
import msgspec
import pytest

from backends.core.errors import BadRequest
from backends.core.request import Output
from backends.engines.llamacpp.forms.asked import MAX_GRAMMAR, MAX_NESTING, grammar_of
from backends.engines.llamacpp.forms.rules import grammar, regular
from backends.engines.llamacpp.forms.schema import SchemaError
from tests.gbnf import Grammar

PERSON = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}

SCHEMAS: dict[str, Any] = {
    "digits": {"type": "string", "pattern": r"^\d{3}-\d{4}$"},
    "words": {"type": "string", "pattern": r"^[\w.]+@[\w.]+\.com$"},
    "a pattern within": {"type": "string", "pattern": "abc"},
    "groups": {"type": "string", "pattern": "^(?:a|(b))+?$"},
    "quotes and backslashes": {"type": "string", "pattern": r'^"[^"]*"\\$'},
    "a pattern and lengths": {"type": "string", "pattern": "^x[a-z]+$", "minLength": 4, "maxLength": 6},
    "lengths": {"type": "string", "minLength": 3, "maxLength": 5},
    "a long text": {"type": "string", "minLength": 2500, "maxLength": 5000},
    "an enum that may be null": {"type": ["string", "null"], "enum": ["a", "b", None]},
    "an enum of all kinds": {"enum": ["a", 1, None, True, {"x": [1]}, 'q"\\\n', "é"]},
    "an enum that a type narrows": {"type": "string", "enum": [1, "a", None]},
    "const": {"const": {"a": [1, "é"]}},
    "an object that may be null": {"type": ["object", "null"], **{k: v for k, v in PERSON.items() if k != "type"}},
    "anything": {"type": "object", "properties": {"a": {}, "b": {"title": "B"}, "c": True}, "required": ["a", "b", "c"]},
    "a property that may not be": {"type": "object", "properties": {"a": False, "b": {"type": "null"}}},
    "other properties": {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": True},
    "others of a type": {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "ab": {"type": "string"}, 'q"': {"type": "null"}},
        "additionalProperties": {"type": "boolean"},
        "required": ["ab"],
    },
    "a map": {"type": "object", "additionalProperties": {"type": "integer"}, "maxProperties": 3},
    "names of a form": {"type": "object", "propertyNames": {"pattern": "^[a-z]{2}$"}, "additionalProperties": {"type": "null"}},
    "properties of a pattern": {"type": "object", "patternProperties": {"^a": {"type": "integer"}}},
    "some may be left out": {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "null"}, "c": {"type": "boolean"}},
        "required": ["b"],
        "additionalProperties": False,
    },
    "required and not named": {"type": "object", "required": ["zz"], "additionalProperties": {"type": "integer"}},
    "strange names": {"type": "object", "properties": {'naïve "q" \n': {"type": "null"}, "": {"type": "null"}}},
    "a tuple": {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}], "items": False},
    "a tuple and more": {"type": "array", "prefixItems": [{"type": "integer"}], "items": {"type": "null"}, "minItems": 3},
    "a list's counts": {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 3},
    "a list of anything": {"type": "array", "minItems": 2},
    "an empty list": {"type": "array", "items": {"type": "integer"}, "maxItems": 0},
    "lists of lists": {"items": {"type": "array", "items": {"enum": ["x", "y"]}, "minItems": 1}, "maxItems": 2},
    "a tree": {
        "$defs": {"n": {"type": "object", "properties": {"c": {"type": "array", "items": {"$ref": "#/$defs/n"}}}}},
        "$ref": "#/$defs/n",
    },
    "the root again": {"properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}, "required": ["next"]},
    "a definition named like a type": {
        "$defs": {"string": {"type": "integer"}},
        "properties": {"s": {"type": "string"}, "a": {"$ref": "#/$defs/string"}},
        "required": ["s", "a"],
    },
    "a reference with escapes": {"$defs": {"a/b c": {"type": "integer"}}, "$ref": "#/$defs/a~1b%20c"},
    "all of two objects": {
        "$defs": {"P": PERSON},
        "allOf": [{"$ref": "#/$defs/P"}, {"properties": {"y": {"type": "string"}}, "required": ["y"]}],
        "unevaluatedProperties": False,
    },
    "all of two that both say something of one": {
        "allOf": [PERSON, {"properties": {"x": {"minimum": 3, "maximum": 5}}, "additionalProperties": True}]
    },
    "one of two beside others": {
        "type": "object",
        "properties": {"k": {"type": "string", "maxLength": 1}},
        "required": ["k"],
        "anyOf": [{"properties": {"a": {"type": "integer"}}, "required": ["a"]}, {"properties": {"b": {}}, "required": ["b"]}],
    },
    "one of": {"oneOf": [{"type": "string", "maxLength": 2}, {"type": "integer", "minimum": 5, "maximum": 7}, False]},
    "integers": {"type": "integer", "minimum": -137, "maximum": 123456},
    "powers of ten": {"type": "integer", "multipleOf": 100},
    "few multiples": {"type": "integer", "minimum": -10, "exclusiveMaximum": 35, "multipleOf": 7},
    "numbers": {"type": "number", "minimum": -2.5, "maximum": 3.75},
    "between two near ones": {"type": "number", "exclusiveMinimum": 1.234, "exclusiveMaximum": 1.2367},
    "an email": {"type": "string", "format": "email"},
    "no type": {"minimum": 3, "maxLength": 2},
}  # fmt: skip
FORMATS = {
    "date": r"\d{4}-\d\d-\d\d", "time": r"\d\d:\d\d:\d\d.*", "date-time": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d.*",
    "uuid": r"[0-9a-fA-F-]{36}", "ipv4": r"\d+\.\d+\.\d+\.\d+",
}  # fmt: skip


def texts(gbnf: str, count: int = 60) -> list[str]:
    found, rng = Grammar(gbnf), random.Random(7)
    return [found.text(rng) for _ in range(count)]


@pytest.mark.parametrize("name", SCHEMAS)
def test_whatever_it_admits_fits_the_schema(name: str) -> None:
    check = jsonschema.Draft202012Validator(SCHEMAS[name]).validate
    values = [json.loads(text) for text in texts(grammar(SCHEMAS[name]))]
    for value in values:
        check(value)
    if name not in ("const", "an empty list", "an enum that a type narrows"):
        assert len({json.dumps(value) for value in values}) > 1, "and there is more than one"


@pytest.mark.parametrize("format_", FORMATS)
def test_formats_are_kept_to(format_: str) -> None:
    jsonschema_like = {"type": "string", "pattern": f"^(?:{FORMATS[format_]})$"}
    for text in texts(grammar({"type": "string", "format": format_})):
        jsonschema.validate(json.loads(text), jsonschema_like)
    assert texts(grammar({"type": "string", "format": "of our own"})), "others are notes"


@pytest.mark.parametrize(
    ("low", "high", "above", "below"),
    [
        (0, 0, False, False), (0, 9, False, False), (1, 10, True, False), (7, 123, False, True), (-15, 4, True, True),
        (-200, -99, False, False), (95, 1204, False, False), (None, 17, False, False), (18, None, False, False),
        (None, -3, False, True), (-3, None, True, False), (0.5, 3.5, False, False), (2, 3, False, True),
    ],
)  # fmt: skip
def test_whole_numbers_between_bounds_are_all_of_them_and_no_other(
    low: float | None, high: float | None, above: bool, below: bool
) -> None:
    schema: dict[str, Any] = {"type": "integer"}
    if low is not None:
        schema["exclusiveMinimum" if above else "minimum"] = low
    if high is not None:
        schema["exclusiveMaximum" if below else "maximum"] = high
    admits = Grammar(grammar(schema)).pattern().fullmatch
    fits = jsonschema.Draft202012Validator(schema).is_valid
    for number in [*range(-1300, 1300), 10**6, -(10**6)]:
        assert bool(admits(str(number))) is fits(number), number
    assert not admits("-0") and not admits("01") and not admits("")


@pytest.mark.parametrize(
    "schema",
    [
        {"minimum": 0, "maximum": 1},
        {"exclusiveMinimum": 0, "exclusiveMaximum": 1},
        {"exclusiveMinimum": -1.05, "maximum": 0},
        {"minimum": 0.25, "exclusiveMaximum": 12.5},
        {"minimum": -7.31, "exclusiveMaximum": -0.4},
        {"minimum": 1.2, "maximum": 1.29},
        {"exclusiveMinimum": 3},
        {"exclusiveMaximum": -0.01},
    ],
)
def test_numbers_between_bounds_too(schema: dict[str, Any]) -> None:
    schema = {"type": "number", **schema}
    admits = Grammar(grammar(schema)).pattern().fullmatch
    fits = jsonschema.Draft202012Validator(schema).is_valid
    for hundredths in range(-1400, 1400):
        sign, whole, part = "-" * (hundredths < 0), *divmod(abs(hundredths), 100)
        number = f"{sign}{whole}.{part:02d}"
        assert bool(admits(number)) is fits(float(number)), number
        if not part and (whole or not sign):
            assert bool(admits(f"{sign}{whole}")) is fits(float(number)), number
    assert not admits("1.") and not admits(".5")


def test_money_has_two_places() -> None:
    admits = Grammar(grammar({"type": "number", "minimum": 0, "multipleOf": 0.01})).pattern().fullmatch
    assert admits("19.99") and admits("3") and admits("3.5")
    assert not admits("1.999") and not admits("-1.5")


UNSAID: dict[str, tuple[dict[str, Any], str]] = {
    "not": ({"not": {"type": "string"}}, "'not'"),
    "inside": ({"type": "object", "properties": {"tags": {"type": "array", "uniqueItems": True}}}, "/tags"),
    "if": ({"if": {}, "then": {}}, "'if'"),
    "contains": ({"type": "array", "contains": {"type": "null"}}, "'contains'"),
    "looking ahead": ({"type": "string", "pattern": "^(?=a)b$"}, "looking"),
    "a reference back": ({"type": "string", "pattern": r"^(a)\1$"}, "'\\1'"),
    "a boundary": ({"type": "string", "pattern": r"\bword\b"}, "boundary"),
    "multiples": ({"type": "integer", "multipleOf": 7}, "'multipleOf'"),
    "two lengths": ({"type": "string", "pattern": "^(ab)+$", "maxLength": 7}, "'maxLength'"),
    "dependent": ({"type": "object", "dependentRequired": {"a": ["b"]}}, "'dependentRequired'"),
    "left out": (
        {"type": "object", "properties": {"a": {}, "b": {}}, "minProperties": 1, "additionalProperties": False},
        "'minProperties'",
    ),
}


@pytest.mark.parametrize("name", UNSAID)
def test_what_cannot_be_kept_to_is_refused_by_name_and_left_out_where_it_is_a_wish(name: str) -> None:
    schema, word = UNSAID[name]
    with pytest.raises(SchemaError) as error:
        grammar(schema)
    assert word in str(error.value)
    assert texts(grammar(schema, lenient=True), 3)


@pytest.mark.parametrize(
    "schema",
    [
        False,
        [1],
        {"type": "frob"},
        {"enum": []},
        {"$ref": "https://example.com/x.json"},
        {"$ref": "#/$defs/none"},
        {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
        {"allOf": [{"type": "string"}, {"type": "integer"}]},
        {"type": "string", "pattern": "^(a$"},
        {"type": "string", "pattern": "[z-a]"},
        {"type": "string", "minLength": 5, "maxLength": 2},
        {"type": "integer", "minimum": 5, "maximum": 2},
        {"type": "number", "exclusiveMinimum": 1, "maximum": 1},
        {"type": "string", "minLength": -1},
        {"type": "string", "maxLength": "9"},
        {"type": "array", "items": False, "minItems": 1},
        {"type": "array", "minItems": 2, "maxItems": 1},
        {"properties": []},
        {"required": "a"},
        {"required": ["a"], "additionalProperties": False},
        {"anyOf": []},
        {"minimum": float("inf")},
        {"allOf": [{"anyOf": [{"type": "object", "required": [f"{a}{b}"]} for b in range(20)]} for a in range(3)]},
    ],
)
def test_what_is_no_schema_or_fits_nothing_is_refused_also_as_a_wish(schema: Any) -> None:
    for lenient in (False, True):
        if lenient and isinstance(schema, dict) and "pattern" in schema:
            continue
        with pytest.raises((SchemaError, ArithmeticError)):
            grammar(schema, lenient=lenient)


def test_regular_expressions_are_of_whole_answers() -> None:
    for pattern, good, bad in (
        (r"\d{2,3}", ("12", "123"), ("1", "1234", "a12")),
        ("^(?<answer>yes|no)$", ("yes", "no"), ("maybe", "yes no")),
        (r"[^a-z\n]+\.", ("A1.",), ("a.", "A")),
        (r"\u00e9\x41\t|(a*)*b", ("éA\t", "aab", "b"), ("éA",)),
        ("a{0}b", ("b",), ("ab",)),
    ):
        admits = Grammar(regular(pattern)).pattern().fullmatch
        assert all(map(admits, good)) and not any(map(admits, bad)), pattern
    with pytest.raises(SchemaError):
        regular("(?!a)b")


def of(text: str) -> str:
    found = grammar_of(Output("grammar", grammar=text))
    assert found is not None
    return found.text


@pytest.mark.parametrize(
    "text",
    [
        'root ::= "a"{3,1}',
        'root ::= "a" { 5 , 0 }',
        'root ::= <"> "a"{2,1} <">',
        'root ::= "a"{1,99999999999999999999}',
        "root ::= " + "(" * (MAX_NESTING + 1) + '"a"' + ")" * (MAX_NESTING + 1),
        'root ::= "a\0"',
        "root ::= " + '"a"' * MAX_GRAMMAR,
    ],
)
def test_what_would_end_llamacpp_does_not_reach_it(text: str) -> None:
    with pytest.raises(BadRequest) as error:
        of(text)
    assert error.value.param == "grammar"


def test_a_grammar_that_only_looks_so_is_left_as_it_is() -> None:
    for text in ('root ::= "{3,1}" [{2,1}] "((" # {4,1} (((', 'root ::= "a"{1,3}', 'root ::= "\\"{3,1}"'):
        assert of(text) == text


@pytest.mark.parametrize("asked_as", ["", "guided_json", "tools"])
def test_the_parameter_that_asked_is_named(asked_as: str) -> None:
    schema = msgspec.Raw(b'{"not": {}}')
    with pytest.raises(BadRequest) as error:
        grammar_of(Output("json_schema", schema=schema, asked_as=asked_as))
    assert error.value.param == (asked_as or "response_format")
    assert "'not'" in error.value.message
    assert grammar_of(Output("json_schema", schema=schema, asked_as=asked_as, strict=False)) is not None
    with pytest.raises(BadRequest):
        grammar_of(Output("json_schema", schema=msgspec.Raw(b'{"enum": [1e999]}')))
    assert grammar_of(Output()) is None
