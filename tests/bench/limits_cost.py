"""What an admission and its settlement cost: Redis by 1, 4 and 12 rules, the worker that asks, and the embedded mode.

    python -m tests.bench.limits_cost

`make bench` runs it as its part `limits`. Medians; CPU is read from the scheduler.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import uvloop

from gateway.domain.settlement import Reservation, Rule, Settlement
from gateway.ledger.embedded import EmbeddedLedger
from gateway.ledger.migrations import migrate
from gateway.limits.embedded_store import EmbeddedStore
from gateway.limits.redis_store import RedisStore
from gateway.limits.store import LimitStore
from tests.bench.accounting import cpu_between, cpu_times
from tests.rows import row
from tests.servers import RedisServer

AT_ONCE, ROUNDS, PAIRS, LEASE_MS = 64, 60, 20, 15_000
COUNTS = (1, 4, 12)
_OPENING = row("", model="chat", deployment="gpu-1", team_id="research")


@dataclass(frozen=True)
class Client:
    """What a pair of admission and settlement costs the process that asks: its CPU µs, and pairs per second by the clock."""

    pair_us: float
    per_s: float


@dataclass(frozen=True)
class Cost:
    """By one number of rules: CPU µs of Redis, and of the worker that asks it."""

    rules: int
    admit_us: float
    settle_us: float
    pair_us: float
    worker: Client


def rules(count: int) -> tuple[Rule, ...]:
    """A usual set: requests, tokens, slots, tokens of a day; then more token rules."""
    usual = (
        Rule("key:requests:60000", "rate", "requests", 10**9, 60_000, 1),
        Rule("key:tokens:60000", "rate", "tokens", 10**12, 60_000, 500),
        Rule("key:slots", "lease", "slots", 10**6, 0, 1),
        Rule("team:tokens:86400000", "rate", "tokens", 10**12, 86_400_000, 500),
    )
    more = tuple(Rule(f"more{n}:tokens:60000", "rate", "tokens", 10**12, 60_000, 500) for n in range(count - 4))
    return usual[:count] + more


def actual(mine: tuple[Rule, ...]) -> tuple[int, ...]:
    """Fewer tokens than were reserved, as mostly."""
    return tuple(7 if rule.unit == "tokens" else int(rule.kind != "lease") for rule in mine)


def wall_us() -> int:
    """µs UTC."""
    return time.time_ns() // 1000


async def measure(server: RedisServer, count: int) -> Cost:
    """Of Redis: batches of 64 admissions, then their 64 settlements. Of the worker: 64 clients, each admitting and settling."""
    mine = rules(count)
    used = actual(mine)
    figures: list[tuple[float, float]] = []
    async with RedisStore(server.url, wall_us, worker="bench", timeout_ms=60_000) as store:

        async def admitted(number: int) -> Reservation:
            return await store.admit(f"{count}-{number}", mine, _OPENING, LEASE_MS)

        async def settled(reservation: Reservation) -> bool:
            return await store.settle(Settlement(reservation, used, _OPENING))

        await settled(await admitted(-1))
        for turn in range(ROUNDS):
            marks = [cpu_times([server.pid])]
            held = await asyncio.gather(*(admitted(turn * AT_ONCE + n) for n in range(AT_ONCE)))
            marks.append(cpu_times([server.pid]))
            await asyncio.gather(*map(settled, held))
            marks.append(cpu_times([server.pid]))
            figures.append((cpu_between(marks[0], marks[1]), cpu_between(marks[1], marks[2])))
        worker = await of_client(store, mine)
    admit, settle, pair = (
        statistics.median(value) * 1e6 / AT_ONCE
        for value in ([a for a, _ in figures], [s for _, s in figures], [a + s for a, s in figures])
    )
    return Cost(count, admit, settle, pair, worker)


async def of_client(store: LimitStore, mine: tuple[Rule, ...]) -> Client:
    """64 clients of one process, each admitting and settling; rounds of it."""
    used = actual(mine)
    figures: list[tuple[float, float]] = []

    async def client(name: str) -> None:
        for n in range(PAIRS):
            opening = msgspec.structs.replace(_OPENING, id=f"{name}-{n}")
            await store.settle(Settlement(await store.admit(opening.id, mine, opening, LEASE_MS), used, opening))

    for turn in range(12):
        cpu_s, wall_s = time.process_time(), time.perf_counter()
        await asyncio.gather(*(client(f"client-{turn}-{n}") for n in range(AT_ONCE)))
        figures.append((time.process_time() - cpu_s, time.perf_counter() - wall_s))
    pairs = AT_ONCE * PAIRS
    return Client(statistics.median(cpu for cpu, _ in figures) * 1e6 / pairs, pairs / statistics.median(s for _, s in figures))


def of_redis(server: RedisServer) -> list[Cost]:
    """By each number of rules."""
    return [uvloop.run(measure(server, count)) for count in COUNTS]


def of_embedded(folder: Path) -> Client:
    """Without Redis: the counters of this process and the ledger's file."""
    file = folder / "ledger.db"
    migrate(f"sqlite+aiosqlite:///{file}")
    ledger = EmbeddedLedger(file)
    ledger.start(wall_us())
    try:
        return uvloop.run(of_client(EmbeddedStore(wall_us, ledger), rules(4)))
    finally:
        ledger.close()


def in_folder(measured: Callable[[Path], None]) -> None:
    """Call with a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="switchyard-bench-") as folder:
        measured(Path(folder))


def _print(folder: Path) -> None:
    server = RedisServer(folder / "redis").start()
    try:
        for cost in of_redis(server):
            told = f"admit {cost.admit_us:.1f}, settle {cost.settle_us:.1f}, pair {cost.pair_us:.1f}"
            print(f"{cost.rules:2d} rules: Redis µs: {told}; worker {cost.worker.pair_us:.1f} µs, {cost.worker.per_s:,.0f}/s")
    finally:
        server.kill()
    embedded = of_embedded(folder)
    print(f" 4 rules, embedded: {embedded.pair_us:.1f} µs, {embedded.per_s:,.0f}/s")


if __name__ == "__main__":
    in_folder(_print)
