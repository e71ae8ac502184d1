"""Clients that leave, wherever their request is: the backend knows within 500 ms, by its own log, and nothing stays held.

One gateway with one worker (limits and queue in the process) and one with two workers on Redis (the gate's process).
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gateway_process import GatewayProcess, declared_key
from tests.raw_client import Manner, RawClient
from tests.servers import RedisServer
from tests.upstream import Upstream, in_thread, upstream_server

ONE, OTHER = "sk-leaving-one-0123456789abcdef", "sk-leaving-other-0123456789abcdef"
REMOTE = ["words-3", "words-3-t30000", "words-500-d20", "words-500-d20-deaf", "words-600-k64"]
EIGHT = "sk-leaving-eight-0123456789abcdef"
GONE_S = 0.5
#: The engine reads one prompt token per step of 10 ms and then speaks without end.
ENGINE = {"prefill": 1, "step_s": 0.01, "repeat": True}


def tree(upstream: Upstream, folder: Path, workers: int, redis: RedisServer | None) -> dict[str, object]:
    deployments: dict[str, object] = {
        f"d-{m}": {"dialect": "openai_compatible", "base_url": upstream.url, "model": m} for m in REMOTE
    }
    deployments["d-gated"] = {**deployments["d-words-500-d20"], "max_in_flight": 1}  # type: ignore[dict-item]
    deployments["d-fan"] = {**deployments["d-words-500-d20"], "capabilities": {"lacks": ["n"]}}  # type: ignore[dict-item]
    deployments["d-engine"] = {"engine": "local", "model": "scripted"}
    return {
        "server": {"workers": workers, "client_stall_s": 1},
        **({"redis": {"url": redis.url, "timeout_ms": 2000}, "auth": {"pepper": "env:SY_PEPPER"}} if redis else {}),
        "engines": {
            "local": {"kind": "scripted", "model": "none", "slots": 1, "queue": 8,
                      "options": {**ENGINE, "log": str(folder / "engine.jsonl")}},
        },
        "deployments": deployments,
        "models": {name.removeprefix("d-"): {"tiers": [[name]]} for name in deployments},
        "keys": {
            "declared": [
                declared_key("one", ONE, limits=[{"concurrent": 1}]),
                declared_key("other", OTHER),
                declared_key("eight", EIGHT, limits=[{"concurrent": 8}]),
            ]
        },
    }  # fmt: skip


@pytest.fixture(scope="module", params=["one_worker", pytest.param("two_workers", marks=pytest.mark.redis)])
def gateway(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    folder = tmp_path_factory.mktemp("leaving")
    redis = RedisServer(tmp_path_factory.mktemp("redis")).start() if request.param == "two_workers" else None
    with in_thread(upstream_server) as upstream:
        config = tree(upstream, folder, 2 if redis else 1, redis)
        with GatewayProcess(folder, config, {"SY_PEPPER": "p" * 40}) as process:
            process.upstream = upstream
            process.start()
            yield process
    if redis is not None:
        redis.kill()


def chat(model: str, *, stream: bool = True, words: int = 1, cap: int = 400) -> dict[str, object]:
    content = "hi " * words
    return {"model": model, "stream": stream, "max_tokens": cap, "messages": [{"role": "user", "content": content}]}


async def asked(gateway: GatewayProcess, key: str, body: dict[str, object]) -> RawClient:
    return await (await RawClient.connect(gateway.port)).ask(key, body)


def journal(gateway: GatewayProcess, event: str, id: str | None = None) -> list[dict[str, object]]:
    file = gateway.folder / "engine.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [line for line in lines if line["event"] == event and id in (None, line["id"])]


async def until(found: object, within_s: float = 3.0) -> object:
    """Wait until `found()` is true, and give it."""
    deadline = time.monotonic() + within_s
    while not (value := found()):  # type: ignore[operator]
        assert time.monotonic() < deadline, "it did not happen"
        await asyncio.sleep(0.01)
    return value


async def nothing_is_held(gateway: GatewayProcess, since_us: int, *, streamed: bool, words: bool) -> dict[str, object]:
    """The key's one slot is free within moments of the backend's end, and the row tells of the cancelled request."""
    deadline = time.monotonic() + GONE_S
    while True:
        client = await asked(gateway, ONE, chat("words-3", stream=False))
        status, _, body = await client.answer()
        client.leave()
        if status != 429 or time.monotonic() > deadline:
            break
        await asyncio.sleep(0.02)
    assert status == 200, body
    rows = await asyncio.to_thread(gateway.rows, 2, key_id="one", since_us=since_us)
    row = rows[0]
    assert (row["outcome"], row["status"], bool(row["streamed"])) == ("cancelled", 499, streamed)
    assert (row["output_tokens"] > 0) is words
    assert row["output_tokens"] <= 400
    return row


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("phase", ["queued", "prefill", "decode"])
async def test_the_engine_forgets_a_request_whose_client_left(gateway: GatewayProcess, phase: str, stream: bool) -> None:
    since = time.time_ns() // 1000
    before = len(journal(gateway, "submit"))
    first = None
    if phase == "queued":
        first = await asked(gateway, OTHER, chat("engine"))
        await first.until(b'"content"')
    client = await asked(gateway, ONE, chat("engine", stream=stream, words=300 if phase == "prefill" else 1))
    await until(lambda: len(journal(gateway, "submit")) == before + (2 if first else 1))
    mine = journal(gateway, "submit")[-1]["id"]
    if phase == "decode" and stream:
        await client.until(b'"content"')
    await asyncio.sleep(0.1)
    left = client.leave()
    cancelled = await until(lambda: journal(gateway, "cancel", mine))
    assert cancelled[0]["was"] == phase
    assert cancelled[0]["t"] - left < GONE_S
    row = await nothing_is_held(gateway, since, streamed=stream, words=phase == "decode")
    assert row["usage_source"] == ("counted" if phase == "decode" else "none"), "the engine tells what it had made"
    if first is not None:
        assert not journal(gateway, "cancel", journal(gateway, "submit")[-2]["id"]), "another's request was cancelled"
        first.leave()
        await until(lambda: journal(gateway, "cancel", journal(gateway, "submit")[-2]["id"]))


@pytest.mark.parametrize("manner", ["close", "half_close", "reset"])
@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("model", ["words-3-t30000", "words-500-d20"], ids=["silent", "speaking"])
async def test_the_upstream_connection_is_closed(gateway: GatewayProcess, model: str, stream: bool, manner: Manner) -> None:
    since = time.time_ns() // 1000
    before = len(gateway.upstream.of(model))
    client = await asked(gateway, ONE, chat(model, stream=stream))
    (seen,) = await until(lambda: gateway.upstream.of(model)[before:])
    speaks = stream and model != "words-3-t30000"
    if speaks:
        await client.until(b"w1 ")
    else:
        await asyncio.sleep(0.05)
    left = client.leave(manner)
    await until(lambda: seen.closed)
    assert seen.closed - left < GONE_S
    row = await nothing_is_held(gateway, since, streamed=stream, words=speaks)
    assert row["output_tokens"] == (seen.written if speaks else 0), "what it wrote until it knew"


async def test_an_upstream_that_goes_on_when_nobody_sends_is_closed_all_the_same(gateway: GatewayProcess) -> None:
    since = time.time_ns() // 1000
    client = await asked(gateway, ONE, chat("words-500-d20-deaf"))
    await client.until(b"w1 ")
    (seen,) = gateway.upstream.of("words-500-d20-deaf")
    left = client.leave()
    await until(lambda: seen.closed)
    assert seen.closed - left < GONE_S
    row = await nothing_is_held(gateway, since, streamed=True, words=True)
    assert seen.written - 3 <= row["output_tokens"] <= seen.written, "all but what it wrote to a closed connection"


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
async def test_whoever_leaves_the_gates_queue_is_never_sent_upstream(gateway: GatewayProcess, stream: bool) -> None:
    since = time.time_ns() // 1000
    before = len(gateway.upstream.seen)
    first = await asked(gateway, OTHER, chat("gated"))
    await first.until(b"w1 ")
    client = await asked(gateway, ONE, chat("gated", stream=stream))
    await until(lambda: gateway.metric("switchyard_queue_depth", deployment="d-gated") == 1)
    client.leave()
    await until(lambda: gateway.metric("switchyard_queue_depth", deployment="d-gated") == 0, GONE_S)
    await nothing_is_held(gateway, since, streamed=stream, words=False)
    assert [one.model for one in gateway.upstream.seen[before:]] == ["words-500-d20", "words-3"]
    first.leave()
    again = await asked(gateway, ONE, chat("gated"))
    await again.until(b"w1 ")
    again.leave()
    await until(lambda: gateway.metric("switchyard_slots_in_use", deployment="d-gated") == 0)


async def test_a_hundred_who_leave_at_once_leave_no_slot_behind(gateway: GatewayProcess) -> None:
    clients = [await asked(gateway, OTHER, chat(model)) for _ in range(25) for model in ("gated", "engine", "words-500-d20")]
    clients += [await asked(gateway, OTHER, chat("gated", stream=False)) for _ in range(25)]
    for number, client in enumerate(clients):
        client.leave(("close", "half_close", "reset")[number % 3])
        if number % 10 == 0:
            await asyncio.sleep(0.01)
    await until(lambda: gateway.metric("switchyard_open_streams") == 0)
    assert gateway.metric("switchyard_slots_in_use") == gateway.metric("switchyard_queue_depth") == 0
    client = await asked(gateway, OTHER, chat("gated"))
    await client.until(b"w1 ", GONE_S)
    client.leave()
    client = await asked(gateway, OTHER, chat("engine", stream=False, cap=3))
    assert (await client.answer())[0] == 200
    client.leave()


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
async def test_every_part_of_a_fanned_out_request_is_closed(gateway: GatewayProcess, stream: bool) -> None:
    since = time.time_ns() // 1000
    before = len(gateway.upstream.seen)
    client = await asked(gateway, ONE, {**chat("fan", stream=stream), "n": 3})
    await until(lambda: len(gateway.upstream.seen) == before + 3)
    await (client.until(b"w1 ") if stream else asyncio.sleep(0.05))
    left = client.leave()
    parts = gateway.upstream.seen[before:]
    await until(lambda: all(part.closed for part in parts))
    assert max(part.closed for part in parts) - left < GONE_S
    await nothing_is_held(gateway, since, streamed=stream, words=stream)


async def test_leaving_at_any_moment_frees_everything_and_settles_each_once(gateway: GatewayProcess) -> None:
    since = time.time_ns() // 1000
    dice = random.Random(7)
    models = ("words-3", "words-500-d20", "engine", "gated", "words-3-t30000", "fan")

    async def one(number: int) -> None:
        n = {"n": 2} if models[number % 6] == "fan" else {}
        client = await asked(gateway, EIGHT, {**chat(models[number % 6], stream=dice.random() < 0.5, cap=50), **n})
        await asyncio.sleep(dice.random() * 0.06)
        client.leave(dice.choice(("close", "half_close", "reset")))

    for _ in range(20):
        await asyncio.gather(*(one(number) for number in range(8)))
    await until(lambda: gateway.metric("switchyard_open_streams") == 0)
    assert gateway.metric("switchyard_slots_in_use") == gateway.metric("switchyard_queue_depth") == 0
    clients = [await asked(gateway, EIGHT, chat("words-500-d20")) for _ in range(8)]
    for client in clients:
        await client.until(b"w1 ")  # all eight leases are there
    for client in clients:
        client.leave()
    await until(lambda: gateway.metric("switchyard_open_streams") == 0)
    await until(
        lambda: len(journal(gateway, "submit")) == sum(len(journal(gateway, e)) for e in ("cancel", "finish", "refuse"))
    )

    def settled() -> bool:
        lines = [line for line in gateway.events("request") if line.get("key_id") == "eight"]
        admitted = {line["request_id"] for line in lines if line["outcome"] in ("ok", "cancelled") and line["attempts"]}
        rows = gateway.rows(0, key_id="eight", since_us=since)
        assert {row["outcome"] for row in rows} <= {"ok", "cancelled"}
        return admitted <= {row["id"] for row in rows} <= {line["request_id"] for line in lines}

    await until(settled)


async def test_a_client_that_stops_reading_is_cut_and_its_slot_freed(gateway: GatewayProcess) -> None:
    since = time.time_ns() // 1000
    client = await asked(gateway, ONE, chat("words-600-k64"))
    await client.until(b"200 OK")
    began = time.monotonic()
    client.writer.transport.pause_reading()
    (seen,) = gateway.upstream.of("words-600-k64")[-1:]
    await until(lambda: seen.closed, 5.0)
    assert seen.closed - began < 1 + 1 + GONE_S  # client_stall_s, and a second for the buffers to fill
    await nothing_is_held(gateway, since, streamed=True, words=True)
    client.leave()
