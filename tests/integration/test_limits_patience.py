"""However Redis stalls, one request waits for it once: all its tries together no longer than the timeout."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from gateway.domain.settlement import Rule
from gateway.limits.redis_store import RedisStore
from gateway.limits.store import LimitsUnavailable
from tests.rows import row

TIMEOUT_S = 0.4
#: What a busy test machine may add; a second timeout would add more.
SLACK_S = 0.25
RULES = (Rule("k:requests:60000", "rate", "requests", 100, 60_000, 1),)
#: Answers an EVALSHA that came as the so many'th; None = it never does.
Script = Callable[[int], Awaitable[bytes | None]]


def now_us() -> int:
    return time.time_ns() // 1000


def charged() -> bytes:
    """As admit.lua: {1, now, epoch, config, remaining, reset_ms}."""
    return b"*6\r\n:1\r\n:%d\r\n:1\r\n:0\r\n:99\r\n:1000\r\n" % now_us()


@asynccontextmanager
async def redis_that(answers: Script) -> AsyncIterator[tuple[RedisStore, list[float]]]:
    """A store on a server that takes every handshake and answers scripts as it is told; and when it was asked for them."""
    asked: list[float] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                words = []
                for _ in range(int((await reader.readline())[1:])):
                    size = int((await reader.readline())[1:])
                    words.append((await reader.readexactly(size + 2))[:-2])
                if words[0] == b"EVALSHA":
                    asked.append(time.monotonic())
                    if (answer := await answers(len(asked))) is None:
                        await asyncio.sleep(3600)
                    else:
                        writer.write(answer)
                elif words[0] == b"TIME":
                    writer.write(b"*2\r\n$10\r\n%010d\r\n$1\r\n0\r\n" % (now_us() // 1_000_000))
                else:
                    writer.write(b"+OK\r\n")
        except (ValueError, ConnectionError, asyncio.IncompleteReadError):
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    url = f"redis://127.0.0.1:{port}"
    try:
        async with RedisStore(url, now_us, worker="w", timeout_ms=int(TIMEOUT_S * 1000)) as store:
            while not store.link.up:
                await asyncio.sleep(0.005)
            yield store, asked
    finally:
        server.close()


async def refused_after(store: RedisStore, waited_us: int = 0) -> float:
    """Seconds until an admission is given up."""
    began = time.monotonic()
    with pytest.raises(LimitsUnavailable):
        await store.admit("a", RULES, row("a"), 15_000, waited_us)
    return time.monotonic() - began


async def test_an_admission_that_came_too_late_is_repeated_in_what_is_left_of_its_time() -> None:
    async def answers(number: int) -> bytes | None:
        if number > 1:
            return None
        await asyncio.sleep(TIMEOUT_S * 0.8)
        return b"*2\r\n:-1\r\n:%d\r\n" % now_us()

    async with redis_that(answers) as (store, asked):
        took_s = await refused_after(store)
        assert len(asked) == 2
        assert TIMEOUT_S * 0.8 < took_s < TIMEOUT_S + SLACK_S


async def test_a_script_that_was_lost_is_loaded_and_repeated_in_what_is_left_of_the_time() -> None:
    async def answers(number: int) -> bytes | None:
        if number > 1:
            return None
        await asyncio.sleep(TIMEOUT_S * 0.8)
        return b"-NOSCRIPT No matching script.\r\n"

    async with redis_that(answers) as (store, asked):
        late = asyncio.ensure_future(refused_after(store))
        await asyncio.sleep(TIMEOUT_S * 0.7)  # another turn's commands stand before what is repeated
        other = asyncio.ensure_future(refused_after(store))
        assert await late < TIMEOUT_S + SLACK_S
        assert await other < TIMEOUT_S + SLACK_S
        assert len(asked) >= 2


async def test_who_has_waited_waits_no_longer_than_what_is_left() -> None:
    async def answers(_: int) -> bytes | None:
        return None

    async with redis_that(answers) as (store, _):
        held = asyncio.ensure_future(refused_after(store))
        await asyncio.sleep(0.01)
        first = asyncio.ensure_future(refused_after(store, int(TIMEOUT_S * 1e6 * 0.9)))
        assert await first < TIMEOUT_S * 0.1 + SLACK_S
        assert await held < TIMEOUT_S, "one that is late says that Redis is out, for everybody"


async def test_who_has_waited_all_his_time_is_not_sent() -> None:
    async def answers(_: int) -> bytes | None:
        return charged()

    async with redis_that(answers) as (store, asked):
        assert await refused_after(store, int(TIMEOUT_S * 1e6)) < SLACK_S
        assert not asked
        assert (await store.admit("b", RULES, row("b"), 15_000)).states[0].remaining == 99
        assert store.link.breaker.closed
