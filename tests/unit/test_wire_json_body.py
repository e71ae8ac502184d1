"""JSON of request bodies: the same values as msgspec writes, whatever they are."""

import json
from typing import Any

import msgspec
import pytest

from backends.wire.json_body import json_body


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value",
    [
        {"model": "m", "messages": [{"role": "user", "content": 'é "漢" \n\\ \u2028 \x7f \x00 😀' * 500}], "n": None},
        {"temperature": 1.0, "top_p": 0.1, "tiny": 5e-324, "large": 1e300, "seed": -(2**63), "ids": [[1, -0.5]]},
        {"over 64 bits": 2**64, "below": -(2**63) - 1},
        {"deep": nested(400)},
        {1: "a name that is no string"},
    ],
)
def test_values_arrive_as_they_are(value: Any) -> None:
    assert msgspec.json.decode(json_body(value)) == json.loads(json.dumps(value))


def test_kept_json_stands_as_it_was_written() -> None:
    schema = msgspec.Raw(b'{"b": 1.50, "a":  [1e2]}')
    assert json_body({"tools": [{"parameters": schema}]}) == b'{"tools":[{"parameters":{"b": 1.50, "a":  [1e2]}}]}'
    assert json_body({"schema": schema, "id": 2**70}) == b'{"schema":{"b": 1.50, "a":  [1e2]},"id":1180591620717411303424}'


def test_half_a_character_is_refused() -> None:
    with pytest.raises(ValueError, match="surrogates"):
        json_body({"content": "\ud800"})


def test_what_is_no_json_is_refused() -> None:
    with pytest.raises(TypeError):
        json_body({"content": object()})
