"""The configuration file's teams and their limits in SQL, for whoever reads the ledger by SQL (Grafana).

Derived and never read by a gateway: the whole table is written anew when the file changes. Gateways that share a database
share their file; where two differ, the one that changed last is shown.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing, suppress

import sqlalchemy as sa

from gateway.auth.database import Database, KeysUnavailable, to_json
from gateway.auth.records import KeyLimit
from gateway.auth.tables import DECLARED_TEAMS
from gateway.config.snapshot import Snapshot
from gateway.domain.principal import LimitSpec

Rows = tuple[dict[str, str], ...]


def declared_rows(snapshot: Snapshot) -> Rows:
    """What the table shall hold, in the form of `owners`: name, zone, limits as JSON."""
    return tuple(
        {"name": team.name, "zone": team.zone or snapshot.zone, "limits": to_json([_kept(spec) for spec in team.limits])}
        for team in snapshot.teams.values()
    )


async def tell_declared(database_url: str, snapshot: Callable[[], Snapshot], every_s: float = 0.5) -> None:
    """Write the table at first and whenever the file's teams changed, for ever; what the database did not take, again."""
    told: Rows | None = None
    async with aclosing(Database(database_url)) as database:
        while True:
            rows = declared_rows(snapshot())
            if rows != told:
                with suppress(KeysUnavailable):
                    async with database.reading() as connection:
                        await connection.execute(sa.delete(DECLARED_TEAMS))
                        if rows:
                            await connection.execute(sa.insert(DECLARED_TEAMS), rows)
                        await connection.commit()
                    told = rows
            await asyncio.sleep(every_s)


def _kept(spec: LimitSpec) -> KeyLimit:
    return KeyLimit(
        spec.unit,
        spec.limit,
        spec.window_ms,
        spec.on_outage,
        spec.period,
        spec.zone,
        spec.model,
        spec.shadow,
        spec.on_insufficient,
    )
