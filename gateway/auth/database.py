"""The key database: reads within a bound, and changes that are one transaction, one revision and one audit row.

Every change bumps the one row of `key_revision` first and writes the new number into what it changes, in one
transaction: the row lock (in SQLite, the write lock) makes the order of numbers the order of commits, so a reader that
knows number n asks for "changed after n" and misses nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager

import msgspec
import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from backends.core.errors import GatewayError
from gateway.auth.tables import AUDIT, REVISION


class KeysUnavailable(GatewayError):
    """The key database does not answer and the key is not known in memory (503): neither right nor wrong."""

    status = 503
    default_code = "keys_unavailable"


class By(msgspec.Struct, frozen=True):
    """Who changes something, and when (µs UTC). `actor` is a key's public id, or `cli`."""

    actor: str
    at_us: int


class Change:
    """An open transaction. Leaving it without `audit` is a mistake: every change is told of."""

    def __init__(self, connection: AsyncConnection, revision: int, by: By) -> None:
        self.connection = connection
        self.revision = revision
        self.by = by

    async def audit(self, action: str, noun: str, name: str, changes: Mapping[str, object], team: str = "") -> None:
        """Write the audit row. `changes` never holds a secret or a hash; `team` is whose administrators may see it."""
        row = {
            "id": self.revision,
            "at_us": self.by.at_us,
            "actor": self.by.actor,
            "action": action,
            "noun": noun,
            "name": name,
            "team": team,
            "changes": to_json(changes),
        }
        await self.connection.execute(sa.insert(AUDIT).values(row))

    async def owners_changed(self) -> None:
        """Tell every worker to read the owners again."""
        await self.connection.execute(sa.update(REVISION).values(owners=self.revision))

    async def prices_changed(self) -> None:
        """Tell every worker to read the prices again."""
        await self.connection.execute(sa.update(REVISION).values(prices=self.revision))


class Database:
    """The connections of one process, made after a fork; `aclose` them.

    Args:
        database_url: `sqlite+aiosqlite:///path` or `postgresql+asyncpg://…`, migrated.
        timeout_s: how long one call may take before it counts as an outage.
    """

    def __init__(self, database_url: str, timeout_s: float = 2.0) -> None:
        self._engine = _engine(database_url, timeout_s)
        self._timeout_s = timeout_s

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """A connection for queries.

        Raises:
            KeysUnavailable: the database does not answer.
        """
        with _outage():
            async with asyncio.timeout(self._timeout_s), self._engine.connect() as connection:
                yield connection

    @asynccontextmanager
    async def changing(self, by: By) -> AsyncIterator[Change]:
        """One transaction with a new revision; committed at the end, rolled back by any exception.

        Raises:
            KeysUnavailable: the database does not answer; nothing was changed.
        """
        with _outage():
            async with asyncio.timeout(self._timeout_s + 5.0), self._engine.begin() as connection:
                await connection.execute(sa.update(REVISION).values(revision=REVISION.c.revision + 1))
                revision = int((await connection.execute(sa.select(REVISION.c.revision))).scalar_one())
                yield Change(connection, revision, by)

    async def aclose(self) -> None:
        """Close the pooled connections."""
        await self._engine.dispose()


@contextmanager
def _outage() -> Iterator[None]:
    """Turn whatever a database driver raises into `KeysUnavailable`, without its text (it may hold an address)."""
    try:
        yield
    except (SQLAlchemyError, OSError, TimeoutError) as error:
        raise KeysUnavailable("Keys cannot be checked at the moment.", detail=type(error).__name__) from error


def _engine(database_url: str, timeout_s: float) -> AsyncEngine:
    url = sa.make_url(database_url)
    if url.get_backend_name() == "sqlite":
        # The wait for another process's write lock, in seconds.
        return create_async_engine(url, pool_size=1, max_overflow=1, pool_timeout=timeout_s, connect_args={"timeout": 5.0})
    return create_async_engine(
        url,
        pool_size=2,
        max_overflow=2,
        pool_timeout=timeout_s,
        pool_pre_ping=True,
        connect_args={"timeout": timeout_s, "command_timeout": timeout_s},
    )


def to_json(value: object) -> str:
    """A value as JSON text; sets sorted, so that equal values are equal texts."""
    return msgspec.json.encode(value, order="sorted").decode()
