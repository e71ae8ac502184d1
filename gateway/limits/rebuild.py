"""Quotas of a Redis that lost its data, rebuilt from the ledger's rows: each row counts once, whoever counts it.

Workers settle again what they hold unacknowledged, which charges it anew and leaves a mark in place of its reservation.
Rows that they may still hold are therefore added one by one, each only where that mark is not there, and leave it
themselves; all older rows are added as sums, each counter once. So every step may be repeated, after a crash too, and the
two meet in any order. `META` carries `rebuilding` meanwhile (data that are lost again lose it, and all begins anew) and
`rebuilt`, the epoch, when all is done.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from gateway.domain.usage_stream import META, PREFIX, REBUILT
from gateway.limits.commands import counter_key, reservation_key
from gateway.limits.rules import MAX_AMOUNT

#: The counters whose sums were added already.
_DONE = PREFIX + "rebuilding"
_ADDS = f"""
if redis.call('HGET', KEYS[1], 'rebuilding') ~= ARGV[1] then return redis.error_reply('SYLOST') end
local function add(key, amount, ttl_ms)
  local used = redis.call('GET', key)
  if used and not tonumber(used) then return end
  local sum = math.min((tonumber(used) or 0) + tonumber(amount), {MAX_AMOUNT})
  redis.call('SET', key, string.format('%d', sum), 'PX', ttl_ms)
end
"""
_SUMS = (
    _ADDS
    + """
for i = 3, #KEYS do
  if redis.call('SADD', KEYS[2], KEYS[i]) == 1 then add(KEYS[i], ARGV[2 * i - 4], ARGV[2 * i - 3]) end
end
redis.call('PEXPIRE', KEYS[2], 3600000)
return 1
"""
)
_ROW = (
    _ADDS
    + """
if redis.call('SET', KEYS[2], '-', 'PX', 3600000, 'NX') then
  for i = 3, #KEYS do add(KEYS[i], ARGV[2 * i - 4], ARGV[2 * i - 3]) end
end
return 1
"""
)
_BEGIN = """
redis.call('HSETNX', KEYS[1], 'rebuilding', ARGV[1])
return redis.call('HGET', KEYS[1], 'rebuilding')
"""
_END = """
if redis.call('HGET', KEYS[1], 'rebuilding') ~= ARGV[1] then return redis.error_reply('SYLOST') end
local t = redis.call('TIME')
redis.call('HSETNX', KEYS[1], 'epoch', string.format('%d', tonumber(t[1]) * 1000000 + tonumber(t[2])))
redis.call('HSET', KEYS[1], ARGV[2], redis.call('HGET', KEYS[1], 'epoch'))
redis.call('HDEL', KEYS[1], 'rebuilding')
redis.call('DEL', KEYS[2])
return 1
"""
_AT_ONCE = 1000


class Share(msgspec.Struct, frozen=True):
    """What a row or a sum of rows counts in one quota: the rule's name, the end of its period (µs UTC) and the amount."""

    name: str
    ends_us: int
    amount: int


class RowShares(msgspec.Struct, frozen=True):
    """What one row, by its reservation id, counts in each quota."""

    id: str
    shares: tuple[Share, ...]


async def begun(client: Redis, now_us: int) -> int:
    """Begin to rebuild, or go on with what was left half done: the instant of its beginning, which names the try.

    Whatever is added must be reckoned at that instant, so that it is the same at each try.

    Raises:
        redis.RedisError: Redis does not answer.
    """
    ask: Any = client
    return int(await ask.eval(_BEGIN, 1, META, now_us))


async def rebuild(client: Redis, try_us: int, now_us: int, sums: Sequence[Share], rows: Iterable[RowShares]) -> bool:
    """Add to the quotas what the ledger knows; False when the data were lost once more, so that all begins anew.

    Args:
        client: `decode_responses` off.
        try_us: as `begun` told.
        now_us: the server's clock.
        sums: of all rows but `rows`; each counter named once, the same ones at each try.
        rows: those that a worker may settle again.

    Raises:
        redis.RedisError: Redis does not answer; what was done stays done.
    """
    ask: Any = client
    try:
        for start in range(0, len(sums), _AT_ONCE):
            await _add(ask, _SUMS, try_us, _DONE, sums[start : start + _AT_ONCE], now_us)
        for row in rows:
            await _add(ask, _ROW, try_us, reservation_key(row.id), row.shares, now_us)
        await ask.eval(_END, 2, META, _DONE, try_us, REBUILT)
    except ResponseError as error:
        if "SYLOST" in str(error):
            return False
        raise
    return True


async def _add(ask: Any, script: str, try_us: int, guard: str, shares: Sequence[Share], now_us: int) -> None:
    amounts = [number for share in shares for number in (share.amount, max(1, -(-(share.ends_us - now_us) // 1000)))]
    await ask.eval(script, 2 + len(shares), META, guard, *(counter_key(share.name) for share in shares), try_us, *amounts)
