"""A failover as it is: the primary dies, its replica is promoted, and the address leads to the other one from then on."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import redis

from gateway.domain.settlement import Rule, Settlement
from gateway.domain.usage_stream import STREAM
from gateway.limits.commands import LIVE, counter_key
from gateway.limits.redis_store import RedisStore
from gateway.limits.store import LimitExceeded, LimitsUnavailable
from tests.rows import row
from tests.servers import RedisServer

pytestmark = pytest.mark.redis
LEASE = 15_000


class Address:
    """One address that leads to whichever server is said: what a virtual IP, a service name or Sentinel's proxy is."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = 0
        self._open: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            theirs, there = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.close()
            return
        self._open |= {writer, there}
        async with asyncio.TaskGroup() as group:
            group.create_task(_copy(reader, there))
            group.create_task(_copy(theirs, writer))
        self._open -= {writer, there}

    def cut(self) -> None:
        for writer in list(self._open):
            writer.transport.abort()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError, RuntimeError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.transport.abort()


@asynccontextmanager
async def address(target: int) -> AsyncIterator[Address]:
    one = Address(target)
    server = await asyncio.start_server(one.serve, "127.0.0.1", 0)
    one.port = server.sockets[0].getsockname()[1]
    try:
        yield one
    finally:
        server.close()
        one.cut()
        await asyncio.sleep(0.05)


def requests(limit: int) -> Rule:
    return Rule("k:requests:3600000", "rate", "requests", limit, 3_600_000, 1)


RULES = (requests(10), Rule("k:slots", "lease", "slots", 4, 0, 1), Rule("k:nusd:2199-01", "quota", "nusd", 1000, 10**9, 50))


async def _replicated(primary: redis.Redis, replica: redis.Redis) -> None:
    deadline = time.monotonic() + 20
    while replica.info("replication").get("master_link_status") != "up" or primary.wait(1, 200) < 1:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


async def test_a_promoted_replica_goes_on_with_what_the_primary_counted(make_redis: Callable[..., RedisServer]) -> None:
    primary, replica = make_redis(), make_redis()
    with redis.Redis.from_url(primary.url) as old, redis.Redis.from_url(replica.url) as new:
        new.replicaof("127.0.0.1", primary.port)
        await _replicated(old, new)
        async with (
            address(primary.port) as there,
            RedisStore(there.url, lambda: time.time_ns() // 1000, worker="w", timeout_ms=2000) as store,
        ):
            open_ = [await store.admit(f"r{n}", RULES, row(f"r{n}"), LEASE) for n in range(4)]
            await store.settle(Settlement(open_[0], (1, 0, 20), row("r0", outcome="ok")))
            await _replicated(old, new)
            before = new.get(counter_key("k:nusd:2199-01"))
            primary.kill()
            there.target = replica.port  # the address moves first: a replica that is no primary yet takes no writes
            started = time.monotonic()
            with pytest.raises(LimitsUnavailable):
                while True:
                    await store.admit("early", RULES, row("early"), LEASE)
            while store.link.breaker.closed and time.monotonic() - started < 5:
                await asyncio.sleep(0.01)
            assert await store.settle(Settlement(open_[1], (1, 0, 30), row("r1", outcome="ok"))), "kept meanwhile"
            new.replicaof("NO", "ONE")
            deadline = time.monotonic() + 20
            while True:
                with contextlib.suppress(LimitsUnavailable):
                    granted = await store.admit("after", RULES, row("after"), LEASE)
                    break
                assert time.monotonic() < deadline, "no recovery without a restart"
                await asyncio.sleep(0.05)
            while not store.settlements.idle:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.02)
            assert before == b"170" and new.get(counter_key("k:nusd:2199-01")) == b"200", "20 + 30 + 3 open of 50"
            assert granted.states[0].remaining == 5, "four before and one after: what was replicated is not forgotten"
            assert new.zcard(LIVE) == 3 and new.xlen(STREAM) == 2
            for n, one in enumerate((open_[2], open_[3], granted)):
                await store.settle(Settlement(one, (1, 0, 0), row(f"x{n}", outcome="ok")))
            assert new.zcard(counter_key("k:slots")) == 0
            for n in range(5):
                await store.admit(f"more{n}", (requests(10),), row("more"), LEASE)
            with pytest.raises(LimitExceeded):
                await store.admit("one too many", (requests(10),), row("more"), LEASE)
