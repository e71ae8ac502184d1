"""When vLLM sleeps and who wakes it, with a vLLM that only writes down what it is told."""

from __future__ import annotations

import pytest

from backends.engines.vllm.sleeping import Sleeping


class Vllm:
    def __init__(self) -> None:
        self.told: list[str] = []

    async def sleep(self, level: int) -> None:
        self.told.append(f"sleep {level}")

    async def wake_up(self) -> None:
        self.told.append("wake")

    async def collective_rpc(self, name: str) -> None:
        self.told.append(name)

    async def reset_prefix_cache(self) -> None:
        self.told.append("reset")


@pytest.fixture
def now() -> list[float]:
    return [0.0]


async def test_it_sleeps_after_a_while_without_work_and_a_request_wakes_it(now: list[float]) -> None:
    vllm = Vllm()
    sleeping = Sleeping(vllm, 60, 1, clock=lambda: now[0])
    now[0] = 59
    await sleeping.perhaps()
    assert not vllm.told
    now[0] = 61
    await sleeping.perhaps()
    await sleeping.perhaps()
    assert vllm.told == ["sleep 1"] and sleeping.asleep
    async with sleeping.awake():
        assert vllm.told == ["sleep 1", "wake"]
        now[0] = 1000
        await sleeping.perhaps()
        assert not sleeping.asleep, "not while a request runs, however long"
    await sleeping.perhaps()
    assert not sleeping.asleep, "the time runs from the end of the last request"


async def test_dropped_weights_are_read_again_and_what_was_cached_is_forgotten(now: list[float]) -> None:
    vllm = Vllm()
    sleeping = Sleeping(vllm, 1, 2, clock=lambda: now[0])
    now[0] = 2
    await sleeping.perhaps()
    async with sleeping.awake():
        pass
    assert vllm.told == ["sleep 2", "wake", "reload_weights", "reset"]


async def test_without_a_time_it_never_sleeps(now: list[float]) -> None:
    vllm = Vllm()
    sleeping = Sleeping(vllm, None, 1, clock=lambda: now[0])
    now[0] = 1e9
    await sleeping.perhaps()
    async with sleeping.awake():
        pass
    assert not vllm.told
