"""A request that asks for another protocol on its connection, answered in this one: a server may ignore it (RFC 9110 7.8).

JDK's HttpClient asks for h2c with its first request to every server. llhttp takes no body for such a request, since what
follows its head might be the other protocol; so a parser of its own reads the body, and nothing after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import httptools


class Reads(Protocol):
    """What is told of the body: the connection's own callbacks."""

    def on_header(self, name: bytes, value: bytes) -> None:
        """A trailer."""

    def on_body(self, data: bytes) -> None:
        """A piece of the body."""

    def on_message_complete(self) -> None:
        """The body is whole."""


def body_parser(headers: Sequence[tuple[bytes, bytes]], length: int | None, reader: Reads) -> Any:
    """A parser for the bytes after a head; it tells the reader, perhaps at once, and falls silent when the body is whole.

    Args:
        headers: the head's, with lower-case names, already found sound.
        length: its Content-Length, None for none.
    """
    chunked = any(name == b"transfer-encoding" for name, _ in headers)
    framing = b"transfer-encoding: chunked" if chunked else b"content-length: %d" % (length or 0)
    parser = httptools.HttpRequestParser(_Body(reader))
    parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n\r\n" % framing)
    return parser


class _Body:
    """What llhttp calls."""

    def __init__(self, reader: Reads) -> None:
        self._reader: Reads | None = reader
        self._begun = False

    def on_headers_complete(self) -> None:
        self._begun = True

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._begun and self._reader is not None:
            self._reader.on_header(name, value)

    def on_body(self, data: bytes) -> None:
        if self._reader is not None:
            self._reader.on_body(data)

    def on_message_complete(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.on_message_complete()
