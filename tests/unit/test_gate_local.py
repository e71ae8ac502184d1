"""The in-process gate: futures, cancellation, deadlines."""

from __future__ import annotations

import asyncio

import pytest

from backends.core.errors import Overloaded
from gateway.gate.local import LocalGate
from gateway.gate.protocol import Gate, GatedDeployment

D = [GatedDeployment("d", 1)]


def gate(max_waiting: int = 16) -> LocalGate:
    made = LocalGate(max_waiting)
    checked: Gate = made
    assert checked is made
    return made


async def test_the_second_waits_for_the_first() -> None:
    g = gate()
    first = await g.acquire("r1", "k", D, 5)
    async with asyncio.TaskGroup() as group:
        second = group.create_task(g.acquire("r2", "k", D, 5))
        await asyncio.sleep(0)
        assert not second.done()
        assert (g.stats()["d"].in_flight, g.stats()["d"].waiting) == (1, 1)
        first.release()
        first.release()
    assert second.result().deployment == "d"
    second.result().release()
    assert g.stats()["d"].in_flight == 0


async def test_cancelled_while_waiting_and_cancelled_after_the_grant_leak_nothing() -> None:
    g = gate()
    first = await g.acquire("r1", "k", D, 5)
    waiting = asyncio.get_running_loop().create_task(g.acquire("r2", "k", D, 5))
    granted = asyncio.get_running_loop().create_task(g.acquire("r3", "k", D, 5))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.sleep(0)
    assert g.stats()["d"].waiting == 1
    first.release()
    granted.cancel()
    with pytest.raises(asyncio.CancelledError):
        await granted
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert (g.stats()["d"].in_flight, g.stats()["d"].waiting) == (0, 0)


async def test_full_and_late_are_503_with_retry_after() -> None:
    g = gate(1)
    await g.acquire("r1", "k", D, 5)
    with pytest.raises(Overloaded) as zero:
        await g.acquire("r2", "k", D, 0)
    late = asyncio.get_running_loop().create_task(g.acquire("r3", "k", D, 0.01))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded) as full:
        await g.acquire("r4", "k", D, 5)
    with pytest.raises(Overloaded) as timeout:
        await late
    for caught in (zero, full, timeout):
        assert caught.value.status == 503
        assert caught.value.retry_after_ms is not None
        assert caught.value.retry_after_ms >= 1000


async def test_a_raised_limit_lets_waiters_in() -> None:
    g = gate()
    await g.acquire("r1", "k", D, 5)
    waiting = asyncio.get_running_loop().create_task(g.acquire("r2", "k", D, 5))
    await asyncio.sleep(0)
    await g.acquire("r3", "k", [GatedDeployment("d", 3)], 5)
    assert (await waiting).deployment == "d"
    assert g.stats()["d"].in_flight == 3
