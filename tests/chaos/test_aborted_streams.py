"""A thousand streams aborted at random moments, and a worker killed with fifty open: leases, rows and sums are whole."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime

import psutil
import pytest
import redis

from gateway.domain.usage_stream import STREAM
from gateway.limits.commands import LIVE, counter_key
from tests.gateway_process import GatewayProcess, declared_key
from tests.raw_client import RawClient
from tests.servers import RedisServer
from tests.upstream import Upstream, in_thread, upstream_server

pytestmark = pytest.mark.redis
ABORTER, FIFTY = "sk-aborted-aborter-0123456789abcdef", "sk-aborted-fifty-0123456789abcdef"
STREAMS, AT_ONCE, OPEN = 1000, 100, 50
#: Fewer than a hundred words: a word is then one delta of at most four bytes, and so one token by the estimate.
SHORT, LONG = "words-20-d40", "words-90-d200"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    store = RedisServer(tmp_path_factory.mktemp("redis")).start()
    limits = [{"requests": 10**6, "per": "month"}, {"output_tokens": 10**9, "per": "month"}, {"concurrent": 200}]
    with in_thread(upstream_server) as upstream:
        tree = {
            "server": {"workers": 2},
            "redis": {"url": store.url, "timeout_ms": 2000},
            "auth": {"pepper": "env:SY_PEPPER"},
            "deployments": {
                m: {"dialect": "openai_compatible", "base_url": upstream.url, "model": m} for m in (SHORT, LONG)
            },
            "models": {m: {"tiers": [[m]], "context": 4096} for m in (SHORT, LONG)},
            "keys": {
                "declared": [
                    declared_key("aborter", ABORTER, limits=limits),
                    declared_key("fifty", FIFTY, limits=limits),
                ]
            },
        }  # fmt: skip
        with GatewayProcess(tmp_path_factory.mktemp("aborted"), tree, {"SY_PEPPER": "p" * 40}) as process:
            process.redis, process.upstream = store, upstream
            process.start()
            yield process
    store.kill()


class Held:
    """What Redis holds of one key."""

    def __init__(self, gateway: GatewayProcess, key: str) -> None:
        self._url, self._key = gateway.redis.url, key
        self._month = f"{datetime.now(UTC):%Y-%m}"

    def leases(self) -> tuple[int, int, int]:
        """Reservations, slots of the key, and rows not yet in SQL."""
        with redis.Redis.from_url(self._url) as client:
            return client.zcard(LIVE), client.zcard(counter_key(f"key:{self._key}:slots")), client.xlen(STREAM)

    def used(self) -> tuple[int, int]:
        """Requests and output tokens of the month."""
        names = [f"key:{self._key}:{unit}:{self._month}" for unit in ("requests", "output_tokens")]
        with redis.Redis.from_url(self._url) as client:
            requests, output = (int(client.get(counter_key(name)) or 0) for name in names)
            return requests, output

    async def nothing(self, within_s: float) -> None:
        """Until nothing is held and everything is in SQL."""
        deadline = time.monotonic() + within_s
        while (held := await asyncio.to_thread(self.leases)) != (0, 0, 0):
            assert time.monotonic() < deadline, held
            await asyncio.sleep(0.1)


def rows(gateway: GatewayProcess, key: str) -> list[sqlite3.Row]:
    file = next((gateway.folder / "var").glob("*.db"))
    with contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as db:
        db.row_factory = sqlite3.Row
        return db.execute("SELECT * FROM ledger WHERE key_id = ?", (key,)).fetchall()


def chat(model: str) -> dict[str, object]:
    return {"model": model, "stream": True, "max_tokens": 200, "messages": [{"role": "user", "content": "hi"}]}


async def test_a_thousand_streams_aborted_at_random_moments(gateway: GatewayProcess) -> None:
    dice = random.Random(4)
    upstream: Upstream = gateway.upstream
    heard: list[int] = []
    left: Counter[str] = Counter()

    async def one() -> None:
        client = await (await RawClient.connect(gateway.port)).ask(ABORTER, chat(SHORT))
        with contextlib.suppress(TimeoutError):
            await client.rest(dice.random() * 1.2)
        manner = dice.choice(("close", "half_close", "reset"))
        left[manner] += 1
        client.leave(manner)
        heard.append(len(re.findall(rb'"w\d+ ', client.got)))

    for _ in range(STREAMS // AT_ONCE):
        await asyncio.gather(*(one() for _ in range(AT_ONCE)))
    held = Held(gateway, "aborter")
    await held.nothing(30)
    found = rows(gateway, "aborter")
    assert len({row["id"] for row in found}) == len(found)
    assert {row["outcome"] for row in found} <= {"cancelled", "ok"}
    seen = upstream.of(SHORT)
    produced, billed = sum(one.written for one in seen), sum(row["output_tokens"] for row in found)
    assert len(found) == (await asyncio.to_thread(held.used))[0], "one row for each request that was let in"
    assert (await asyncio.to_thread(held.used))[1] == billed
    cut = sum(not one.completed for one in seen)
    amounts = Counter(one.written for one in seen), Counter(row["output_tokens"] for row in found)
    assert sum(heard) <= billed == produced, (sum(heard), billed, produced, amounts[0] - amounts[1], amounts[1] - amounts[0])
    assert len(found) >= len(seen) >= STREAMS / 2 and cut > STREAMS / 4, "most of them were under way"
    whole = sorted(row["output_tokens"] for row in found if row["outcome"] == "ok")
    assert set(whole) <= {20}
    print(f"{len(found)} rows, {cut} cut upstream, {left}; words heard {sum(heard)}, billed {billed}, produced {produced}")


async def test_a_worker_killed_with_fifty_streams_open(gateway: GatewayProcess) -> None:
    clients = [await (await RawClient.connect(gateway.port)).ask(FIFTY, chat(LONG)) for _ in range(OPEN)]
    for client in clients:
        await client.until(b'"w0 ', 20)
    await asyncio.sleep(5.5)  # leases are renewed every 5 s, with the progress so far
    held = Held(gateway, "fifty")
    assert (await asyncio.to_thread(held.leases))[1] == OPEN
    serves = {worker: _serves(worker, clients) for worker in _workers(gateway)}
    victim, lost = max(serves.items(), key=lambda pair: len(pair[1]))
    assert lost and sum(len(one) for one in serves.values()) == OPEN
    victim.kill()
    ends = await asyncio.gather(*(_end(client) for client in clients))
    for index, text in enumerate(ends):
        assert (b"[DONE]" in text) is (index not in lost)
    await held.nothing(40)
    found = rows(gateway, "fifty")
    outcomes = Counter(row["outcome"] for row in found)
    assert outcomes == Counter({"ok": OPEN - len(lost), "abandoned": len(lost)})
    assert len({row["id"] for row in found}) == OPEN
    assert {row["output_tokens"] for row in found if row["outcome"] == "ok"} <= {90}
    seen = gateway.upstream.of(LONG)
    produced = sum(one.written for one in seen)
    billed = sum(row["output_tokens"] for row in found)
    assert (await asyncio.to_thread(held.used)) == (OPEN, billed)
    abandoned = [row["output_tokens"] for row in found if row["outcome"] == "abandoned"]
    assert {row["usage_source"] for row in found if row["outcome"] == "abandoned"} == {"estimated"}
    assert all(0 < tokens < 90 for tokens in abandoned), "the last progress that was told"
    assert billed <= produced
    print(f"{len(lost)} of {OPEN} lost; billed {billed}, produced {produced}, of it {produced - billed} after the last renewal")


async def _end(client: RawClient) -> bytes:
    """Everything up to the stream's end, or the connection's."""
    async with asyncio.timeout(60):
        while b"\r\n0\r\n\r\n" not in client.got:
            try:
                data = await client.reader.read(65536)
            except ConnectionError:
                break
            if not data:
                break
            client.got += data
    return client.got


def _workers(gateway: GatewayProcess) -> list[psutil.Process]:
    """The processes that accept on the gateway's port."""
    found = []
    for child in gateway.children():
        with contextlib.suppress(psutil.Error):
            if any(c.status == psutil.CONN_LISTEN and c.laddr.port == gateway.port for c in child.net_connections("tcp")):
                found.append(child)
    return found


def _serves(worker: psutil.Process, clients: list[RawClient]) -> set[int]:
    """Which of the clients, by number, have their connection there."""
    ports = {c.raddr.port for c in worker.net_connections("tcp") if c.raddr}
    return {index for index, client in enumerate(clients) if client.writer.get_extra_info("sockname")[1] in ports}
