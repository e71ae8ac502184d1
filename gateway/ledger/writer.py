"""The ledger role: rows from the Redis stream into SQL. The stream is the outbox, so nothing is deleted before the commit.

An entry may come twice (a worker repeats what it is not sure of, a commit's answer may be lost): the reservation id is
the row's primary key, so it is one row all the same. Every gateway runs this role; a lease in Redis lets one of them
work at a time. It only saves labour: two at once would still write each row once.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from typing import Any, cast

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from backends.core.errors import GatewayError
from gateway.domain.usage_stream import COMMITTED, EPOCH, META, PREFIX, REBUILT, ROW, STREAM
from gateway.ledger.queries import keep_retention, kept_rows
from gateway.ledger.rows import Values, connect, store_values, unpack_values

LEASE = PREFIX + "ledger"
#: Entries that are no rows, kept for a human; the newest 10,000 or so.
DEAD = STREAM + ":dead"
_DEAD_MAX = 10_000
_ROW = ROW.encode()
_OUTAGE = (SQLAlchemyError, RedisError, OSError, TimeoutError, GatewayError)
_LEASE_LUA = """
local held = redis.call('GET', KEYS[1])
if held and held ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""
_RELEASE_LUA = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"
# The acknowledgement only grows. A batch begins where the stream does, so everything up to its last entry was in it.
_ACK_LUA = """
local function parts(id)
  local at, number = string.match(id or '', '^(%d+)-(%d+)$')
  return tonumber(at) or 0, tonumber(number) or 0
end
local at, number = parts(ARGV[1])
local was_at, was_number = parts(redis.call('GET', KEYS[2]) or '')
if at > was_at or (at == was_at and number > was_number) then redis.call('SET', KEYS[2], ARGV[1]) end
redis.call('XTRIM', KEYS[1], 'MINID', '=', ARGV[2])
return 1
"""
_log = logging.getLogger(__name__)

#: An entry as Redis tells it: its id; names and values in turns.
Entry = tuple[bytes, Sequence[bytes]]
Restore = Callable[[Redis, AsyncEngine], Awaitable[None]]


class LedgerRole:
    """Drains the stream. The owner closes `redis` and `engine`.

    Args:
        redis: a client that decodes nothing. From now on it gives entries of streams as Redis tells them: a mapping for
            each would cost as much as to decode its row.
        engine: of a migrated database.
        token: names this process in the lease.
        batch: entries per transaction.
        lease_ms: how long a dead holder keeps the others waiting.
        restore: brings the quotas of a Redis that lost its data to what the ledger knows; None = nobody does.
    """

    def __init__(
        self,
        redis: Redis,
        engine: AsyncEngine,
        token: str,
        *,
        batch: int = 1000,
        lease_ms: int = 10_000,
        restore: Restore | None = None,
    ) -> None:
        redis.set_response_callback("XRANGE", _as_told)
        self._redis = redis
        self._engine = engine
        self._token = token
        self.batch = batch
        self._lease_ms = lease_ms
        self._restore = restore
        self._held_until = 0.0
        self.written = 0
        """Rows committed, repeated ones too."""
        self.dead = 0
        """Entries moved to the dead-letter stream."""

    async def hold(self) -> bool:
        """Take the lease, or prolong it when an eighth of it is over; False while another process has it.

        Raises:
            RedisError, OSError: Redis is out of reach.
        """
        now = time.monotonic()
        if now >= self._held_until:
            held = bool(await self._eval(_LEASE_LUA, (LEASE,), (self._token, self._lease_ms)))
            self._held_until = now + self._lease_ms / 8000 if held else 0.0
            return held
        return True

    async def step(self) -> int:
        """Move one batch: read, commit, acknowledge, delete.

        Returns:
            How many entries were taken from the stream.

        Raises:
            SQLAlchemyError, RedisError, OSError, TimeoutError: an outage; the entries are still in the stream, and the
                call may be repeated.
        """
        # Read from the start: what was read and not yet committed is still there.
        async with self._redis.pipeline(transaction=True) as both:
            both.hmget(META, EPOCH, REBUILT)
            both.xrange(STREAM, count=self.batch)
            (epoch, rebuilt), entries = cast("tuple[tuple[bytes | None, bytes | None], Sequence[Entry]]", await both.execute())
        if self._restore is not None and (rebuilt is None or rebuilt != epoch):
            # Before any row of the new data is in SQL: what is there was counted by the data that are lost.
            _log.warning("quotas are rebuilt from the ledger")
            await self._restore(self._redis, self._engine)
            return 0
        if not entries:
            return 0
        rows: list[Values] = []
        dead: list[tuple[Entry, str]] = []
        for entry in entries:
            try:
                rows.append(unpack_values(_row(entry[1])))
            except ValueError as error:
                dead.append((entry, str(error)))
        await store_values(self._engine, rows)
        # After the rows, or an outage of SQL would bury them again at each try.
        for (id, fields), reason in dead:
            await self._bury(id, _named(fields), reason)
        await self._acknowledge(entries[-1][0])
        self.written += len(rows)
        return len(entries)

    async def release(self) -> None:
        """Give the lease to whoever waits for it; a Redis out of reach lets it expire."""
        self._held_until = 0.0
        with suppress(RedisError, OSError):
            await self._eval(_RELEASE_LUA, (LEASE,), (self._token,))

    async def _bury(self, id: bytes, fields: Mapping[bytes, bytes], reason: str) -> None:
        # Added here and deleted with the batch: a crash in between buries it twice, which is better than not at all.
        copy: dict[Any, Any] = {**fields, "entry": id, "reason": reason}
        await self._redis.xadd(DEAD, copy, maxlen=_DEAD_MAX, approximate=True)
        self.dead += 1
        _log.error("usage entry is no ledger row, moved aside", extra={"entry": id.decode(), "reason": reason, "stream": DEAD})

    async def _acknowledge(self, last: bytes) -> None:
        at, _, number = last.partition(b"-")
        await self._eval(_ACK_LUA, (STREAM, COMMITTED), (last, b"%b-%d" % (at, int(number) + 1)))

    async def _eval(self, script: str, keys: tuple[str, ...], arguments: tuple[bytes | str | int, ...]) -> Any:
        return await self._redis.eval(script, len(keys), *keys, *arguments)


def _as_told(response: Any, **kwargs: Any) -> Any:  # noqa: ARG001
    return response


def _named(fields: Sequence[bytes]) -> dict[bytes, bytes]:
    return dict(zip(fields[::2], fields[1::2], strict=True))


def _row(fields: Sequence[bytes]) -> bytes:
    """The row of an entry, which is its last field; nothing of one that has none."""
    return fields[-1] if fields[-2] == _ROW else _named(fields).get(_ROW, b"")


async def run_ledger(
    redis_url: str,
    database_url: str,
    retain_days: int,
    stop: asyncio.Event,
    *,
    linger_s: float = 0.5,
    retry_s: float = 0.5,
    restore: Restore | None = None,
) -> None:
    """The process: drain until `stop`, then once more what is left, for at most 5 s.

    Outages of Redis and SQL are waited out with one log line at each change. Old rows are deleted every hour.

    Args:
        redis_url: the stream's.
        database_url: with an async driver, migrated.
        retain_days: how long rows are kept.
        stop: set by the owner; noticed within a batch.
        linger_s: pause after a batch that was not full: how old a row gets, and how many share a commit.
        retry_s: pause after an outage, and between tries for another process's lease.
        restore: see `LedgerRole`.
    """
    async with AsyncExitStack() as stack:
        redis = Redis.from_url(redis_url, socket_timeout=5.0, socket_connect_timeout=2.0, retry=Retry(NoBackoff(), 0))
        stack.push_async_callback(redis.aclose)
        engine = connect(database_url)
        stack.push_async_callback(engine.dispose)
        role = LedgerRole(redis, engine, secrets.token_hex(8), restore=restore)
        async with asyncio.TaskGroup() as group:
            cleaning = group.create_task(keep_retention(database_url, [kept_rows(retain_days)], _wall_us))
            await _drain_until(role, stop, linger_s, retry_s)
            cleaning.cancel()
        with suppress(*_OUTAGE):
            async with asyncio.timeout(5.0):
                while await role.hold() and await role.step():
                    pass
        await role.release()


async def _drain_until(role: LedgerRole, stop: asyncio.Event, linger_s: float, retry_s: float) -> None:
    out = False
    while not stop.is_set():
        pause_s = retry_s
        try:
            if await role.hold():
                taken = await role.step()
                pause_s = 0.0 if taken >= role.batch else linger_s
            if out:
                _log.info("ledger works again")
            out = False
        except _OUTAGE as error:
            if not out:
                _log.warning("ledger waits, rows stay in Redis", extra={"reason": type(error).__name__})
            out = True
            pause_s = retry_s
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), pause_s)


def _wall_us() -> int:
    return time.time_ns() // 1000
