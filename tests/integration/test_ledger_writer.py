"""The ledger role between a real Redis and real databases: nothing lost, nothing doubled, whatever stops."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import sqlalchemy as sa
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.auth.audit_trail import trail
from gateway.auth.database import By, Database
from gateway.boot import kept_audit
from gateway.domain.usage_stream import COMMITTED, STREAM, pack_row
from gateway.ledger.migrations import migrate
from gateway.ledger.models import LEDGER
from gateway.ledger.queries import DAY_US, delete_before, keep_retention, kept_rows, usage
from gateway.ledger.rows import connect, store_rows
from gateway.ledger.writer import DEAD, LEASE, LedgerRole, run_ledger
from tests.rows import row
from tests.servers import PostgresServer, RedisServer

pytestmark = pytest.mark.redis
NOW = 1_800_000_000_000_000


@pytest.fixture(params=["sqlite", "postgresql"])
async def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        url = f"sqlite+aiosqlite:///{tmp_path / 'gateway.db'}"
    else:
        url = request.getfixturevalue("postgres_server").url
    await asyncio.to_thread(migrate, url)
    return url


@pytest.fixture
async def engine(url: str) -> AsyncIterator[AsyncEngine]:
    engine = connect(url)
    async with engine.begin() as connection:
        await connection.execute(sa.delete(LEDGER))
    yield engine
    await engine.dispose()


@pytest.fixture
async def redis(own_redis: RedisServer) -> AsyncIterator[Redis]:
    redis = Redis.from_url(own_redis.url, retry_on_error=[])
    yield redis
    await redis.aclose()


async def add(redis: Redis, id: str, worker: str = "w1", seq: int = 1, **fields: object) -> bytes:
    row_fields = {"outcome": "ok", "admitted_us": NOW, **fields}
    return await redis.xadd(STREAM, {"w": worker, "n": seq, "r": pack_row(row(id, **row_fields))})


async def stored(engine: AsyncEngine) -> dict[str, tuple[str, int]]:
    async with engine.connect() as connection:
        rows = await connection.execute(sa.select(LEDGER.c.id, LEDGER.c.outcome, LEDGER.c.output_tokens))
        return {id: (outcome, tokens) for id, outcome, tokens in rows}


async def until(condition: Callable[[], object], timeout_s: float = 20.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not await condition():  # type: ignore[misc]
            await asyncio.sleep(0.02)


async def test_a_batch_is_committed_acknowledged_and_deleted(redis: Redis, engine: AsyncEngine) -> None:
    ids = [await add(redis, f"id{n}", worker=f"w{n % 2}", seq=n, output_tokens=n) for n in range(7)]
    role = LedgerRole(redis, engine, "me", batch=5)
    assert [await role.step(), await role.step(), await role.step()] == [5, 2, 0]
    assert await stored(engine) == {f"id{n}": ("ok", n) for n in range(7)}
    assert await redis.xlen(STREAM) == 0
    assert await redis.get(COMMITTED) == ids[-1]


async def test_entries_that_come_again_change_nothing(redis: Redis, engine: AsyncEngine) -> None:
    role = LedgerRole(redis, engine, "me")
    await add(redis, "a", seq=9, output_tokens=1)
    await add(redis, "a", seq=9, output_tokens=2)
    await add(redis, "b", outcome="abandoned", output_tokens=3)
    await role.step()
    await add(redis, "a", seq=4, outcome="cancelled", output_tokens=4)
    await add(redis, "b", seq=4, output_tokens=5)
    last = await add(redis, "b", seq=4, outcome="abandoned", output_tokens=6)
    await role.step()
    assert await stored(engine) == {"a": ("ok", 1), "b": ("ok", 5)}
    assert await redis.get(COMMITTED) == last
    await redis.set(COMMITTED, b"9999999999999-0")
    await add(redis, "c")
    await role.step()
    assert await redis.get(COMMITTED) == b"9999999999999-0", "it never goes back"


@pytest.mark.parametrize(
    "fields",
    [
        {"r": b"\xff not msgpack"},
        {"w": b"w1", "n": b"1"},
        {"r": pack_row(row("nul", user="a\0b"))},
        {"r": pack_row(row(""))},
        {"r": pack_row(row("big", cost_nusd=2**63))},
        {"r": pack_row(row("status", status=2**31)), "n": b"-5", "w": b"w"},
    ],
)
async def test_poison_is_moved_aside_and_stops_nobody(
    redis: Redis, engine: AsyncEngine, fields: dict[str, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    await redis.xadd(STREAM, fields)  # type: ignore[arg-type]
    await add(redis, "good")
    role = LedgerRole(redis, engine, "me")
    assert await role.step() == 2 and role.dead == 1
    assert set(await stored(engine)) == {"good"} and await redis.xlen(STREAM) == 0
    ((_, told),) = await redis.xrange(DEAD)
    dead = dict(zip(told[::2], told[1::2], strict=True))
    assert all(dead[name.encode()] == value for name, value in fields.items()) and dead[b"reason"] and dead[b"entry"]
    assert any("moved aside" in record.message for record in caplog.records)


async def test_poison_is_moved_aside_once_however_long_sql_is_out(redis: Redis, engine: AsyncEngine, tmp_path: Path) -> None:
    await redis.xadd(STREAM, {"r": b"poison"})
    await add(redis, "good")
    broken = connect(f"sqlite+aiosqlite:///{tmp_path / 'not-migrated.db'}")
    role = LedgerRole(redis, broken, "me")
    for _ in range(3):
        with pytest.raises(sa.exc.OperationalError):
            await role.step()
    await broken.dispose()
    assert await redis.xlen(STREAM) == 2 and await redis.exists(DEAD, COMMITTED) == 0
    assert await LedgerRole(redis, engine, "me").step() == 2
    assert await redis.xlen(DEAD) == 1 and set(await stored(engine)) == {"good"}


async def test_old_rows_go_while_the_role_runs(own_redis: RedisServer, redis: Redis, engine: AsyncEngine, url: str) -> None:
    await store_rows(engine, [row("old", outcome="ok", admitted_us=1), row("young", outcome="ok", admitted_us=2**60)])
    stop = asyncio.Event()

    async def gone() -> bool:
        return set(await stored(engine)) == {"young"}

    async with asyncio.TaskGroup() as group:
        group.create_task(run_ledger(own_redis.url, url, 400, stop))
        await until(gone)
        stop.set()


async def test_one_role_at_a_time_and_a_dead_ones_lease_ends(redis: Redis, engine: AsyncEngine) -> None:
    one, other = LedgerRole(redis, engine, "one", lease_ms=150), LedgerRole(redis, engine, "other", lease_ms=150)
    assert await one.hold() and await one.hold() and not await other.hold()
    await until(other.hold, 2.0)
    assert not await one.hold()
    await one.release()
    assert await redis.get(LEASE) == b"other"
    await other.release()
    assert await one.hold()


async def test_sql_stopped_while_rows_flow(postgres_server: PostgresServer, own_redis: RedisServer, redis: Redis) -> None:
    await asyncio.to_thread(migrate, postgres_server.url)
    engine = connect(postgres_server.url)
    async with engine.begin() as connection:
        await connection.execute(sa.delete(LEDGER))
    stop = asyncio.Event()
    sent = 0

    async def send() -> None:
        nonlocal sent
        while not stop.is_set():
            await add(redis, f"{sent:06}", seq=sent, output_tokens=1)
            sent += 1
            await asyncio.sleep(0.001)

    async def empty() -> bool:
        return await redis.xlen(STREAM) == 0

    async def waiting() -> bool:
        return await redis.xlen(STREAM) > 300

    try:
        async with asyncio.TaskGroup() as group:
            roles = [
                group.create_task(run_ledger(own_redis.url, postgres_server.url, 400, stop, linger_s=0.01, retry_s=0.1))
                for _ in range(2)
            ]
            group.create_task(send())
            for _ in range(2):
                await asyncio.sleep(0.3)
                await asyncio.to_thread(postgres_server.stop)
                await until(waiting)
                await asyncio.to_thread(postgres_server.start)
            await asyncio.sleep(0.5)
            stop.set()
        assert all(role.done() for role in roles)
        assert await empty()
        rows = await stored(engine)
        assert len(rows) == sent > 600 and set(rows) == {f"{n:06}" for n in range(sent)}
        (total,) = await usage(engine, (), 0, 2**62)
        assert (total.requests, total.output_tokens) == (sent, sent)
        assert await redis.get(COMMITTED)
    finally:
        await asyncio.to_thread(postgres_server.start) if not postgres_server.running else None
        await engine.dispose()


async def test_redis_restarted_empty_and_paused(own_redis: RedisServer, redis: Redis, engine: AsyncEngine, url: str) -> None:
    stop = asyncio.Event()

    async def has(id: str) -> bool:
        return id in await stored(engine)

    async with asyncio.TaskGroup() as group:
        group.create_task(run_ledger(own_redis.url, url, 400, stop, linger_s=0.01, retry_s=0.05))
        await add(redis, "before")
        await until(lambda: has("before"))
        await asyncio.to_thread(own_redis.restart)
        await redis.connection_pool.disconnect()
        await add(redis, "after")
        await add(redis, "before", output_tokens=99)
        await until(lambda: has("after"))
        await asyncio.to_thread(own_redis.kill)
        await asyncio.sleep(0.2)
        await asyncio.to_thread(own_redis.start)
        await redis.connection_pool.disconnect()
        await add(redis, "last")
        await until(lambda: has("last"))
        stop.set()
    assert await stored(engine) == {"before": ("ok", 0), "after": ("ok", 0), "last": ("ok", 0)}


async def test_the_end_drains_what_is_left_and_frees_the_lease(
    own_redis: RedisServer, redis: Redis, engine: AsyncEngine, url: str
) -> None:
    stop = asyncio.Event()
    stop.set()
    for n in range(1200):
        await add(redis, f"{n:05}")
    await run_ledger(own_redis.url, url, 400, stop)
    assert len(await stored(engine)) == 1200 and await redis.exists(LEASE) == 0


async def test_sums_equal_the_rows(engine: AsyncEngine) -> None:
    day = NOW - NOW % DAY_US
    rows = [
        row(
            f"{n}",
            outcome="ok",
            admitted_us=day + n % 3 * DAY_US,
            key_id=f"k{n % 2}",
            model="m",
            output_tokens=n,
            cost_nusd=2**55,
        )
        for n in range(60)
    ]
    await store_rows(engine, rows)
    by_key = await usage(engine, ("key",), 0, 2**62)
    assert [(each.group, each.requests, each.output_tokens, each.cost_nusd) for each in by_key] == [
        (("k0",), 30, sum(range(0, 60, 2)), 30 * 2**55),
        (("k1",), 30, sum(range(1, 60, 2)), 30 * 2**55),
    ]
    by_day = await usage(engine, ("day", "model"), day, day + 2 * DAY_US)
    assert [each.group for each in by_day] == [(day, "m"), (day + DAY_US, "m")]
    assert [each.output_tokens for each in by_day] == [sum(range(0, 60, 3)), sum(range(1, 60, 3))]
    assert await usage(engine, (), 0, day) == []


async def test_retention_deletes_old_rows_in_batches(engine: AsyncEngine) -> None:
    await store_rows(engine, [row(f"{n}", outcome="ok", admitted_us=n) for n in range(50)])
    assert await delete_before(engine, 33, batch=10, pause_s=0) == 33
    assert set(await stored(engine)) == {f"{n}" for n in range(33, 50)}
    assert await delete_before(engine, 33, batch=10) == 0


async def test_retention_keeps_what_each_table_says(engine: AsyncEngine, url: str) -> None:
    """The audit trail and the ledger are kept for times of their own."""
    await store_rows(
        engine, [row("old", outcome="ok", admitted_us=5 * DAY_US), row("new", outcome="ok", admitted_us=9 * DAY_US)]
    )
    stores = Database(url)
    for number in (1, 6):
        async with stores.changing(By("retention", number * DAY_US)) as change:
            await change.audit("create", "team", f"t{number}", {})
    async with asyncio.TaskGroup() as group:
        work = group.create_task(keep_retention(url, [kept_rows(3), kept_audit(8)], lambda: 10 * DAY_US))

        async def tidied() -> bool:
            kept = [one.name for one in await trail(stores, {"actor": "retention"})]
            return kept == ["t6"] and set(await stored(engine)) == {"new"}

        await until(tidied)
        work.cancel()
    await stores.aclose()
