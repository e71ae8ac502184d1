"""A quota of requests that Redis lost is rebuilt as it was: answers of 503 count there as they counted before."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
import redis

from gateway.domain.usage_stream import META, REBUILT
from gateway.limits.commands import counter_key
from tests.gateway_process import GatewayProcess, declared_key, http_client
from tests.raw_client import RawClient
from tests.servers import RedisServer
from tests.upstream import in_thread, upstream_server

pytestmark = pytest.mark.redis
KEY = "sk-refused-0123456789abcdef"
OK, BUSY, FULL = "words-3", "words-3-status-503", "words-500-d20"


@pytest.fixture
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    store = RedisServer(tmp_path_factory.mktemp("redis")).start()
    with in_thread(upstream_server) as upstream:
        far = {"dialect": "openai_compatible", "base_url": upstream.url}
        tree = {
            "server": {"workers": 1, "queue_wait_s": 0.2},
            "redis": {"url": store.url, "timeout_ms": 2000},
            "auth": {"pepper": "env:SY_PEPPER"},
            "deployments": {
                OK: {**far, "model": OK},
                BUSY: {**far, "model": BUSY},
                FULL: {**far, "model": FULL, "max_in_flight": 1},
            },
            "models": {name: {"tiers": [[name]]} for name in (OK, BUSY, FULL)},
            "keys": {"declared": [declared_key("k", KEY, limits=[{"requests": 100, "per": "month"}])]},
        }
        with GatewayProcess(tmp_path_factory.mktemp("refused"), tree, {"SY_PEPPER": "p" * 40}) as process:
            process.redis = store
            process.start()
            yield process
    store.kill()


async def test_answers_of_503_count_after_a_rebuilding_as_before(gateway: GatewayProcess) -> None:
    name = counter_key(f"key:k:requests:{datetime.now(UTC):%Y-%m}")

    def chat(model: str) -> dict[str, object]:
        return {"model": model, "messages": [{"role": "user", "content": "hi"}]}

    async with http_client(KEY) as http:

        async def ask(model: str) -> tuple[int, str]:
            answer = await http.post(gateway.url + "/v1/chat/completions", json=chat(model))
            return answer.status_code, answer.json().get("error", {}).get("code", "")

        holds = await (await RawClient.connect(gateway.port)).ask(KEY, {**chat(FULL), "stream": True})
        await holds.until(b'"w1 ')
        told = [await ask(model) for model in (OK, BUSY, BUSY, FULL, FULL, FULL, OK)]
        holds.leave()
        codes = [code for _, code in told]
        assert [status for status, _ in told] == [200, 503, 503, 503, 503, 503, 200]
        assert codes[3:6] == ["overloaded"] * 3 and "overloaded" not in codes[1:3], codes
        rows = await asyncio.to_thread(gateway.rows, 8, within_s=20)
        with redis.Redis.from_url(gateway.redis.url) as client:
            before = int(client.get(name))
            assert before == 5 == sum(row["requests"] for row in rows), "the three that found no place got their charge back"
            assert [row["requests"] for row in rows if row["status"] == 503].count(1) == 2
            client.flushall()
            deadline = time.monotonic() + 20
            let_in = 0
            while let_in < 3:  # the first tell that the data are gone; denied until they are back
                assert time.monotonic() < deadline
                let_in += (await ask(OK))[0] == 200
                await asyncio.sleep(0.05)
            assert client.hget(META, REBUILT)
            rows = await asyncio.to_thread(gateway.rows, 8 + let_in, within_s=20)
            assert int(client.get(name)) == sum(row["requests"] for row in rows)
            assert len([row for row in rows if row["requests"] == 0]) == 3
