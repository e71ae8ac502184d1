"""`kill -9` of one process of a gateway after another, under load: who is hit, who is not, and what is left after it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator

import httpx
import psutil
import pytest

from tests.gateway_process import GatewayProcess, declared_key, http_client
from tests.raw_client import RawClient
from tests.servers import RedisServer
from tests.upstream import in_thread, upstream_server

pytestmark = pytest.mark.redis
USER, ONE = "sk-killing-user-0123456789abcdef", "sk-killing-one-0123456789abcdef"
WORKERS = 3
REMOTE = ["words-3", "words-60-d20", "words-1000-d20"]
SPEAKS = {"step_s": 0.01, "repeat": True}
LOG = "first.jsonl"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    redis = RedisServer(tmp_path_factory.mktemp("redis")).start()
    folder = tmp_path_factory.mktemp("killing")
    with in_thread(upstream_server) as upstream:
        far = {"dialect": "openai_compatible", "base_url": upstream.url}
        deployments: dict[str, object] = {m: {**far, "model": m} for m in REMOTE}
        deployments |= {
            "first": {"engine": "first", "model": "scripted"},
            "second": {"engine": "second", "model": "scripted"},
            "gated": {**far, "model": "words-1000-d20", "max_in_flight": 2},
        }
        models: dict[str, object] = {name: {"tiers": [[name]]} for name in deployments}
        tree = {
            "server": {"workers": WORKERS},
            "redis": {"url": redis.url, "timeout_ms": 2000},
            "auth": {"pepper": "env:SY_PEPPER"},
            "engines": {
                name: {
                    "kind": "scripted",
                    "model": "none",
                    "slots": 4,
                    "queue": 8,
                    "options": {**SPEAKS, "log": str(folder / f"{name}.jsonl")},
                }
                for name in ("first", "second")
            },
            "deployments": deployments,
            "models": {**models, "safe": {"tiers": [["first"], ["words-3"]]}},
            "keys": {"declared": [declared_key("user", USER), declared_key("one", ONE, limits=[{"concurrent": 1}])]},
        }
        with GatewayProcess(folder, tree, {"SY_PEPPER": "p" * 40}) as process:
            process.upstream = upstream
            process.start()
            yield process
    redis.kill()


def chat(model: str, *, stream: bool = True, cap: int = 2000) -> dict[str, object]:
    return {"model": model, "stream": stream, "max_tokens": cap, "messages": [{"role": "user", "content": "hi"}]}


async def asked(gateway: GatewayProcess, body: dict[str, object], key: str = USER) -> RawClient:
    return await (await RawClient.connect(gateway.port)).ask(key, body)


async def until(found: Callable[[], object], within_s: float = 5.0) -> None:
    deadline = time.monotonic() + within_s
    while not found():
        assert time.monotonic() < deadline, "it did not happen"
        await asyncio.sleep(0.02)


def workers(gateway: GatewayProcess) -> list[psutil.Process]:
    """The children that listen on the port."""
    found = []
    for child in gateway.children():
        with contextlib.suppress(psutil.Error):
            if any(one.laddr.port == gateway.port and one.status == "LISTEN" for one in child.net_connections("tcp")):
                found.append(child)
    return found


def worker_of(gateway: GatewayProcess, client: RawClient) -> psutil.Process:
    """The worker that has this client's connection."""
    port = client.writer.get_extra_info("sockname")[1]
    for child in workers(gateway):
        if any(one.raddr and one.raddr.port == port for one in child.net_connections("tcp")):
            return child
    raise AssertionError("no worker has the connection")


def gate(gateway: GatewayProcess) -> psutil.Process:
    """The child that serves the metrics."""
    (found,) = (
        child
        for child in gateway.children()
        if any(one.laddr.port == gateway.metrics_port and one.status == "LISTEN" for one in child.net_connections("tcp"))
    )
    return found


async def whole(gateway: GatewayProcess, model: str, key: str = USER, cap: int = 3) -> httpx.Response:
    async with http_client(key) as http:
        return await http.post(gateway.url + "/v1/chat/completions", json=chat(model, stream=False, cap=cap))


async def test_an_engine_host_loses_only_its_own_requests(gateway: GatewayProcess) -> None:
    since = time.time_ns() // 1000
    mine = [await asked(gateway, chat("first")) for _ in range(4)]
    for client in mine:
        await client.until(b'"content":"Hello"')
    waiting = [await asked(gateway, chat("first", stream=stream)) for stream in (True, False)]
    others = [await asked(gateway, chat(model, cap=60)) for model in ("second", "words-60-d20") for _ in range(3)]
    for client in others:
        await client.until(b"200 OK")
    await until(lambda: (gateway.folder / LOG).read_text().count('"submit"') == 5)  # slots, and one ahead
    await until(lambda: gateway.metric("switchyard_queue_depth", deployment="first") == 1)
    (host,) = gateway.children("backends.engines.host first")
    host.kill()
    for client in mine:
        text = await client.until(b"0\r\n\r\n")
        assert b"[DONE]" not in text
        error = json.loads(text.rsplit(b"data: ", 1)[1].split(b"\n")[0])["error"]
        assert (error["code"], error["type"]) == ("engine_crashed", "server_error")
        client.leave()
    answered: Counter[tuple[int, str]] = Counter()
    for client in waiting:
        status, _, body = await client.answer()
        answered[status, json.loads(body)["error"]["code"] if status != 200 else ""] += 1
        client.leave()
    # one was in the engine's queue, one at the gate: that one finds the host down, or waits for the next one's loading
    assert answered in ({(502, "engine_crashed"): 1, (503, "model_loading"): 1}, {(502, "engine_crashed"): 1, (200, ""): 1})
    fallen = await whole(gateway, "safe")
    assert fallen.status_code == 200 and fallen.json()["choices"][0]["message"]["content"] in ("w0 w1 w2 ", "Hello, world")
    for client in others:
        text = await client.until(b"0\r\n\r\n")
        assert b"[DONE]" in text and b'"error"' not in text
        client.leave()
    answers: list[httpx.Response] = []
    deadline = time.monotonic() + 10
    while not answers or answers[-1].status_code != 200:
        assert time.monotonic() < deadline, answers[-1].text
        answers.append(await whole(gateway, "first"))
        await asyncio.sleep(0.05)
    for refused in answers[:-1]:
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "model_loading")
        assert refused.headers["retry-after"] == "1"
    assert answers[-1].json()["choices"][0]["message"]["content"] == "Hello, world"
    rows = await asyncio.to_thread(gateway.rows, 6, outcome="upstream_error", model="first", since_us=since)
    assert sum(row["output_tokens"] > 0 for row in rows) == 4
    assert len(workers(gateway)) == WORKERS


async def test_a_worker_loses_only_its_own_connections_and_is_made_again(gateway: GatewayProcess) -> None:
    since = time.time_ns() // 1000
    hit = await asked(gateway, chat("words-1000-d20"), ONE)
    await hit.until(b"w9 ")
    victim = worker_of(gateway, hit)
    streams = [await asked(gateway, chat("words-60-d20")) for _ in range(12)]
    for client in streams:
        await client.until(b"200 OK")
    spared = [client for client in streams if worker_of(gateway, client) != victim]
    victim.kill()
    assert b"[DONE]" not in await hit.rest()
    statuses = Counter([(await whole(gateway, "words-3")).status_code for _ in range(30)])
    assert statuses == {200: 30}
    for client in spared:
        assert b"[DONE]" in await client.until(b"0\r\n\r\n")
    assert spared
    await until(lambda: len(workers(gateway)) == WORKERS and victim.pid not in [one.pid for one in workers(gateway)])
    (seen,) = gateway.upstream.of("words-1000-d20")[-1:]
    assert seen.closed is not None
    # settled from what it left behind, and its slot is free: long before its lease of 15 s ends
    (row,) = await asyncio.to_thread(gateway.rows, 1, outcome="abandoned", key_id="one", since_us=since, within_s=10)
    assert (row["model"], row["usage_source"]) == ("words-1000-d20", "estimated")
    assert (await whole(gateway, "words-3", ONE)).status_code == 200


async def test_the_gate_is_made_again_and_its_bound_holds(gateway: GatewayProcess) -> None:
    def open_upstream() -> int:
        return sum(not one.closed and not one.completed for one in gateway.upstream.of("words-1000-d20"))

    held = [await asked(gateway, chat("gated")) for _ in range(2)]
    for client in held:
        await client.until(b"w1 ")
    before = gate(gateway)
    before.kill()
    third = [await asked(gateway, chat("gated")) for _ in range(4)]
    await until(lambda: gateway.children() and _metrics_are_back(gateway), 10)
    await asyncio.sleep(0.5)
    assert open_upstream() == 2
    assert b"w5 " in await held[0].until(b"w5 ")
    assert gateway.metric("switchyard_slots_in_use", deployment="gated") == 2
    held[0].leave()
    done, _ = await asyncio.wait(
        [asyncio.ensure_future(client.until(b"w1 ", 10)) for client in third], return_when=asyncio.FIRST_COMPLETED
    )
    assert len(done) == 1
    assert open_upstream() == 2
    for client in (*held, *third):
        client.leave()
    await until(lambda: open_upstream() == 0)
    await until(lambda: gateway.metric("switchyard_slots_in_use", deployment="gated") == 0)
    assert (await whole(gateway, "words-3")).status_code == 200


def _metrics_are_back(gateway: GatewayProcess) -> bool:
    with contextlib.suppress(OSError):
        return gateway.metric("switchyard_workers") == WORKERS
    return False


async def test_nothing_is_left_of_a_gateway_whose_supervisor_died(gateway: GatewayProcess) -> None:
    streams = [await asked(gateway, chat(model)) for model in ("first", "words-1000-d20", "gated") for _ in range(3)]
    for client in streams[:4]:
        await client.until(b"200 OK")
    below = gateway.children()
    assert len(below) >= WORKERS + 4
    assert gateway.process is not None
    os.kill(gateway.process.pid, signal.SIGKILL)
    gateway.process.wait(5)
    await until(lambda: not [one for one in below if one.is_running() and one.status() != psutil.STATUS_ZOMBIE], 6)
    for client in streams:
        client.leave()
    assert all(one.closed or one.completed for one in gateway.upstream.seen)
    gateway.start()
    assert (await whole(gateway, "first")).status_code == 200
    assert gateway.stop() == 0
