"""What a gateway of four workers says about itself: metrics are the sum, one line a request, and no secret anywhere."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator

import httpx
import pytest

from tests.gateway_process import GatewayProcess, declared_key, http_client
from tests.liars import liar_server
from tests.raw_client import RawClient
from tests.servers import RedisServer, free_port
from tests.upstream import in_thread, upstream_server

pytestmark = pytest.mark.redis
KEY, FEW, UPSTREAM_KEY = "sk-seen-canary-0123456789abcdef", "sk-seen-few-0123456789abcdef", "sk-seen-upstream-0123456789ab"
TOKEN = "scrape-canary-0123456789"
PROMPT, SAID = "canary-prompt-77", "w1 w2"
REMOTE = ["words-3", "words-20-d20", "words-3-status-500", "words-6-cut", "words-3-echo-400", "words-4-nousage"]
LIARS = ["bad-json", "telling-400"]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    redis = RedisServer(tmp_path_factory.mktemp("redis")).start()
    with in_thread(upstream_server) as upstream, in_thread(liar_server) as liars:
        far = {"dialect": "openai_compatible", "base_url": upstream.url, "credential": "env:UPSTREAM"}
        deployments: dict[str, object] = {m: {**far, "model": m} for m in REMOTE}
        deployments |= {m: {**far, "base_url": f"http://127.0.0.1:{liars.port}/v1", "model": m} for m in LIARS}
        deployments["gated"] = {**far, "model": "words-20-d20", "max_in_flight": 2}
        tree = {
            "server": {"workers": 4},
            "redis": {"url": redis.url, "timeout_ms": 2000},
            "auth": {"pepper": "env:SY_PEPPER"},
            "telemetry": {"metrics": {"listen": f"127.0.0.1:{(port := free_port())}", "token": "env:SCRAPE"}},
            "deployments": deployments,
            "models": {name: {"tiers": [[name]]} for name in deployments},
            "keys": {
                "declared": [declared_key("user", KEY), declared_key("few", FEW, limits=[{"requests": 2, "per": "hour"}])]
            },
        }
        env = {"SY_PEPPER": "pepper-canary-" + "p" * 30, "UPSTREAM": UPSTREAM_KEY, "SCRAPE": TOKEN}
        with GatewayProcess(tmp_path_factory.mktemp("seen"), tree, env) as process:
            process.upstream = upstream
            process.metrics_port = port
            process.start()
            yield process
    redis.kill()


def chat(model: str, stream: bool) -> dict[str, object]:
    return {"model": model, "stream": stream, "messages": [{"role": "user", "content": PROMPT}]}


async def post(gateway: GatewayProcess, model: str, stream: bool = False, key: str = KEY, **headers: str) -> httpx.Response:
    async with http_client(key, **headers) as http:
        return await http.post(gateway.url + "/v1/chat/completions", json=chat(model, stream))


def requests(gateway: GatewayProcess) -> list[dict[str, object]]:
    return gateway.events("request")


async def until(found: object, within_s: float = 5.0) -> None:
    deadline = time.monotonic() + within_s
    while not found():  # type: ignore[operator]
        assert time.monotonic() < deadline, "it did not happen"
        await asyncio.sleep(0.05)


async def test_metrics_are_the_sum_and_every_request_has_one_line(gateway: GatewayProcess) -> None:
    made: Counter[tuple[str, str]] = Counter()
    answers: list[httpx.Response] = []
    wanted = {"words-3": "ok", "words-4-nousage": "ok", "words-3-status-500": "upstream_error",
              "words-6-cut": "upstream_error", "bad-json": "upstream_error", "telling-400": "client_error",
              "words-3-echo-400": "client_error"}  # fmt: skip
    for model, outcome in wanted.items():
        for stream in (True, False) if model != "words-6-cut" else (True, True):
            answers += await asyncio.gather(*(post(gateway, model, stream) for _ in range(5)))
            made[model, outcome] += 5
    few = [await post(gateway, "words-3", key=FEW) for _ in range(5)]
    made["words-3", "ok"] += 2
    made["words-3", "refused"] += 3
    assert Counter(answer.status_code for answer in few) == {200: 2, 429: 3}
    answers += few
    left = []
    for _ in range(5):
        client = await (await RawClient.connect(gateway.port)).ask(KEY, chat("words-20-d20", True))
        left.append(await client.until(b"w3 "))
        client.leave()
    made["words-20-d20", "cancelled"] += 5
    answers.append(await post(gateway, "nothing"))
    answers.append(await post(gateway, "words-3", key="sk-seen-wrong-0123456789abcdef"))
    total = sum(made.values()) + 2
    await until(lambda: len(requests(gateway)) == total)
    for (model, outcome), count in made.items():
        assert gateway.metric("switchyard_requests_total", model=model, outcome=outcome) == count, (model, outcome)
    assert gateway.metric("switchyard_requests_total") == total
    assert gateway.metric("switchyard_output_tokens_total", model="words-3") == 3 * 12
    assert gateway.metric("switchyard_input_tokens_total", model="words-3") == 7 * 12
    assert gateway.metric("switchyard_workers") == 4
    assert gateway.metric("switchyard_open_streams") == 0
    assert gateway.metric("switchyard_time_to_first_token_seconds_count", model="words-3") == 12
    assert gateway.metric("switchyard_limiter_seconds_count") >= sum(made.values())
    ids = [line["request_id"] for line in requests(gateway)]
    assert len(set(ids)) == total
    assert {answer.headers["x-request-id"] for answer in answers} <= set(ids)
    rows = await asyncio.to_thread(gateway.rows, sum(made.values()) - 3)
    assert {row["id"] for row in rows} <= set(ids)
    assert len(rows) == sum(made.values()) - 3  # refusals have no row


async def test_queue_and_slots_are_seen_while_they_last(gateway: GatewayProcess) -> None:
    tasks = [asyncio.ensure_future(post(gateway, "gated", True)) for _ in range(6)]
    await until(lambda: gateway.metric("switchyard_slots_in_use", deployment="gated") == 2)
    await until(lambda: gateway.metric("switchyard_queue_depth", deployment="gated") >= 1)
    assert gateway.metric("switchyard_slots_limit", deployment="gated") == 2
    assert {answer.status_code for answer in await asyncio.gather(*tasks)} == {200}
    await until(lambda: gateway.metric("switchyard_slots_in_use", deployment="gated") == 0)
    assert gateway.metric("switchyard_queue_wait_seconds_count", deployment="gated") >= 4


async def test_a_dead_workers_counts_stay_in_the_sum(gateway: GatewayProcess) -> None:
    gateway.metrics()  # a scrape, so that the gate knows its last values
    before = gateway.metric("switchyard_requests_total")
    (victim, *_) = (
        child
        for child in gateway.children()
        if any(one.laddr.port == gateway.port and one.status == "LISTEN" for one in child.net_connections("tcp"))
    )
    os.kill(victim.pid, signal.SIGKILL)
    await until(lambda: not victim.is_running())
    with contextlib.suppress(httpx.TransportError):
        await post(gateway, "words-3")
    await until(lambda: gateway.metric("switchyard_workers") == 4, 8)
    assert before <= gateway.metric("switchyard_requests_total") <= before + 1


async def test_the_apis_port_shows_metrics_to_whoever_has_the_token(gateway: GatewayProcess) -> None:
    assert gateway.get("/metrics")[0] == gateway.get("/metrics", "scrape-wrong")[0] == 404
    status, text = gateway.get("/metrics", TOKEN)
    assert status == 200
    assert b"switchyard_workers 4" in text


async def test_a_clients_request_id_is_logged_only_when_it_looks_like_one(gateway: GatewayProcess) -> None:
    ids = [(await post(gateway, "words-3", **{"x-request-id": theirs})).headers["x-request-id"]
           for theirs in ("abc-1", "x" * 65, f"{KEY}", 'a"b')]  # fmt: skip
    await until(lambda: {line["request_id"] for line in requests(gateway)} >= set(ids))
    told = {line["request_id"]: line.get("client_request_id") for line in requests(gateway)}
    assert [told[id] for id in ids] == ["abc-1", None, "[redacted]", None]


async def test_no_secret_and_no_body_is_anywhere(gateway: GatewayProcess) -> None:
    """Last in this file: it looks at all that the others left."""
    said = gateway.log.read_text(errors="replace") + gateway.metrics()
    for file in (gateway.folder / "var").rglob("*"):
        if file.is_file() and file.name != "pepper":
            said += file.read_bytes().decode("latin-1")
    (database,) = (gateway.folder / "var").glob("*.db")
    with contextlib.closing(sqlite3.connect(database)) as db:
        said += "\n".join(db.iterdump())
    for secret in (KEY, FEW, UPSTREAM_KEY, PROMPT, SAID, "pepper-canary", "sk-seen-wrong", TOKEN):
        assert secret not in said, said[max(0, said.index(secret) - 300) : said.index(secret) + 200]
    for process in gateway.children():
        with contextlib.suppress(Exception):
            assert KEY not in " ".join(process.cmdline())
