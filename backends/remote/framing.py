"""Response bytes of one HTTP/1.1 exchange to status, headers and body, without I/O: any byte split gives the same.

The head is one regular expression (what it does not match is refused), bodies with a length are counted, and the
chunked coding is taken off by httptools. llhttp has no limits, does not say where a message ended and folds nothing,
so everything that is bounded or refused is decided here. Source: RFC 9112 (§2.2 line ends, §4 status line, §5 fields,
§6 length, §7 chunked), RFC 9110 §15.2 (1xx).

Refused although common clients take it: Content-Length beside Transfer-Encoding, folded header lines, more than eight
1xx, bytes after the end, more than 64 KiB or 128 fields of head, redirects, any content coding, versions but HTTP/1.
"""

from __future__ import annotations

import re
from itertools import repeat

import httptools

from backends.core.errors import UpstreamProtocol, UpstreamTruncated

MAX_HEAD_BYTES = 64 * 1024
MAX_FIELDS = 128
MAX_INFORMATIONAL = 8
#: Chunk sizes, chunk extensions and trailers in a row, without a byte of body between two reads.
MAX_FRAMING_BYTES = 16 * 1024
_MAX_LENGTH_DIGITS = 18

_HEAD = re.compile(
    rb"HTTP/1\.([0-9]) ([1-9][0-9]{2})(?: [^\x00\n\x0b\x0c\r]*+)?\r?\n"
    rb"((?:[-!#$%&'*+.^_`|~0-9A-Za-z]++:[^\x00\n\x0b\x0c\r]*+\r?\n)*+)\r?\n"
).match
#: Names and values of a block that `_HEAD` has matched.
_FIELDS = re.compile(r"([^:\n]+):([^\r\n]*)\r?\n").split
_AROUND = repeat(" \t")
_BLANK = re.compile(rb"\n\r?\n").search
_START = b"HTTP/1."
#: The chunked coding is parsed by feeding llhttp the body of this message.
_CHUNKED_HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


def _refuse(detail: str) -> UpstreamProtocol:
    return UpstreamProtocol("The deployment's response is not valid HTTP.", detail=detail)


class Head:
    """Status and fields of a final response. `length`: of the body, -1 chunked, -2 until the connection closes."""

    __slots__ = ("headers", "keep_alive", "length", "status")

    def __init__(self, status: int, headers: dict[str, str], keep_alive: bool, length: int) -> None:
        self.status = status
        self.headers = headers
        self.keep_alive = keep_alive
        self.length = length


CHUNKED = -1
UNTIL_CLOSE = -2


class ResponseReader:
    """One response: `feed` what was read, `close` when the peer has closed. Single use.

    `head` is set as soon as it is whole, `complete` with the body's last byte. `begun`: a byte has come.
    """

    __slots__ = ("_buffer", "_chunked", "_informational", "_left", "begun", "complete", "head")

    def __init__(self) -> None:
        self.head: Head | None = None
        self.begun = False
        self.complete = False
        self._buffer: bytearray | None = None  # a head that is not whole yet
        self._informational = 0
        self._left = 0
        self._chunked: _Chunked | None = None

    def feed(self, data: bytes) -> bytes:
        """The body bytes among these, b"" for none.

        Raises:
            UpstreamProtocol: not acceptable; the connection is of no more use.
        """
        self.begun = True
        if self.head is None:
            data = self._heads(data)
            if self.head is None:
                return b""
        chunked = self._chunked
        if chunked is not None and not self.complete:
            body = chunked.feed(data) if data else b""
            if chunked.complete:
                self.complete = True
                self._left = 0
            return body
        if self._left == UNTIL_CLOSE:
            return data
        surplus = len(data) - self._left
        if surplus > 0:
            raise _refuse("bytes after a complete response")
        self._left = -surplus
        self.complete = not surplus
        return data

    def close(self) -> None:
        """The peer has closed its side. A body that ends with the connection is complete then.

        Raises:
            UpstreamTruncated: it closed inside the response.
        """
        if self.head is not None and self._left == UNTIL_CLOSE:
            self.complete = True
        elif not self.complete:
            where = "body" if self.head is not None else "header"
            raise UpstreamTruncated("The deployment closed the connection inside its response.", detail=f"in its {where}")

    def _heads(self, data: bytes) -> bytes:
        """Take heads off until the final one; what follows it."""
        match = _HEAD(data) if self._buffer is None else None
        if match is None:
            data = self._gathered(data)
            match = _HEAD(data) if data else None
            if match is None:
                if data:
                    raise _refuse("malformed header")
                return b""
        end = match.end()
        if end > MAX_HEAD_BYTES:
            raise _refuse("header block too large")
        version, code, block = match.groups()
        status = int(code)
        rest = data[end:]
        if status >= 200:
            head = self.head = _final(status, version != b"0", block)
            left = self._left = head.length
            if left == CHUNKED:
                self._chunked = _Chunked()
            elif left == 0:
                self.complete = True
            return rest
        if status == 101:
            raise _refuse("101 was not asked for")
        if block.count(b"\n") > MAX_FIELDS:
            raise _refuse("too many header fields")
        self._informational += 1
        if self._informational > MAX_INFORMATIONAL:
            raise _refuse("too many 1xx responses")
        return self._heads(rest) if rest else b""

    def _gathered(self, data: bytes) -> bytes:
        """What has come of a head up to now, b"" while it is not whole."""
        buffer = self._buffer
        if buffer is None:
            buffer = self._buffer = bytearray()
        searched = max(0, len(buffer) - 3)
        buffer += data
        if not buffer.startswith(_START[: len(buffer)]):
            raise _refuse("not a status line")
        if _BLANK(buffer, searched):
            self._buffer = None
            return bytes(buffer)
        if len(buffer) > MAX_HEAD_BYTES:
            raise _refuse("header block too large")
        return b""


class _Chunked:
    """Takes the chunked coding off one body. `complete` with its last byte."""

    __slots__ = ("_chunks", "_framing", "_parser", "_tail", "complete")

    def __init__(self) -> None:
        self.complete = False
        self._framing = 0
        self._tail = b""
        self._chunks = _Chunks()
        self._parser = httptools.HttpResponseParser(self._chunks)
        self._parser.set_dangerous_leniencies(lenient_spaces_after_chunk_size=True)
        self._parser.feed_data(_CHUNKED_HEAD)

    def feed(self, data: bytes) -> bytes:
        """The body bytes among these, b"" for none.

        Raises:
            UpstreamProtocol: not acceptable.
        """
        chunks = self._chunks
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            raise _refuse("bytes after a complete response" if chunks.ended else f"chunked coding: {error}") from None
        pieces = chunks.pieces
        if chunks.ended:
            # llhttp skips line ends between two messages; a valid end has exactly one blank line
            last = (self._tail + data)[-5:]
            if chunks.messages > 1 or last[-4:] != b"\r\n\r\n" or last[0] in b"\r\n":
                raise _refuse("bytes after a complete response")
            self.complete = True
        elif not pieces:
            self._framing += len(data)
            if self._framing > MAX_FRAMING_BYTES:
                raise _refuse("chunk extensions or trailers too large")
            self._tail = (self._tail + data)[-5:]
            return b""
        else:
            self._framing = 0
            self._tail = data[-5:] if len(data) >= 5 else (self._tail + data)[-5:]
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        return body


class _Chunks:
    """What llhttp calls. It holds no reference to its parser, so that both are freed at once."""

    __slots__ = ("ended", "messages", "on_body", "pieces")

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.on_body = self.pieces.append
        self.messages = 0
        self.ended = False

    def on_message_begin(self) -> None:
        self.messages += 1

    def on_message_complete(self) -> None:
        self.ended = True


def _final(status: int, persistent: bool, block: bytes) -> Head:
    """The head of a final response, checked.

    Raises:
        UpstreamProtocol: see the list in this file's docstring.
    """
    fields = _FIELDS(block.decode("latin-1"))  # between two fields, a name, a value, …
    names, values = list(map(str.lower, fields[1::3])), list(map(str.strip, fields[2::3], _AROUND))
    if len(names) > MAX_FIELDS:
        raise _refuse("too many header fields")
    headers = dict(zip(names, values, strict=True))
    if len(headers) != len(names):
        repeated: dict[str, list[str]] = {}
        for name, value in zip(names, values, strict=True):
            repeated.setdefault(name, []).append(value)
        headers = {name: ", ".join(values) for name, values in repeated.items()}
    if 300 <= status < 400:
        raise UpstreamProtocol("The deployment answered with a redirect, which is not followed.", detail=f"status {status}")
    if headers.get("content-encoding", "identity").lower() not in ("identity", ""):
        raise _refuse("a content coding that was not asked for")
    connection = headers.get("connection", "").lower()
    if connection == "keep-alive":
        persistent = True
    elif connection:
        tokens = {token.strip() for token in connection.split(",")}
        persistent = "close" not in tokens and (persistent or "keep-alive" in tokens)
    return Head(status, headers, persistent, _length(status, headers))


def _length(status: int, headers: dict[str, str]) -> int:
    coding = headers.get("transfer-encoding")
    stated = headers.get("content-length")
    if coding is not None:
        if stated is not None:
            raise _refuse("Content-Length beside Transfer-Encoding")
        if coding.lower() != "chunked":
            raise _refuse("unknown transfer coding")
        headers["transfer-encoding"] = "chunked"
    length = UNTIL_CLOSE if coding is None else CHUNKED
    if stated is not None:
        if "," in stated:  # more than one field, or nonsense
            values = {value.strip(" \t") for value in stated.split(",")}
            if len(values) > 1:
                raise _refuse("differing Content-Lengths")
            stated = headers["content-length"] = values.pop()
        if not (stated.isascii() and stated.isdigit()) or len(stated) > _MAX_LENGTH_DIGITS:
            raise _refuse("malformed Content-Length")
        length = int(stated)
    return 0 if status == 204 else length
