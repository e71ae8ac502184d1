"""Fairness and the bound over four workers: a key with 500 requests in the queue delays another's one by a service time."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from tests.gateway_process import GatewayProcess, declared_key
from tests.raw_client import RawClient
from tests.servers import RedisServer
from tests.upstream import in_thread, upstream_server

pytestmark = pytest.mark.redis
HEAVY, LIGHT = "sk-fair-heavy-0123456789abcdef", "sk-fair-light-0123456789abcdef"
QUEUED, SLOTS, SERVICE_S = 500, 2, 1.0
MODEL = "words-3-t1000"


async def test_five_hundred_queued_requests_delay_another_key_by_one_service_time(
    tmp_path: Path, own_redis: RedisServer
) -> None:
    with in_thread(upstream_server) as upstream:
        far = {"dialect": "openai_compatible", "base_url": upstream.url, "model": MODEL, "max_in_flight": SLOTS}
        tree: dict[str, object] = {
            "server": {"workers": 4, "queue_wait_s": 60},
            "redis": {"url": own_redis.url, "timeout_ms": 2000},
            "auth": {"pepper": "env:SY_PEPPER"},
            "deployments": {"d": far},
            "models": {"m": {"tiers": [["d"]]}},
            "keys": {"declared": [declared_key("heavy", HEAVY), declared_key("light", LIGHT)]},
        }
        with GatewayProcess(tmp_path, tree, {"SY_PEPPER": "p" * 40}) as gateway:
            await asyncio.to_thread(gateway.start)
            body: dict[str, object] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
            heavy = [await (await RawClient.connect(gateway.port)).ask(HEAVY, body) for _ in range(QUEUED)]
            async with asyncio.timeout(60):
                while await asyncio.to_thread(gateway.metric, "switchyard_queue_depth") < QUEUED * 0.9:
                    await asyncio.sleep(0.1)
            took: list[float] = []
            for _ in range(4):  # fresh connections: likely several workers
                client = await RawClient.connect(gateway.port)
                began = time.monotonic()
                await client.ask(LIGHT, body)
                assert (await client.answer(30))[0] == 200
                took.append(time.monotonic() - began)
                client.leave()
            waiting = await asyncio.to_thread(gateway.metric, "switchyard_queue_depth")
            in_use = await asyncio.to_thread(gateway.metric, "switchyard_slots_in_use")
            print(
                f"{waiting:.0f} waiting; another key's requests took {[round(one, 2) for one in took]} s, each is {SERVICE_S} s"
            )
            for one in heavy:
                one.leave()
            assert waiting > QUEUED / 2 and in_use == SLOTS
            assert sorted(took)[1] < 2 * SERVICE_S + 0.5, "its own work, and at most about one service time before it"
            assert max(took) < 3 * SERVICE_S + 1
            assert _most_at_once(upstream.seen) <= SLOTS


def _most_at_once(seen: object) -> int:
    """The most requests that were open upstream at one instant."""
    edges: list[tuple[float, int]] = []
    for one in list(seen):  # type: ignore[call-overload]
        edges += [(one.began, 1), (one.closed or one.began + SERVICE_S * 0.9, -1)]
    most = present = 0
    for _, change in sorted(edges, key=lambda edge: (edge[0], edge[1])):
        present += change
        most = max(most, present)
    return most
