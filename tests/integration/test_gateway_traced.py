"""Spans of a whole gateway at a collector over OTLP: a tree per request, the client's trace continued, the upstream told."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.gateway_process import GatewayProcess, declared_key, http_client
from tests.servers import free_port
from tests.upstream import Upstream, in_thread, upstream_server

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the extra `otel` is not installed")

from tests.collector import Collector, attributes, collector

KEY, UPSTREAM_KEY = "sk-traced-canary-0123456789ab", "sk-traced-upstream-0123456789"
PROMPT = "canary-prompt-of-traces"
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@dataclass
class Traced:
    gateway: GatewayProcess
    upstream: Upstream
    collector: Collector


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traced]:
    with in_thread(upstream_server) as upstream, collector() as kept:
        far = {"dialect": "openai_compatible", "base_url": upstream.url, "credential": "env:UPSTREAM"}
        tree = {
            "telemetry": {"tracing": {"otlp_endpoint": kept.url}},
            "deployments": {
                "good": {**far, "model": "words-5-d20"},
                "ill": {**far, "model": "words-3-status-500"},
                "narrow": {**far, "model": "words-5-d50", "max_in_flight": 1},
            },
            "models": {
                "falls-back": {"tiers": [["ill"], ["good"]]},
                "narrow": {"tiers": [["narrow"]]},
                "ill": {"tiers": [["ill"]]},
            },
            "keys": {
                "declared": [
                    declared_key("user", KEY),
                    declared_key("few", KEY + "-few", limits=[{"requests": 1, "per": "hour"}]),
                ]
            },
        }
        # the standard variables that the SDK reads of itself; short, so that the test need not wait
        env = {"UPSTREAM": UPSTREAM_KEY, "OTEL_BSP_SCHEDULE_DELAY": "200", "HTTP_PROXY": "http://127.0.0.1:9"}
        with GatewayProcess(tmp_path_factory.mktemp("traced"), tree, env) as process:
            process.start()
            yield Traced(process, upstream, kept)


async def ask(house: Traced, model: str, key: str = KEY, **headers: str) -> httpx.Response:
    async with http_client(key, **headers) as http:
        body = {"model": model, "stream": True, "messages": [{"role": "user", "content": PROMPT}]}
        return await http.post(house.gateway.url + "/v1/chat/completions", json=body)


async def spans(house: Traced, trace_id: str, names: set[str]) -> dict[str, object]:
    """The spans of a trace by name, once they are all there."""
    deadline = time.monotonic() + 20
    while True:
        found = {span.name: span for span in house.collector.spans if span.trace_id.hex() == trace_id}
        if names <= found.keys():
            assert found.keys() == names
            return found
        assert time.monotonic() < deadline, (found.keys(), house.gateway.tail())
        await asyncio.sleep(0.1)


async def line(house: Traced, request_id: str) -> dict[str, object]:
    deadline = time.monotonic() + 10
    while True:
        found = [one for one in house.gateway.events("request") if one["request_id"] == request_id]
        if found:
            return found[0]
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)


async def test_a_request_with_a_fallback_is_one_tree_in_the_clients_trace(house: Traced) -> None:
    answer = await ask(house, "falls-back", traceparent=f"00-{TRACE}-{SPAN}-01")
    assert answer.status_code == 200
    found = await spans(
        house, TRACE, {"POST /v1/chat/completions", "admission", "chat words-3-status-500", "chat words-5-d20", "first token"}
    )
    root = found["POST /v1/chat/completions"]
    assert root.parent_span_id.hex() == SPAN
    assert attributes(root)["switchyard.request_id"] == answer.headers["x-request-id"]
    ill, good = found["chat words-3-status-500"], found["chat words-5-d20"]
    assert ill.parent_span_id == good.parent_span_id == root.span_id
    assert found["first token"].parent_span_id == good.span_id
    assert attributes(ill)["error.type"] == ill.status.message == "unavailable"
    assert attributes(good)["gen_ai.usage.output_tokens"] == 5
    assert root.start_time_unix_nano <= ill.start_time_unix_nano <= ill.end_time_unix_nano <= good.start_time_unix_nano
    assert good.end_time_unix_nano <= root.end_time_unix_nano
    assert abs(root.start_time_unix_nano / 1e9 - time.time()) < 60
    told = {
        one.model: one.headers["traceparent"]
        for one in house.upstream.seen
        if one.headers.get("traceparent", "")[3:35] == TRACE
    }
    assert told == {
        "words-3-status-500": f"00-{TRACE}-{ill.span_id.hex()}-01",
        "words-5-d20": f"00-{TRACE}-{good.span_id.hex()}-01",
    }
    assert (await line(house, answer.headers["x-request-id"]))["trace_id"] == TRACE
    assert house.collector.resources[0]["service.name"] == "switchyard"


async def test_a_wait_for_a_slot_is_a_span(house: Traced) -> None:
    answers = await asyncio.gather(*(ask(house, "narrow") for _ in range(2)))
    traces = [str((await line(house, answer.headers["x-request-id"]))["trace_id"]) for answer in answers]
    assert len(set(traces)) == 2
    deadline = time.monotonic() + 20
    while not any(span.trace_id.hex() in traces for span in house.collector.named("queue")):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)


async def test_a_refusal_has_its_error_and_a_stranger_makes_no_spans(house: Traced) -> None:
    first, second = [await ask(house, "ill", KEY + "-few") for _ in range(2)]
    assert (first.status_code, second.status_code) == (502, 429)
    trace_id = str((await line(house, second.headers["x-request-id"]))["trace_id"])
    found = await spans(house, trace_id, {"POST /v1/chat/completions", "admission"})
    assert attributes(found["POST /v1/chat/completions"])["http.response.status_code"] == 429
    assert found["admission"].status.message == "rate_limit_exceeded"
    other = "f" * 32
    stranger = await ask(house, "ill", "sk-nobody", traceparent=f"00-{other}-{SPAN}-01")
    assert stranger.status_code == 401
    await asyncio.sleep(1)
    assert not any(span.trace_id.hex() == other for span in house.collector.spans)


async def test_no_secret_and_no_word_of_a_prompt_is_in_any_span(house: Traced) -> None:
    await asyncio.sleep(0.5)
    sent = b"".join(house.collector.raw)
    assert sent
    for secret in (KEY, UPSTREAM_KEY, PROMPT, "w1 w2"):
        assert secret.encode() not in sent


def test_a_collector_that_is_away_stops_neither_requests_nor_the_gateways_end(tmp_path: Path) -> None:
    with in_thread(upstream_server) as upstream:
        tree: dict[str, object] = {
            "telemetry": {"tracing": {"otlp_endpoint": f"http://127.0.0.1:{free_port()}/v1/traces"}},
            "deployments": {"good": {"dialect": "openai_compatible", "base_url": upstream.url, "model": "words-2"}},
            "models": {"good": {"tiers": [["good"]]}},
            "keys": {"declared": [declared_key("user", KEY)]},
        }
        with GatewayProcess(tmp_path, tree).start() as gateway:
            for _ in range(3):
                answer = httpx.post(
                    gateway.url + "/v1/chat/completions",
                    json={"model": "good", "messages": [{"role": "user", "content": "x"}]},
                    headers={"authorization": f"Bearer {KEY}"},
                    timeout=10,
                )
                assert answer.status_code == 200
            began = time.monotonic()
            assert gateway.stop() == 0
            assert time.monotonic() - began < 12
