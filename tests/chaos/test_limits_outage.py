"""What the Redis limit store does when Redis stalls, dies, comes back empty or holds what nobody wrote."""

import asyncio
import struct
import time

import pytest
import redis
import redis.asyncio

from gateway.domain.settlement import Progress, Rule, Settlement
from gateway.domain.usage_stream import COMMITTED, PREFIX, ROW, STREAM, unpack_row
from gateway.limits.commands import LIVE, counter_key, reservation_key
from gateway.limits.redis_store import RedisStore
from gateway.limits.spool import Spool
from gateway.limits.store import LimitExceeded, LimitsUnavailable, PeriodOver
from gateway.limits.sweeper import sweep
from tests.counters import rate_sum
from tests.rows import row

pytestmark = pytest.mark.redis
LEASE = 15_000
TIMEOUT_MS = 100
DENY = (
    Rule("k:requests:60000", "rate", "requests", 100, 60_000, 1),
    Rule("k:slots", "lease", "slots", 50, 0, 1),
)
ALLOW = tuple(Rule(r.name, r.kind, r.unit, r.limit, r.window_ms, r.cost, "allow") for r in DENY)


def wall_us():
    return time.time_ns() // 1000


def make(server, **options):
    return RedisStore(server.url, wall_us, **({"worker": "w0", "timeout_ms": TIMEOUT_MS} | options))


async def until(condition, seconds=5.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        await asyncio.sleep(0.01)


def used(server, name=DENY[0].name):
    with redis.Redis.from_url(server.url) as client:
        return rate_sum(client.get(counter_key(name)))


def slots(server):
    with redis.Redis.from_url(server.url) as client:
        return client.zcard(counter_key("k:slots"))


async def test_a_stopped_redis_delays_nobody_beyond_the_timeout_and_charges_nobody(own_redis):
    async with make(own_redis) as store:
        held = await store.admit("before", DENY, row("before"), LEASE)
        own_redis.pause()
        began = time.monotonic()
        answers = await asyncio.gather(*(store.admit(f"{n}", DENY, row("x"), LEASE) for n in range(5)), return_exceptions=True)
        assert time.monotonic() - began < TIMEOUT_MS / 1000 + 0.1
        assert all(isinstance(answer, LimitsUnavailable) for answer in answers)
        began = time.monotonic()
        with pytest.raises(LimitsUnavailable):  # the breaker is open: no waiting at all
            await store.admit("later", DENY, row("x"), LEASE)
        assert time.monotonic() - began < 0.02
        own_redis.resume()
        await until(lambda: store.link.up)
        await until(lambda: store.settlements.idle)
        await asyncio.sleep(0.1)
        assert used(own_redis) == 1
        assert slots(own_redis) == 1
        await store.admit("after", DENY, row("after"), LEASE)
        assert await store.settle(Settlement(held, (1, 0), row("before")))


async def test_five_admits_whose_callers_left_a_stopped_redis_charge_nothing(own_redis):
    async with make(own_redis, timeout_ms=3000) as store:
        await store.admit("before", DENY, row("before"), LEASE)
        own_redis.pause()
        tasks = [asyncio.ensure_future(store.admit(f"{n}", DENY, row("x"), LEASE)) for n in range(5)]
        await asyncio.sleep(0.05)
        for task in tasks:
            task.cancel()
        assert all(isinstance(r, asyncio.CancelledError) for r in await asyncio.gather(*tasks, return_exceptions=True))
        own_redis.resume()  # within the deadline: the server does carry them out, and then takes them back
        await asyncio.sleep(0.1)
        await until(lambda: store.settlements.idle)
        assert used(own_redis) == 1
        assert slots(own_redis) == 1
        assert store.open_count == 1
        with redis.Redis.from_url(own_redis.url) as client:
            assert client.xlen(STREAM) == 0


async def test_an_admission_cancelled_in_its_own_turn_leaves_nothing(own_redis):
    async with make(own_redis) as store:
        await store.admit("before", DENY, row("before"), LEASE)
        task = asyncio.ensure_future(store.admit("a", DENY, row("a"), LEASE))
        asyncio.get_running_loop().call_soon(task.cancel)
        assert isinstance((await asyncio.gather(task, return_exceptions=True))[0], asyncio.CancelledError)
        await until(lambda: store.link.idle and store.settlements.idle)
        assert (used(own_redis), slots(own_redis), store.open_count) == (1, 1, 1)


async def test_a_late_admission_does_nothing_even_when_its_connection_is_gone(own_redis):
    """The bytes lie in the kernel's buffer of a stopped server, which reads them when it goes on."""
    async with make(own_redis) as store:
        await store.admit("before", DENY, row("before"), LEASE)
        own_redis.pause()
        with pytest.raises(LimitsUnavailable):
            await store.admit("late", DENY, row("late"), LEASE)
        await store.aclose(0)
        own_redis.resume()
        await asyncio.sleep(0.2)
        assert used(own_redis) == 1
        with redis.Redis.from_url(own_redis.url) as client:
            assert not client.exists(reservation_key("late"))


async def test_allowed_on_outage_is_degraded_and_charged_when_redis_returns(own_redis):
    async with make(own_redis) as store:
        await store.admit("before", ALLOW, row("before"), LEASE)
        own_redis.pause()
        reservations = await asyncio.gather(*(store.admit(f"{n}", ALLOW, row("x"), LEASE) for n in range(4)))
        assert all(reservation.degraded for reservation in reservations)
        done = [store.settle(Settlement(r, (1, 0), row(r.id, outcome="ok"))) for r in reservations]
        assert await asyncio.wait_for(asyncio.gather(*done), 1) == [True] * 4
        assert store.settlements.kept == 4
        own_redis.resume()
        await until(lambda: store.settlements.idle)
        assert used(own_redis) == 5
        assert slots(own_redis) == 1
        with redis.Redis.from_url(own_redis.url) as client:
            ids = [unpack_row(entry[ROW.encode()]).id for _, entry in client.xrange(STREAM)]
        assert sorted(ids) == ["0", "1", "2", "3"]


async def test_killed_and_restarted_empty_running_requests_are_charged_again_and_rows_kept(own_redis):
    async with make(own_redis) as store:
        held = await store.admit("a", DENY, row("a"), LEASE)
        own_redis.kill()
        with pytest.raises(LimitsUnavailable):
            await store.admit("b", DENY, row("b"), LEASE)
        own_redis.start()
        await until(lambda: store.link.up)
        assert used(own_redis) == 0
        await store.admit("c", DENY, row("c"), LEASE)
        assert await store.settle(Settlement(held, (1, 0), row("a", outcome="ok")))
        assert used(own_redis) == 2
        with redis.Redis.from_url(own_redis.url) as client:
            assert [unpack_row(entry[ROW.encode()]).id for _, entry in client.xrange(STREAM)] == ["a"]


async def test_flushall_under_running_requests_charges_them_again_and_keeps_their_rows(own_redis):
    """Counters begin at zero, quotas too: what is running, and what SQL has not taken yet, is charged again."""
    ends_us = wall_us() + 3_600_000_000
    budget = (Rule("t:nusd:2026-11", "quota", "nusd", 1000, 3_600_000, 100, ends_us=ends_us),)
    async with make(own_redis) as store:
        for id, used_up in (("in sql", 500), ("old", 70)):
            old = await store.admit(id, budget, row(id), LEASE)
            await store.settle(Settlement(old, (used_up,), row(id, outcome="ok")))
            with redis.Redis.from_url(own_redis.url) as client:
                client.setnx(COMMITTED, client.xrange(STREAM)[0][0])  # as the ledger does after its commit of the first row
        running = await store.admit("running", budget, row("running"), LEASE)
        with redis.Redis.from_url(own_redis.url) as client:
            client.flushall()
            # the scripts are gone with SCRIPT FLUSH only; the connection stands
            fresh = await store.admit("fresh", budget, row("fresh"), LEASE)
            assert fresh.states[0].remaining == 900
            assert await store.settle(Settlement(running, (40,), row("running", outcome="ok")))
            assert not await store.settle(Settlement(running, (40,), row("running", outcome="ok")))
            await until(lambda: int(client.get(counter_key("t:nusd:2026-11"))) == 100 + 40 + 70)
            assert 0 < client.pttl(counter_key("t:nusd:2026-11")) <= 3_600_000
            assert {unpack_row(entry[ROW.encode()]).id for _, entry in client.xrange(STREAM)} == {"running", "old"}


@pytest.mark.parametrize("poison", ["abc", "-7", "1.5", "nan"])
async def test_a_poisoned_budget_denies_what_needs_it_and_is_not_mended_by_guessing(own_redis, poison):
    budget = (Rule("t:nusd:2026-11", "quota", "nusd", 1000, 3_600_000, 100),)
    async with make(own_redis) as store:
        with redis.Redis.from_url(own_redis.url) as client:
            client.set(counter_key("t:nusd:2026-11"), poison)
            with pytest.raises(LimitsUnavailable):
                await store.admit("denied", budget, row("x"), LEASE)
            assert client.get(counter_key("t:nusd:2026-11")) == poison.encode()
        assert store.poisoned == 1


async def test_a_quota_whose_period_is_over_is_not_charged(own_redis):
    async with make(own_redis) as store:
        await store.admit("first", DENY, row("first"), LEASE)
        late = (*DENY, Rule("t:nusd:2026-11", "quota", "nusd", 9, 1000, 5, ends_us=store.now_us() - 1))
        with pytest.raises(PeriodOver):
            await store.admit("late", late, row("late"), LEASE)
        now = (*DENY, Rule("t:nusd:2026-12", "quota", "nusd", 9, 1000, 5, ends_us=store.now_us() + 10**9))
        held = await store.admit("late", now, row("late"), LEASE)  # the same id
        assert (used(own_redis), slots(own_redis)) == (2, 2)
        assert await store.settle(Settlement(held, (1, 0, 3), row("late", outcome="ok")))
        with redis.Redis.from_url(own_redis.url) as client:
            assert not int(client.get(counter_key("t:nusd:2026-11")) or 0)
            assert int(client.get(counter_key("t:nusd:2026-12"))) == 3
            assert client.xlen(STREAM) == 1


async def test_redis_that_was_never_there_is_found_when_it_comes(own_redis):
    own_redis.kill()
    async with make(own_redis) as store:
        with pytest.raises(LimitsUnavailable):
            await store.admit("a", DENY, row("a"), LEASE)
        own_redis.start()
        await until(lambda: store.link.up)
        await store.admit("b", DENY, row("b"), LEASE)


async def test_a_dropped_connection_is_made_again_within_the_timeout(own_redis):
    async with make(own_redis, timeout_ms=1000) as store:
        await store.admit("a", DENY, row("a"), LEASE)
        with redis.Redis.from_url(own_redis.url) as client:
            client.client_kill_filter(_type="normal", skipme=True)
        await asyncio.sleep(0.05)
        await until(lambda: store.link.up)
        await asyncio.gather(*(store.admit(f"{n}", DENY, row("x"), LEASE) for n in range(3)))
        assert store.link.breaker.closed


POISON = {
    "short": b"x",
    "letters": b"a" * 512,
    "digits": b"0" * 512,
    "nan": struct.pack("<64d", *[float("nan")] * 64),
    "negative": struct.pack("<64d", -5, 1, *[0] * 62),
    "fraction": struct.pack("<64d", 5.5, 1, *[0] * 62),
    "endless": struct.pack("<64d", float("inf"), 1, *[0] * 62),
    "cut": struct.pack("<3d", 5, 1, 5),
    "its ring": struct.pack("<64d", 5, 1, 5, *[float("nan")] * 61),
    "list": None,
}


@pytest.mark.parametrize("poison", POISON)
async def test_a_poisoned_counter_is_an_outage_of_its_rule_only(own_redis, poison):
    key = counter_key("k:requests:60000")
    with redis.Redis.from_url(own_redis.url) as client:
        if (held := POISON[poison]) is None:
            client.rpush(key, "x")
        else:
            client.set(key, held)
    other = (Rule("other:requests:60000", "rate", "requests", 9, 60_000, 1),)
    async with make(own_redis) as store:
        for n in range(3):
            with pytest.raises(LimitsUnavailable) as caught:
                await store.admit(f"{n}", DENY, row("x"), LEASE)
            assert "requests" not in caught.value.message
        assert (await store.admit("allowed", ALLOW, row("x"), LEASE)).degraded
        assert store.link.breaker.closed
        assert store.poisoned == 4
        assert slots(own_redis) == 0  # nothing else was charged
        assert not (await store.admit("fine", other, row("x"), LEASE)).degraded


async def test_a_poisoned_counter_does_not_keep_a_settlement_from_its_row(own_redis):
    async with make(own_redis) as store:
        held = await store.admit("a", DENY, row("a"), LEASE)
        with redis.Redis.from_url(own_redis.url) as client:
            client.set(counter_key("k:requests:60000"), "x")
            assert await store.settle(Settlement(held, (5, 0), row("a", outcome="ok")))
            assert client.xlen(STREAM) == 1
        assert slots(own_redis) == 0


async def test_a_read_only_replica_is_an_outage_and_recovers_when_it_is_primary_again(own_redis, make_redis):
    primary = make_redis()
    async with make(own_redis) as store:
        held = await store.admit("a", DENY, row("a"), LEASE)
        with redis.Redis.from_url(own_redis.url) as client:
            client.replicaof("127.0.0.1", primary.port)
            with pytest.raises(LimitsUnavailable):
                await store.admit("b", DENY, row("b"), LEASE)
            assert await store.settle(Settlement(held, (1, 0), row("a", outcome="ok")))
            client.replicaof("NO", "ONE")
            await until(lambda: store.settlements.idle)
            assert client.xlen(STREAM) == 1


async def test_settlements_beyond_memory_go_to_the_spool_and_a_later_worker_delivers_them(own_redis, tmp_path):
    path = tmp_path / "w0.spool"
    many = (Rule("k:tokens:60000", "rate", "tokens", 10_000, 60_000, 10),)
    store = make(own_redis, spool=Spool(path), max_kept=2)
    await store.start()
    held = [await store.admit(f"{n}", many, row(f"{n}"), LEASE) for n in range(5)]
    own_redis.pause()
    waiting = [store.settle(Settlement(r, (4,), row(r.id, outcome="ok"))) for r in held]
    await asyncio.gather(*waiting)
    assert store.settlements.kept == 2
    assert store.settlements.spool_bytes > 0
    assert store.ready
    await store.aclose(0)
    assert store.settlements.dropped == 0
    own_redis.resume()
    async with make(own_redis, spool=Spool(path)) as later:
        await until(lambda: later.settlements.spool_bytes == 0)
        assert used(own_redis, "k:tokens:60000") == 20
        with redis.Redis.from_url(own_redis.url) as client:
            ids = {unpack_row(entry[ROW.encode()]).id for _, entry in client.xrange(STREAM)}
        assert ids == {"0", "1", "2", "3", "4"}


async def test_without_a_spool_what_does_not_fit_is_counted_and_the_store_is_not_ready(own_redis):
    store = make(own_redis, max_kept=1)
    await store.start()
    held = [await store.admit(f"{n}", DENY, row(f"{n}"), LEASE) for n in range(2)]
    own_redis.pause()
    await asyncio.gather(*(store.settle(Settlement(r, (1, 0), row(r.id))) for r in held))
    assert not store.ready
    assert store.settlements.dropped == 1
    await store.aclose(0)
    own_redis.resume()


async def test_the_sweeper_settles_what_a_vanished_worker_left(own_redis):
    rules = (Rule("k:tokens:60000", "rate", "tokens", 100, 60_000, 60), Rule("k:slots", "lease", "slots", 1, 0, 1))
    gone = make(own_redis)
    await gone.start()
    reservation = await gone.admit("a", rules, row("a", input_tokens=20), 150)
    await gone.renew([Progress("a", ("k:slots",), 7)])
    async with make(own_redis) as store, redis.asyncio.Redis.from_url(own_redis.url) as client:
        assert await sweep(client, name="ledger", cost_of=lambda row: row.output_tokens * 3) == 0
        await asyncio.sleep(0.2)
        await client.delete(PREFIX + "sweeper")
        await client.script_flush()
        assert await sweep(client, name="ledger", cost_of=lambda row: row.output_tokens * 3) == 1
        assert await sweep(client, name="other", cost_of=lambda row: 0) == 0  # locked
        ((_, entry),) = await client.xrange(STREAM)
        written = unpack_row(entry[ROW.encode()])
        assert (written.outcome, written.usage_source, written.output_tokens) == ("abandoned", "estimated", 7)
        assert (written.admitted_us, written.cost_nusd) == (reservation.admitted_us, 21)
        assert used(own_redis, "k:tokens:60000") == 27
        assert await client.zcard(LIVE) == 0
        await store.admit("b", rules, row("b"), LEASE)
        with pytest.raises(LimitExceeded):
            await store.admit("c", rules, row("c"), LEASE)
    await gone.aclose(0)


async def test_every_key_of_a_call_lies_in_one_slot_of_a_cluster(make_redis):
    server = make_redis("--cluster-enabled", "yes")
    with redis.Redis.from_url(server.url) as client:
        client.execute_command("CLUSTER", "ADDSLOTS", *range(16384))
        end = time.monotonic() + 10
        while b"cluster_state:ok" not in client.execute_command("CLUSTER", "INFO", **{"never_decode": True}):
            assert time.monotonic() < end
            time.sleep(0.05)
    async with make(server) as store:
        held = await store.admit("a", DENY, row("a"), 100)
        assert await store.settle(Settlement(held, (1, 0), row("a", outcome="ok")))
        await store.admit("b", DENY, row("b"), 100)
        await asyncio.sleep(0.15)
        async with redis.asyncio.Redis.from_url(server.url) as client:
            assert await sweep(client, name="ledger", cost_of=lambda row: 0) == 1
    with redis.Redis.from_url(server.url) as client:
        assert len({client.execute_command("CLUSTER", "KEYSLOT", key) for key in client.scan_iter()}) == 1


async def test_out_of_memory_refuses_admissions_and_settlements_wait(make_redis):
    server = make_redis()
    async with make(server) as store:
        held = await store.admit("a", DENY, row("a"), LEASE)
        with redis.Redis.from_url(server.url) as client:
            client.config_set("maxmemory", 1)
            with pytest.raises(LimitsUnavailable):
                await store.admit("b", DENY, row("b"), LEASE)
            assert await store.settle(Settlement(held, (1, 0), row("a", outcome="ok")))
            assert store.settlements.kept == 1
            client.config_set("maxmemory", 0)
            await until(lambda: store.settlements.idle)
            assert client.xlen(STREAM) == 1
            assert used(server) == 1


async def test_closing_ends_the_connection_whatever_is_on_the_way(own_redis):
    store = make(own_redis)
    await store.start()
    await store.admit("a", DENY, row("a"), LEASE)
    waiting = asyncio.ensure_future(store.admit("b", DENY, row("b"), LEASE))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await store.aclose(0)
    with pytest.raises(LimitsUnavailable):
        await waiting
    with redis.Redis.from_url(own_redis.url) as client:
        await until(lambda: all(c["name"] != "switchyard-limits" for c in client.client_list()))
