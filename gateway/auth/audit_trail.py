"""The audit trail: who changed what, newest first. Rows are written in the transaction of the change, and never changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec
import sqlalchemy as sa

from gateway.auth.database import Database
from gateway.auth.tables import AUDIT

Field = Literal["noun", "name", "actor", "team"]


class Audited(msgspec.Struct, frozen=True):
    """One change. `at_us`: µs UTC; `actor`: a key's public id, or `cli`; `id` counts up, with gaps."""

    id: int
    at_us: int
    actor: str
    action: str
    noun: str
    name: str
    changes: dict[str, Any]


async def trail(
    database: Database, only: Mapping[Field, str], *, before: int | None = None, since_us: int = 0, limit: int | None = None
) -> list[Audited]:
    """Changes, newest first.

    Args:
        only: rows with these values.
        before: those older than the row with this id.
        since_us: at this instant or later, µs UTC.
        limit: at most so many.

    Raises:
        KeysUnavailable: the database does not answer.
    """
    query = sa.select(AUDIT).where(AUDIT.c.at_us >= since_us).order_by(AUDIT.c.id.desc()).limit(limit)
    for name, value in only.items():
        query = query.where(AUDIT.c[name] == value)
    if before is not None:
        query = query.where(AUDIT.c.id < before)
    async with database.reading() as connection:
        rows = (await connection.execute(query)).all()
    return [
        Audited(row.id, row.at_us, row.actor, row.action, row.noun, row.name, msgspec.json.decode(row.changes)) for row in rows
    ]
