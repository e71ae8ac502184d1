"""What the ledger says: sums that equal its rows exactly, and the deletion of rows past their keeping."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from types import MappingProxyType
from typing import Any, Literal

import msgspec
import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.ledger.models import LEDGER
from gateway.ledger.rows import connect

DAY_US = 86_400_000_000
Dimension = Literal["key", "team", "organisation", "user", "model", "deployment", "outcome", "day"]
_DIMENSIONS: dict[Dimension, sa.ColumnElement[Any]] = {
    "key": LEDGER.c.key_id,
    "team": LEDGER.c.team_id,
    "organisation": LEDGER.c.org_id,
    "user": LEDGER.c.user,
    "model": LEDGER.c.model,
    "deployment": LEDGER.c.deployment,
    "outcome": LEDGER.c.outcome,
    "day": LEDGER.c.admitted_us - LEDGER.c.admitted_us % DAY_US,
}
_log = logging.getLogger(__name__)


class UsageSum(msgspec.Struct, frozen=True):
    """Sums over one group of rows. `group` holds the values of the dimensions asked for; a day is its start, µs UTC."""

    group: tuple[str | int, ...]
    requests: int
    input_tokens: int
    cached_input_tokens: int
    output_tokens: int
    reasoning_tokens: int
    cost_nusd: int


async def usage(
    engine: AsyncEngine,
    by: Sequence[Dimension],
    since_us: int,
    until_us: int,
    only: Mapping[Dimension, str | int] = MappingProxyType({}),
    offset: int = 0,
    limit: int | None = None,
) -> list[UsageSum]:
    """Sums of the settled and abandoned rows admitted in [since_us, until_us), by group, in the groups' order.

    With no dimension there is one sum, or none when there is no row. `only` keeps rows with these values; `offset` and
    `limit` choose groups.
    """
    groups = [_DIMENSIONS[name] for name in by]
    names = ("input_tokens", "cached_input_tokens", "output_tokens", "reasoning_tokens", "cost_nusd")
    query = (
        sa.select(*groups, sa.func.count(), *(sa.func.coalesce(sa.func.sum(LEDGER.c[name]), 0) for name in names))
        .where(LEDGER.c.state == "final", LEDGER.c.admitted_us >= since_us, LEDGER.c.admitted_us < until_us)
        .where(*(_DIMENSIONS[name] == value for name, value in only.items()))
        .group_by(*groups)
        .order_by(*groups)
        .offset(offset or None)
        .limit(limit)
    )
    async with engine.connect() as connection:
        rows = (await connection.execute(query)).all()
    # PostgreSQL sums bigint as numeric: int() is exact.
    sums = [UsageSum(tuple(row[: len(groups)]), *(int(value) for value in row[len(groups) :])) for row in rows]
    return [each for each in sums if each.requests]


class Kept(msgspec.Struct, frozen=True):
    """Rows that are deleted when they are old: of a table with the key `id`, those that `old` chooses by an instant."""

    table: sa.Table
    days: int
    old: Callable[[int], sa.ColumnElement[bool]]


def kept_rows(days: int) -> Kept:
    """The ledger's final rows, by their admission."""
    return Kept(LEDGER, days, lambda before_us: sa.and_(LEDGER.c.admitted_us < before_us, LEDGER.c.state == "final"))


async def delete_before(
    engine: AsyncEngine, before_us: int, batch: int = 500, pause_s: float = 0.05, kept: Kept | None = None
) -> int:
    """Delete rows older than an instant (of the ledger, or of `kept`), in short transactions that let others write.

    Returns:
        How many were deleted.
    """
    kept = kept or kept_rows(0)
    table = kept.table
    old = sa.select(table.c.id).where(kept.old(before_us)).limit(batch)
    deleted = 0
    while True:
        async with engine.begin() as connection:
            count = (await connection.execute(sa.delete(table).where(table.c.id.in_(old)))).rowcount
        deleted += count
        if count < batch:
            return deleted
        await asyncio.sleep(pause_s)


async def keep_retention(
    database_url: str, everything: Sequence[Kept], clock: Callable[[], int], every_s: float = 3600.0
) -> None:
    """Delete what is older than its days, again every `every_s`, for ever. An outage is retried the next time.

    Args:
        clock: µs UTC.
    """
    async with AsyncExitStack() as stack:
        engine = connect(database_url)
        stack.push_async_callback(engine.dispose)
        while True:
            for kept in everything:
                try:
                    deleted = await delete_before(engine, clock() - kept.days * DAY_US, kept=kept)
                except (SQLAlchemyError, OSError) as error:
                    _log.warning("retention put off", extra={"reason": type(error).__name__})
                else:
                    if deleted:
                        _log.info("old rows deleted", extra={"table": kept.table.name, "rows": deleted})
            await asyncio.sleep(every_s)
