"""Connections of the pool: reuse, expiry, and the one resend."""

from __future__ import annotations

import asyncio

import pytest

from backends.core.errors import (
    UpstreamTruncated,
    UpstreamUnavailable,
)
from tests.integration.remote.pools import OK, PATIENT, REQUEST, always_ok, answering, fetch, served, until
from tests.raw_upstream import Peer


async def test_a_connection_is_reused_and_carries_host_and_credential() -> None:
    async with served(always_ok) as (pool, upstream):
        for _ in range(3):
            assert await fetch(pool) == (200, b"ok")
        assert len(upstream.peers) == 1
        assert pool.connections == (1, 1)
        head = upstream.requests[0]
        assert head.startswith(b"POST /v1/chat HTTP/1.1\r\nhost: 127.0.0.1:%d\r\n" % upstream.port)
        assert b"\r\nauthorization: Bearer sk-up\r\n" in head
        assert b"\r\naccept-encoding: identity\r\n" in head


async def test_the_connection_used_last_is_used_first() -> None:
    async with served(always_ok) as (pool, upstream):
        async with pool.send(REQUEST, PATIENT) as first, pool.send(REQUEST, PATIENT) as second:
            async for _ in second.chunks:
                pass
            async for _ in first.chunks:
                pass
        # left in the order second, first: the first one came back last
        for _ in range(3):
            await fetch(pool)
        assert [len(peer.requests) for peer in upstream.peers] == [4, 1]


async def test_an_idle_connection_expires() -> None:
    async with served(always_ok, keepalive_s=0.05) as (pool, upstream):
        await fetch(pool)
        assert pool.connections == (1, 1)
        await until(lambda: pool.connections == (0, 0))
        await fetch(pool)
        assert len(upstream.peers) == 2


async def test_no_keep_alive_at_all() -> None:
    async with served(always_ok, keepalive_s=0.0) as (pool, upstream):
        await fetch(pool)
        await fetch(pool)
        assert len(upstream.peers) == 2
        assert pool.connections == (0, 0)


async def test_a_connection_that_the_server_closes_while_idle_is_dropped() -> None:
    async def once(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)

    async with served(once) as (pool, upstream):
        await fetch(pool)
        await until(lambda: pool.connections == (0, 0))
        await fetch(pool)
        assert [len(peer.requests) for peer in upstream.peers] == [1, 1]


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\nConnection: close\r\n", b"HTTP/1.0 200 OK\r\n"])
async def test_a_connection_that_the_server_will_close_is_not_kept(head: bytes) -> None:
    async with served(answering(head + b"content-length: 2\r\n\r\nok")) as (pool, upstream):
        assert await fetch(pool) == (200, b"ok")
        assert await fetch(pool) == (200, b"ok")
        assert len(upstream.peers) == 2


async def test_unasked_bytes_on_an_idle_connection_make_it_useless() -> None:
    async def chatty(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await asyncio.sleep(0.05)
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npoison")
        await peer.gone()

    async with served(chatty) as (pool, upstream):
        await fetch(pool)
        await until(lambda: pool.connections == (0, 0))
        assert await fetch(pool) == (200, b"ok")
        assert len(upstream.peers) == 2


async def test_a_reused_connection_that_dies_unanswered_is_replaced_once() -> None:
    async def first_dies_on_reuse(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await peer.request()
        if peer.number == 0:
            return  # closes with the second request unanswered
        await peer.send(OK)

    async with served(first_dies_on_reuse) as (pool, upstream):
        await fetch(pool)
        assert await fetch(pool) == (200, b"ok")
        assert [len(peer.requests) for peer in upstream.peers] == [2, 1]


async def test_a_reused_connection_that_is_reset_is_replaced_too() -> None:
    async def reset_on_reuse(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        if peer.number == 0:
            await peer.request()
            peer.reset()
        else:
            await peer.gone()

    async with served(reset_on_reuse) as (pool, upstream):
        await fetch(pool)
        assert await fetch(pool) == (200, b"ok")
        assert len(upstream.peers) == 2


async def test_a_new_connection_that_dies_is_not_tried_again() -> None:
    async def dies(peer: Peer) -> None:
        await peer.request()

    async with served(dies) as (pool, upstream):
        with pytest.raises(UpstreamUnavailable):
            await fetch(pool)
        assert len(upstream.requests) == 1


async def test_the_resend_is_not_repeated() -> None:
    async def only_the_first_answer(peer: Peer) -> None:
        await peer.request()
        if peer.number == 0:
            await peer.send(OK)
            await peer.request()

    async with served(only_the_first_answer) as (pool, upstream):
        await fetch(pool)
        with pytest.raises(UpstreamUnavailable):
            await fetch(pool)
        assert [len(peer.requests) for peer in upstream.peers] == [2, 1]


@pytest.mark.parametrize("begun", [b"H", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"])
async def test_after_the_first_byte_nothing_is_sent_again(begun: bytes) -> None:
    async def dies_in_the_head(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await peer.request()
        await peer.send(begun)

    async with served(dies_in_the_head) as (pool, upstream):
        await fetch(pool)
        with pytest.raises(UpstreamTruncated):
            await fetch(pool)
        assert len(upstream.peers) == 1
