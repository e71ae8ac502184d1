"""CPU of one admission and of one settlement: of Redis by 1, 4 and 12 rules, and of the worker that asks.

Run: python -m tests.bench.limits_cost
Prints the least and the middle of 60 batches of 64; the least is what holds on a machine that others use too.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from pathlib import Path

import redis

from gateway.domain.settlement import LedgerRow, Reservation, Rule, Settlement
from gateway.limits.redis_store import RedisStore
from tests.rows import row
from tests.servers import RedisServer

BATCH, ROUNDS, LEASE_MS = 64, 60, 15_000


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


def middle(values: list[float]) -> str:
    """Least and median."""
    values.sort()
    return f"{values[1]:6.1f} {values[len(values) // 2]:6.1f}"


#: What `measure` gives, in this order.
NAMES = ("redis admit", "redis settle", "worker admit", "worker settle")


async def measure(server: RedisServer, count: int) -> list[list[float]]:
    """Every batch's figures, µs each."""
    client = redis.Redis.from_url(server.url)

    def redis_us() -> float:
        used = client.info("cpu")
        return (used["used_cpu_user"] + used["used_cpu_sys"]) * 1e6

    mine, opening = rules(count), row("", model="chat", deployment="gpu-1", team_id="research")
    actual = tuple(7 if r.unit == "tokens" else int(r.kind != "lease") for r in mine)
    figures: list[list[float]] = [[], [], [], []]
    async with RedisStore(server.url, lambda: time.time_ns() // 1000, worker="bench", timeout_ms=5000) as store:

        async def admitted(number: int) -> Reservation:
            return await store.admit(f"{count}-{number}", mine, opening, LEASE_MS)

        async def settled(reservation: Reservation, final: LedgerRow) -> bool:
            return await store.settle(Settlement(reservation, actual, final))

        await admitted(-1)
        for turn in range(ROUNDS):
            marks = [(redis_us(), time.process_time())]
            held = await asyncio.gather(*(admitted(turn * BATCH + n) for n in range(BATCH)))
            marks.append((redis_us(), time.process_time()))
            await asyncio.gather(*(settled(reservation, opening) for reservation in held))
            marks.append((redis_us(), time.process_time()))
            for half in (0, 1):
                figures[half].append((marks[half + 1][0] - marks[half][0]) / BATCH)
                figures[2 + half].append((marks[half + 1][1] - marks[half][1]) * 1e6 / BATCH)
    return figures


def pair_us(server: RedisServer) -> float:
    """CPU µs of Redis for one admission and its settlement by 4 rules, the median over batches."""
    admit, settle, *_ = asyncio.run(measure(server, 4))
    return statistics.median(a + s for a, s in zip(admit, settle, strict=True))


def main() -> None:
    """All counts, on a server of its own."""
    with tempfile.TemporaryDirectory() as folder:
        server = RedisServer(Path(folder)).start()
        try:
            for count in (1, 4, 12):
                figures = asyncio.run(measure(server, count))
                told = "   ".join(f"{name} {middle(v)}" for name, v in zip(NAMES, figures, strict=True))
                print(f"{count:2d} rules: {told}")
        finally:
            server.kill()


if __name__ == "__main__":
    main()
