"""A client on a bare socket: it sends what it is told and leaves as it is told."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from time import monotonic
from typing import Literal

Manner = Literal["close", "half_close", "reset"]


class RawClient:
    """One connection; use `connect`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.got = b""

    @classmethod
    async def connect(cls, port: int, host: str = "127.0.0.1") -> RawClient:
        """A connection to this machine."""
        return cls(*await asyncio.open_connection(host, port, limit=1 << 24))

    async def ask(self, key: str, body: dict[str, object], path: str = "/v1/chat/completions") -> RawClient:
        """Send one whole request."""
        data = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nContent-Length: {len(data)}\r\n\r\n"
        await self.send(head.encode() + data)
        return self

    async def send(self, data: bytes) -> None:
        """Send bytes."""
        self.writer.write(data)
        await self.writer.drain()

    async def until(self, what: bytes, within_s: float = 5.0) -> bytes:
        """Read until this was there; everything read so far."""
        try:
            async with asyncio.timeout(within_s):
                while what not in self.got:
                    data = await self.reader.read(65536)
                    assert data, f"the connection ended after {self.got[-500:]!r}"
                    self.got += data
        except TimeoutError:
            raise AssertionError(f"no {what!r} within {within_s} s, only {self.got[-500:]!r}") from None
        return self.got

    async def rest(self, within_s: float = 5.0) -> bytes:
        """Read until the server closes; everything read so far."""
        async with asyncio.timeout(within_s):
            try:
                while data := await self.reader.read(65536):
                    self.got += data
            except ConnectionError:
                self.got += b"<reset>"
        return self.got

    async def answer(self, within_s: float = 5.0) -> tuple[int, dict[str, str], bytes]:
        """The next whole answer with a Content-Length: status, headers (lower case) and body."""
        await self.until(b"\r\n\r\n", within_s)
        head, _, self.got = self.got.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        length = int(headers.get("content-length", "0"))
        async with asyncio.timeout(within_s):
            while len(self.got) < length:
                data = await self.reader.read(65536)
                assert data, "the connection ended in a body"
                self.got += data
        body, self.got = self.got[:length], self.got[length:]
        return int(lines[0].split()[1]), headers, body

    def leave(self, manner: Manner = "close") -> float:
        """End the connection; the instant (time.monotonic)."""
        if manner == "half_close":
            self.writer.write_eof()
        else:
            if manner == "reset":
                raw = self.writer.get_extra_info("socket")
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.writer.transport.abort()
        return monotonic()
