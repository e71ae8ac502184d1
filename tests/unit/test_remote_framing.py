"""Responses taken apart without I/O: what is accepted, what is refused, and the bounds."""

from __future__ import annotations

import pytest

from backends.core.errors import BackendError, UpstreamProtocol, UpstreamTruncated
from backends.remote.framing import MAX_FIELDS, MAX_FRAMING_BYTES, MAX_HEAD_BYTES, ResponseReader

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


def read(data: bytes, step: int = 1 << 30, *, eof: bool = False) -> tuple[ResponseReader, bytes]:
    reader = ResponseReader()
    body = b"".join(reader.feed(data[at : at + step]) for at in range(0, len(data), step))
    if eof:
        reader.close()
    return reader, body


@pytest.mark.parametrize("step", [1, 2, 7, 1 << 30])
@pytest.mark.parametrize(
    ("raw", "body"),
    [
        (OK + b"Content-Length: 5\r\n\r\nhello", b"hello"),
        (OK + b"content-length: 5, 5\r\n\r\nhello", b"hello"),
        (OK + b"content-length: 5\r\nContent-Length:5\r\n\r\nhello", b"hello"),
        (OK + b"Content-Length: 0\r\n\r\n", b""),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
        (b"HTTP/1.1 200\r\ncontent-length: 1\r\n\r\nx", b"x"),
        (b"HTTP/1.1 200 \r\ncontent-length: 1\r\n\r\nx", b"x"),
        (b"HTTP/1.1 200 OK\ncontent-length: 1\n\nx", b"x"),
        (CHUNKED + b"5\r\nhello\r\n0\r\n\r\n", b"hello"),
        (CHUNKED + b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n", b"hello"),
        (CHUNKED + b"5;a=b\r\nhello\r\n0\r\nx-trailer: 1\r\n\r\n", b"hello"),
        (CHUNKED + b"005 \r\nhello\r\n00\r\n\r\n", b"hello"),
        (CHUNKED + b"4\r\n\r\n\r\n\r\n0\r\n\r\n", b"\r\n\r\n"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 8 + OK + b"content-length: 1\r\n\r\nx", b"x"),
        (b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + CHUNKED + b"1\r\nx\r\n0\r\n\r\n", b"x"),
    ],
)
def test_accepted(raw: bytes, body: bytes, step: int) -> None:
    reader, got = read(raw, step)
    assert reader.complete
    assert got == body


@pytest.mark.parametrize("step", [1, 3, 1 << 30])
@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (OK + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n", "beside"),
        (OK + b"transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n", "beside"),
        (OK + b"content-length: 5\r\ncontent-length: 6\r\n\r\nhello", "differing"),
        (OK + b"content-length: 5, 6\r\n\r\nhello", "differing"),
        (OK + b"content-length: -1\r\n\r\n", "malformed Content-Length"),
        (OK + b"content-length: \xb2\r\n\r\n", "malformed Content-Length"),
        (OK + b"content-length: +5\r\n\r\nhello", "malformed Content-Length"),
        (OK + b"content-length: \r\n\r\n", "malformed Content-Length"),
        (OK + b"content-length: 1000000000000000000\r\n\r\n", "malformed Content-Length"),
        (OK + b"transfer-encoding: gzip, chunked\r\n\r\n", "transfer coding"),
        (OK + b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n", "transfer coding"),
        (OK + b"transfer-encoding: xchunked\r\n\r\n", "transfer coding"),
        (OK + b"a: b\r\n c\r\n\r\n", "malformed header"),
        (OK + b"a: b\r\n\tc\r\n\r\n", "malformed header"),
        (OK + b"a : b\r\n\r\n", "malformed header"),
        (OK + b": b\r\n\r\n", "malformed header"),
        (OK + b"a\r\n\r\n", "malformed header"),
        (OK + b"a: b\x00\r\n\r\n", "malformed header"),
        (OK + b"a: b\rc: d\r\n\r\n", "malformed header"),
        (OK + b"content-encoding: gzip\r\ncontent-length: 0\r\n\r\n", "coding"),
        (b"HTTP/2.0 200 OK\r\n\r\n", "status line"),
        (b"HTTP/1.1 20 OK\r\n\r\n", "malformed header"),
        (b"HTTP/1.1 099 OK\r\n\r\n", "malformed header"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "status line"),
        (b"\r\nHTTP/1.1 200 OK\r\n\r\n", "status line"),
        (b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n", "101"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 9, "1xx"),
        (OK + b"content-length: 2\r\n\r\nabc", "after a complete"),
        (OK + b"content-length: 0\r\n\r\n\r\n", "after a complete"),
        (b"HTTP/1.1 204 No Content\r\n\r\nx", "after a complete"),
        (CHUNKED + b"1\r\na\r\n0\r\n\r\n\r\n", "after a complete"),
        (CHUNKED + b"1\r\na\r\n0\r\n\r\n\n", "after a complete"),
        (CHUNKED + b"1\r\na\r\n0\r\n\r\nx", "after a complete"),
        (CHUNKED + b"1\r\na\r\n0\r\nt: 1\r\n\r\nHTTP/1.1 200 OK\r\n", "after a complete"),
        (CHUNKED + b"z\r\n", "chunked coding"),
        (CHUNKED + b"-1\r\n", "chunked coding"),
        (CHUNKED + b"1\r\nab\r\n", "chunked coding"),
        (CHUNKED + b"1\na\r\n", "chunked coding"),
        (CHUNKED + b"fffffffffffffffffffff\r\n", "chunked coding"),
        (CHUNKED + b"1\r\na\r\n0\r\na: b\r\n c\r\n\r\n", "chunked coding"),
    ],
)
def test_refused(raw: bytes, why: str, step: int) -> None:
    with pytest.raises(UpstreamProtocol) as caught:
        read(raw, step)
    assert why in caught.value.detail


@pytest.mark.parametrize("status", [300, 301, 302, 304, 307, 308])
def test_redirects_are_not_followed(status: int) -> None:
    with pytest.raises(UpstreamProtocol, match="redirect") as caught:
        read(b"HTTP/1.1 %d Found\r\nlocation: http://internal/secret\r\ncontent-length: 0\r\n\r\n" % status)
    assert "internal" not in caught.value.message + caught.value.detail


@pytest.mark.parametrize(
    ("head", "kept"),
    [
        (b"HTTP/1.1 200 OK\r\n", True),
        (b"HTTP/1.1 200 OK\r\nconnection: Keep-Alive\r\n", True),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\n", False),
        (b"HTTP/1.1 200 OK\r\nConnection: x, Close\r\n", False),
        (b"HTTP/1.0 200 OK\r\n", False),
        (b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\n", True),
        (b"HTTP/1.0 200 OK\r\nconnection: keep-alive, close\r\n", False),
    ],
)
def test_keep_alive(head: bytes, kept: bool) -> None:
    reader, _ = read(head + b"content-length: 0\r\n\r\n")
    assert reader.head is not None
    assert reader.head.keep_alive is kept


def test_headers_are_lower_case_and_joined() -> None:
    reader, _ = read(b"HTTP/1.1 503 Loading\r\nRetry-After:  3 \r\nVia: a\r\nvia: b\r\nx-l: \xe9\r\ncontent-length: 0\r\n\r\n")
    assert reader.head is not None
    assert reader.head.status == 503
    assert reader.head.headers == {"retry-after": "3", "via": "a, b", "x-l": "\xe9", "content-length": "0"}


def test_a_body_until_close_ends_with_it() -> None:
    reader, body = read(OK + b"\r\nabc", 1)
    assert (body, reader.complete) == (b"abc", False)
    reader.close()
    assert reader.complete


@pytest.mark.parametrize(
    ("raw", "where"),
    [
        (OK, "header"),
        (b"HTTP/1.1 100 Continue\r\n\r\n", "header"),
        (OK + b"content-length: 5\r\n\r\nhell", "body"),
        (CHUNKED + b"5\r\nhello\r\n", "body"),
        (CHUNKED + b"5\r\nhello\r\n0\r\n", "body"),
        (CHUNKED, "body"),
    ],
)
def test_a_close_inside_is_a_truncation(raw: bytes, where: str) -> None:
    with pytest.raises(UpstreamTruncated) as caught:
        read(raw, eof=True)
    assert where in caught.value.detail


@pytest.mark.parametrize("step", [4096, 1 << 30])
def test_the_head_is_bounded(step: int) -> None:
    with pytest.raises(UpstreamProtocol, match="valid HTTP"):
        read(OK + b"a: " + b"x" * MAX_HEAD_BYTES + b"\r\n\r\n", step)
    with pytest.raises(UpstreamProtocol) as caught:
        read(OK + b"a: b\r\n" * (MAX_FIELDS + 1) + b"\r\n", step)
    assert "fields" in caught.value.detail
    fits = OK + b"a: b\r\n" * MAX_FIELDS + b"\r\n"
    assert read(fits, step)[0].head is not None


def test_an_endless_head_is_refused_before_its_end() -> None:
    reader = ResponseReader()
    with pytest.raises(UpstreamProtocol, match="valid HTTP"):
        for _ in range(MAX_HEAD_BYTES // 1020 + 2):
            reader.feed(OK if not reader.begun else b"a: b\r\n" * 170)


def test_endless_chunk_extensions_and_trailers_are_refused() -> None:
    for begin in (CHUNKED + b"1;a=", CHUNKED + b"1\r\na\r\n0\r\nt: "):
        reader = ResponseReader()
        reader.feed(begin)
        with pytest.raises(UpstreamProtocol) as caught:
            for _ in range(MAX_FRAMING_BYTES // 1024 + 1):
                reader.feed(b"b" * 1024)
        assert "too large" in caught.value.detail


def test_messages_are_fit_for_clients() -> None:
    for raw in (OK + b"a: 10.0.0.7\x00\r\n\r\n", b"10.0.0.7:8000 refused"):
        with pytest.raises(BackendError) as caught:
            read(raw)
        assert "10.0.0.7" not in caught.value.message
