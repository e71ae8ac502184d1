"""Serves the metrics as text over plain HTTP/1.1 on a port of their own; knows one path and keeps no connection."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from gateway.telemetry.aggregate import CONTENT_TYPE

MAX_HEAD = 8192
HEAD_TIMEOUT_S = 5.0
#: Connections at once; a scraper needs one.
MAX_CONNECTIONS = 16


class Exporter:
    """`GET /metrics`.

    Args:
        render: the text, made anew for each scrape.
    """

    def __init__(self, render: Callable[[], Awaitable[bytes]]) -> None:
        self._render = render
        self._open = 0
        self._server: asyncio.Server | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port.

        Raises:
            OSError: the port is taken.
        """
        self._server = await asyncio.start_server(self._connected, host, port, limit=MAX_HEAD)
        bound: int = self._server.sockets[0].getsockname()[1]
        return bound

    def close(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            if self._open <= MAX_CONNECTIONS:
                async with asyncio.timeout(HEAD_TIMEOUT_S):
                    head = await reader.readuntil(b"\r\n\r\n")
                    writer.write(await self._answer(head))
                    await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            self._open -= 1
            writer.close()

    async def _answer(self, head: bytes) -> bytes:
        method, _, rest = head.split(b"\r\n", 1)[0].partition(b" ")
        path = rest.split(b" ", 1)[0].split(b"?", 1)[0]
        if path != b"/metrics":
            return _response(b"404 Not Found", b"text/plain", b"see /metrics\n")
        if method not in (b"GET", b"HEAD"):
            return _response(b"405 Method Not Allowed", b"text/plain", b"GET only\n")
        body = await self._render()
        answer = _response(b"200 OK", CONTENT_TYPE, body)
        return answer if method == b"GET" else answer[: len(answer) - len(body)]


def _response(status: bytes, content_type: bytes, body: bytes) -> bytes:
    return b"HTTP/1.1 %b\r\ncontent-type: %b\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b" % (
        status,
        content_type,
        len(body),
        body,
    )


async def scrape(host: str, port: int) -> bytes:
    """The text that an exporter of this machine shows. An address that means all interfaces is asked on this machine's own.

    Raises:
        OSError, TimeoutError: it does not answer.
    """
    async with asyncio.timeout(HEAD_TIMEOUT_S):
        reader, writer = await asyncio.open_connection(host, port)
        try:
            writer.write(b"GET /metrics HTTP/1.1\r\nHost: metrics\r\nConnection: close\r\n\r\n")
            head, _, text = (await reader.read(-1)).partition(b"\r\n\r\n")
        finally:
            writer.close()
    if b" 200 " not in head[:16]:
        raise OSError("the exporter refused")
    return text
