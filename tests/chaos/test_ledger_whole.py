"""A whole gateway under load while Redis loses everything and PostgreSQL is away: one row for each answer, none twice."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa

from gateway.ledger.migrations import migrate, sync_url
from tests.gateway_process import GatewayProcess, declared_key
from tests.servers import PostgresServer, RedisServer
from tests.upstream import upstream_server

pytestmark = pytest.mark.redis
KEY = "sk-chaos-0123456789abcdef"
ENV = {"SY_PEPPER": "p" * 40}


class House:
    """A gateway of two workers with its servers, and clients that count what they were answered."""

    def __init__(self, gateway: GatewayProcess, redis: RedisServer, postgres: PostgresServer, url: str) -> None:
        self.gateway = gateway
        self.redis = redis
        self.postgres = postgres
        self.url = url
        self.answers: dict[str, int] = {}
        self.refused = 0
        self.stop = asyncio.Event()

    async def client(self, number: int) -> None:
        """Ask until told to stop; every third answer is streamed."""
        body = {"model": "chat", "messages": [{"role": "user", "content": "hi"}]}
        async with httpx.AsyncClient(timeout=30, headers={"authorization": f"Bearer {KEY}"}) as http:
            turn = number
            while not self.stop.is_set():
                turn += 1
                url = self.gateway.url + "/v1/chat/completions"
                answer = await http.post(url, json={**body, "stream": turn % 3 == 0})
                if answer.status_code == 200:
                    self.answers[answer.headers["x-request-id"]] = 4
                else:
                    self.refused += 1

    def rows(self) -> list[tuple[str, str, int]]:
        """What SQL holds."""
        engine = sa.create_engine(sync_url(self.url), poolclass=sa.NullPool)
        with engine.connect() as connection:
            return [tuple(row) for row in connection.execute(sa.text("SELECT id, outcome, output_tokens FROM ledger"))]  # type: ignore[misc]

    async def settled(self) -> list[tuple[str, str, int]]:
        """The rows once there is one for each answer."""
        deadline = time.monotonic() + 20
        while len(rows := await asyncio.to_thread(self.rows)) < len(self.answers) and time.monotonic() < deadline:
            await asyncio.sleep(0.1)
        return rows


@asynccontextmanager
async def house(folder: Path, redis: RedisServer, postgres: PostgresServer) -> AsyncIterator[House]:
    name = f"chaos_{time.time_ns()}"
    engine = sa.create_engine(sync_url(postgres.url), isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with engine.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    url = postgres.url.replace("/postgres", f"/{name}")
    limits = [{"requests": 1_000_000, "per": "hour"}, {"tokens": 1_000_000_000, "per": "hour"}]
    async with upstream_server() as upstream:
        tree: dict[str, object] = {
            "server": {"workers": 2},
            "redis": {"url": redis.url, "timeout_ms": 500, "on_outage": "allow"},
            "ledger": {"url": url},
            "auth": {"pepper": "env:SY_PEPPER"},
            "deployments": {"d": {"dialect": "openai_compatible", "base_url": upstream.url, "model": "words-4"}},
            "models": {"chat": {"tiers": [["d"]]}},
            "keys": {"declared": [declared_key("load", KEY, limits=limits)]},
        }
        await asyncio.to_thread(migrate, url)
        with GatewayProcess(folder, tree, ENV) as gateway:
            await asyncio.to_thread(gateway.start)
            yield House(gateway, redis, postgres, url)


async def test_postgres_away_and_redis_restarted_empty_under_load(
    tmp_path: Path, own_redis: RedisServer, postgres_server: PostgresServer
) -> None:
    async with house(tmp_path, own_redis, postgres_server) as it:
        clients = [asyncio.create_task(it.client(number)) for number in range(8)]
        await asyncio.sleep(1.5)
        await asyncio.to_thread(postgres_server.stop)
        try:
            await asyncio.sleep(1.0)
            before = len(it.answers)
            await asyncio.to_thread(own_redis.restart)
            await asyncio.sleep(1.5)
            assert len(it.answers) > before, "requests flow while both are away"
        finally:
            await asyncio.to_thread(postgres_server.start)
        await asyncio.sleep(1.0)
        it.stop.set()
        await asyncio.gather(*clients)
        rows = await it.settled()
        ids = [id for id, _, _ in rows]
        assert it.refused == 0
        assert len(ids) == len(set(ids))
        assert set(it.answers) == set(ids), f"{len(it.answers)} answers, {len(ids)} rows"
        assert {(outcome, tokens) for _, outcome, tokens in rows} == {("ok", 4)}
        assert it.gateway.process is not None and it.gateway.process.poll() is None


async def test_postgres_alone_is_stopped_and_started_under_load(
    tmp_path: Path, own_redis: RedisServer, postgres_server: PostgresServer
) -> None:
    """Requests flow, minted keys that were seen go on, changes are refused; then one row for each answer, without a restart."""
    async with house(tmp_path, own_redis, postgres_server) as it:
        clients = [asyncio.create_task(it.client(number)) for number in range(8)]
        await asyncio.sleep(1.0)
        for _ in range(2):
            await asyncio.to_thread(postgres_server.stop)
            before = len(it.answers)
            try:
                await asyncio.sleep(1.5)
                assert len(it.answers) > before, "requests flow while it is away"
                assert it.gateway.get("/health/ready")[0] == 200
            finally:
                await asyncio.to_thread(postgres_server.start)
            await asyncio.sleep(0.7)
        it.stop.set()
        await asyncio.gather(*clients)
        rows = await it.settled()
        ids = [id for id, _, _ in rows]
        assert it.refused == 0
        assert len(ids) == len(set(ids))
        assert set(it.answers) == set(ids), f"{len(it.answers)} answers, {len(ids)} rows"
        assert {(outcome, tokens) for _, outcome, tokens in rows} == {("ok", 4)}
        assert it.gateway.process is not None and it.gateway.process.poll() is None
