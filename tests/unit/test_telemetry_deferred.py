"""Observations of ended requests come in order, once, a moment later or when asked for."""

from __future__ import annotations

import asyncio

from gateway.telemetry.deferred import DELAY_S, MOST, Deferred


async def test_they_come_in_order_and_once_after_a_moment():
    seen: list[int] = []
    deferred = Deferred(seen.append)
    deferred.add(1)
    deferred.add(2)
    assert seen == []
    while len(seen) < 2:
        await asyncio.sleep(DELAY_S)
    deferred.flush()
    assert seen == [1, 2]


async def test_a_scrape_and_the_end_do_not_wait():
    seen: list[int] = []
    deferred = Deferred(seen.append)
    deferred.add(1)
    deferred.flush()
    assert seen == [1]
    deferred.add(2)
    deferred.flush()
    assert seen == [1, 2]


async def test_many_do_not_pile_up():
    seen: list[int] = []
    deferred = Deferred(seen.append)
    for number in range(MOST):
        deferred.add(number)
    assert seen == list(range(MOST))
