"""Budgets over a fleet: four gateways, 200 clients at each, one Redis. Nothing is overshot, and what is left is true."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import httpx
import pytest
import redis
import redis.asyncio

from gateway.domain.usage_stream import STREAM
from gateway.limits.commands import LIVE, counter_key
from tests.counters import rate_sum
from tests.gateway_process import GatewayProcess, declared_key
from tests.servers import RedisServer
from tests.upstream import Upstream, upstream_server

tokenizers = pytest.importorskip("tokenizers")
pytestmark = pytest.mark.redis
RPM, BUDGET, FREE, STRICT, BLIND = (
    f"sk-quotas-{name}-0123456789abcdef" for name in ("rpm", "budget", "free", "strict", "blind")
)
ENV = {"SY_PEPPER": "p" * 40}
MODEL, OUTPUT, PROMPT = "words-5-d4", 5, 7
TOKENS, NUSD = 4_600, 6_000_000
#: Of one answer: USD per million tokens are thousands of nano-USD per token.
COST = PROMPT * 1000 + OUTPUT * 2000
CLIENTS = 200
#: A model without a tokenizer, whose server counts more for the prompt than the estimate: of `hi`, a message around it.
BLIND_PROMPT, ESTIMATE = 40, 9


def tree(folder: Path, upstream: Upstream, redis_url: str) -> dict[str, object]:
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"hi": 0, "[UNK]": 1}, unk_token="[UNK]"))
    made.save(str(folder / "tokenizer.json"))
    price = {"input": 1, "output": 2}
    return {
        "redis": {"url": redis_url, "timeout_ms": 2000},
        "auth": {"pepper": "env:SY_PEPPER"},
        "ledger": {"url": f"sqlite+aiosqlite:///{folder}/ledger.db"},
        "deployments": {
            "d": {"dialect": "openai_compatible", "base_url": upstream.url, "model": MODEL, "price": price},
            "blind": {"dialect": "openai_compatible", "base_url": upstream.url, "model": f"{MODEL}-p{BLIND_PROMPT}"},
        },
        "models": {
            "m": {"tiers": [["d"]], "context": 4096, "tokenizer": {"file": str(folder / "tokenizer.json")}},
            "blind": {"tiers": [["blind"]], "context": 4096},
        },
        "teams": {
            "payers": {
                "timezone": "Asia/Tokyo",
                "limits": [
                    {"tokens": TOKENS, "per": "day"},
                    {"usd": NUSD / 10**9, "per": "month", "model": "m"},
                    {"requests": 1, "per": "hour", "shadow": True},
                ],
            }
        },
        "keys": {
            "declared": [
                declared_key("rpm", RPM, limits=[{"requests": 150, "per": "hour"}]),
                declared_key("budget", BUDGET, team="payers", limits=[]),
                declared_key("blind", BLIND, limits=[{"tokens": TOKENS, "per": "day"}]),
                declared_key("free", FREE, limits=[{"tokens": 10**6, "per": "hour", "on_outage": "allow"}]),
                declared_key("strict", STRICT, limits=[{"usd": 1, "per": "calendar_day"}]),
            ]
        },
    }


def month() -> str:
    return f"{datetime.now(ZoneInfo('Asia/Tokyo')):%Y-%m}"


class Counters:
    """What Redis holds of the team, and the most that it ever held while `watching`."""

    def __init__(self, url: str) -> None:
        self.client = redis.asyncio.Redis.from_url(url)
        self.most = [0, 0]
        self.month = month()

    async def now(self) -> list[int]:
        """Tokens and nano-USD."""
        tokens = await self.client.get(counter_key("team:payers:tokens:86400000"))
        nusd = await self.client.get(counter_key(f"@m team:payers:nusd:{self.month}"))
        return [rate_sum(tokens), int(nusd or 0)]

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        over = asyncio.Event()  # not a cancellation: the client's may get lost between two commands

        async def watch() -> None:
            while not over.is_set():
                self.most = [max(pair) for pair in zip(self.most, await self.now(), strict=True)]
                await asyncio.sleep(0.005)

        async with asyncio.TaskGroup() as group:
            group.create_task(watch())
            try:
                yield
            finally:
                over.set()


@contextlib.contextmanager
def fleet(folder: Path, upstream: Upstream, url: str, count: int) -> Iterator[list[GatewayProcess]]:
    config = tree(folder, upstream, url)
    with ExitStack() as stack:
        yield [stack.enter_context(GatewayProcess(folder / f"g{n}", config, ENV)) for n in range(count)]


def ask(stream: bool, model: str = "m", **more: object) -> dict[str, object]:
    return {"model": model, "messages": [{"role": "user", "content": "hi"}], "stream": stream, **more}


async def post(gateway: GatewayProcess, key: str, body: dict[str, object]) -> tuple[int, dict[str, str], str]:
    """One request on a connection of its own: status, headers, body as it came. (httpx takes minutes for thousands.)"""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    try:
        raw = json.dumps(body).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nConnection: close\r\n"
        writer.write(head.encode() + b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(raw) + raw)
        top, _, text = (await reader.read(-1)).decode().partition("\r\n\r\n")
    finally:
        writer.close()
    first, *lines = top.split("\r\n")
    return int(first.split()[1]), {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}, text


async def hammer(
    gateways: list[GatewayProcess], key: str, each: int, clients: int = CLIENTS, model: str = "m"
) -> Counter[tuple[int, str]]:
    """That many clients at each gateway ask `each` times; (status, error code) of all answers."""
    found: Counter[tuple[int, str]] = Counter()

    async def client(number: int) -> None:
        for turn in range(each):
            cap = {"max_tokens": 20} if number % 3 else {}
            status, headers, text = await post(
                gateways[number % len(gateways)], key, ask((number + turn) % 2 == 0, model, **cap)
            )
            if status == 200:
                assert text.count("w4") == 1
                found[200, ""] += 1
            else:
                assert int(headers["retry-after"]) >= 1
                found[status, json.loads(text)["error"]["code"]] += 1

    await asyncio.gather(*(client(number) for number in range(clients * len(gateways))))
    return found


async def settled(client: redis.asyncio.Redis, gateways: list[GatewayProcess]) -> None:
    """Wait until every row is in SQL."""
    deadline = time.monotonic() + 15
    while await client.zcard(LIVE) or await client.xlen(STREAM):
        assert time.monotonic() < deadline, [gateway.tail() for gateway in gateways]
        await asyncio.sleep(0.05)


def usage(folder: Path, key: str) -> tuple[int, int, int]:
    """Rows, tokens and nano-USD of a key in the ledger."""
    with contextlib.closing(sqlite3.connect(f"file:{folder}/ledger.db?mode=ro", uri=True)) as db:
        query = "SELECT count(*), coalesce(sum(input_tokens + output_tokens), 0), coalesce(sum(cost_nusd), 0) FROM ledger"
        (row,) = db.execute(query + " WHERE key_id = ?", (key,)).fetchall()
        return tuple(row)


@pytest.mark.timeout(300)
async def test_four_gateways_of_200_clients_overshoot_nothing(tmp_path: Path, own_redis: RedisServer) -> None:
    async with upstream_server() as upstream:
        with fleet(tmp_path, upstream, own_redis.url, 4) as gateways:
            for gateway in gateways:  # one after the other: they share a database that the first one makes
                await asyncio.to_thread(gateway.start)
            counters = Counters(own_redis.url)

            found = await hammer(gateways, RPM, 1)
            assert found == {(200, ""): 150, (429, "rate_limit_exceeded"): 4 * CLIENTS - 150}

            async with counters.watching():
                found = await hammer(gateways, BUDGET, 2)
                served = found[200, ""]
                while more := (await hammer(gateways, BUDGET, 1, clients=5))[200, ""]:
                    served += more  # of what is left, since every reservation has been settled
            assert set(found) <= {(200, ""), (429, "rate_limit_exceeded"), (429, "insufficient_quota")}
            assert sum(found.values()) == 8 * CLIENTS
            await settled(counters.client, gateways)
            assert counters.most[0] <= TOKENS
            assert counters.most[1] <= NUSD
            assert usage(tmp_path, "budget") == (served, served * (PROMPT + OUTPUT), served * COST)
            assert await counters.now() == [served * (PROMPT + OUTPUT), served * COST]
            assert served * COST > NUSD - 200_000, "the budget could be used up"
            assert usage(tmp_path, "rpm") == (150, 150 * (PROMPT + OUTPUT), 150 * COST)
            shadow = sum(gateway.metric("switchyard_limit_shadow_refusals_total", scope="team") for gateway in gateways)
            assert shadow == served - 1
            assert sum(gateway.metric("switchyard_limit_near_total", scope="team_model") for gateway in gateways) > 0
            assert sum(gateway.metric("switchyard_limit_overrun_total") for gateway in gateways) == 0
            print(f"served {served}, most charged {counters.most} of {[TOKENS, NUSD]}, answers {dict(found)}")
            await _without_a_tokenizer(tmp_path, gateways, counters)
            await counters.client.aclose()


async def _without_a_tokenizer(folder: Path, gateways: list[GatewayProcess], counters: Counters) -> None:
    """Above the limit by at most the sum of the prompt under-estimates, which is printed; then used = the sum of usage."""
    counter, most, over = counter_key("key:blind:tokens:86400000"), 0, asyncio.Event()

    async def watch() -> None:
        nonlocal most
        while not over.is_set():
            most = max(most, rate_sum(await counters.client.get(counter)))
            await asyncio.sleep(0.005)

    async with asyncio.TaskGroup() as group:
        group.create_task(watch())
        served = (await hammer(gateways, BLIND, 1, model="blind"))[200, ""]
        while more := (await hammer(gateways, BLIND, 1, clients=5, model="blind"))[200, ""]:
            served += more
        await settled(counters.client, gateways)
        over.set()
    under = served * (BLIND_PROMPT - ESTIMATE)
    assert usage(folder, "blind") == (served, served * (BLIND_PROMPT + OUTPUT), 0)
    assert rate_sum(await counters.client.get(counter)) == served * (BLIND_PROMPT + OUTPUT)
    assert most <= TOKENS + under
    assert most > TOKENS - (ESTIMATE + 20), "the limit could be used up"
    assert sum(gateway.metric("switchyard_limit_overrun_total") for gateway in gateways) > 0
    print(f"without a tokenizer: {served} served, at most {most} of {TOKENS} charged; prompt under-estimates {under} tokens")


async def test_an_outage_is_what_each_limit_says_and_is_paid_for_afterwards(tmp_path: Path, own_redis: RedisServer) -> None:
    async with upstream_server() as upstream:
        with fleet(tmp_path, upstream, own_redis.url, 1) as (gateway,):
            config = tree(tmp_path, upstream, own_redis.url)
            gateway.write_config({**gateway.config, "redis": {**config["redis"], "timeout_ms": 200}})  # type: ignore[dict-item]
            await asyncio.to_thread(gateway.start)
            url, counter = gateway.url + "/v1/chat/completions", counter_key("key:free:tokens:3600000")
            async with httpx.AsyncClient(timeout=30) as http, redis.asyncio.Redis.from_url(own_redis.url) as client:

                async def say(key: str) -> httpx.Response:
                    return await http.post(url, json=ask(stream=False), headers={"authorization": f"Bearer {key}"})

                plain = await say(FREE)
                assert (plain.status_code, "x-switchyard-limits" in plain.headers) == (200, False)
                own_redis.pause()
                try:
                    free = await say(FREE)
                    began = time.monotonic()
                    strict = await say(STRICT)
                    took_s = time.monotonic() - began
                finally:
                    own_redis.resume()
                assert (free.status_code, free.headers["x-switchyard-limits"]) == (200, "degraded")
                assert (strict.status_code, strict.json()["error"]["code"]) == (503, "limits_unavailable")
                assert "retry-after" in strict.headers
                assert took_s < 1
                deadline = time.monotonic() + 10
                while rate_sum(await client.get(counter)) != 2 * (PROMPT + OUTPUT):
                    assert time.monotonic() < deadline, "what was used meanwhile was not charged"
                    await asyncio.sleep(0.05)
                while (again := await say(STRICT)).status_code == 503:
                    assert time.monotonic() < deadline, "no recovery"
                assert (again.status_code, "x-switchyard-limits" in again.headers) == (200, False)
