"""What rebuilds quotas asks of the ledger: sums by everybody who may own one, and by themselves the rows of the last minutes.

Those may still be in a worker's hands, who settles them again when Redis lost its data.
"""

from __future__ import annotations

from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.ledger.models import LEDGER

#: A row that was settled longer ago has been acknowledged to its worker, who looks every few seconds.
RECENT_US = 600_000_000
#: The longest that a request runs, and more: rows admitted earlier are not looked at for being recent.
_LONGEST_US = 6 * 3_600_000_000


class Used(msgspec.Struct, frozen=True):
    """What the rows of one holder and model came to. `id`: of the one row, "" = a sum of several."""

    id: str
    key: str
    team: str
    organisation: str
    user: str
    model: str
    requests: int
    input_tokens: int
    output_tokens: int
    nusd: int


_HOLDER = (LEDGER.c.key_id, LEDGER.c.team_id, LEDGER.c.org_id, LEDGER.c.user, LEDGER.c.model)
_AMOUNTS = (LEDGER.c.requests, LEDGER.c.input_tokens, LEDGER.c.output_tokens, LEDGER.c.cost_nusd)


async def used_since(engine: AsyncEngine, since_us: int, now_us: int) -> list[Used]:
    """Sums of all rows admitted since an instant but the recent ones, by holder and model.

    Raises:
        SQLAlchemyError, OSError: the database does not answer.
    """
    query = (
        sa.select(sa.literal(""), *_HOLDER, *(sa.func.sum(column) for column in _AMOUNTS))
        .where(LEDGER.c.state == "final", LEDGER.c.admitted_us >= since_us, sa.not_(_recent(now_us)))
        .group_by(*_HOLDER)
    )
    return await _read(engine, query)


async def recent_rows(engine: AsyncEngine, since_us: int, now_us: int) -> list[Used]:
    """The recent rows admitted since an instant, each by itself.

    Raises:
        SQLAlchemyError, OSError: the database does not answer.
    """
    query = sa.select(LEDGER.c.id, *_HOLDER, *_AMOUNTS).where(
        LEDGER.c.state == "final", LEDGER.c.admitted_us >= since_us, _recent(now_us)
    )
    return await _read(engine, query)


def _recent(now_us: int) -> sa.ColumnElement[bool]:
    return sa.and_(LEDGER.c.admitted_us >= now_us - _LONGEST_US, LEDGER.c.settled_us >= now_us - RECENT_US)


async def _read(engine: AsyncEngine, query: sa.Select[Any]) -> list[Used]:
    async with engine.connect() as connection:
        rows = (await connection.execute(query)).all()
    return [Used(*row[:6], *(int(value) for value in row[6:])) for row in rows]
