"""Writing ledger rows to SQL, each exactly once whatever is repeated: SQLite and PostgreSQL.

SQLAlchemy writes the statement, once for each dialect; the values go to the driver as they are, for its own executemany.
Through SQLAlchemy's bind processing a row costs about 30 µs more.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from operator import itemgetter
from typing import Annotated, Any, cast, get_type_hints

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Dialect
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from gateway.domain.settlement import LedgerRow
from gateway.ledger.models import LEDGER, ROW_FIELDS

#: A row's values in the order of `ROW_FIELDS`.
Values = tuple[Any, ...]

_BIG = msgspec.Meta(ge=-(2**63), le=2**63 - 1)
_SMALL = msgspec.Meta(ge=-(2**31), le=2**31 - 1)
_KEY = msgspec.Meta(min_length=1)


def connect(database_url: str, timeout_s: float = 5.0) -> AsyncEngine:
    """An engine for the ledger: at most two connections, none made yet. `timeout_s` bounds connecting and each command.

    On SQLite it bounds the wait for another process's write lock.
    """
    url = sa.make_url(database_url)
    if url.get_backend_name() == "sqlite":
        return create_async_engine(url, pool_size=1, max_overflow=1, connect_args={"timeout": timeout_s})
    arguments = {"timeout": timeout_s, "command_timeout": timeout_s}
    return create_async_engine(url, pool_size=1, max_overflow=1, pool_pre_ping=True, connect_args=arguments)


def _as_stored(name: str, type_: object) -> object:
    """A field's type, with the bounds of its column."""
    column = LEDGER.c[name]
    if column.primary_key:
        return Annotated[type_, _KEY]
    if isinstance(column.type, sa.Integer):
        return Annotated[type_, _BIG if isinstance(column.type, sa.BigInteger) else _SMALL]
    return type_


# A LedgerRow whose decoding refuses what no column takes: the check costs nothing of its own.
_HINTS = get_type_hints(LedgerRow)
_Storable = msgspec.defstruct(
    "Storable", [(name, _as_stored(name, _HINTS[name])) for name in ROW_FIELDS], array_like=True, gc=False
)
_decode = msgspec.msgpack.Decoder(_Storable).decode
_texts = itemgetter(*[at for at, name in enumerate(ROW_FIELDS) if isinstance(LEDGER.c[name].type, sa.Text)])


def unpack_values(data: bytes) -> Values:
    """The values of a row that `pack_row` wrote.

    Raises:
        ValueError: it is no row, or one that no database takes. Any other failure to store is an outage, and is waited
            out.
    """
    values = msgspec.structs.astuple(_decode(data))
    if "\0" in "".join(_texts(values)):
        raise ValueError("a text holds a NUL")
    return values


async def store_rows(engine: AsyncEngine, rows: Sequence[LedgerRow]) -> None:
    """Write rows as `store_values` does."""
    await store_values(engine, [msgspec.structs.astuple(row) for row in rows])


async def store_values(engine: AsyncEngine, rows: Sequence[Values]) -> None:
    """Write rows in one transaction. A row that is there stays as it is, unless it is `abandoned` and this one is not.

    Raises:
        sqlalchemy.exc.SQLAlchemyError, OSError: nothing was written, or (connection lost in the commit) all of it was;
            the call may be repeated.
    """
    if not rows:
        return
    # One order for all writers, so that two of them never wait for each other's rows.
    values = sorted(rows, key=itemgetter(0))
    async with engine.begin() as connection:
        await connection.exec_driver_sql(_statement(engine.dialect), values)


@lru_cache(maxsize=4)
def _statement(dialect: Dialect) -> str:
    """The upsert, with one mark for each of `ROW_FIELDS` in their order."""
    make = sqlite.insert if dialect.name == "sqlite" else postgresql.insert
    insert = make(LEDGER)
    whole = insert.values({"state": sa.literal_column("'final'"), "charges": sa.null()}).on_conflict_do_update(
        index_elements=[LEDGER.c.id],
        set_={name: insert.excluded[name] for name in (*ROW_FIELDS[1:], "state", "charges")},
        where=sa.and_(
            LEDGER.c.outcome == sa.literal_column("'abandoned'"), insert.excluded.outcome != sa.literal_column("'abandoned'")
        ),
    )
    compiled = cast("Any", whole.compile(dialect=dialect, column_keys=[*ROW_FIELDS, "state", "charges"]))
    assert tuple(compiled.positiontup) == ROW_FIELDS, "the table's columns are in another order"
    return str(compiled)
