"""What the pool makes of answers: refused ones, bodies of every framing, backpressure."""

from __future__ import annotations

import asyncio

import pytest

from backends.core.contracts import UpstreamRequest
from backends.core.errors import (
    UpstreamProtocol,
    UpstreamTruncated,
    UpstreamUnavailable,
)
from backends.remote.connection import MAX_UNREAD_BYTES
from backends.remote.origin import Origin
from backends.remote.pool import HttpPool
from tests.integration.remote.pools import CHUNKED, OK, PATIENT, REQUEST, always_ok, answering, fetch, served
from tests.raw_upstream import Peer, raw_upstream

#: A read is at most this long in asyncio and uvloop.
MAX_READ_BYTES = 256 * 1024


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nok",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 9 + OK,
        b"HTTP/1.1 200 OK\r\na: b\r\n c\r\ncontent-length: 2\r\n\r\nok",
        OK + b"x",
        CHUNKED + b"2\r\nok\r\n0\r\n\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * 70_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 129 + b"\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        CHUNKED + b"nonsense\r\n",
    ],
)
async def test_refused_answers_close_the_connection(answer: bytes) -> None:
    async with served(answering(answer, OK)) as (pool, upstream):
        with pytest.raises(UpstreamProtocol) as caught:
            await fetch(pool)
        assert "127.0.0.1" not in caught.value.message
        assert pool.connections == (0, 0)
        assert len(upstream.requests) == 1


async def test_an_answer_before_the_request_is_sent() -> None:
    async def hasty(peer: Peer) -> None:
        status = b"200 OK" if peer.number == 0 else b"413 Too Large"
        await peer.reader.readexactly(1)
        await peer.send(b"HTTP/1.1 " + status + b"\r\ncontent-length: 2\r\n\r\nno")
        await asyncio.sleep(0.5)  # reads nothing more

    big = UpstreamRequest("POST", "/chat", {}, b"x" * (32 * 1024 * 1024))
    async with served(hasty) as (pool, upstream):
        with pytest.raises(UpstreamProtocol) as caught:
            await fetch(pool, request=big)
        assert "before it had the request" in caught.value.message
        assert await fetch(pool, request=big) == (413, b"no")
        assert pool.connections == (0, 0)
        assert len(upstream.peers) == 2


async def test_a_large_request_arrives_whole() -> None:
    async with served(always_ok) as (pool, upstream):
        body = bytes(range(256)) * 4096 * 4
        for _ in range(2):
            assert await fetch(pool, request=UpstreamRequest("POST", "/chat", {}, body)) == (200, b"ok")
        assert [request.endswith(body) for request in upstream.requests] == [True, True]
        assert len(upstream.peers) == 1


async def test_nobody_there() -> None:
    async with raw_upstream(always_ok) as upstream:
        url = upstream.url
    for base in (url, "http://name.invalid/v1", f"http://{'x' * 70}/"):
        with pytest.raises(UpstreamUnavailable) as caught:
            await fetch(HttpPool(Origin.parse(base)))
        assert "127.0.0.1" not in caught.value.message
        assert "invalid" not in caught.value.message


@pytest.mark.parametrize("step", [0, 1, 7])
@pytest.mark.parametrize(
    "answer", [OK, CHUNKED + b"1\r\no\r\n1;a=b\r\nk\r\n0\r\nt: 1\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n" + OK]
)
async def test_any_segments(answer: bytes, step: int) -> None:
    async def handler(peer: Peer) -> None:
        for _ in range(2):
            await peer.request()
            await peer.send(answer, step)
        await peer.gone()

    async with served(handler) as (pool, upstream):
        assert await fetch(pool) == (200, b"ok")
        assert await fetch(pool) == (200, b"ok")
        assert len(upstream.peers) == 1


async def test_a_body_that_ends_with_the_connection() -> None:
    async def until_close(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.0 200 OK\r\n\r\n" + b"data: 1\n\n" * 10)

    async with served(until_close) as (pool, _):
        assert await fetch(pool) == (200, b"data: 1\n\n" * 10)
        assert pool.connections == (0, 0)


@pytest.mark.parametrize("reset", [True, False])
@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 200 OK\r\ncontent-length: 20\r\n\r\n0123456789", CHUNKED + b"a\r\n0123456789\r\n"]
)
async def test_a_truncated_body_hands_out_what_came_and_raises(answer: bytes, reset: bool) -> None:
    go = asyncio.Event()

    async def cut(peer: Peer) -> None:
        await peer.request()
        await peer.send(answer)
        await go.wait()
        if reset:
            peer.reset()

    async with served(cut) as (pool, _):
        seen = b""
        with pytest.raises(UpstreamTruncated):
            async with pool.send(REQUEST, PATIENT) as response:
                async for piece in response.chunks:
                    seen += piece
                    go.set()
        assert seen == b"0123456789"


async def test_a_reset_is_no_end_of_a_body_until_close() -> None:
    go = asyncio.Event()

    async def cut(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\n\r\nabc")
        await go.wait()
        peer.reset()

    async with served(cut) as (pool, _):
        with pytest.raises(UpstreamTruncated):
            async with pool.send(REQUEST, PATIENT) as response:
                async for _ in response.chunks:
                    go.set()


async def test_reading_pauses_for_a_slow_consumer() -> None:
    total = 48 * 1024 * 1024
    sent = 0

    async def flood(peer: Peer) -> None:
        nonlocal sent
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % total)
        piece = b"x" * 65536
        while sent < total:
            await peer.send(piece)
            sent += len(piece)
        await peer.gone()

    async with served(flood) as (pool, _), pool.send(REQUEST, PATIENT) as response:
        before = -1
        while sent != before:  # until the sender is stuck
            before = sent
            await asyncio.sleep(0.1)
        unread = response.chunks.unread  # type: ignore[attr-defined]
        assert MAX_UNREAD_BYTES < unread <= MAX_UNREAD_BYTES + MAX_READ_BYTES
        assert sent < total
        got = 0
        async for piece in response.chunks:
            got += len(piece)
            assert len(piece) <= MAX_UNREAD_BYTES + MAX_READ_BYTES
        assert got == total
