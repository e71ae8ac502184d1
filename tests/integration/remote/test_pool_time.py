"""Timeouts of the pool, and leaving it: at once, by synchronous effects, seen by the server."""

from __future__ import annotations

import asyncio
from time import monotonic

import pytest

from backends.core.contracts import UpstreamRequest
from backends.core.errors import (
    BackendError,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from backends.remote.origin import Origin
from backends.remote.pool import HttpPool
from backends.remote.transport import Timeouts
from tests.integration.remote.pools import CHUNKED, PATIENT, REQUEST, always_ok, answering, fetch, served, until
from tests.raw_upstream import Peer, raw_upstream


@pytest.mark.parametrize(
    ("begin", "timeouts", "which"),
    [
        (b"HTTP/1.1 200 OK\r\nx: y", Timeouts(idle_s=0.1), "idle"),
        (CHUNKED + b"2\r\nok\r\n", Timeouts(idle_s=0.1), "idle"),
        (b"", Timeouts(total_s=0.1), "total"),
        (CHUNKED, Timeouts(idle_s=0.05, total_s=0.3), "total"),
        (CHUNKED + b"2\r\nok\r\n", Timeouts(total_s=0.1), "total"),
    ],
)
async def test_silence_ends(begin: bytes, timeouts: Timeouts, which: str) -> None:
    gone: list[float] = []

    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.send(begin)
        gone.append(await peer.gone())

    async with served(handler) as (pool, _):
        began = monotonic()
        with pytest.raises(UpstreamTimeout) as caught:
            await fetch(pool, timeouts)
        assert caught.value.detail == which
        limit = timeouts.total_s if which == "total" else timeouts.idle_s
        assert limit - 0.02 <= monotonic() - began < limit + 1.0
        await until(lambda: bool(gone))


async def test_a_stream_that_dribbles_is_not_idle_but_ends_with_the_total() -> None:
    async def dribble(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED)
        while True:
            await peer.send(b"1\r\nx\r\n")
            await asyncio.sleep(0.03)

    async with served(dribble) as (pool, _):
        got = 0
        with pytest.raises(UpstreamTimeout) as caught:
            async with pool.send(REQUEST, Timeouts(idle_s=0.2, total_s=0.6)) as response:
                async for piece in response.chunks:
                    got += len(piece)
        assert caught.value.detail == "total"
        assert got > 8


async def test_the_wait_between_head_and_first_byte_is_not_idle() -> None:
    async def thinks(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED)
        await asyncio.sleep(0.3)
        await peer.send(b"2\r\nok\r\n0\r\n\r\n")

    async with served(thinks) as (pool, _):
        assert await fetch(pool, Timeouts(idle_s=0.1)) == (200, b"ok")


async def test_a_slow_consumer_is_not_an_idle_server() -> None:
    async def flood(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 16000000\r\n\r\n" + b"x" * 16_000_000)
        await peer.gone()

    async with served(flood) as (pool, _), pool.send(REQUEST, Timeouts(idle_s=0.1)) as response:
        await asyncio.sleep(0.4)
        assert sum([len(piece) async for piece in response.chunks]) == 16_000_000


async def test_a_server_that_does_not_read_the_request() -> None:
    async def deaf(peer: Peer) -> None:
        peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.sleep(3)

    async with served(deaf) as (pool, _):
        began = monotonic()
        with pytest.raises(UpstreamTimeout) as caught:
            await fetch(pool, Timeouts(write_s=0.2), UpstreamRequest("POST", "/", {}, b"x" * (64 * 1024 * 1024)))
        assert caught.value.detail == "write"
        assert monotonic() - began < 2.5


async def test_connecting_takes_too_long() -> None:
    async def no_tls(peer: Peer) -> None:
        await peer.gone()

    async with asyncio.timeout(10), raw_upstream(no_tls) as upstream:
        pool = HttpPool(Origin.parse(upstream.url.replace("http:", "https:")))
        with pytest.raises(UpstreamTimeout) as caught:
            await fetch(pool, Timeouts(connect_s=0.2))
        assert caught.value.detail == "connect"


@pytest.mark.parametrize("begin", [b"", b"HTTP/1.1 200 OK\r\nx: y", CHUNKED, CHUNKED + b"2\r\nok\r\n"])
async def test_cancelling_closes_the_upstream_connection_at_once(begin: bytes) -> None:
    gone: list[float] = []
    ready = asyncio.Event()

    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.send(begin)
        ready.set()
        gone.append(await peer.gone())

    async with served(handler) as (pool, _):
        task = asyncio.ensure_future(fetch(pool))
        await ready.wait()
        await asyncio.sleep(0.05)
        left = monotonic()
        task.cancel()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: bool(gone))
        assert gone[0] - left < 0.5
        assert pool.connections == (0, 0)


async def test_leaving_while_reading_is_paused() -> None:
    gone: list[float] = []

    async def flood(peer: Peer) -> None:
        await peer.request()
        try:
            await peer.send(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 32_000_000)
            await peer.gone()
        finally:
            gone.append(monotonic())

    async with served(flood) as (pool, _):
        async with pool.send(REQUEST, PATIENT):
            await asyncio.sleep(0.2)
            left = monotonic()
        await until(lambda: bool(gone))
        assert gone[0] - left < 0.5


async def test_leaving_takes_no_turn_of_the_loop() -> None:
    async with served(answering(CHUNKED + b"2\r\nok\r\n")) as (pool, _):
        sending = pool.send(REQUEST, PATIENT)
        response = await sending.__aenter__()
        assert await anext(response.chunks) == b"ok"
        leaving = sending.__aexit__(None, None, None)
        with pytest.raises(StopIteration):
            leaving.send(None)  # type: ignore[attr-defined]
        assert pool.connections == (0, 0)
        with pytest.raises(BackendError):  # and whoever still reads does not wait for ever
            await anext(response.chunks)


async def test_closing_the_pool_ends_what_is_open() -> None:
    async with served(answering(CHUNKED)) as (pool, _):
        async with pool.send(REQUEST, PATIENT) as response:
            await pool.aclose()
            with pytest.raises(BackendError):
                await anext(response.chunks)
        with pytest.raises(UpstreamUnavailable):
            await fetch(pool)


async def test_many_at_once() -> None:
    async with served(always_ok) as (pool, upstream):

        async def several() -> None:
            for _ in range(20):
                assert await fetch(pool) == (200, b"ok")

        await asyncio.gather(*(several() for _ in range(16)))
        assert len(upstream.requests) == 320
        assert len(upstream.peers) <= 16
