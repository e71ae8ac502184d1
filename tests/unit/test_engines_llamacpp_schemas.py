"""Bounds of whole numbers, as lists of values."""

from __future__ import annotations

from typing import Any

import pytest

from backends.engines.llamacpp.schemas import MOST, with_bounds


@pytest.mark.parametrize(
    ("bounds", "values"),
    [
        ({"minimum": 0, "maximum": 3}, [0, 1, 2, 3]),
        ({"exclusiveMinimum": 0, "exclusiveMaximum": 3}, [1, 2]),
        ({"minimum": 0.5, "maximum": 2.5}, [1, 2]),
        ({"exclusiveMinimum": 0.5, "exclusiveMaximum": 2.5}, [1, 2]),
        ({"minimum": -4, "maximum": 9, "multipleOf": 4}, [-4, 0, 4, 8]),
        ({"minimum": 1, "exclusiveMinimum": 2, "maximum": 4}, [3, 4]),
    ],
)
def test_near_bounds_become_values(bounds: dict[str, Any], values: list[int]) -> None:
    assert with_bounds({"type": "integer", "title": "n", **bounds}) == {"title": "n", "enum": values}


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "minimum": 0},
        {"type": "integer", "minimum": 0, "maximum": MOST},
        {"type": "integer", "minimum": 5, "maximum": 2},
        {"type": "number", "minimum": 0, "maximum": 1},
        {"type": "integer", "minimum": True, "maximum": 2},
        {"type": "integer", "enum": [1], "minimum": 0, "maximum": 3},
        {"const": {"type": "integer", "minimum": 0, "maximum": 1}},
    ],
)
def test_what_is_left_as_it_is(schema: dict[str, Any]) -> None:
    assert with_bounds(schema) == schema


def test_it_is_found_wherever_a_schema_stands() -> None:
    bounded = {"type": "integer", "minimum": 1, "maximum": 2}
    schema = {"anyOf": [{"properties": {"a": bounded}}, {"items": bounded}], "$defs": {"d": bounded}}
    values = {"enum": [1, 2]}
    assert with_bounds(schema) == {"anyOf": [{"properties": {"a": values}}, {"items": values}], "$defs": {"d": values}}
