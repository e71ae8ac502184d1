"""A gateway without Redis whose worker is killed, or all of it: what was read is billed, to the last word, over the restart."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.gateway_process import GatewayProcess, declared_key, http_client
from tests.raw_client import RawClient
from tests.upstream import in_thread, upstream_server

KEY = "sk-alone-0123456789abcdef"
HELD, SHORT = "words-90-d10-h12", "words-3"
OPEN = 10
UNITS = ("requests", "output_tokens", "usd", "concurrent")
LIMITS = [{"requests": 1000, "per": "month"}, {"output_tokens": 100_000, "per": "month"}, {"usd": 1, "per": "month"}]


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[GatewayProcess]:
    with in_thread(upstream_server) as upstream:
        far = {"dialect": "openai_compatible", "base_url": upstream.url, "price": {"input": 1, "output": 3}}
        tree = {
            "deployments": {model: {**far, "model": model} for model in (HELD, SHORT)},
            "models": {model: {"tiers": [[model]], "context": 4096} for model in (HELD, SHORT)},
            "keys": {"declared": [declared_key("alone", KEY, limits=[*LIMITS, {"concurrent": OPEN + 1}])]},
        }
        with GatewayProcess(tmp_path, tree) as process:
            process.start()
            yield process


def chat(model: str) -> dict[str, object]:
    return {"model": model, "stream": True, "max_tokens": 200, "messages": [{"role": "user", "content": "hi"}]}


@pytest.mark.parametrize("what", ["worker", "everything"])
async def test_what_was_read_is_billed_over_the_restart(gateway: GatewayProcess, what: str) -> None:
    clients = [await (await RawClient.connect(gateway.port)).ask(KEY, chat(HELD)) for _ in range(OPEN)]
    for client in clients:
        await client.until(b'"w11 ', 20)
    since = time.time_ns() // 1000
    if what == "worker":
        _worker(gateway).kill()
    else:
        gateway.kill()
        await asyncio.to_thread(gateway.start)
    found = await asyncio.to_thread(gateway.rows, OPEN, within_s=20)
    assert [(row["outcome"], row["output_tokens"], row["deployment"]) for row in found] == [("abandoned", 12, HELD)] * OPEN
    assert all(row["settled_us"] >= since for row in found)
    await asyncio.to_thread(gateway.wait_for, "/health/ready", 20)
    async with http_client(KEY) as http:
        answer = await http.post(gateway.url + "/v1/chat/completions", json={**chat(SHORT), "stream": False})
        assert answer.status_code == 200, answer.text
        limits = (await http.get(gateway.url + "/v1/me")).json()["limits"]
    settled = await asyncio.to_thread(gateway.rows, OPEN + 1)
    left = {next(unit for unit in UNITS if unit in one["limit"]): one["remaining"] for one in limits}
    assert left["requests"] == 1000 - OPEN - 1
    assert left["output_tokens"] == 100_000 - sum(row["output_tokens"] for row in settled)
    assert {row["usage_source"] for row in settled} == {"estimated", "reported"}
    cost = {row["cost_nusd"] for row in found}
    assert len(cost) == 1 and cost.pop() == found[0]["input_tokens"] * 1000 + 12 * 3000


def _worker(gateway: GatewayProcess) -> psutil.Process:
    for child in gateway.children():
        with contextlib.suppress(psutil.Error):
            if any(one.laddr.port == gateway.port and one.status == "LISTEN" for one in child.net_connections("tcp")):
                return child
    raise AssertionError("no worker listens")
