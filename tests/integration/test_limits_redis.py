"""The Redis limit store against a real redis-server: the ordinary way, and what many workers do to one limit."""

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import redis
import redis.asyncio
import uvloop

from gateway.domain.settlement import Progress, Rule, Settlement
from gateway.domain.usage_stream import ROW, SEQ, STREAM, WORKER, unpack_row
from gateway.limits.commands import LIVE, counter_key, reservation_key
from gateway.limits.flights import Flights, Flown
from gateway.limits.redis_store import RedisStore
from gateway.limits.store import LimitExceeded, LimitsUnavailable
from gateway.limits.suitability import findings
from gateway.limits.sweeper import keep_landed, land, sweep
from tests.counters import rate_sum
from tests.rows import row

pytestmark = pytest.mark.redis
LEASE = 15_000
RULES = (
    Rule("k:requests:60000", "rate", "requests", 3, 60_000, 1),
    Rule("k:tokens:60000", "rate", "tokens", 100, 60_000, 30),
    Rule("k:slots", "lease", "slots", 2, 0, 1),
)


def wall_us():
    return time.time_ns() // 1000


def make(server, **options):
    return RedisStore(server.url, wall_us, **({"worker": "w0", "timeout_ms": 2000} | options))


@pytest.fixture
def server(redis_server):
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
        client.script_flush()
        redis_server.client = client
        yield redis_server


async def test_admit_settle_and_the_row_in_the_stream(server):
    async with make(server) as store:
        reservation = await store.admit("a", RULES, row("a"), LEASE)
        assert abs(reservation.admitted_us - wall_us()) < 1_000_000
        assert [state.remaining for state in reservation.states] == [2, 70, 1]
        assert server.client.zcard(LIVE) == 1
        settlement = Settlement(reservation, (1, 12, 0), row("a", outcome="ok", output_tokens=12))
        assert await store.settle(settlement) is True
        assert await store.settle(settlement) is False
        again = await store.admit("b", RULES, row("b"), LEASE)
        assert [state.remaining for state in again.states] == [1, 58, 1]
        ((_, entry),) = server.client.xrange(STREAM)
        assert (entry[WORKER.encode()], entry[SEQ.encode()]) == (b"w0", b"1")
        written = unpack_row(entry[ROW.encode()])
        assert (written.id, written.admitted_us, written.output_tokens) == ("a", reservation.admitted_us, 12)
        assert server.client.zrange(LIVE, 0, -1) == [b"b"]
        assert not server.client.exists(reservation_key("a"))


async def test_a_refusal_burns_nothing_and_says_when(server):
    async with make(server) as store:
        held = [await store.admit(id, RULES, row(id), LEASE) for id in "ab"]
        with pytest.raises(LimitExceeded) as caught:
            await store.admit("c", RULES, row("c"), LEASE)
        assert caught.value.rule is RULES[2]
        assert caught.value.retry_after_ms == 1000
        await store.settle(Settlement(held[0], (1, 30, 0), row("a")))
        third = await store.admit("d", RULES, row("d"), LEASE)
        assert [state.remaining for state in third.states] == [0, 10, 0]
        with pytest.raises(LimitExceeded) as caught:
            await store.admit("e", RULES, row("e"), LEASE)
        assert caught.value.rule is RULES[0]
        assert 58_000 <= caught.value.retry_after_ms <= 61_000


async def test_void_gives_everything_back_and_writes_no_row(server):
    async with make(server) as store:
        await store.admit("a", RULES, row("a"), LEASE)
        store.void("a")
        store.void("unknown")
        again = await store.admit("b", RULES, row("b"), LEASE)
        assert [state.remaining for state in again.states] == [2, 70, 1]
        assert server.client.xlen(STREAM) == 0


async def test_leases_of_a_vanished_caller_expire_and_renewal_keeps_them(server):
    one = (Rule("k:slots", "lease", "slots", 1, 0, 1),)
    async with make(server) as store:
        await store.admit("a", one, row("a"), 200)
        await asyncio.sleep(0.1)
        await store.renew([Progress("a", ("k:slots",), 7), Progress("unknown", ("k:slots",), 1)])
        await asyncio.sleep(0.15)
        with pytest.raises(LimitExceeded):
            await store.admit("b", one, row("b"), LEASE)
        assert server.client.getrange(reservation_key("a"), 0, 15) == b"0000000000000007"
        await asyncio.sleep(0.2)
        await store.admit("b", one, row("b"), LEASE)


async def test_one_turn_of_the_loop_is_one_write(server):
    many = (Rule("k:requests:60000", "rate", "requests", 1000, 60_000, 1),)
    async with make(server) as store:
        await store.admit("first", many, row("x"), LEASE)
        before = server.client.info("stats")["total_reads_processed"]
        await asyncio.gather(*(store.admit(f"{n}", many, row("x"), LEASE) for n in range(50)))
        reads = server.client.info("stats")["total_reads_processed"] - before
        assert reads <= 4  # 50 commands, about 16 KiB a read; and the question itself


@pytest.mark.parametrize("alone", [True, False])
def test_what_is_written_is_settled_before_whoever_asks_next(server, alone):
    one = (Rule("k:slots", "lease", "slots", 1, 0, 1),)
    many = (Rule("k:requests:60000", "rate", "requests", 100_000, 60_000, 1),)

    async def take_turns():
        async with make(server) as first, make(server, worker="w1") as second:
            for n in range(300):
                here, there = (first, second) if n % 2 else (second, first)
                reservation = await here.admit(f"{n}", one, row(f"{n}"), LEASE)
                if not alone:  # what is on the way makes a settlement wait for the end of the turn
                    beside = asyncio.ensure_future(here.admit(f"{n}-beside", many, row(f"{n}-beside"), LEASE))
                    await asyncio.sleep(0)
                here.settle(Settlement(reservation, (0,), row(f"{n}", outcome="ok")))
                written = here.written()
                assert (written is None) == alone
                if written is not None:
                    await written
                taken = await there.admit(f"{n}-next", one, row(f"{n}-next"), LEASE)
                await there.settle(Settlement(taken, (0,), row(f"{n}-next", outcome="ok")))
                if not alone:
                    await beside
                assert there.written() is None

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(take_turns())


def test_a_command_that_shares_its_write_with_others_makes_the_next_turn_wait_for_its_end(server):
    """One by one they are written at once; where two shared a write, the next are gathered, until one is alone again."""
    many = (Rule("k:requests:60000", "rate", "requests", 100_000, 60_000, 1),)

    async def turns():
        waits = []
        async with make(server) as store:
            await store.admit("first", many, row("first"), LEASE)  # connected
            for name, at_once in (("a", 1), ("b", 3), ("c", 1), ("d", 1)):
                asked = [asyncio.ensure_future(store.admit(f"{name}{n}", many, row(name), LEASE)) for n in range(at_once)]
                await asyncio.sleep(0)
                waits.append(store.written() is not None)
                await asyncio.gather(*asked)
        return waits

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(turns()) == [False, True, True, False]


async def test_nothing_waits_for_a_redis_that_is_away(make_redis):
    away = make_redis()
    async with make(away, timeout_ms=200) as store:
        await store.admit("a", RULES, row("a"), LEASE)
        away.kill()
        with pytest.raises(LimitsUnavailable):
            await store.admit("b", RULES, row("b"), LEASE)
        store.forget("b", RULES, 0, 0)
        if (written := store.written()) is not None:
            await asyncio.wait_for(written, 0.1)  # a turn of the loop, whatever became of the connection


async def test_script_flush_reloads_once_and_loses_nothing(server):
    many = (Rule("k:requests:60000", "rate", "requests", 1000, 60_000, 1),)
    async with make(server) as store:
        held = await store.admit("first", many, row("x"), LEASE)
        server.client.script_flush()
        answers = await asyncio.gather(
            *(store.admit(f"{n}", many, row("x"), LEASE) for n in range(20)), store.settle(Settlement(held, (1,), row("first")))
        )
        assert answers[-1] is True
        assert rate_sum(server.client.get(counter_key(many[0].name))) == 21


async def test_a_worker_that_lost_its_reservation_writes_its_row_but_is_not_charged_twice(server):
    async with make(server) as store:
        reservation = await store.admit("a", RULES, row("a"), LEASE)
        server.client.delete(reservation_key("a"))  # as the sweeper would leave it
        assert await store.settle(Settlement(reservation, (1, 5, 0), row("a", outcome="ok")))
        assert server.client.xlen(STREAM) == 1
        assert rate_sum(server.client.get(counter_key("k:tokens:60000"))) == 30
        assert server.client.zcard(counter_key("k:slots")) == 0


async def test_a_row_is_held_until_it_is_in_sql(server):
    async with make(server) as store:
        for id in ("a", "b"):
            reservation = await store.admit(id, RULES, row(id), LEASE)
            await store.settle(Settlement(reservation, (1, 5, 0), row(id)))
        assert store.settlements.held == 2
        (_, _), (last, _) = server.client.xrange(STREAM)
        server.client.set("sy2:{sy}:committed", last)
        reservation = await store.admit("c", RULES, row("c"), LEASE)
        await store.settle(Settlement(reservation, (1, 5, 0), row("c")))
        assert store.settlements.held == 1


WIDE = (
    Rule("w:requests:60000", "rate", "requests", 100, 60_000, 1),
    Rule("w:tokens:60000", "rate", "tokens", 1000, 60_000, 30),
    Rule("w:slots", "lease", "slots", 20, 0, 1),
)


@pytest.mark.parametrize("how", ["flushed", "flushed, then settled", "restarted"])
async def test_rows_and_charges_come_back_when_redis_lost_its_data(server, how):
    async with make(server) as store:
        for n in range(5):
            reservation = await store.admit(f"a{n}", WIDE, row(f"a{n}"), LEASE)
            await store.settle(Settlement(reservation, (1, 5, 0), row(f"a{n}", outcome="ok")))
        late = await store.admit("late", WIDE, row("late"), LEASE)
        if how == "restarted":
            server.restart()
        else:
            server.client.flushall()
        if how == "flushed, then settled":
            await store.settle(Settlement(late, (1, 5, 0), row("late", outcome="ok")))
        elif how == "flushed":
            await store.admit("new", WIDE, row("new"), LEASE)
        ids: list[str] = []
        for _ in range(100):
            await asyncio.sleep(0.05)
            ids = [unpack_row(fields[b"r"]).id for _, fields in server.client.xrange(STREAM)]
            if len(ids) >= 5:
                break
        assert {f"a{n}" for n in range(5)} <= set(ids) and len(ids) == len(set(ids))
        used = rate_sum(server.client.get(counter_key(WIDE[1].name)))
        assert used == 5 * len(ids) + (WIDE[1].cost if how == "flushed" else 0)
        before = store.settlements.held
        assert before == len(ids), "held again until they are in SQL"


async def test_a_look_at_limits_charges_nothing_and_says_what_an_admission_says(server):
    async with make(server) as store:
        assert [state.remaining for state in await store.peek(RULES)] == [rule.limit for rule in RULES]
        reservation = await store.admit("a", RULES, row("a"), LEASE)
        for _ in range(2):
            assert [s.remaining for s in await store.peek(RULES)] == [s.remaining for s in reservation.states]


HAMMER = """
import asyncio, json, sys, time
from gateway.domain.settlement import Rule
from gateway.limits.flights import Flights, Flown
from gateway.limits.redis_store import RedisStore
from gateway.limits.store import LimitExceeded
from tests.rows import row

async def main(url, name, tasks, each):
    rules = (Rule("team:requests:60000", "rate", "requests", 100, 60_000, 1),
             Rule("team:tokens:60000", "rate", "tokens", 1_000_000, 60_000, 10))
    admitted = refused = 0
    async with RedisStore(url, lambda: time.time_ns() // 1000, worker=name, timeout_ms=5000) as store:
        async def client(n):
            nonlocal admitted, refused
            for m in range(each):
                try:
                    await store.admit(f"{name}-{n}-{m}", rules, row("x"), 15_000)
                    admitted += 1
                except LimitExceeded as error:
                    assert 0 < error.retry_after_ms <= 61_000
                    refused += 1
        async with asyncio.TaskGroup() as group:
            for n in range(tasks):
                group.create_task(client(n))
    print(json.dumps([admitted, refused]))

asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
"""


def test_four_processes_of_many_clients_are_admitted_exactly_the_limit(server):
    root = Path(__file__).parents[2]
    started = [
        subprocess.Popen(
            [sys.executable, "-c", HAMMER, server.url, f"p{n}", "100", "3"],
            stdout=subprocess.PIPE,
            cwd=root,
            env={**os.environ, "PYTHONPATH": str(root)},
        )
        for n in range(4)
    ]
    results = [json.loads(process.communicate(timeout=60)[0]) for process in started]
    assert [process.returncode for process in started] == [0, 0, 0, 0]
    assert sum(admitted for admitted, _ in results) == 100
    assert sum(refused for _, refused in results) == 1100
    assert rate_sum(server.client.get(counter_key("team:tokens:60000"))) == 1000


@pytest.mark.parametrize("error_us", [-10_000_000, 10_000_000])
async def test_a_wrong_idea_of_the_servers_clock_is_mended_by_the_first_reply(server, error_us):
    async with make(server, timeout_ms=1000) as store:
        await store.admit("a", RULES, row("a"), LEASE)
        store.link.offset_us += error_us
        reservation = await store.admit("b", RULES, row("b"), LEASE)
        assert reservation.states[0].remaining == 1
        assert abs(store.link.server_us(asyncio.get_running_loop().time()) - wall_us()) < 500_000


async def test_a_redis_that_may_evict_is_found_unfit(make_redis):
    fit = make_redis("--appendonly", "yes")
    async with redis.asyncio.Redis.from_url(fit.url) as client:
        assert await findings(client) == []
        await client.config_set("maxmemory-policy", "allkeys-lru")
        await client.config_set("appendonly", "no")
        assert [finding.severity for finding in await findings(client)] == ["error", "warning"]
    fit.kill()
    async with redis.asyncio.Redis.from_url(fit.url) as client:
        assert [finding.severity for finding in await findings(client)] == ["warning"], "an outage is on_outage's"


async def test_a_password_and_a_database_of_the_url_are_used(make_redis):
    locked = make_redis("--requirepass", "s3cret")
    address = f"127.0.0.1:{locked.port}"
    async with RedisStore(f"redis://:s3cret@{address}/2", wall_us, worker="w0", timeout_ms=1000) as store:
        await store.admit("a", RULES, row("a"), LEASE)
    with redis.Redis.from_url(f"redis://:s3cret@{address}/2") as client:
        assert client.zcard(LIVE) == 1
    async with RedisStore(f"redis://:wrong@{address}/2", wall_us, worker="w0", timeout_ms=200) as store:
        with pytest.raises(LimitsUnavailable) as caught:
            await store.admit("b", RULES, row("b"), LEASE)
        assert "wrong" not in caught.value.message + caught.value.detail


async def test_a_dead_workers_flights_are_settled_at_once_and_once(server):
    """Whoever is first, landing, lease or the worker's own settlement that was still under way: one row, one charge."""
    quota = Rule("k:tokens:2026-11", "quota", "tokens", 1000, 60_000_000, 30, ends_us=wall_us() + 10**12)
    rules = (*RULES[:1], quota, RULES[2])
    client = redis.asyncio.Redis.from_url(server.url)

    def told(id, deltas):
        return Flown(id, deltas, attempts=1, deployment="d")

    def cost_of(one):
        return one.output_tokens

    async with make(server) as store:
        held = await store.admit("a", rules, row("a"), LEASE)
        await store.admit("b", rules, row("b"), LEASE)
        await store.renew([Progress("b", ("k:slots",), 2)])
        assert await store.settle(Settlement(held, (1, 9, 0), row("a", outcome="ok", output_tokens=9)))
        assert await sweep(client, name="s", cost_of=cost_of) == 0, "its lease is not over"
        flown = [told("a", 5), told("b", 6), told("never admitted", 7)]
        assert await land(client, flown, name="s", cost_of=cost_of) == 1
        assert await land(client, flown, name="s", cost_of=cost_of) == 0
        assert (server.client.zcard(LIVE), server.client.zcard(counter_key("k:slots"))) == (0, 0)
        rows = [unpack_row(entry[ROW.encode()]) for _, entry in server.client.xrange(STREAM)]
        assert [(one.id, one.outcome, one.output_tokens) for one in rows] == [("a", "ok", 9), ("b", "abandoned", 6)]
        assert int(server.client.get(counter_key(quota.name))) == 9 + 7
        store.void("b")
        await asyncio.sleep(0.1)
        assert int(server.client.get(counter_key(quota.name))) == 9 + 7
        assert server.client.xlen(STREAM) == 2
    await client.aclose()


async def test_landing_waits_for_redis_and_finds_the_record_again(tmp_path, server):
    flights = Flights(tmp_path, "gone", slots=2)
    async with make(server) as store:
        await store.admit("a", RULES, row("a"), LEASE)
        flights.began("a", False, 4, 0, 1, 0).told(3, 9)
        (path,) = tmp_path.glob("*.bin")
        left = path.read_bytes()
        flights.close()
        path.write_bytes(left)
        server.pause()
        client = redis.asyncio.Redis.from_url(server.url, socket_timeout=0.2)
        task = asyncio.ensure_future(keep_landed(client, tmp_path, name="s", cost_of=lambda _: 0, every_s=0.05))
        await asyncio.sleep(0.5)
        assert path.exists()
        server.resume()
        for _ in range(200):
            if not path.exists():
                break
            await asyncio.sleep(0.02)
        task.cancel()
        await client.aclose()
        assert not path.exists()
        ((_, entry),) = server.client.xrange(STREAM)
        assert unpack_row(entry[ROW.encode()]).output_tokens == 3
