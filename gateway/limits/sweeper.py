"""Settle what a vanished worker left behind: reservations whose lease ran out, to the last progress known.

Any number of processes may run it; a lock in Redis spares them doing the same work, and the script itself settles a
reservation once, and only while nobody has renewed it.
"""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import Callable
from typing import Any

import msgspec
from redis.asyncio import Redis
from redis.exceptions import NoScriptError, RedisError

from gateway.domain.settlement import LedgerRow, Rule
from gateway.domain.usage_stream import pack_row
from gateway.limits.commands import (
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
from gateway.limits.scripts import Scripts, compose

log = logging.getLogger(__name__)
_AT_ONCE = 128
#: The lock is left to expire: at most one pass in this time, whoever makes it.
_LOCK_MS = 1_000
_decode_opening = msgspec.msgpack.Decoder(Opening).decode
_scripts: Scripts = compose()


def abandoned(
    rules: tuple[Rule, ...], opening: LedgerRow, admitted_us: int, output_tokens: int, cost_of: Callable[[LedgerRow], int]
) -> tuple[LedgerRow, tuple[int, ...]]:
    """The row and the amounts of a request whose worker vanished after `output_tokens`. Pure.

    Tokens are the opening row's input estimate plus the progress; money is `cost_of` that row. Neither is above what
    was reserved.

    Returns:
        The row, `abandoned` and `estimated`, and one amount per rule.
    """
    row = msgspec.structs.replace(
        opening, admitted_us=admitted_us, outcome="abandoned", output_tokens=output_tokens, usage_source="estimated"
    )
    row = msgspec.structs.replace(row, cost_nusd=cost_of(row))
    amounts = {
        "requests": 1,
        "input_tokens": row.input_tokens,
        "output_tokens": output_tokens,
        "tokens": row.input_tokens + output_tokens,
        "nusd": row.cost_nusd,
        "slots": 0,
    }
    return row, tuple([min(rule.cost, amounts[rule.unit]) for rule in rules])


async def sweep(client: Redis, *, name: str, cost_of: Callable[[LedgerRow], int]) -> int:
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
        settled += await _settle(ask, id.decode(), name, now_us, cost_of)
    if settled:
        log.warning("reservations_abandoned", extra={"count": settled})
    return settled


async def keep_swept(client: Redis, *, name: str, cost_of: Callable[[LedgerRow], int], every_s: float = 2.0) -> None:
    """Sweep until cancelled; an outage of Redis only delays it."""
    while True:
        try:
            await sweep(client, name=name, cost_of=cost_of)
        except (RedisError, OSError) as error:
            log.warning("sweep_failed", extra={"reason": type(error).__name__})
        await asyncio.sleep(every_s)


async def _settle(ask: Any, id: str, name: str, now_us: int, cost_of: Callable[[LedgerRow], int]) -> bool:
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
    row, amounts = abandoned(opening.rules, opening.row, admitted_us, output_tokens, cost_of)
    row = msgspec.structs.replace(row, settled_us=now_us, duration_us=max(0, now_us - admitted_us))
    closing = Closing(id, 0, admitted_us, opening.rules, amounts, pack_row(row), name, 0)
    args: Args = settle_args(_scripts.sweep, closing, again=True)
    try:
        reply = await ask.execute_command(*args)
    except NoScriptError:
        await ask.script_load(_scripts.sweep.text)
        reply = await ask.execute_command(*args)
    return parse_settle(reply).code == 1
