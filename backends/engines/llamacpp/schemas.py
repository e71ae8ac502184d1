"""What the schema converter of llama-cpp-python 0.3.36 passes over, said in words that it knows. Pure.

It does not look at the bounds of numbers. A whole number between two bounds that are not far apart becomes the list of
its values; bounds that are far apart, or that stand alone, stay unenforced, as docs/engines.md says.
"""

from __future__ import annotations

import math
from typing import Any

#: Values of a list that stands for two bounds.
MOST = 512
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
#: Keywords whose value is data, not schemas.
_DATA = ("enum", "const", "default", "examples")


def with_bounds(schema: Any) -> Any:
    """The schema with the bounds of whole numbers as lists of values. Nesting is that of JSON that was read."""
    if isinstance(schema, list):
        return [with_bounds(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: value if key in _DATA else with_bounds(value) for key, value in schema.items()}
    if found.get("type") == "integer" and "enum" not in found and "const" not in found:
        values = _values(found)
        if values is not None:
            rest = {key: value for key, value in found.items() if key not in _BOUNDS and key != "type"}
            return rest | {"enum": values}
    return found


def _values(schema: dict[str, Any]) -> list[int] | None:
    """The whole numbers within the bounds; None where there are too many, or none."""
    lows = [_number(schema, "minimum", 0, math.ceil), _number(schema, "exclusiveMinimum", 1, math.floor)]
    highs = [_number(schema, "maximum", 0, math.floor), _number(schema, "exclusiveMaximum", -1, math.ceil)]
    low = max((one for one in lows if one is not None), default=None)
    high = min((one for one in highs if one is not None), default=None)
    if low is None or high is None or not 0 <= high - low < MOST:
        return None
    step = schema.get("multipleOf", 1)
    if isinstance(step, bool) or not isinstance(step, int) or step < 1:
        return None
    return [one for one in range(low, high + 1) if one % step == 0] or None


def _number(schema: dict[str, Any], key: str, beyond: int, rounded: Any) -> int | None:
    value = schema.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return int(rounded(value)) + beyond
