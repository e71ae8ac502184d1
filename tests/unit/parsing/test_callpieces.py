"""Tool calls out of pieces, as servers number and name them."""

from __future__ import annotations

import struct

import pytest

from backends.core.events import ToolCallDelta
from backends.parsing.callpieces import CallIds, CallPieces
from backends.parsing.vectors import pack, unpack_base64


def pieces() -> CallPieces:
    return CallPieces(0, CallIds())


def test_openai_pieces_pass() -> None:
    calls = pieces()
    assert calls.feed(0, "a", "f", "") == ToolCallDelta(0, "a", "f")
    assert calls.feed(0, "", "", '{"x"') == ToolCallDelta(0, arguments='{"x"')
    assert calls.feed(1, "b", "g", "") == ToolCallDelta(1, "b", "g")
    assert calls.feed(0, "", "", ":1}") == ToolCallDelta(0, arguments=":1}")
    assert calls.feed(1, "", "", "") is None
    assert calls.count == 2


def test_repeated_id_and_name_say_nothing_new() -> None:
    calls = pieces()
    assert calls.feed(0, "0", "f", "{") == ToolCallDelta(0, "0", "f", "{")
    assert calls.feed(0, "0", "f", "}") == ToolCallDelta(0, arguments="}")
    assert calls.feed(0, "0", "", "") is None


def test_upstream_numbers_become_ours() -> None:
    calls = pieces()
    assert calls.feed(7, "a", "f", "{}") == ToolCallDelta(0, "a", "f", "{}")
    assert calls.feed(9, "b", "g", "{}") == ToolCallDelta(1, "b", "g", "{}")


def test_a_new_id_and_name_at_an_old_number_is_a_new_call() -> None:
    calls = pieces()
    assert calls.feed(0, "a", "f", "{}") == ToolCallDelta(0, "a", "f", "{}")
    assert calls.feed(0, "b", "g", "{}") == ToolCallDelta(1, "b", "g", "{}")


def test_no_number_goes_on_with_the_last_call() -> None:
    calls = pieces()
    assert calls.feed(None, "a", "f", "{") == ToolCallDelta(0, "a", "f", "{")
    assert calls.feed(None, "", "", "}") == ToolCallDelta(0, arguments="}")
    assert calls.feed(None, "", "g", "{}") == ToolCallDelta(1, "call_1", "g", "{}")


def test_calls_are_numbered_as_they_are_named() -> None:
    calls = pieces()
    assert calls.feed(0, "", "", "") is None
    assert (calls.count, calls.nameless) == (0, 0)
    assert calls.feed(1, "", "", "{") is None
    assert calls.feed(1, "", "", "}") is None
    assert (calls.count, calls.nameless) == (0, 1)
    assert calls.feed(2, "b", "g", "{}") == ToolCallDelta(0, "b", "g", "{}")
    assert calls.feed(1, "a", "f", "") == ToolCallDelta(1, "a", "f", "{}")
    assert (calls.count, calls.nameless) == (2, 0)


def test_whole_calls_are_each_their_own() -> None:
    calls = pieces()
    assert calls.feed(0, "", "f", "{}", whole=True) == ToolCallDelta(0, "call_0", "f", "{}")
    assert calls.feed(0, "", "f", "{}", whole=True) == ToolCallDelta(1, "call_1", "f", "{}")


def test_arguments_wait_for_the_name() -> None:
    calls = pieces()
    assert calls.feed(0, "a", "", "{") is None
    assert calls.feed(0, "", "f", "}") == ToolCallDelta(0, "a", "f", "{}")


def test_ids_are_unique_over_all_choices() -> None:
    ids = CallIds()
    assert [ids.claim(wanted) for wanted in ("", "call_1", "", "0", "0")] == ["call_0", "call_1", "call_2", "0", "call_4"]


def test_vectors() -> None:
    assert pack([0.25, -1.5]) == struct.pack("<2f", 0.25, -1.5) == unpack_base64("AACAPgAAwL8=")
    for bad in ([], [1e300], [float("nan")]):
        with pytest.raises(ValueError, match=r"float32|finite"):
            pack(bad)
    for text in ("", "!!!!", "AAA=", "AADAfw=="):
        with pytest.raises(ValueError, match=r"float32|base64|finite"):
            unpack_base64(text)


def test_a_call_without_arguments_gets_an_empty_object_at_its_end() -> None:
    calls = pieces()
    calls.feed(0, "a", "f", "")
    calls.feed(1, "b", "g", '{"x":1}')
    calls.feed(2, "c", "", "")
    assert calls.close() == [ToolCallDelta(0, arguments="{}")]
    assert calls.close() == []
