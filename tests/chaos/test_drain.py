"""SIGTERM and reload under load, with four workers: who waits is told, who streams may end, who overstays gets an error."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gateway_process import GatewayProcess, declared_key, http_client
from tests.raw_client import RawClient
from tests.servers import RedisServer
from tests.upstream import Upstream, in_thread, upstream_server

pytestmark = pytest.mark.redis
KEY = "sk-drain-0123456789abcdef"
WORKERS, DRAIN_S = 4, 1.5
REMOTE = ["words-3", "words-40-d20", "words-2000-d20"]


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Upstream, RedisServer]]:
    redis = RedisServer(tmp_path_factory.mktemp("redis")).start()
    with in_thread(upstream_server) as upstream:
        yield upstream, redis
    redis.kill()


@pytest.fixture
def gateway(servers: tuple[Upstream, RedisServer], tmp_path: Path) -> Iterator[GatewayProcess]:
    upstream, redis = servers
    far = {"dialect": "openai_compatible", "base_url": upstream.url}
    deployments = {m: {**far, "model": m} for m in REMOTE}
    deployments["gated"] = {**far, "model": "words-2000-d20", "max_in_flight": 1}  # type: ignore[dict-item]
    tree = {
        "server": {"workers": WORKERS, "drain_s": DRAIN_S},
        "redis": {"url": redis.url, "timeout_ms": 2000},
        "auth": {"pepper": "env:SY_PEPPER"},
        "deployments": deployments,
        "models": {name: {"tiers": [[name]]} for name in deployments},
        "keys": {"declared": [declared_key("user", KEY)]},
    }
    with GatewayProcess(tmp_path, tree, {"SY_PEPPER": "p" * 40}) as process:
        process.upstream = upstream
        process.start()
        yield process


def chat(model: str, stream: bool = True) -> dict[str, object]:
    return {"model": model, "stream": stream, "messages": [{"role": "user", "content": "hi"}]}


async def asked(gateway: GatewayProcess, model: str, stream: bool = True) -> RawClient:
    return await (await RawClient.connect(gateway.port)).ask(KEY, chat(model, stream))


def ended(text: bytes) -> dict[str, object]:
    """The error at the end of a stream that was cut cleanly."""
    assert text.endswith(b"0\r\n\r\n"), text[-300:]
    assert b"[DONE]" not in text
    return json.loads(text.rsplit(b"data: ", 1)[1].split(b"\n")[0])["error"]  # type: ignore[no-any-return]


async def test_sigterm_lets_streams_end_tells_who_waits_and_cuts_who_overstays(gateway: GatewayProcess) -> None:
    since = time.time_ns() // 1000
    short = [await asked(gateway, "words-40-d20") for _ in range(8)]
    unary = [await asked(gateway, "words-40-d20", stream=False) for _ in range(4)]
    long = [await asked(gateway, "words-2000-d20") for _ in range(8)]
    first = await asked(gateway, "gated")
    for client in (*short, *long, first):
        await client.until(b"w0 ")
    queued = [await asked(gateway, "gated", stream) for stream in (True, False, True)]
    idle = await RawClient.connect(gateway.port)
    await asyncio.sleep(0.1)
    assert gateway.process is not None
    began = time.monotonic()
    gateway.process.send_signal(signal.SIGTERM)
    assert await idle.rest(DRAIN_S) == b""  # at once: nothing was due on it
    assert time.monotonic() - began < 1
    for client in short:
        assert b"[DONE]" in await client.rest()
    for client in unary:
        assert (await client.answer())[0] == 200
    with pytest.raises(OSError):
        await RawClient.connect(gateway.port)
    for client in (*long, first):
        error = ended(await client.rest(DRAIN_S + 4))
        assert (error["type"], error["code"]) == ("server_error", "draining")
    for client in queued:
        text = await client.rest()
        assert b'"draining"' in text
        assert text.startswith(b"HTTP/1.1 503") and b"retry-after: 1" in text.lower(), text
    took = time.monotonic() - began
    assert await asyncio.to_thread(gateway.process.wait, 10) == 0
    assert DRAIN_S - 0.2 < took < DRAIN_S + 2.5
    rows = await asyncio.to_thread(gateway.rows, 24, since_us=since)
    outcomes = Counter(row["outcome"] for row in rows)
    assert outcomes == {"ok": 12, "drained": 12}
    assert all(row["output_tokens"] > 0 for row in rows if row["outcome"] == "drained" and row["ttft_us"])
    assert all(one.closed or one.completed for one in gateway.upstream.seen)


async def test_a_second_sigterm_hurries(gateway: GatewayProcess) -> None:
    long = [await asked(gateway, "words-2000-d20") for _ in range(4)]
    for client in long:
        await client.until(b"w0 ")
    assert gateway.process is not None
    gateway.process.send_signal(signal.SIGTERM)
    await asyncio.sleep(0.2)
    began = time.monotonic()
    gateway.process.send_signal(signal.SIGTERM)
    for client in long:
        assert ended(await client.rest())["code"] == "draining"
    assert await asyncio.to_thread(gateway.process.wait, 5) == 0
    assert time.monotonic() - began < DRAIN_S + 1


async def test_reloads_under_load_lose_no_request_and_streams_keep_their_snapshot(gateway: GatewayProcess) -> None:
    old = [await asked(gateway, "words-2000-d20") for _ in range(8)]
    for client in old:
        await client.until(b"w0 ")
    statuses: Counter[int] = Counter()
    stop = asyncio.Event()

    async def load() -> None:
        async with http_client(KEY) as http:
            while not stop.is_set():
                answer = await http.post(gateway.url + "/v1/chat/completions", json=chat("words-3", stream=False))
                statuses[answer.status_code] += 1

    async with asyncio.TaskGroup() as group:
        for _ in range(4):
            group.create_task(load())
        config = json.loads(json.dumps(gateway.config))
        for number in range(3):
            config["models"][f"fresh-{number}"] = {"tiers": [["words-3"]]}
            if number == 2:  # the deployment that the open streams use goes away
                del config["models"]["words-2000-d20"], config["deployments"]["words-2000-d20"]
            gateway.write_config(config)
            if number == 1:
                gateway.file.write_text("models: [broken")
                await asyncio.sleep(0.3)
                gateway.write_config(config)
            await _all_workers_have(gateway, f"fresh-{number}")
        stop.set()
    assert set(statuses) == {200}
    assert statuses[200] > 20
    for client in old:
        words = client.got.count(b"data: ")
        await client.until(b"w%d " % (words + 20))
        assert b'"error"' not in client.got
    gone = await asked(gateway, "words-2000-d20")
    assert (await gone.answer())[0] == 404
    for client in (*old, gone):
        client.leave()


async def _all_workers_have(gateway: GatewayProcess, model: str) -> None:
    deadline = time.monotonic() + 8
    in_a_row = 0
    while in_a_row < 4 * WORKERS:  # each connection may come to another worker
        async with http_client(KEY) as http:
            found = (await http.get(f"{gateway.url}/v1/models/{model}")).status_code == 200
        in_a_row = in_a_row + 1 if found else 0
        assert time.monotonic() < deadline, gateway.tail()
