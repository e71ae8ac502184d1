"""Any byte split of any response gives the same status, headers, body and verdict."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from backends.core.errors import BackendError
from backends.remote.framing import ResponseReader

_BODIES = st.binary(max_size=40) | st.sampled_from([b"\r\n\r\n", b"0\r\n\r\n", b"data: \xf0\x9f\x98\x80\n\n", b"\r\n0\r\n\r\n"])


@st.composite
def responses(draw: st.DrawFn) -> bytes:
    head = draw(st.sampled_from([b"HTTP/1.1 200 OK", b"HTTP/1.0 404 No", b"HTTP/1.1 200", b"HTTP/1.1 503 x y"]))
    informational = b"HTTP/1.1 100 Continue\r\n\r\n" * draw(st.integers(0, 2))
    fields = draw(st.lists(st.sampled_from([b"a: b", b"A:c ", b"X-Y: \xe9", b"connection: close"]), max_size=3))
    body = draw(_BODIES)
    framing = draw(st.sampled_from(["length", "chunked", "close"]))
    if framing == "length":
        fields.append(b"content-length: %d" % len(body))
    elif framing == "chunked":
        fields.append(b"Transfer-Encoding: chunked")
        cut = draw(st.integers(0, len(body)))
        pieces = [piece for piece in (body[:cut], body[cut:]) if piece]
        extension = draw(st.sampled_from([b"", b";x=y", b" "]))
        trailer = draw(st.sampled_from([b"", b"t: 1\r\n"]))
        body = b"".join(b"%x%s\r\n%s\r\n" % (len(piece), extension, piece) for piece in pieces) + b"0\r\n" + trailer + b"\r\n"
    whole = informational + b"\r\n".join([head, *fields]) + b"\r\n\r\n" + body
    damage = draw(st.sampled_from(["none", "none", "cut", "surplus", "flip"]))
    if damage == "cut":
        return whole[: draw(st.integers(0, len(whole)))]
    if damage == "surplus":
        return whole + draw(st.sampled_from([b"\r\n", b"x", b"\n", b"HTTP/1.1 200 OK\r\n\r\n"]))
    if damage == "flip":
        at = draw(st.integers(0, len(whole) - 1))
        return whole[:at] + bytes([draw(st.integers(0, 255))]) + whole[at + 1 :]
    return whole


def outcome(pieces: list[bytes]) -> tuple[object, ...]:
    reader = ResponseReader()
    body = b""
    verdict = "complete"
    try:
        for piece in pieces:
            body += reader.feed(piece)
        if not reader.complete:
            reader.close()
    except BackendError as error:
        verdict = error.kind
        body = b""  # how much came before the damage depends on the split
    head = reader.head
    seen = (head.status, head.headers, head.keep_alive, head.length) if head is not None and verdict == "complete" else None
    return verdict, seen, body


@settings(max_examples=400, deadline=None)
@given(responses(), st.lists(st.integers(0, 400), max_size=6))
def test_any_split(raw: bytes, cuts: list[int]) -> None:
    whole = outcome([raw])
    assert outcome([raw[at : at + 1] for at in range(len(raw))]) == whole
    edges = [0, *sorted(min(cut, len(raw)) for cut in cuts), len(raw)]
    assert outcome([raw[a:b] for a, b in pairwise(edges) if a < b]) == whole
