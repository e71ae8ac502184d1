"""A response body as events or as one JSON value, told apart by its first byte.

What was asked does not settle it: some servers answer JSON to `stream: true`, and errors come as JSON under 200.
"""

from __future__ import annotations

from backends.parsing.lines import LineSplitter
from backends.parsing.sse import BOM, SseEvent, SseParser

#: Largest JSON body in bytes: as much as `backends.remote.backend` lets through where no stream was asked for.
MAX_BODY_BYTES = 64 * 1024 * 1024
#: First bytes of `data`, `:`, `event` or `error`, `id`, `retry`.
_SSE_BEGINS = b"d:eir"
_SPACE = b" \t\r\n"
#: What neither an event nor a body begins with.
_BEFORE = _SPACE + BOM[:1]
_DATA = (b"data:", b"error:")


class EventsOrBody:
    """Bytes in; events out, or a body at the end; single use; any byte split is the same.

    `is_body`: decided by the first byte that is no white space, None before. `broken`: the reason when a bound was
    passed, "" otherwise.
    """

    is_body: bool | None = None
    broken = ""
    _head = b""
    _body: bytes | bytearray = b""
    _parser: SseParser | LineEvents | None = None

    def __init__(self, max_body_bytes: int = MAX_BODY_BYTES, *, by_line: bool = False) -> None:
        """Args: by_line: each `data:` line is an event of its own, as servers that write one newline mean it."""
        self._max = max_body_bytes
        self._by_line = by_line

    def feed(self, data: bytes, /) -> list[SseEvent]:
        """Events completed by these bytes; none while a body is read."""
        if self.is_body is None:
            if (self._head or data[:1] in _BEFORE) and not (data := self._begun(data)):
                return []
            self.is_body = data[0] not in _SSE_BEGINS
            if not self.is_body:
                self._parser = LineEvents() if self._by_line else SseParser()
        parser = self._parser
        if parser is None:
            if len(self._body) + len(data) > self._max:
                self.broken = f"a body of more than {self._max} bytes"
                self._body = b""
            if self.broken:
                return []
            if not self._body:
                self._body = data  # most bodies are one read
            elif isinstance(self._body, bytes):
                self._body = bytearray(self._body) + data
            else:
                self._body += data
            return []
        events = parser.feed(data)
        self.broken = parser.broken
        return events

    def _begun(self, data: bytes) -> bytes:
        """What follows white space and a byte order mark; b"" while nothing does."""
        data = (self._head + data).lstrip(_SPACE)
        if len(data) < len(BOM) and BOM.startswith(data):
            self._head = data  # nothing, or the beginning of a byte order mark
            return b""
        data = data.removeprefix(BOM).lstrip(_SPACE)
        self._head = BOM if not data else b""
        return data

    def close(self) -> list[SseEvent]:
        """The events of a last block that was not ended; it may have been cut anywhere."""
        return [] if self._parser is None else self._parser.close()

    def take_body(self) -> bytes:
        """The body, once; empty for events."""
        body, self._body = self._body, b""
        return bytes(body)


class LineEvents:
    """Lines of the form `data: ...` as events: for servers that forget the blank line between events; single use.

    `broken` turns non-empty, with a reason, when a line passes its bound.
    """

    def __init__(self) -> None:
        self._lines = LineSplitter()
        self.broken = ""

    def feed(self, data: bytes, /) -> list[SseEvent]:
        """Events completed by these bytes."""
        events = self._events(self._lines.feed(data))
        self.broken = self._lines.broken
        return events

    def close(self) -> list[SseEvent]:
        """The body has ended: the event of a last line without its newline. It may have been cut anywhere."""
        return self._events(self._lines.close())

    def _events(self, lines: list[bytes]) -> list[SseEvent]:
        found = []
        for line in lines:
            if line.startswith(_DATA):
                field, _, value = line.partition(b":")
                found.append(SseEvent(value.removeprefix(b" "), "error" if field == b"error" else ""))
        return found


class JsonLines:
    """Lines, each an event of its own: NDJSON; single use. It is never a body: one value is one line."""

    is_body: bool | None = False

    def __init__(self) -> None:
        self._lines = LineSplitter()
        self._begun = False
        self.broken = ""

    def feed(self, data: bytes, /) -> list[SseEvent]:
        """Events completed by these bytes."""
        lines = self._lines.feed(data)
        self.broken = self._lines.broken
        return self._events(lines)

    def close(self) -> list[SseEvent]:
        """The body has ended: a last line without its newline, which may have been cut anywhere."""
        lines = self._lines.close()
        self.broken = self._lines.broken
        return self._events(lines)

    def take_body(self) -> bytes:
        """Nothing: see the class."""
        return b""

    def _events(self, lines: list[bytes]) -> list[SseEvent]:
        if lines and not self._begun:
            self._begun = True
            lines[0] = lines[0].removeprefix(BOM)
        return [SseEvent(line) for line in lines if not line.isspace()]
