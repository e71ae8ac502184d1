"""A pool to a raw server, and what the tests of the pool send through it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from backends.core.contracts import UpstreamRequest
from backends.remote.origin import Credential, Origin
from backends.remote.pool import HttpPool
from backends.remote.transport import Timeouts
from tests.raw_upstream import Peer, RawUpstream, raw_upstream

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
REQUEST = UpstreamRequest("POST", "/chat", {"content-type": "application/json"}, b"{}")
PATIENT = Timeouts(connect_s=5, write_s=5, idle_s=5, total_s=10)


@asynccontextmanager
async def served(handler: Callable[[Peer], Awaitable[None]], **options: float) -> AsyncIterator[tuple[HttpPool, RawUpstream]]:
    """A pool to a raw server with this handler; all within 20 s."""
    async with asyncio.timeout(20), raw_upstream(handler) as upstream:
        pool = HttpPool(Origin.parse(upstream.url), credential=Credential("sk-up"), **options)
        try:
            yield pool, upstream
        finally:
            await pool.aclose()
            assert pool.connections == (0, 0)


async def fetch(pool: HttpPool, timeouts: Timeouts = PATIENT, request: UpstreamRequest = REQUEST) -> tuple[int, bytes]:
    async with pool.send(request, timeouts) as response:
        return response.status, b"".join([piece async for piece in response.chunks])


async def until(true: Callable[[], bool]) -> None:
    """Wait for something to become true; the test's own time limit bounds it."""
    while not true():
        await asyncio.sleep(0.005)


async def always_ok(peer: Peer) -> None:
    while True:
        await peer.request()
        await peer.send(OK)


def answering(*answers: bytes) -> Callable[[Peer], Awaitable[None]]:
    """Answer the requests of a connection with these bytes in turn, then wait for the client to close."""

    async def handler(peer: Peer) -> None:
        for answer in answers:
            await peer.request()
            await peer.send(answer)
        await peer.gone()

    return handler
