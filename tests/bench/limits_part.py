"""The part `limits` of `make bench`: admissions, settlements and the knowing of keys, each on cores of their own."""

from __future__ import annotations

from pathlib import Path

from tests.bench.figures import Figure
from tests.bench.key_lookup import ASKED, MINTED, Lookup, lookup
from tests.bench.limits_cost import AT_ONCE, Client, Cost, of_embedded, of_redis
from tests.bench.programs import Cores, Missing, pinned
from tests.bench.report import number, table
from tests.bench.rounds import measuring
from tests.servers import RedisServer, redis_binary


def run(folder: Path, cores: Cores) -> tuple[list[Cost], Client, Lookup]:
    """Redis has the load's core, who asks it the gateway's.

    Raises:
        Missing: there is no redis-server.
    """
    if redis_binary() is None:
        raise Missing("the limits live in Redis: apt-get install -y redis-server")
    server = RedisServer(folder / "redis-alone")
    with measuring(), pinned(cores.serving):
        with pinned(cores.loading):
            server.start()
        try:
            costs = of_redis(server)
        finally:
            server.kill()
        return costs, of_embedded(folder), lookup(folder)


def figures(costs: list[Cost], embedded: Client, keys: Lookup) -> list[Figure]:
    """Each beside its bar, where it has one. An admission is counted with its settlement where a rate is told."""
    by_rules = {cost.rules: cost for cost in costs}
    usual = by_rules[4]
    minted = f"{MINTED:,} keys in SQLite; median of {ASKED:,} one after the other"
    return [
        Figure(
            name="Redis CPU per admit + settle pair, 4 rules", unit="µs", value=usual.pair_us, bar=60, target=40,
            note=f"the limit store alone, {AT_ONCE} at once",
        ),
        *(
            Figure(
                name=f"Redis CPU per admission, {cost.rules} rule{'s' * (cost.rules > 1)}", unit="µs", value=cost.admit_us,
                note=f"its settlement {number(cost.settle_us)} µs",
            )
            for cost in costs
        ),
        Figure(
            name="admissions per second and core of Redis, 4 rules", unit="1/s", value=1e6 / usual.pair_us, better="more",
            note="each with its settlement",
        ),
        _rate("admissions per second and core of a worker, 4 rules", usual.worker),
        _rate("the same without Redis (embedded mode)", embedded),
        Figure(name="key lookup, seen before", unit="µs", value=keys.known_us, note=minted),
        Figure(name="key lookup, for the first time", unit="µs", value=keys.stored_us, note=minted),
        Figure(name="key lookup, forged", unit="µs", value=keys.forged_us, note="refused by arithmetic"),
    ]  # fmt: skip


def _rate(name: str, client: Client) -> Figure:
    note = f"{number(client.pair_us)} µs each, with its settlement; {client.per_s:,.0f}/s by the clock, {AT_ONCE} at once"
    return Figure(name=name, unit="1/s", value=1e6 / client.pair_us, better="more", note=note)


def costs_table(costs: list[Cost]) -> str:
    """By number of rules."""
    rows = [
        [
            str(cost.rules), number(cost.admit_us), number(cost.settle_us), number(cost.pair_us),
            number(cost.worker.pair_us), f"{cost.worker.per_s:,.0f}",
        ]
        for cost in costs
    ]  # fmt: skip
    head = ["rules", "Redis: admission µs", "settlement µs", "both µs", "worker: both µs", "pairs/s by the clock"]
    return table(head, rows)
