"""Clients of the older kind, through a whole gateway: usage on the finish chunk, any model's name, no key at all."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest

from tests.gateway_process import GatewayProcess, declared_key
from tests.upstream import upstream_server

OLD = "sk-test-older-0123456789abcdef"
NEW = "sk-test-newer-0123456789abcdef"


@pytest.fixture
async def gateway(tmp_path):
    async with upstream_server() as upstream:
        tree = {
            "auth": {"mode": "none"},
            "deployments": {
                "d": {
                    "dialect": "openai_compatible",
                    "base_url": upstream.url,
                    "model": "words-4",
                    "capabilities": {"lacks": ["n"]},
                }
            },
            "models": {"m": {"tiers": [["d"]]}, "hidden": {"tiers": [["d"]]}},
            "keys": {
                "default": {"limits": [{"requests": 2, "per": "hour"}]},
                "declared": [
                    declared_key("old", OLD, usage_on_finish=True, default_model="m", models=["m"], limits=[]),
                    declared_key("new", NEW, limits=[]),
                ],
            },
        }
        with GatewayProcess(tmp_path, tree) as process:
            await asyncio.to_thread(process.start)
            yield process


async def post(gateway: GatewayProcess, path: str, body: dict[str, object], **headers: str) -> httpx.Response:
    async with httpx.AsyncClient(timeout=10) as client:
        return await client.post(gateway.url + path, json=body, headers=headers)


def chunks(answer: httpx.Response) -> list[dict[str, object]]:
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


async def test_older_clients(gateway):
    chat = {"model": "gpt-3.5-turbo", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    plain = {"model": "text-davinci-003", "prompt": "hi", "stream": True, "n": 2}
    old = {"authorization": f"Bearer {OLD}"}
    for path, body in (("/v1/chat/completions", chat), ("/v1/completions", plain)):
        for more in ({}, {"stream_options": {"include_usage": True}}):
            answer = await post(gateway, path, {**body, **more}, **old)
            assert answer.status_code == 200, answer.text
            got = chunks(answer)
            assert all(chunk["choices"] for chunk in got)
            assert got[-1]["choices"][0]["finish_reason"] == "stop"
            assert got[-1]["usage"]["total_tokens"] > 0
            assert not any(chunk.get("usage") for chunk in got[:-1])

    # it goes where the key may go, and other keys get what OpenAI gives
    assert (await post(gateway, "/v1/chat/completions", {**chat, "model": "hidden"}, **old)).status_code == 404
    new = {"authorization": f"Bearer {NEW}"}
    assert (await post(gateway, "/v1/chat/completions", chat, **new)).status_code == 404
    got = chunks(await post(gateway, "/v1/chat/completions", {**chat, "model": "m"}, **new))
    assert got[-1]["choices"][0]["finish_reason"] == "stop"
    assert "usage" not in got[-1]

    # no key at all: let in, within the limits of any key; a wrong key or a browser's page is not
    for _ in range(2):
        assert (await post(gateway, "/v1/chat/completions", {**chat, "model": "m"})).status_code == 200
    assert (await post(gateway, "/v1/chat/completions", {**chat, "model": "m"})).status_code == 429
    assert (await post(gateway, "/v1/chat/completions", chat, authorization="Bearer sk-wrong")).status_code == 401
    for header in ({"origin": "https://example.com"}, {"sec-fetch-site": "cross-site"}):
        assert (await post(gateway, "/v1/chat/completions", chat, **header)).status_code == 401
