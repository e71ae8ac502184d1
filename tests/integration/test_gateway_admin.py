"""Two gateways on one Redis and one PostgreSQL: what an admin changes at one acts at every worker of both within 1 s."""

from __future__ import annotations

import asyncio
import datetime
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa

from gateway.auth.keystore import NewKey, create_key
from gateway.ledger.migrations import migrate, sync_url
from gateway.ledger.models import LEDGER
from tests.gateway_process import GatewayProcess
from tests.servers import PostgresServer, RedisServer
from tests.upstream import upstream_server

PEPPER = "p" * 40
ENV = {"SY_PEPPER": PEPPER}
#: Two workers a gateway: each connection may meet another one, so this many in a row meet all with near certainty.
PROBES = 12


class Fleet:
    """Two gateways and an admin."""

    def __init__(self, gateways: list[GatewayProcess], admin: str, ledger: str) -> None:
        self.gateways = gateways
        self._ledger = ledger
        self._admin = admin
        self.http = httpx.AsyncClient(timeout=10, limits=httpx.Limits(max_keepalive_connections=0))

    async def manage(self, method: str, path: str, body: object = None) -> dict[str, object]:
        """Ask the first gateway as the admin."""
        url = f"{self.gateways[0].url}/admin/v1{path}"
        answer = await self.http.request(method, url, json=body, headers={"authorization": f"Bearer {self._admin}"})
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def statuses(self, secret: str, path: str = "/v1/models", body: object = None) -> set[int]:
        """What fresh connections to both gateways are answered."""

        async def one(gateway: GatewayProcess) -> int:
            headers = {"authorization": f"Bearer {secret}"}
            return (
                await self.http.request("POST" if body else "GET", gateway.url + path, json=body, headers=headers)
            ).status_code

        return set(await asyncio.gather(*(one(gateway) for gateway in self.gateways for _ in range(PROBES))))

    async def rows(self, key: str, since_us: int, count: int) -> Sequence[sa.Row[tuple[object, ...]]]:
        """A key's rows in the ledger, once there are so many."""
        engine = sa.create_engine(sync_url(self._ledger), poolclass=sa.NullPool)
        query = sa.select(LEDGER).where(LEDGER.c.key_id == key, LEDGER.c.admitted_us >= since_us)
        deadline = time.monotonic() + 20
        while True:
            with engine.connect() as connection:
                found = connection.execute(query).all()
            if len(found) >= count:
                return found
            assert time.monotonic() < deadline, f"{len(found)} rows, not {count}"
            await asyncio.sleep(0.1)

    async def within_a_second(self, begun: float, happened: Callable[[], Awaitable[bool]]) -> None:
        """`happened` is asked once, when a second is over."""
        await asyncio.sleep(max(0.0, begun + 1.0 - time.monotonic()))
        assert await happened()


@asynccontextmanager
async def fleet(folder: Path, redis: RedisServer, postgres: PostgresServer) -> AsyncIterator[Fleet]:
    name = f"admin_{time.time_ns()}"
    engine = sa.create_engine(sync_url(postgres.url), isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with engine.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    url = postgres.url.replace("/postgres", f"/{name}")
    async with upstream_server() as upstream:
        tree: dict[str, object] = {
            "server": {"workers": 2},
            "redis": {"url": redis.url, "timeout_ms": 2000},
            "ledger": {"url": url},
            "auth": {"pepper": "env:SY_PEPPER"},
            "deployments": {"d": {"dialect": "openai_compatible", "base_url": upstream.url, "model": "words-2"}},
            "models": {"chat": {"tiers": [["d"]]}, "other": {"tiers": [["d"]]}},
        }
        await asyncio.to_thread(migrate, url)
        admin = await create_key(url, PEPPER.encode(), NewKey("admin", scopes=frozenset({"admin"})))
        with GatewayProcess(folder / "a", tree, ENV) as a, GatewayProcess(folder / "b", tree, ENV) as b:
            await asyncio.gather(asyncio.to_thread(a.start), asyncio.to_thread(b.start))
            house = Fleet([a, b], admin.secret, url)
            async with house.http:
                yield house


@pytest.mark.redis
async def test_changes_act_everywhere_within_a_second(
    tmp_path: Path, own_redis: RedisServer, postgres_server: PostgresServer
) -> None:
    ask = {"model": "chat", "messages": [{"role": "user", "content": "hi"}]}
    async with fleet(tmp_path, own_redis, postgres_server) as house:
        await house.manage("POST", "/organisations", {"name": "acme"})
        await house.manage("POST", "/teams", {"name": "red", "organisation": "acme", "models": ["chat"]})
        key = await house.manage("POST", "/keys", {"name": "k", "team": "red", "user": "ann"})
        id, secret = str(key["id"]), str(key["secret"])
        assert await house.statuses(secret) == {200}, "a new key of a new team is good at once"
        assert await house.statuses(secret, "/v1/chat/completions", ask) == {200}
        assert await house.statuses(secret, "/v1/chat/completions", {**ask, "model": "other"}) == {404}

        for verb, expected in (("suspend", {401}), ("resume", {200})):
            begun = time.monotonic()
            await house.manage("POST", f"/keys/{id}/{verb}")
            await house.within_a_second(begun, lambda expected=expected: _is(house.statuses(secret), expected))

        begun = time.monotonic()
        rotated = await house.manage("POST", f"/keys/{id}/rotate", {"grace_s": 6})
        new = str(rotated["secret"])
        assert await house.statuses(new) == {200} == await house.statuses(secret)
        await asyncio.sleep(max(0.0, begun + 6.1 - time.monotonic()))
        assert (await house.statuses(secret), await house.statuses(new)) == ({401}, {200})

        for path in (f"/keys/{id}", "/teams/red", "/organisations/acme"):
            begun = time.monotonic()
            await house.manage("PATCH", path, {"limits": [{"tokens": 1, "per": "minute"}]})
            await house.within_a_second(begun, lambda: _is(house.statuses(new, "/v1/chat/completions", ask), {400}))
            begun = time.monotonic()
            await house.manage("PATCH", path, {"limits": []})
            await house.within_a_second(begun, lambda: _is(house.statuses(new, "/v1/chat/completions", ask), {200}))
        begun = time.monotonic()
        await house.manage("POST", "/users", {"name": "ann", "limits": [{"tokens": 1, "per": "minute"}]})
        await house.within_a_second(begun, lambda: _is(house.statuses(new, "/v1/chat/completions", ask), {400}))
        await house.manage("DELETE", "/users/ann")

        await _prices(house, id, new)

        await house.manage("PATCH", f"/keys/{id}", {"limits": [{"requests": 1000, "per": "hour"}]})
        await asyncio.sleep(1)
        await house.statuses(new, "/v1/chat/completions", ask)
        async with httpx.AsyncClient(headers={"authorization": f"Bearer {new}"}, timeout=10) as http:
            me = (await http.get(house.gateways[1].url + "/v1/me")).json()
        assert me["limits"][0]["limit"] == {"requests": 1000, "per": "hour"}
        assert me["limits"][0]["remaining"] == 1000 - 2 * PROBES

        begun = time.monotonic()
        await house.manage("POST", f"/keys/{id}/revoke")
        await house.within_a_second(begun, lambda: _is(house.statuses(new), {401}))
        await asyncio.sleep(1)
        used = await house.manage("GET", "/usage?by=key,team,organisation,user")
        (sums,) = [one for one in used["data"] if one["key"] == id]  # type: ignore[index]
        assert (sums["team"], sums["organisation"], sums["user"]) == ("red", "acme", "ann")
        assert sums["output_tokens"] == 2 * sums["requests"] and sums["requests"] == 2 * PROBES * 7


async def _prices(house: Fleet, key: str, secret: str) -> None:
    """A price acts on every worker of both gateways within a second; a dated one by the instant of the admission."""
    ask = {"model": "chat", "messages": [{"role": "user", "content": "hi"}]}
    await house.manage("PATCH", f"/keys/{key}", {"limits": [{"usd": 0.5, "per": "month"}]})
    await asyncio.sleep(1)
    begun = time.monotonic()
    dear = await house.manage("POST", "/prices", {"model": "chat", "input": 1_000_000, "output": 0})
    await house.within_a_second(begun, lambda: _is(house.statuses(secret, "/v1/chat/completions", ask), {400}))
    await house.manage("DELETE", f"/prices/{dear['id']}")
    await house.manage("PATCH", f"/keys/{key}", {"limits": []})
    await asyncio.sleep(1)
    since_us, later_us = time.time_ns() // 1000, (time.time_ns() // 1_000_000_000 + 3) * 1_000_000
    for price, from_us in ((2, since_us), (20, later_us)):
        at = datetime.datetime.fromtimestamp(from_us // 1_000_000, datetime.UTC).isoformat()
        await house.manage("POST", "/prices", {"model": "chat", "input": price, "output": 2 * price, "valid_from": at})
    await asyncio.sleep(1)
    for _ in range(2):
        assert await house.statuses(secret, "/v1/chat/completions", ask) == {200}
        await asyncio.sleep(max(0.0, later_us / 1e6 - time.time() + 0.1))
    rows = await house.rows(key, since_us, 4 * PROBES)
    assert {row.admitted_us >= later_us for row in rows} == {False, True}
    for row in rows:
        price = 20_000 if row.admitted_us >= later_us else 2000
        assert row.cost_nusd == price * row.input_tokens + 2 * price * row.output_tokens, (row, later_us)


async def _is(statuses: Awaitable[set[int]], expected: set[int]) -> bool:
    found = await statuses
    assert found == expected
    return True
