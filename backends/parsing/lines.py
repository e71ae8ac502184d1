"""Lines out of bytes, for NDJSON and for servers that frame by single newlines.

Only LF and CRLF end a line. U+2028, U+2029, U+0085, VT and FF may stand raw inside JSON strings, which is why
`str.splitlines` and everything built on it is wrong here.
"""

from __future__ import annotations

#: Largest line in bytes.
MAX_LINE_BYTES = 4 * 1024 * 1024


class LineSplitter:
    """Bytes in, lines without their ends out; blank lines are left out; single use; any byte split is the same.

    `broken` turns non-empty, with a reason, when a line passes the bound; nothing more comes out then.
    """

    def __init__(self, max_line_bytes: int = MAX_LINE_BYTES) -> None:
        self._max = max_line_bytes
        self._tail = bytearray()
        self.broken = ""

    def feed(self, data: bytes, /) -> list[bytes]:
        """Lines completed by these bytes."""
        if self.broken:
            return []
        if b"\n" not in data:
            self._tail += data
            self._bound(self._tail)
            return []
        if self._tail:
            data = bytes(self._tail) + data
            self._tail.clear()
        *whole, rest = data.split(b"\n")
        lines: list[bytes] = []
        for line in whole:
            kept = line.removesuffix(b"\r")
            if not self._bound(kept):
                return lines
            if kept:
                lines.append(kept)
        self._tail += rest
        self._bound(self._tail)
        return lines

    def close(self) -> list[bytes]:
        """The body has ended: the last line when it lacked its newline. It may have been cut anywhere."""
        if self.broken:
            return []
        rest = bytes(self._tail).removesuffix(b"\r")
        self._tail.clear()
        return [rest] if rest and self._bound(rest) else []

    def _bound(self, line: bytes | bytearray) -> bool:
        if len(line) - line.endswith(b"\r") <= self._max:
            return True
        self.broken = f"a line of more than {self._max} bytes"
        self._tail.clear()
        return False
