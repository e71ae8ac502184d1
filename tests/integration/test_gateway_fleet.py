"""Two gateways of two workers each on one Redis: limits are exact over all of them."""

from __future__ import annotations

import asyncio
from collections import Counter

import httpx
import pytest

from tests.gateway_process import GatewayProcess, declared_key
from tests.upstream import Upstream, upstream_server

KEY = "sk-fleet-0123456789abcdef"
ONE = "sk-fleet-one-0123456789abcdef"


def tree(upstream: Upstream, redis_url: str, workers: int) -> dict[str, object]:
    models = ["words-1", "words-5-d100"]
    return {
        "server": {"workers": workers},
        "redis": {"url": redis_url, "timeout_ms": 2000},
        "auth": {"pepper": "env:SY_PEPPER"},
        "deployments": {f"d-{m}": {"dialect": "openai_compatible", "base_url": upstream.url, "model": m} for m in models},
        "models": {m: {"tiers": [[f"d-{m}"]]} for m in models},
        "keys": {
            "declared": [
                declared_key("rpm", KEY, limits=[{"requests": 100, "per": "minute"}]),
                declared_key("one", ONE, limits=[{"concurrent": 1}]),
            ]
        },
    }


ENV = {"SY_PEPPER": "p" * 40}


def ask(model: str, **more: object) -> dict[str, object]:
    return {"model": model, "messages": [{"role": "user", "content": "hi"}], **more}


@pytest.mark.redis
async def test_ten_times_the_limit_admits_exactly_the_limit(tmp_path, own_redis):
    async with upstream_server() as upstream:
        with (
            GatewayProcess(tmp_path / "a", tree(upstream, own_redis.url, 2), ENV) as a,
            GatewayProcess(tmp_path / "b", tree(upstream, own_redis.url, 2), ENV) as b,
        ):
            await asyncio.gather(asyncio.to_thread(a.start), asyncio.to_thread(b.start))
            limits = httpx.Limits(max_connections=100, max_keepalive_connections=0)
            async with httpx.AsyncClient(limits=limits, timeout=60, headers={"authorization": f"Bearer {KEY}"}) as http:

                async def one(number: int) -> tuple[int, str | None]:
                    gateway = (a, b)[number % 2]
                    answer = await http.post(gateway.url + "/v1/chat/completions", json=ask("words-1"))
                    return answer.status_code, answer.headers.get("retry-after")

                answers = await asyncio.gather(*(one(number) for number in range(1000)))
            assert Counter(status for status, _ in answers) == {200: 100, 429: 900}
            assert all(1 <= int(after) <= 61 for status, after in answers if status == 429)
            assert len(upstream.of("words-1")) == 100


@pytest.mark.redis
async def test_a_client_that_has_its_answer_has_its_slot_back(tmp_path, own_redis):
    async with upstream_server() as upstream:
        with GatewayProcess(tmp_path / "a", tree(upstream, own_redis.url, 4), ENV) as gateway:
            await asyncio.to_thread(gateway.start)
            limits = httpx.Limits(max_keepalive_connections=0)
            statuses: Counter[int] = Counter()
            async with httpx.AsyncClient(limits=limits, timeout=30, headers={"authorization": f"Bearer {ONE}"}) as http:
                for number in range(2000):
                    answer = await http.post(gateway.url + "/v1/chat/completions", json=ask("words-1", stream=number % 2 == 0))
                    statuses[answer.status_code] += 1
            assert statuses == {200: 2000}
            assert len(gateway.children()) >= 4
            assert gateway.metric("switchyard_requests_total", outcome="ok") == 2000


@pytest.mark.redis
async def test_concurrency_is_bounded_over_workers_and_freed_when_a_client_leaves(tmp_path, own_redis):
    async with upstream_server() as upstream:
        with GatewayProcess(tmp_path / "a", tree(upstream, own_redis.url, 4), ENV) as gateway:
            await asyncio.to_thread(gateway.start)
            async with httpx.AsyncClient(timeout=30, headers={"authorization": f"Bearer {ONE}"}) as http:
                url = gateway.url + "/v1/chat/completions"
                answers = await asyncio.gather(*(http.post(url, json=ask("words-5-d100")) for _ in range(10)))
                assert Counter(answer.status_code for answer in answers)[200] == 1
                with pytest.raises(httpx.ReadTimeout):
                    await http.post(url, json=ask("words-5-d100"), timeout=0.2)
                await asyncio.sleep(0.5)
                assert (await http.post(url, json=ask("words-1"))).status_code == 200
