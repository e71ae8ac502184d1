"""JSON that a typed reader refused, read again as leniently as what it says stays certain.

A null member says what an absent one says; `NaN` is no number, and no logprob is below that of OpenAI's floor; halves of
characters are kept for `backends.parsing.halves`. Slow: for what a strict reader has refused only.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec

from backends.parsing.halves import mend_escapes

#: What OpenAI tells of tokens too unlikely for a number.
_LEAST_LOGPROB = -9999.0


def values(data: bytes) -> Any:
    """The JSON's values, null members left out.

    Raises:
        ValueError: it is no JSON even so.
        RecursionError: it is nested too deeply.
    """
    return _stated(json.loads(mend_escapes(data).decode(), parse_constant=_constant))


def encoded(value: Any) -> bytes:
    """Those values for a typed reader."""
    return msgspec.json.encode(value)


def _constant(name: str) -> float | None:
    return _LEAST_LOGPROB if name == "-Infinity" else None


def _stated(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _stated(one) for name, one in value.items() if one is not None}
    if isinstance(value, list):
        return [_stated(one) for one in value]
    return value
