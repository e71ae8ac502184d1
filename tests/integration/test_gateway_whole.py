"""A whole gateway, one worker, no Redis, in front of a scripted upstream: the surface, the ledger, the log, a reload."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from collections.abc import AsyncIterator

import httpx
import openai
import pytest

from tests.gateway_process import GatewayProcess, declared_key
from tests.upstream import Upstream, upstream_server

KEY = "sk-test-user-0123456789abcdef"
LIMITED = "sk-test-limited-0123456789abcdef"
MODELS = ["words-4", "words-40-d20", "words-4-cut", "words-4-error", "words-4-status-500", "words-4-status-429",
          "words-4-status-401", "words-4-nousage", "words-4-mute", "words-3-t200"]  # fmt: skip


def tree(upstream: Upstream, **more: object) -> dict[str, object]:
    """A configuration that serves every scripted model."""
    few = [{"requests": 3, "per": "minute"}, {"tokens": 5000, "per": "minute"}]
    return {
        "deployments": {f"d-{m}": {"dialect": "openai_compatible", "base_url": upstream.url, "model": m} for m in MODELS},
        "models": {m: {"tiers": [[f"d-{m}"]]} for m in MODELS},
        "teams": {"red": {"models": ["words-4"]}},
        "keys": {
            "declared": [
                declared_key("user", KEY),
                declared_key("limited", LIMITED, team="red", limits=few),
                declared_key("old", "sk-test-expired-0123456789abcdef", expires="2020-01-01"),
            ]
        },
        **more,
    }  # fmt: skip


@pytest.fixture
async def gateway(tmp_path):
    async with upstream_server() as upstream:
        with GatewayProcess(tmp_path, tree(upstream)) as process:
            await asyncio.to_thread(process.start)
            process.upstream = upstream
            yield process


def client(gateway: GatewayProcess, key: str = KEY) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=gateway.url + "/v1", api_key=key, max_retries=0)


def ask(model: str = "words-4", **more: object) -> dict[str, object]:
    return {"model": model, "messages": [{"role": "user", "content": "hi"}], **more}


async def rows(gateway: GatewayProcess, count: int) -> list[sqlite3.Row]:
    """The ledger's rows once there are `count` settled ones."""
    file = next((gateway.folder / "var").glob("*.db"))
    for _ in range(100):
        with sqlite3.connect(f"file:{file}?mode=ro", uri=True) as db:
            db.row_factory = sqlite3.Row
            found = db.execute("SELECT * FROM ledger WHERE settled_us > 0 ORDER BY admitted_us").fetchall()
        if len(found) >= count:
            return found
        await asyncio.sleep(0.05)
    raise AssertionError(f"{len(found)} rows, not {count}")


async def test_the_sdk_gets_an_answer_a_stream_and_its_usage(gateway):
    sdk = client(gateway)
    answer = await sdk.chat.completions.create(**ask())
    assert answer.choices[0].message.content == "w0 w1 w2 w3 "
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (7, 4)
    assert answer._request_id
    chunks = [c async for c in await sdk.chat.completions.create(**ask(stream=True, stream_options={"include_usage": True}))]
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "w0 w1 w2 w3 "
    assert len({c.id for c in chunks}) == len({c.created for c in chunks}) == 1
    assert {c.model for c in chunks} == {"words-4"}
    assert chunks[-1].usage.completion_tokens == 4
    assert chunks[-1].choices == []
    quiet = [c async for c in await sdk.chat.completions.create(**ask(stream=True))]
    assert all(c.usage is None for c in quiet)
    found = await rows(gateway, 3)
    assert [(r["outcome"], r["output_tokens"], r["usage_source"]) for r in found] == [("ok", 4, "reported")] * 3
    assert {r["key_id"] for r in found} == {"user"}


async def test_errors_have_openais_shape_and_no_upstream_address(gateway):
    async with httpx.AsyncClient(base_url=gateway.url, headers={"authorization": f"Bearer {KEY}"}) as http:
        cases = [
            ("/v1/chat/completions", ask("nope"), 404, "model_not_found"),
            ("/v1/chat/completions", ask("words-4-status-500"), 502, "upstream_unavailable"),
            ("/v1/chat/completions", ask("words-4-status-401"), 502, "upstream_auth_failed"),
            ("/v1/chat/completions", ask("words-4-status-429"), 503, "upstream_overloaded"),
            ("/v1/chat/completions", ask("words-4-cut", stream=True), 200, "stream_truncated"),
            ("/v1/chat/completions", ask(temperature=9), 400, None),
            ("/v1/nothing", ask(), 404, None),
        ]
        for path, body, status, code in cases:
            answer = await http.post(path, json=body)
            text = answer.text
            assert answer.status_code == status, (body, text)
            assert str(gateway.upstream.port) not in text and "127.0.0.1" not in text
            error = json.loads(text.rsplit("data: ", 1)[1])["error"] if status == 200 else answer.json()["error"]
            assert set(error) == {"message", "type", "param", "code"}
            assert code is None or error["code"] == code
            assert status != 200 or "[DONE]" not in text
        assert (await http.get("/v1/chat/completions")).status_code == 405


async def test_wrong_absent_and_expired_keys_are_the_same_401(gateway):
    async with httpx.AsyncClient(base_url=gateway.url) as http:
        answers = [
            await http.post("/v1/chat/completions", json=ask(), headers=headers)
            for headers in ({}, {"authorization": "Bearer sk-wrong"}, {"x-api-key": "sk-test-expired-0123456789abcdef"})
        ]
        assert {a.status_code for a in answers} == {401}
        assert len({a.content for a in answers}) == 1
        assert answers[0].json()["error"]["code"] == "invalid_api_key"
        both = await http.post(
            "/v1/chat/completions", json=ask(), headers={"authorization": f"Bearer {KEY}", "x-api-key": "sk-other"}
        )
        assert both.status_code == 400


async def test_a_key_sees_only_its_models_and_its_limits(gateway):
    sdk = client(gateway, LIMITED)
    assert [m.id async for m in sdk.models.list()] == ["words-4"]
    with pytest.raises(openai.NotFoundError):
        await sdk.models.retrieve("words-3-t200")
    for left in (2, 1, 0):
        answer = await sdk.chat.completions.with_raw_response.create(**ask())
        assert answer.headers["x-ratelimit-limit-requests"] == "3"
        assert answer.headers["x-ratelimit-remaining-requests"] == str(left)
        assert int(answer.headers["x-ratelimit-remaining-tokens"]) <= 5000
        assert answer.headers["x-switchyard-output-cap"]
    with pytest.raises(openai.RateLimitError) as refusal:
        await sdk.chat.completions.create(**ask())
    assert refusal.value.code == "rate_limit_exceeded"
    assert 1 <= int(refusal.value.response.headers["retry-after"]) <= 62
    sent = gateway.upstream.of("words-4")[0].body
    assert sent["max_completion_tokens"] == int(answer.headers["x-switchyard-output-cap"])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model", ["words-4-mute", "words-40-d20"])
async def test_a_client_that_leaves_closes_the_upstream_at_once(gateway, model, stream):
    async with httpx.AsyncClient(base_url=gateway.url, headers={"authorization": f"Bearer {KEY}"}) as http:
        with pytest.raises((httpx.ReadTimeout, TimeoutError)):
            async with (
                asyncio.timeout(0.4),
                http.stream("POST", "/v1/chat/completions", json=ask(model, stream=stream), timeout=0.3) as answer,
            ):
                [chunk async for chunk in answer.aiter_bytes()]
        left = time.monotonic()
    seen = gateway.upstream.of(model)[0]
    for _ in range(100):
        if seen.closed is not None:
            break
        await asyncio.sleep(0.01)
    assert seen.closed is not None and seen.closed - left < 0.5
    row = (await rows(gateway, 1))[0]
    assert row["outcome"] == "cancelled"
    if model == "words-40-d20" and stream:
        assert 0 < row["output_tokens"] <= 40
        assert row["usage_source"] == "estimated"


async def test_log_and_metrics_tell_of_each_request_and_of_no_key(gateway):
    sdk = client(gateway)
    answer = await sdk.chat.completions.with_raw_response.create(**ask())
    with pytest.raises(openai.NotFoundError):
        await sdk.chat.completions.create(**ask("mystery-model"))
    id = answer.headers["x-request-id"]
    for _ in range(40):
        lines = [line for line in gateway.events() if line.get("request_id") == id]
        if lines:
            break
        await asyncio.sleep(0.05)
    assert len(lines) == 1
    assert (lines[0]["model"], lines[0]["status"], lines[0]["output_tokens"]) == ("words-4", 200, 4)
    text = await asyncio.to_thread(gateway.metrics)
    assert gateway.metric("switchyard_requests_total", model="words-4", outcome="ok") == 1
    assert "mystery-model" not in text
    for secret in (KEY, "w0 w1", 'hi"'):
        assert secret not in text
    assert KEY not in gateway.log.read_text()


async def test_a_reload_changes_models_and_a_broken_file_changes_nothing(gateway):
    sdk = client(gateway)
    config = json.loads(json.dumps(gateway.config))
    config["models"]["fresh"] = {"tiers": [["d-words-4"]]}
    gateway.write_config(config)
    for _ in range(100):
        if "fresh" in [m.id async for m in sdk.models.list()]:
            break
        await asyncio.sleep(0.05)
    answer = await sdk.chat.completions.create(**ask("fresh"))
    assert answer.model == "fresh"
    config["models"]["fresh"] = {"tiers": [["no-such-deployment"]]}
    gateway.write_config(config)
    for _ in range(100):
        if gateway.metric("switchyard_config_reload_failed"):
            break
        await asyncio.sleep(0.05)
    assert gateway.metric("switchyard_config_reload_failed") >= 1
    assert (await sdk.chat.completions.create(**ask("fresh"))).model == "fresh"


async def test_a_request_whose_body_comes_after_a_reload_still_finds_its_deployment(gateway):
    async def slow_body() -> AsyncIterator[bytes]:
        body = json.dumps(ask()).encode()
        yield body[:10]
        config = json.loads(json.dumps(gateway.config))
        config["deployments"]["d-words-4"]["keepalive_s"] = 3  # another deployment, by another pool
        gateway.write_config(config)
        deadline = time.monotonic() + 10
        while not gateway.events("config_reloaded"):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
        await asyncio.sleep(2.2)  # long enough for whoever closes what is no longer used
        yield body[10:]

    async with httpx.AsyncClient(headers={"authorization": f"Bearer {KEY}"}, timeout=20) as http:
        answer = await http.post(gateway.url + "/v1/chat/completions", content=slow_body())
    assert (answer.status_code, answer.json().get("error")) == (200, None)


async def test_an_overloaded_upstream_that_names_no_time_is_a_503_that_does(gateway):
    async with httpx.AsyncClient(headers={"authorization": f"Bearer {KEY}"}) as http:
        answer = await http.post(gateway.url + "/v1/chat/completions", json=ask("words-4-status-429"))
    assert (answer.status_code, answer.headers["retry-after"], answer.headers["retry-after-ms"]) == (503, "1", "1000")


async def test_sigterm_lets_a_stream_end(gateway):
    sdk = client(gateway)
    stream = await sdk.chat.completions.create(**ask("words-40-d20", stream=True))
    first = await anext(aiter(stream))
    assert first
    stopping = asyncio.create_task(asyncio.to_thread(gateway.stop))
    text = "".join([c.choices[0].delta.content or "" async for c in stream])
    assert text.endswith("w39 ")
    assert await stopping == 0


async def test_documented_paths_all_answer(gateway):
    async with httpx.AsyncClient(base_url=gateway.url, headers={"authorization": f"Bearer {KEY}"}) as http:
        schema = (await http.get("/openapi.json")).json()
        assert {"/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/models", "/health/ready"} <= set(
            schema["paths"]
        )
        for path, methods in schema["paths"].items():
            for method in methods:
                answer = await http.request(
                    method.upper(), path.replace("{model}", "words-4").replace("{id}", "words-4"), json=ask()
                )
                assert answer.status_code not in (404, 405, 500) or path == "/metrics", (method, path, answer.text)
