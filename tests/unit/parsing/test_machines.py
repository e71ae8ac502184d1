"""The named cases of the parsing machines; property tests cover the splits."""

from __future__ import annotations

from backends.parsing.lines import LineSplitter
from backends.parsing.sse import SseEvent, SseParser
from backends.parsing.stops import StopCutter
from backends.parsing.utf8 import Utf8Decoder


def test_events_with_and_without_space_names_and_several_lines() -> None:
    parser = SseParser()
    assert parser.feed(b"data:a\n\ndata:  b\n\nevent: e\ndata: c\ndata: d\n\n") == [
        SseEvent(b"a"),
        SseEvent(b" b"),
        SseEvent(b"c\nd", "e"),
    ]


def test_error_field_is_an_event() -> None:
    assert SseParser().feed(b'error: {"code":500}\n\n') == [SseEvent(b'{"code":500}', "error")]


def test_carriage_return_ends_an_event_at_once() -> None:
    parser = SseParser()
    assert parser.feed(b"data: a\r\r") == [SseEvent(b"a")]
    assert parser.feed(b"\ndata: b\r\n\r") == [SseEvent(b"b")]


def test_last_event_without_blank_line_comes_at_close() -> None:
    parser = SseParser()
    assert parser.feed(b"data: [DONE]\n") == []
    assert parser.close() == [SseEvent(b"[DONE]")]


def test_unbounded_comments_are_no_event() -> None:
    parser = SseParser(max_event_bytes=20)
    for _ in range(100):
        assert parser.feed(b": ping\n") == []
    assert parser.feed(b"data: a\n\n") == [SseEvent(b"a")]
    assert parser.broken == ""


def test_too_large_event_breaks_after_the_good_ones() -> None:
    parser = SseParser(max_event_bytes=10)
    assert parser.feed(b"data: a\n\ndata: 123456789\n\ndata: b\n\n") == [SseEvent(b"a")]
    assert "10 bytes" in parser.broken
    assert parser.feed(b"data: c\n\n") == [] == parser.close()


def test_lines_end_at_newlines_only() -> None:
    splitter = LineSplitter()
    assert splitter.feed("a\u2028b\x0bc\x85\r\n\r\nd".encode()) == ["a\u2028b\x0bc\x85".encode()]
    assert splitter.close() == [b"d"]


def test_too_long_line_breaks() -> None:
    splitter = LineSplitter(max_line_bytes=3)
    assert splitter.feed(b"ab\nabcd") == [b"ab"]
    assert splitter.broken
    assert splitter.feed(b"\nx\n") == []


def test_characters_are_never_cut() -> None:
    decoder = Utf8Decoder()
    emoji = "😀".encode()
    assert [decoder.feed(emoji[n : n + 1]) for n in range(4)] == ["", "", "", "😀"]
    assert decoder.feed(emoji[:2]) == ""
    assert decoder.close() == "\ufffd"


def test_stop_is_held_back_only_while_undecided() -> None:
    cutter = StopCutter(["###", "END"])
    assert cutter.feed("a #") == ("a ", False)
    assert cutter.feed("b E") == ("#b ", False)
    assert cutter.feed("N") == ("", False)
    assert cutter.feed("D of") == ("", True)
    assert cutter.matched == "END"
    assert cutter.feed("more") == ("", True)
    assert cutter.close() == ""


def test_no_stops_holds_nothing() -> None:
    cutter = StopCutter(["", ""])
    assert cutter.feed("a") == ("a", False)
    assert cutter.close() == ""
