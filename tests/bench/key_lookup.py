"""How long it takes to know a key among 100,000 minted ones: seen before, for the first time, and forged.

python -m tests.bench.key_lookup
"""

from __future__ import annotations

import asyncio
import random
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from gateway.auth.authenticate import Authenticator, NotAuthenticated
from gateway.auth.keys import RANDOM_BYTES, mint, stored_hash
from gateway.auth.keystore import KeyStore
from gateway.auth.tables import KEYS
from gateway.config.snapshot import Snapshot
from gateway.ledger.migrations import migrate

MINTED = 100_000
ASKED = 1_000
NOW_US = 1_800_000_000_000_000
_PEPPER = b"pepper of the benchmark, 32 bytes and more"


@dataclass(frozen=True)
class Lookup:
    """Median µs by the clock, of one request at a time: known to memory, asked of SQLite, refused for its MAC."""

    known_us: float
    stored_us: float
    forged_us: float


def fill(file: Path, count: int) -> list[bytes]:
    """A migrated SQLite file with so many keys; their texts."""
    migrate(f"sqlite+aiosqlite:///{file}")
    dice = random.Random(1)
    minted = [mint(_PEPPER, dice.randbytes(RANDOM_BYTES)) for _ in range(count)]
    rows = [
        {
            **{"id": key.id, "hash": stored_hash(_PEPPER, key.secret.encode()), "name": "bench", "team": "", "user": ""},
            **{"models": None, "limits": "[]", "scopes": '["inference"]', "created_us": 1, "revision": 1},
        }
        for key in minted
    ]
    engine = sa.create_engine(f"sqlite:///{file}")
    with engine.begin() as connection:
        connection.execute(sa.insert(KEYS), rows)
    engine.dispose()
    return [key.secret.encode() for key in minted]


async def _median_us(authenticator: Authenticator, keys: list[bytes], *, genuine: bool = True) -> float:
    times = []
    for key in keys:
        headers = [(b"host", b"gateway"), (b"authorization", b"Bearer " + key)]
        began = time.perf_counter_ns()
        try:
            await authenticator.authenticate(headers, NOW_US)
            let_in = True
        except NotAuthenticated:
            let_in = False
        times.append(time.perf_counter_ns() - began)
        assert let_in == genuine
    return statistics.median(times) / 1000


async def _measured(url: str, keys: list[bytes]) -> Lookup:
    snapshot = Snapshot(version="1", models={}, deployments={}, engines={})
    store = KeyStore(url)
    try:
        authenticator = Authenticator(lambda: snapshot, store, _PEPPER)
        asked = random.Random(2).sample(keys, ASKED)
        await authenticator.authenticate([(b"x-api-key", keys[0])], NOW_US)  # connects, and reads the owners
        stored_us = await _median_us(authenticator, asked)
        known_us = await _median_us(authenticator, asked)
        forged = [key[:-1] + (b"a" if key[-1:] != b"a" else b"b") for key in asked]
        return Lookup(known_us, stored_us, await _median_us(authenticator, forged, genuine=False))
    finally:
        await store.aclose()


def lookup(folder: Path, count: int = MINTED) -> Lookup:
    """Measure in a folder of its own."""
    file = folder / "keys.db"
    keys = fill(file, count)
    return asyncio.run(_measured(f"sqlite+aiosqlite:///{file}", keys))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="switchyard-bench-") as name:
        print(lookup(Path(name)))
