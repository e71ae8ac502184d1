"""Any schema of ordinary keywords: what its grammar admits fits it."""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema
from hypothesis import given
from hypothesis import strategies as st

from backends.engines.llamacpp.forms.rules import grammar
from backends.engines.llamacpp.forms.schema import SchemaError
from tests.gbnf import Grammar

NUMBERS = st.integers(-40, 40) | st.integers(-400, 400).map(lambda tenths: tenths / 10)
COUNTS = st.integers(0, 4)
NAMES = st.sampled_from(["a", "ab", "b", "é", 'q"'])
VALUES = st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(["", "a", "ab"])


def some(**keywords: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=keywords)


def schemas(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    objects = some(
        properties=st.dictionaries(NAMES, inner, max_size=3),
        required=st.lists(NAMES, max_size=2, unique=True),
        additionalProperties=inner,
    )
    lists = some(items=inner, prefixItems=st.lists(inner, max_size=2), minItems=COUNTS, maxItems=COUNTS)
    unions = st.fixed_dictionaries({"anyOf": st.lists(inner, min_size=1, max_size=3)})
    both = st.fixed_dictionaries({"allOf": st.lists(inner, min_size=1, max_size=2)})
    return st.one_of(
        objects.map(lambda one: {**one, "type": "object"}),
        lists.map(lambda one: {**one, "type": "array"}),
        unions,
        both,
        st.tuples(objects, unions).map(lambda two: {**two[0], **two[1]}),
    )


LEAVES = st.one_of(
    st.booleans(),
    st.sampled_from([{}, {"type": "null"}, {"type": ["string", "null"]}, {"type": ["integer", "boolean"]}]),
    st.fixed_dictionaries({"enum": st.lists(VALUES, min_size=1, max_size=3)}),
    some(minimum=NUMBERS, maximum=NUMBERS).map(lambda one: {**one, "type": "integer"}),
    some(minimum=NUMBERS, exclusiveMaximum=NUMBERS).map(lambda one: {**one, "type": "number"}),
    some(minLength=COUNTS, maxLength=COUNTS).map(lambda one: {**one, "type": "string"}),
    st.sampled_from(["^a+$", "b", r"^\d{2}(x|y)?$", "^[^a]$"]).map(lambda one: {"type": "string", "pattern": one}),
)
REFERENCE = st.just({"$ref": "#/$defs/d"})


@given(schema=st.recursive(LEAVES | REFERENCE, schemas, max_leaves=6), definition=LEAVES, seed=st.integers(0, 2**32))
def test_what_a_grammar_admits_fits(schema: Any, definition: Any, seed: int) -> None:
    whole = {"$defs": {"d": definition}, "allOf": [schema]}
    try:
        found = Grammar(grammar(whole))
    except SchemaError:
        return  # nothing fits, or it cannot be said
    check = jsonschema.Draft202012Validator(whole)
    rng = random.Random(seed)
    for _ in range(3):
        text = found.text(rng)
        assert check.is_valid(json.loads(text)), text
