"""Clients that leave a real model, through the whole gateway: its slot is free within 500 ms, by the engine's own log."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator

import pytest

from tests.gateway_process import GatewayProcess, declared_key
from tests.models import chat_gguf
from tests.raw_client import RawClient

pytestmark = pytest.mark.llamacpp
ONE, OTHER = "sk-llama-one-0123456789abcdef", "sk-llama-other-0123456789abcdef"
GONE_S = 0.5


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    folder = tmp_path_factory.mktemp("llama")
    tree = {
        "engines": {
            "chat": {"model": chat_gguf(), "slots": 1, "context": 6144, "options": {"log": str(folder / "engine.jsonl")}}
        },
        "deployments": {"chat": {"engine": "chat", "model": "chat"}},
        "models": {"chat": {"tiers": [["chat"]]}},
        "keys": {"declared": [declared_key("one", ONE, limits=[{"concurrent": 1}]), declared_key("other", OTHER)]},
    }
    with GatewayProcess(folder, tree) as process:
        process.start()
        yield process


def chat(content: str, *, stream: bool, cap: int = 1000) -> dict[str, object]:
    messages = [{"role": "user", "content": content}]
    return {"model": "chat", "stream": stream, "max_tokens": cap, "ignore_eos": True, "messages": messages}


async def asked(gateway: GatewayProcess, key: str, body: dict[str, object]) -> RawClient:
    return await (await RawClient.connect(gateway.port)).ask(key, body)


def journal(gateway: GatewayProcess, event: str) -> list[dict[str, object]]:
    file = gateway.folder / "engine.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [line for line in lines if line["event"] == event]


async def until(found: object, within_s: float = 5.0) -> None:
    deadline = time.monotonic() + within_s
    while not found():  # type: ignore[operator]
        assert time.monotonic() < deadline, "it did not happen"
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("phase", ["queued", "prefill", "decode"])
async def test_the_slot_of_whoever_leaves_is_free(gateway: GatewayProcess, phase: str, stream: bool) -> None:
    since = time.time_ns() // 1000
    submitted, cancelled = len(journal(gateway, "submit")), len(journal(gateway, "cancel"))
    first = None
    if phase == "queued":
        first = await asked(gateway, OTHER, chat("Tell a story.", stream=True))
        await first.until(b'"content":"', 20)
        submitted += 1
    # no prefix of it is known from before
    long = f"{since} " + "the quick brown fox jumps over the lazy dog " * 500 if phase == "prefill" else "Count."
    client = await asked(gateway, ONE, chat(long, stream=stream))
    await until(lambda: len(journal(gateway, "submit")) == submitted + 1)
    if phase == "decode" and stream:
        await client.until(b'"content":"', 20)
    await asyncio.sleep(0.4 if phase == "decode" else 0.1)
    left = client.leave()
    await until(lambda: len(journal(gateway, "cancel")) == cancelled + 1)
    line = journal(gateway, "cancel")[-1]
    assert line["was"] == phase
    assert line["t"] - left < GONE_S
    if first is not None:
        await first.until(b'"content":"')  # the one that runs goes on
        first.leave()
    deadline = time.monotonic() + 2
    while True:  # the engine has its slot back; its word that it has is on its way, and with it the key's
        again = await asked(gateway, ONE, chat("Hello.", stream=False, cap=2))
        status, _, body = await again.answer(10)
        again.leave()
        if status == 200:
            break
        assert status == 429 and time.monotonic() < deadline, body
        await asyncio.sleep(0.05)
    row = (await asyncio.to_thread(gateway.rows, 2, key_id="one", since_us=since))[0]
    assert row["outcome"] == "cancelled"
    assert (row["output_tokens"] > 0) is (phase == "decode")
    assert row["output_tokens"] < 1000
    assert row["usage_source"] == ("counted" if phase == "decode" else "none"), "the engine tells what it had made"
