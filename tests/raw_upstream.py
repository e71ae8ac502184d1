"""A raw TCP server for tests of HTTP clients: it sends the bytes it is told to, whatever they are."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from time import monotonic


class Peer:
    """One accepted connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        self.reader = reader
        self.writer = writer
        self.number = number
        self.requests: list[bytes] = []

    async def request(self) -> bytes:
        """One whole request with a Content-Length body, or without a body.

        Raises:
            asyncio.IncompleteReadError, ConnectionError: the client closed.
        """
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = next((int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line[:15] == b"content-length:"), 0)
        whole = head + await self.reader.readexactly(length)
        self.requests.append(whole)
        return whole

    async def send(self, data: bytes, step: int = 0) -> None:
        """Write bytes, `step` at a time when it is not 0 (each in a segment of its own, as far as the kernel lets us)."""
        for at in range(0, len(data), step or len(data)) if data else ():
            if self.writer.transport.is_closing():  # uvloop's transports raise RuntimeError when written to then
                raise ConnectionResetError
            self.writer.write(data[at : at + (step or len(data))])
            await self.writer.drain()
            if step:
                await asyncio.sleep(0)

    async def gone(self) -> float:
        """Wait until the client has closed; the instant (monotonic seconds)."""
        with contextlib.suppress(ConnectionError):
            while await self.reader.read(65536):
                pass
        return monotonic()

    def reset(self) -> None:
        """Close at once with a TCP reset, without the rest of what was written."""
        if self.writer.transport.is_closing():
            return
        raw = self.writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


class RawUpstream:
    """The running server: its port and what it saw. `failed`: what a handler raised (a closed client is no failure)."""

    def __init__(self, handler: Callable[[Peer], Awaitable[None]]) -> None:
        self.port = 0
        self.peers: list[Peer] = []
        self.failed: list[Exception] = []
        self._handler = handler

    @property
    def url(self) -> str:
        """Its base URL without TLS."""
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def requests(self) -> list[bytes]:
        """All requests, in the order of their connections."""
        return [request for peer in self.peers for request in peer.requests]

    async def accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection and close it when the handler returns."""
        peer = Peer(reader, writer, len(self.peers))
        self.peers.append(peer)
        try:
            await self._handler(peer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        except Exception as error:
            self.failed.append(error)
        finally:
            writer.close()


@contextlib.asynccontextmanager
async def raw_upstream(
    handler: Callable[[Peer], Awaitable[None]], tls: ssl.SSLContext | None = None
) -> AsyncIterator[RawUpstream]:
    """Serve on a free port of 127.0.0.1 until left; then no connection is left open."""
    upstream = RawUpstream(handler)
    server = await asyncio.start_server(upstream.accepted, "127.0.0.1", 0, ssl=tls)
    upstream.port = server.sockets[0].getsockname()[1]
    try:
        yield upstream
    finally:
        server.close()
        for peer in upstream.peers:
            peer.reset()
        await asyncio.sleep(0.01)
    assert [repr(error) for error in upstream.failed] == []
