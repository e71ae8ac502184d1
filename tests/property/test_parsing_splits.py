"""Any byte split of any input gives what the whole gives, for each parsing machine."""

from __future__ import annotations

import itertools
import re

from hypothesis import example, given, settings
from hypothesis import strategies as st

from backends.parsing.halves import lost, mend_escapes
from backends.parsing.lines import LineSplitter
from backends.parsing.sse import SseEvent, SseParser
from backends.parsing.stops import StopCutter
from backends.parsing.utf8 import Utf8Decoder, scrub

CUTS = st.lists(st.integers(0, 400), max_size=12)
PIECES = st.sampled_from(
    [
        *(b"data: ", b"data:", b"data", b":", b": ping", b"event: x", b"error: {}", b"id: 1", b"retry: 1", b"[DONE]"),
        *(b"\n", b"\r", b"\r\n", b"\n\n", b"\xef\xbb\xbf", b"a", b"{}", "\u2028😀".encode(), b"\x0b", b"  "),
    ]
)
BODIES = st.lists(PIECES, max_size=40).map(b"".join)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    """The data cut at the offsets, empty pieces included."""
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


def sse(data: list[bytes], bound: int = 1 << 20) -> tuple[list[SseEvent], list[SseEvent], str]:
    parser = SseParser(bound)
    events = [event for piece in data for event in parser.feed(piece)]
    return events, parser.close(), parser.broken


def specified(data: bytes) -> list[SseEvent]:
    """The events by the letter of the standard, line by line, plus the `error` field."""
    events: list[SseEvent] = []
    values: list[bytes] = []
    name = ""
    errors: list[SseEvent] = []
    *lines, _ = re.split(rb"\r\n|\n|\r", data.removeprefix(b"\xef\xbb\xbf"))
    for line in lines:
        if not line:
            events += errors
            if values:
                events.append(SseEvent(b"\n".join(values), name))
            values, name, errors = [], "", []
            continue
        field, _, value = line.partition(b":")
        value = value[1:] if value[:1] == b" " else value
        if field == b"data":
            values.append(value)
        elif field == b"event":
            name = value.decode()
        elif field == b"error":
            errors.append(SseEvent(value, "error"))
    return events


@given(BODIES, CUTS)
@example(b"\xef\xbb\xbfdata: a\r\n\r\ndata: b\r\r: c\n\n", [1, 2, 12, 13, 14, 15])
def test_sse_of_any_split_is_sse_of_the_whole_and_the_standard(data: bytes, cuts: list[int]) -> None:
    whole = sse([data])
    assert sse(pieces(data, cuts)) == whole
    assert whole[0] == specified(data)


@given(BODIES, CUTS, st.integers(4, 24))
def test_sse_bound_does_not_depend_on_the_split(data: bytes, cuts: list[int], bound: int) -> None:
    whole, split = sse([data], bound), sse(pieces(data, cuts), bound)
    assert split[0] == whole[0]
    assert bool(split[2]) == bool(whole[2])
    assert all(len(event.data) <= bound for event in whole[0])


@given(BODIES, CUTS, st.integers(1, 30))
def test_lines_of_any_split_are_lines_of_the_whole(data: bytes, cuts: list[int], bound: int) -> None:
    def run(parts: list[bytes], most: int) -> tuple[list[bytes], bool]:
        splitter = LineSplitter(most)
        out = [line for part in parts for line in splitter.feed(part)]
        out += splitter.close()
        return out, bool(splitter.broken)

    assert run(pieces(data, cuts), bound) == run([data], bound)
    whole = [line[:-1] if line.endswith(b"\r") else line for line in data.split(b"\n")]
    assert run([data], 1 << 20) == ([line for line in whole if line], False)


@given(st.one_of(st.binary(max_size=60), st.text(max_size=30).map(lambda t: t.encode())), CUTS)
def test_utf8_of_any_split_is_utf8_of_the_whole(data: bytes, cuts: list[int]) -> None:
    decoder = Utf8Decoder()
    out = [decoder.feed(part) for part in pieces(data, cuts)]
    text = "".join([*out, decoder.close()])
    assert text == data.decode("utf-8", "replace")


@settings(max_examples=300)
@given(st.text("abc", max_size=40), st.lists(st.text("abc", max_size=4), max_size=4), st.lists(st.integers(0, 40), max_size=8))
@example("abcd", ["bc", "abcd"], [1, 2, 3])
def test_stops_of_any_split_cut_at_the_stop_that_is_complete_first(text: str, stops: list[str], cuts: list[int]) -> None:
    cutter = StopCutter(stops)
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    out, hit = "", False
    for a, b in itertools.pairwise(edges):
        piece, hit = cutter.feed(text[a:b])
        out += piece
        assert text.startswith(out)
    out += cutter.close()
    real = [stop for stop in stops if stop]
    ends = [(text.find(stop) + len(stop), -len(stop), stop) for stop in real if stop in text]
    if ends:
        end, _, stop = min(ends)
        assert (out, hit, cutter.matched) == (text[: end - len(stop)], True, stop)
    else:
        assert (out, hit, cutter.matched) == (text, False, "")


@given(st.text(st.characters(codec=None), max_size=20))
def test_scrubbed_text_can_be_encoded_and_other_text_is_kept(text: str) -> None:
    scrubbed = scrub(text)
    scrubbed.encode()
    assert len(scrubbed) == len(text)
    assert all(a == b or "\ud800" <= b <= "\udfff" for a, b in zip(scrubbed, text, strict=True))


@given(st.text(st.one_of(st.characters(codec=None), st.sampled_from(["\ud83d", "\ude00", "\\", "u", "d"])), max_size=12))
def test_mended_json_is_what_json_means_with_lone_surrogates_replaced(text: str) -> None:
    import json

    import msgspec

    mended = lost(mend_escapes(json.dumps(text).encode()))
    paired = json.loads(json.dumps(text))
    assert msgspec.json.decode(mended) == scrub(paired)
