"""A Redis that lost its data gets its quotas back from SQL: each row counts once, whoever counts it and whatever crashes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.config.loader import parse
from gateway.domain.principal import LimitSpec
from gateway.domain.settlement import Reservation, Settlement
from gateway.domain.usage_stream import META, REBUILT
from gateway.ledger.migrations import migrate
from gateway.ledger.rows import connect
from gateway.ledger.writer import LedgerRole
from gateway.limits.commands import counter_key
from gateway.limits.redis_store import RedisStore
from gateway.limits.rules import Demand, rules_for
from gateway.limits.store import LimitsUnavailable
from gateway.rebuilding import restore
from tests.rows import row
from tests.servers import RedisServer

pytestmark = pytest.mark.redis
CONFIG = b"""
deployments: {d: {dialect: openai_compatible, base_url: http://127.0.0.1:9/v1, model: m}}
models: {chat: {tiers: [[d]], limits: [{requests: 1000, per: month}]}, other: {tiers: [[d]]}}
organisations: {acme: {timezone: Asia/Tokyo, limits: [{usd: 5, per: month}, {requests: 900, per: calendar_day}]}}
teams: {red: {organisation: acme, limits: [{tokens: 100000, per: month, model: chat}, {tokens: 100000, per: second}]}}
users: {named: {ann: {limits: [{input_tokens: 50000, per: calendar_day, shadow: true}]}}}
gateway: {limits: [{output_tokens: 70000, per: month}]}
keys:
  default: {limits: [{requests: 500, per: month}]}
  declared: [{name: k1, team: red, user: ann, hash: "sha256:%b"}]
""" % (b"a" * 64)


def wall_us() -> int:
    return time.time_ns() // 1000


class House:
    """One worker's store, and a ledger role that is stepped by hand."""

    def __init__(self, redis: RedisServer, store: RedisStore, engine: AsyncEngine, role: LedgerRole, client: Redis) -> None:
        self.redis, self.store, self.engine, self.role, self.client = redis, store, engine, role, client
        self.count = 0
        self.specs: tuple[LimitSpec, ...] = ()

    async def request(self, model: str, tokens: int) -> None:
        """Admitted and settled; its row is `tokens` in, twice that out, and costs as many micro-USD."""
        self.count += 1
        id = f"r{self.count}"
        specs = [
            spec for spec in self.specs if spec.model in ("", model) and not (spec.scope == "model:chat" != f"model:{model}")
        ]
        rules = rules_for(specs, Demand(tokens, 4 * tokens), self.store.now_us())
        fields: dict[str, Any] = {
            "key_id": "k1", "team_id": "red", "org_id": "acme", "user": "ann", "model": model, "outcome": "ok", "status": 200,
            "usage_source": "reported", "input_tokens": tokens, "output_tokens": 2 * tokens, "cost_nusd": 1000 * tokens,
            "settled_us": wall_us(),
        }  # fmt: skip
        reservation: Reservation = await self.store.admit(id, rules, row(id), 15_000)
        amounts = {
            "requests": 1,
            "input_tokens": tokens,
            "output_tokens": 2 * tokens,
            "tokens": 3 * tokens,
            "nusd": 1000 * tokens,
        }
        actual = tuple(amounts[rule.unit] for rule in reservation.rules)
        await self.store.settle(Settlement(reservation, actual, row(id, **fields)))

    async def used(self) -> dict[str, int]:
        """Every quota's counter by its rule's name."""
        names = [rule.name for rule in rules_for(self.specs, Demand(0), wall_us()) if rule.kind == "quota"]
        return {name: int(await self.client.get(counter_key(name)) or 0) for name in names}

    async def settled(self) -> None:
        """Until the store has nothing on the way and its quotas are rebuilt."""
        async with asyncio.timeout(20):
            while not self.store.settlements.idle or self.store.rebuilding or not self.store.link.up:
                await asyncio.sleep(0.01)

    async def lose(self, how: str) -> None:
        if how == "flushall":
            await self.client.flushall()
        else:
            self.redis.kill()
            await asyncio.sleep(0.05)
            self.redis.restart()
            await self.client.connection_pool.disconnect()
            async with asyncio.timeout(20):
                while not self.store.link.up:
                    await asyncio.sleep(0.02)


@asynccontextmanager
async def opened(redis: RedisServer, folder: Path) -> AsyncIterator[House]:
    url = f"sqlite+aiosqlite:///{folder / 'gateway.db'}"
    await asyncio.to_thread(migrate, url)
    snapshot = parse(CONFIG, folder / "config.yaml").snapshot
    engine = connect(url)
    client = Redis.from_url(redis.url)

    async def restoring(one: Redis, ledger: AsyncEngine) -> None:
        await restore(one, ledger, url, lambda: snapshot, wall_us)

    role = LedgerRole(client, engine, "role", restore=restoring)
    async with RedisStore(redis.url, wall_us, worker="w", timeout_ms=5000, rebuilt=True) as store:
        house = House(redis, store, engine, role, client)
        (holder,) = snapshot.declared_keys.values()
        from gateway.auth.authenticate import with_shared_limits

        house.specs = (*with_shared_limits(holder, snapshot).limits, *snapshot.models["chat"].limits)
        yield house
    await client.aclose()
    await engine.dispose()


@pytest.mark.parametrize("how", ["flushall", "killed"])
async def test_a_budget_is_not_reset_by_an_emptied_redis(own_redis: RedisServer, tmp_path: Path, how: str) -> None:
    async with opened(own_redis, tmp_path) as house:
        await house.role.step()
        await house.settled()
        for number in range(1, 9):
            await house.request("chat" if number % 3 else "other", number)
            if number == 5:
                while await house.role.step():
                    pass  # in SQL, and the worker does not know it: it holds these too
        before = await house.used()
        assert sorted(before.values()) == sorted([8, 6, 8, 3 * 27, 2 * 36, 36, 36_000]), before
        await house.lose(how)
        deadline = time.monotonic() + 20
        while await house.used() != before or not await house.client.hget(META, REBUILT):
            assert time.monotonic() < deadline, (before, await house.used())
            with suppress(LimitsUnavailable):  # an admission tells the worker that its data are gone
                house.store.void(await _free(house))
            await house.role.step()
            await asyncio.sleep(0.05)
        for _ in range(5):  # nothing is counted twice afterwards
            await house.role.step()
            await house.settled()
        assert await house.used() == before
        await house.request("chat", 10)
        after = await house.used()
        assert {name: after[name] - before[name] for name in before if name.startswith("@chat")} == {
            name: 30 for name in before if name.startswith("@chat")
        }


async def _free(house: House) -> str:
    rules = rules_for((LimitSpec("key:free", "requests", 1000, 1000),), Demand(0), house.store.now_us())
    house.count += 1
    await house.store.admit(f"free{house.count}", rules, row("x"), 15_000)
    return f"free{house.count}"


async def test_a_rebuilding_that_was_cut_is_gone_on_with_and_counts_nothing_twice(
    own_redis: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(own_redis, tmp_path) as house:
        await house.role.step()
        await house.settled()
        for number in range(1, 6):
            await house.request("chat", number)
        while await house.role.step():
            pass
        house.store.acknowledge()
        async with asyncio.timeout(10):
            while house.store.settlements.held:
                await asyncio.sleep(0.01)
        before = await house.used()
        await house.client.flushall()
        evals, left = Redis.eval, iter(range(100))
        for allowed in (1, 3, 5):
            left = iter(range(allowed))

            async def dying(self: Redis, *arguments: Any, left: Any = left) -> Any:
                if next(left, None) is None:
                    raise ConnectionError("killed")
                return await evals(self, *arguments)

            monkeypatch.setattr(Redis, "eval", dying)
            with pytest.raises(ConnectionError):
                await house.role.step()
            monkeypatch.setattr(Redis, "eval", evals)
            assert not await house.client.hget(META, REBUILT)
        await house.role.step()
        assert await house.used() == before
        await house.role.step()
        assert await house.used() == before


async def test_until_then_quotas_are_out_and_rates_are_not(own_redis: RedisServer, tmp_path: Path) -> None:
    async with opened(own_redis, tmp_path) as house:
        async with asyncio.timeout(10):
            while not house.store.link.up:
                await asyncio.sleep(0.01)
        assert house.store.rebuilding
        with pytest.raises(LimitsUnavailable):
            await house.request("chat", 1)
        allowing = LimitSpec("key:k2", "requests", 5, period="month", zone="UTC", on_outage="allow")
        for specs in ((LimitSpec("key:k2", "requests", 5, 1000),), (allowing,)):
            rules = rules_for(specs, Demand(0), house.store.now_us())
            house.count += 1
            await house.store.admit(f"x{house.count}", rules, row("x"), 15_000)
        await house.role.step()
        await house.settled()
        assert not house.store.rebuilding
        await house.request("chat", 1)
        assert (await house.used())[next(name for name in await house.used() if name.startswith("key:k1"))] == 1
