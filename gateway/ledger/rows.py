"""Writing ledger rows to SQL, each exactly once whatever is repeated: SQLite and PostgreSQL, through SQLAlchemy."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from gateway.domain.settlement import LedgerRow
from gateway.ledger.models import LEDGER, ROW_FIELDS, row_values

_INT64, _INT32 = 2**63, 2**31
_SMALL = frozenset({"status", "attempts"})


def connect(database_url: str, timeout_s: float = 5.0) -> AsyncEngine:
    """An engine for the ledger: at most two connections, none made yet. `timeout_s` bounds connecting and each command.

    On SQLite it bounds the wait for another process's write lock.
    """
    url = sa.make_url(database_url)
    if url.get_backend_name() == "sqlite":
        return create_async_engine(url, pool_size=1, max_overflow=1, connect_args={"timeout": timeout_s})
    arguments = {"timeout": timeout_s, "command_timeout": timeout_s}
    return create_async_engine(url, pool_size=1, max_overflow=1, pool_pre_ping=True, connect_args=arguments)


def unstorable(row: LedgerRow) -> str | None:
    """Why no database takes this row, else None. Any other failure to store is an outage, and is waited out."""
    if not row.id:
        return "no id"
    for name, value in msgspec.structs.asdict(row).items():
        if isinstance(value, str):
            if "\0" in value:
                return f"{name}: holds a NUL"
            if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
                return f"{name}: holds a lone surrogate"
        elif not isinstance(value, bool):
            bound = _INT32 if name in _SMALL else _INT64
            if not -bound <= value < bound:
                return f"{name}: out of range"
    return None


async def store_rows(engine: AsyncEngine, rows: Sequence[LedgerRow]) -> None:
    """Write rows in one transaction. A row that is there stays as it is, unless it is `abandoned` and this one is not.

    Raises:
        sqlalchemy.exc.SQLAlchemyError, OSError: nothing was written, or (connection lost in the commit) all of it was;
            the call may be repeated.
    """
    if not rows:
        return
    make = sqlite.insert if engine.dialect.name == "sqlite" else postgresql.insert
    insert = make(LEDGER)
    upsert = insert.on_conflict_do_update(
        index_elements=[LEDGER.c.id],
        set_={name: insert.excluded[name] for name in (*ROW_FIELDS[1:], "state", "charges")},
        where=sa.and_(LEDGER.c.outcome == "abandoned", insert.excluded.outcome != "abandoned"),
    )
    # One order for all writers, so that two of them never wait for each other's rows.
    values = sorted((row_values(row) for row in rows), key=lambda each: str(each["id"]))
    async with engine.begin() as connection:
        await connection.execute(upsert, values)
