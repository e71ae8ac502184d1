"""Server-sent events out of bytes: what nearly every backend streams.

Source: WHATWG HTML, "Server-sent events", 9.2.6 (read 2026-11). Beyond it:

* a field named `error` is an event of that name: llama.cpp's server wrote `error: {...}` until 2025-10, and a parser
  that drops it sees a stream that merely stops;
* an event is bounded, comments do not count;
* `close` hands out what stood in an event that the body ended in, because some servers leave out the last blank line.
"""

from __future__ import annotations

import msgspec

#: A byte order mark.
BOM = b"\xef\xbb\xbf"
_DATA = b"data: "
#: Largest event in bytes, framing included.
MAX_EVENT_BYTES = 4 * 1024 * 1024


class SseEvent(msgspec.Struct, frozen=True, gc=False):
    """One event: `data` (lines joined by a newline) and its `event:` name, "" when it has none."""

    data: bytes
    name: str = ""


class SseParser:
    """Bytes in, events out; single use; any byte split gives the same events.

    `broken` turns non-empty, with a reason, when an event passes the bound; nothing more comes out then.
    """

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max = max_event_bytes
        self._tail = bytearray()
        self._begun = False
        self._after_cr = False
        self.broken = ""

    def feed(self, data: bytes, /) -> list[SseEvent]:
        """Events completed by these bytes."""
        if self.broken:
            return []
        if not self._begun:
            data = self._begin(data)
        if self._after_cr or b"\r" in data:
            data = self._newlines(data)
        tail = self._tail
        if tail:
            searched = len(tail) - 1
            tail += data
            if tail.find(b"\n\n", searched) < 0:
                self._bound()
                return []
            data = bytes(tail)
        events: list[SseEvent] = []
        blocks = data.split(b"\n\n")
        rest = blocks.pop()
        count = len(blocks)
        if (  # nearly all reads of nearly all servers: whole events of one `data: ` line each
            not rest
            and len(data) <= self._max
            and data.startswith(_DATA)
            and data.count(b"\n") == 2 * count
            and (count == 1 or data.count(b"\n\ndata: ") == count - 1)
        ):
            if tail:
                tail.clear()
            return [SseEvent(block[6:]) for block in blocks]
        for block in blocks:
            if not self._block(block, events):
                return events
        tail[:] = rest
        if len(rest) > self._max:
            self._bound()
        return events

    def close(self) -> list[SseEvent]:
        """The body has ended: the events of a last block without its blank line. It may have been cut anywhere."""
        events: list[SseEvent] = []
        if not self.broken and self._tail:
            self._block(bytes(self._tail), events)
        self._tail.clear()
        return events

    def _begin(self, data: bytes) -> bytes:
        """Drop a byte order mark, which may itself arrive in pieces."""
        head = bytes(self._tail) + data
        self._tail.clear()
        if len(head) < len(BOM) and BOM.startswith(head):
            self._tail += head
            return b""
        self._begun = True
        return head.removeprefix(BOM)

    def _newlines(self, data: bytes) -> bytes:
        """CRLF and CR as LF. A CR is the raw byte only: inside JSON it is written as an escape."""
        if self._after_cr and data[:1] == b"\n":
            data = data[1:]
            self._after_cr = False
        if data:
            self._after_cr = data.endswith(b"\r")
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _bound(self) -> None:
        """Refuse an event that has grown too large, after forgetting its comments."""
        tail = self._tail
        if len(tail) - tail.endswith(b"\n") <= self._max:
            return
        *whole, last = tail.split(b"\n")
        kept = [line for line in whole if line and not line.startswith(b":")]
        counted = kept if last.startswith(b":") or not last else [*kept, last]
        if len(b"\n".join(counted)) > self._max:
            self._break()
        else:
            tail[:] = b"\n".join([*kept, b":" if last.startswith(b":") else last])

    def _break(self) -> None:
        self.broken = f"an event of more than {self._max} bytes"
        self._tail.clear()

    def _block(self, block: bytes, events: list[SseEvent]) -> bool:
        """Add the events of the lines between two blank lines. False when they are too large."""
        lines = [line for line in block.split(b"\n") if line and not line.startswith(b":")]
        if len(block) > self._max and sum(map(len, lines)) + len(lines) - 1 > self._max:
            self._break()
            return False
        data: list[bytes] = []
        name = ""
        for line in lines:
            field, _, value = line.partition(b":")
            value = value.removeprefix(b" ")
            if field == b"data":
                data.append(value)
            elif field == b"event":
                name = value.decode("utf-8", "replace")
            elif field == b"error":
                events.append(SseEvent(value, "error"))
        if data:
            events.append(SseEvent(b"\n".join(data), name))
        return True
