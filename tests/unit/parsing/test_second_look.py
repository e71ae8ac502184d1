"""JSON that strict readers refuse, and characters that came in two halves."""

from __future__ import annotations

import msgspec
import pytest

from backends.core.events import (
    Candidate,
    Event,
    Failure,
    Finish,
    ReasoningDelta,
    Started,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
)
from backends.parsing import second_look
from backends.parsing.halves import Halves, holds_half, lost, mend_escapes

HIGH, LOW = (msgspec.json.decode(mend_escapes(b'"\\u%s"' % half), type=str) for half in (b"d83d", b"de00"))


def test_what_is_left_out_and_what_is_kept() -> None:
    data = b'{"a":null,"b":[null,1],"c":{"d":NaN,"e":-Infinity,"f":2},"g":"\\ud83d"}'
    assert second_look.values(data) == {"b": [None, 1], "c": {"e": -9999.0, "f": 2}, "g": HIGH}


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b'{"a":}', b"<html>"])
def test_what_is_no_json_stays_none(data: bytes) -> None:
    with pytest.raises(ValueError):
        second_look.values(data)


def test_depth_is_bounded() -> None:
    with pytest.raises(RecursionError):
        second_look.values(b"[" * 100_000)


def test_halves_in_bytes() -> None:
    assert holds_half(HIGH.encode()) and not holds_half("\U0010f7ff \U0001f600".encode())
    assert lost(f"a{HIGH}{LOW}".encode()).decode() == "a\ufffd\ufffd"


@pytest.mark.parametrize(
    ("events", "mended"),
    [
        ([TextDelta("a" + HIGH), TextDelta(LOW + "b")], [TextDelta("a"), TextDelta("\U0001f600b")]),
        ([TextDelta(HIGH), TextDelta("b")], [TextDelta("\ufffdb")]),
        ([TextDelta(LOW)], [TextDelta("\ufffd")]),
        ([TextDelta(HIGH, 0), TextDelta(LOW, 1), TextDelta(LOW, 0)], [TextDelta("\ufffd", 1), TextDelta("\U0001f600")]),
        ([TextDelta(HIGH), Finish("stop")], [TextDelta("\ufffd"), Finish("stop")]),
        ([TextDelta(HIGH, 1), Finish("stop", 0)], [Finish("stop", 0)]),
        ([ReasoningDelta(HIGH), TextDelta("a"), ReasoningDelta(LOW)], [TextDelta("a"), ReasoningDelta("\U0001f600")]),
        ([ReasoningDelta(HIGH), Failure("crashed", "x")], [ReasoningDelta("\ufffd"), Failure("crashed", "x")]),
        (
            [ToolCallDelta(0, "i", "f" + LOW, '"' + HIGH), ToolCallDelta(0, arguments=LOW + '"')],
            [ToolCallDelta(0, "i", "f\ufffd", '"'), ToolCallDelta(0, arguments='\U0001f600"')],
        ),
        ([ToolCallDelta(0, arguments=HIGH), Finish("stop")], [ToolCallDelta(0, arguments="\ufffd"), Finish("stop")]),
        ([Started("m"), TextDelta("plain")], [Started("m"), TextDelta("plain")]),
    ],
)
def test_halves_meet(events: list[Event], mended: list[Event]) -> None:
    assert Halves().mend(events) == mended
    machine = Halves()
    assert [one for event in events for one in machine.mend([event])] == mended


def test_logprobs_hold_no_halves() -> None:
    token = TokenLogprob(HIGH, HIGH.encode(), -1.0, (Candidate(LOW, LOW.encode(), -2.0),))
    whole = TokenLogprob("\ufffd", "\ufffd".encode(), -1.0, (Candidate("\ufffd", "\ufffd".encode(), -2.0),))
    assert Halves().mend([TextDelta(HIGH, 0, (token,))]) == [TextDelta("", 0, (whole,))]
