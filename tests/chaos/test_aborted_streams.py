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

from backends.remote.pool import PART_S
from gateway.domain.usage_stream import STREAM
from gateway.limits.commands import LIVE, counter_key
from tests.gateway_process import GatewayProcess, declared_key
from tests.raw_client import RawClient
from tests.servers import RedisServer
from tests.upstream import Seen, Upstream, in_thread, upstream_server

pytestmark = pytest.mark.redis
ABORTER, FIFTY = "sk-aborted-aborter-0123456789abcdef", "sk-aborted-fifty-0123456789abcdef"
STREAMS, AT_ONCE, OPEN = 1000, 100, 50
#: Fewer than a hundred words: a word is then one delta of at most four bytes, and so one token by the estimate.
SHORT, LONG, HELD = "words-20-d40", "words-90-d50", "words-90-d20-h12"
LEASE_S = 15


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
                m: {"dialect": "openai_compatible", "base_url": upstream.url, "model": m, "price": {"input": 1, "output": 3}}
                for m in (SHORT, LONG, HELD)
            },
            "models": {m: {"tiers": [[m]], "context": 4096} for m in (SHORT, LONG, HELD)},
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


def chat(model: str, says: str = "hi") -> dict[str, object]:
    return {"model": model, "stream": True, "max_tokens": 200, "messages": [{"role": "user", "content": says}]}


async def test_a_thousand_streams_aborted_at_random_moments(gateway: GatewayProcess) -> None:
    dice = random.Random(4)
    upstream: Upstream = gateway.upstream
    heard: list[int] = []
    left: Counter[str] = Counter()
    left_at: dict[str, float] = {}

    async def one() -> None:
        name = str(len(left_at))
        left_at[name] = 0.0
        client = await (await RawClient.connect(gateway.port)).ask(ABORTER, chat(SHORT, name))
        with contextlib.suppress(TimeoutError):
            await client.rest(dice.random() * 1.2)
        manner = dice.choice(("close", "half_close", "reset"))
        left[manner] += 1
        left_at[name] = client.leave(manner)
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
    # What the upstream writes until it knows is billed too, but it is not waited for longer than PART_S: on a machine as busy
    # as that, this many words were written for nobody.
    late = [one.written for one in seen if one.closed is not None and one.closed - left_at[_name(one)] > PART_S * 0.8]
    amounts = Counter(one.written for one in seen), Counter(row["output_tokens"] for row in found)
    told = (sum(heard), billed, produced, len(late), amounts[0] - amounts[1], amounts[1] - amounts[0])
    assert sum(heard) <= billed <= produced <= billed + sum(late), told
    assert len(late) < cut / 4, told
    assert len(found) >= len(seen) >= STREAMS / 2 and cut > STREAMS / 4, "most of them were under way"
    whole = sorted(row["output_tokens"] for row in found if row["outcome"] == "ok")
    assert set(whole) <= {20}
    print(f"{len(found)} rows, {cut} cut upstream, {left}")
    print(f"words heard {sum(heard)}, billed {billed}, produced {produced}, late {len(late)}")


def _name(one: Seen) -> str:
    """The client whose request it was."""
    messages = one.body["messages"]
    assert isinstance(messages, list)
    return str(messages[0]["content"])


async def test_a_worker_killed_with_fifty_streams_open(gateway: GatewayProcess) -> None:
    """Nothing is under way at the kill: what the worker had read is billed to the last word, and its slots are free at once,
    not when their leases end."""
    clients = await _fifty(gateway, HELD)
    for client in clients:
        await client.until(b'"w11 ', 20)
    lost = await _killed(gateway, clients)
    held = Held(gateway, "fifty")
    for client in clients:
        client.leave()
    await held.nothing(LEASE_S * 0.7)
    found = rows(gateway, "fifty")
    assert Counter(row["outcome"] for row in found) == Counter({"cancelled": OPEN - len(lost), "abandoned": len(lost)})
    assert len({row["id"] for row in found}) == OPEN
    seen = gateway.upstream.of(HELD)
    assert [one.written for one in seen] == [row["output_tokens"] for row in found] == [12] * OPEN
    abandoned = [row for row in found if row["outcome"] == "abandoned"]
    settled = [row for row in found if row["outcome"] == "cancelled"]
    for field in ("input_tokens", "cost_nusd", "deployment", "attempts", "usage_source"):
        assert {row[field] for row in abandoned} == {row[field] for row in settled}, field
    assert settled[0]["cost_nusd"] > 0 and settled[0]["deployment"] == HELD
    assert (await asyncio.to_thread(held.used)) == (OPEN, 12 * OPEN)


async def test_a_worker_killed_while_words_flow(gateway: GatewayProcess) -> None:
    before = {row["id"] for row in rows(gateway, "fifty")}
    clients = await _fifty(gateway, LONG)
    for client in clients:
        await client.until(b'"w9 ', 20)
    lost = await _killed(gateway, clients)
    ends = await asyncio.gather(*(_end(client) for client in clients))
    for index, text in enumerate(ends):
        assert (b"[DONE]" in text) is (index not in lost)
    heard = [len(re.findall(rb'"w\d+ ', text)) for text in ends]
    await Held(gateway, "fifty").nothing(LEASE_S * 0.7)
    found = [row for row in rows(gateway, "fifty") if row["id"] not in before]
    assert Counter(row["outcome"] for row in found) == Counter({"ok": OPEN - len(lost), "abandoned": len(lost)})
    produced = sum(one.written for one in gateway.upstream.of(LONG))
    billed = sum(row["output_tokens"] for row in found)
    assert {row["output_tokens"] for row in found if row["outcome"] == "ok"} == {90}
    # a word that was on its way to the worker when it died
    assert sum(heard) <= billed <= produced <= billed + len(lost), (sum(heard), billed, produced, len(lost))
    print(f"{len(lost)} of {OPEN} lost; heard {sum(heard)}, billed {billed}, produced {produced}")


async def _fifty(gateway: GatewayProcess, model: str) -> list[RawClient]:
    deadline = time.monotonic() + 20
    while len(await asyncio.to_thread(_workers, gateway)) < 2:
        assert time.monotonic() < deadline, "the worker that was killed is not back"
        await asyncio.sleep(0.1)
    return [await (await RawClient.connect(gateway.port)).ask(FIFTY, chat(model)) for _ in range(OPEN)]


async def _killed(gateway: GatewayProcess, clients: list[RawClient]) -> set[int]:
    """Kill the worker that serves most of the clients; which they are."""
    assert (await asyncio.to_thread(Held(gateway, "fifty").leases))[1] == OPEN
    serves = {worker: _serves(worker, clients) for worker in _workers(gateway)}
    victim, lost = max(serves.items(), key=lambda pair: len(pair[1]))
    assert lost and sum(len(one) for one in serves.values()) == OPEN
    victim.kill()
    return lost


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
