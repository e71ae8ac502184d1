"""Settle what a vanished worker left behind: at once what its flight record tells; when the lease ran out, the rest, to the
last progress that Redis was told.

Any number of processes may run it; a lock in Redis spares them doing the same work, and the script itself settles a
reservation once, and only while nobody has renewed it.
"""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
from redis.asyncio import Redis
from redis.exceptions import NoScriptError, RedisError

from gateway.domain.usage_stream import pack_row
from gateway.limits.abandoned import Abandoned, CostOf, by_flight, by_progress
from gateway.limits.commands import (
    GONE,
    HOLDER_DEAD,
    LIVE,
    SWEEPER,
    Args,
    Closing,
    Opening,
    parse_record,
    parse_settle,
    reservation_key,
    settle_args,
)
from gateway.limits.flights import Flown, left_behind
from gateway.limits.scripts import Scripts, compose

log = logging.getLogger(__name__)
_AT_ONCE = 128
#: The lock is left to expire: at most one pass in this time, whoever makes it.
_LOCK_MS = 1_000
#: The row and the amounts of a reservation: its opening, its instant, its output tokens so far.
Judge = Callable[[Opening, int, int], Abandoned]
_decode_opening = msgspec.msgpack.Decoder(Opening).decode
_scripts: Scripts = compose()


async def sweep(client: Redis, *, name: str, cost_of: CostOf) -> int:
    """One pass over the expired reservations.

    Args:
        client: any client of the same Redis, `decode_responses` off.
        name: written to the stream as the worker that settled.
        cost_of: the price of a row's tokens, nano-USD.

    Returns:
        How many were settled as abandoned; 0 also when another sweeper is at it.

    Raises:
        redis.RedisError: Redis does not answer; what was done stays done.
    """
    ask: Any = client
    if not await ask.set(SWEEPER, name, nx=True, px=_LOCK_MS):
        return 0
    seconds, micros = await ask.time()
    now_us = int(seconds) * 1_000_000 + int(micros)
    settled = 0
    for id in await ask.zrevrangebyscore(LIVE, "+inf", -now_us, start=0, num=_AT_ONCE):
        settled += await _settle(ask, id.decode(), name, now_us, _expired(cost_of))
    if settled:
        log.warning("reservations_abandoned", extra={"count": settled})
    return settled


async def keep_swept(client: Redis, *, name: str, cost_of: CostOf, every_s: float = 2.0) -> None:
    """Sweep until cancelled; an outage of Redis only delays it."""
    while True:
        try:
            await sweep(client, name=name, cost_of=cost_of)
        except (RedisError, OSError) as error:
            log.warning("sweep_failed", extra={"reason": type(error).__name__})
        await asyncio.sleep(every_s)


async def land(client: Redis, flown: Sequence[Flown], *, name: str, cost_of: CostOf) -> int:
    """Settle the requests of workers that are gone, whatever is left of their leases.

    Args:
        client, name, cost_of: as for `sweep`.
        flown: what the workers' flight records tell; of requests that were settled already, too.

    Returns:
        How many were settled as abandoned.

    Raises:
        redis.RedisError: Redis does not answer; what was done stays done, and it may be called again.
    """
    ask: Any = client
    settled = 0
    for start in range(0, len(flown), _AT_ONCE):
        batch = flown[start : start + _AT_ONCE]
        sizes = ask.pipeline(transaction=False)
        for one in batch:
            sizes.strlen(reservation_key(one.id))
        open_ones = [one for one, size in zip(batch, await sizes.execute(), strict=True) if size > len(GONE)]
        if open_ones:
            seconds, micros = await ask.time()
            now_us = int(seconds) * 1_000_000 + int(micros)
            for one in open_ones:
                settled += await _settle(ask, one.id, name, now_us, _landed(one, cost_of), dead=True)
    if settled:
        log.warning("reservations_landed", extra={"count": settled})
    return settled


async def keep_landed(client: Redis, folder: Path, *, name: str, cost_of: CostOf, every_s: float = 0.25) -> None:
    """Look for the flight records of workers that are gone, until cancelled; an outage of Redis only delays it."""
    while True:
        try:
            with left_behind(folder) as flown:
                if flown:
                    await land(client, flown, name=name, cost_of=cost_of)
        except (RedisError, OSError) as error:
            log.warning("landing_failed", extra={"reason": type(error).__name__})
        await asyncio.sleep(every_s)


def _expired(cost_of: CostOf) -> Judge:
    return lambda opening, admitted_us, output: by_progress(opening.rules, opening.row, admitted_us, output, cost_of)


def _landed(flown: Flown, cost_of: CostOf) -> Judge:
    return lambda opening, admitted_us, _: by_flight(opening.rules, opening.row, admitted_us, flown, cost_of)


async def _settle(ask: Any, id: str, name: str, now_us: int, judge: Judge, *, dead: bool = False) -> bool:
    record = await ask.get(reservation_key(id))
    try:
        output_tokens, admitted_us, blob = parse_record(bytes(record or b""))
        opening = _decode_opening(blob)
    except (ValueError, struct.error):
        # settled or voided meanwhile, or a record that nobody can read: the script or we take it off the list
        if record is not None:
            log.error("reservation_unreadable", extra={"request_id": id})
        await ask.zrem(LIVE, id)
        return False
    row, amounts = judge(opening, admitted_us, output_tokens)
    row = msgspec.structs.replace(row, settled_us=now_us, duration_us=max(0, now_us - admitted_us))
    closing = Closing(id, 0, admitted_us, opening.rules, amounts, pack_row(row), name, 0)
    args: Args = settle_args(_scripts.sweep, closing, again=HOLDER_DEAD if dead else 1)
    try:
        reply = await ask.execute_command(*args)
    except NoScriptError:
        await ask.script_load(_scripts.sweep.text)
        reply = await ask.execute_command(*args)
    return parse_settle(reply).code == 1
