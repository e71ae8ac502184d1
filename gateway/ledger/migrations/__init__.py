"""The database's history (Alembic), run at start by `migrate`. It makes the ledger's and the keys' tables.

Two processes that start at once do not clash: SQLite is guarded by a lock file beside it, PostgreSQL by an advisory
lock that is held until the last revision is committed.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

# Any number that nobody else in the database uses: "SWYD" as ASCII.
_ADVISORY_LOCK = 0x53575944
_SYNC_DRIVERS = {"sqlite": "sqlite", "postgresql": "postgresql+psycopg"}


class UnsupportedDatabase(ValueError):
    """The URL names a database that the gateway has no migrations for: of another kind, or of a later release."""


def sync_url(database_url: str) -> sa.URL:
    """The same database through the driver without asyncio, which migrations use.

    Raises:
        UnsupportedDatabase: neither SQLite (in a file) nor PostgreSQL.
    """
    url = sa.make_url(database_url)
    driver = _SYNC_DRIVERS.get(url.get_backend_name())
    if driver is None:
        raise UnsupportedDatabase(f"ledger.url: {url.get_backend_name()} is not supported; use sqlite or postgresql")
    if driver == "sqlite" and url.database in (None, "", ":memory:"):
        raise UnsupportedDatabase("ledger.url: SQLite needs a file; a database in memory is lost with the process")
    return url.set(drivername=driver)


def sqlite_path(database_url: str) -> Path | None:
    """The file of a SQLite URL, else None."""
    url = sync_url(database_url)
    return Path(url.database) if url.get_backend_name() == "sqlite" and url.database else None


def migrate(database_url: str) -> None:
    """Bring the database to the newest revision; blocks, and waits for another process that is doing so.

    A SQLite file is created (0600) with its folder, and set to write-ahead logging for good.

    Raises:
        UnsupportedDatabase: see `sync_url`; or a later release has been at work on it.
        sqlalchemy.exc.SQLAlchemyError: the database refuses or is out of reach.
    """
    url = sync_url(database_url)
    path = sqlite_path(database_url)
    if path is not None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)
    try:
        engine = sa.create_engine(url, poolclass=sa.NullPool)
    except ModuleNotFoundError:
        raise UnsupportedDatabase(
            "ledger.url: PostgreSQL needs the extra `postgres`: pip install 'switchyard[postgres]'"
        ) from None
    try:
        with _alone(path), engine.connect() as connection:
            if path is None:
                connection.execute(sa.text("SELECT pg_advisory_lock(:lock)"), {"lock": _ADVISORY_LOCK})
            else:
                connection.exec_driver_sql("PRAGMA journal_mode=WAL")
            connection.commit()
            config = Config()
            config.set_main_option("script_location", "gateway.ledger:migrations")
            config.attributes["connection"] = connection
            _no_newer(connection, config)
            # The advisory lock belongs to this connection and ends with it.
            command.upgrade(config, "head")
    finally:
        engine.dispose()


def _no_newer(connection: sa.Connection, config: Config) -> None:
    """Revisions are only ever added, so one that is not known here is of a later release."""
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    found = set(MigrationContext.configure(connection).get_current_heads())
    connection.rollback()
    if found - known:
        raise UnsupportedDatabase(
            f"the database is of a later release (revision {', '.join(sorted(found - known))}, known are those up to"
            f" {max(known)}): run that release, or restore the backup from before the upgrade"
        )


@contextmanager
def _alone(path: Path | None) -> Iterator[None]:
    if path is None:
        yield
        return
    with path.with_name(path.name + ".migrate").open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
