"""Migrations on real databases: two at once, twice, and equal to what the code believes."""

import asyncio
import multiprocessing
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from gateway.auth import tables
from gateway.ledger import models
from gateway.ledger.migrations import UnsupportedDatabase, migrate, sqlite_path, sync_url
from tests.servers import PostgresServer


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite+aiosqlite:///{tmp_path / 'new' / 'gateway.db'}"
        return
    server: PostgresServer = request.getfixturevalue("postgres_server")
    admin = sa.create_engine(sync_url(server.url), isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with admin.connect() as connection:
        connection.execute(sa.text("CREATE DATABASE fresh"))
    yield server.url.replace("/postgres", "/fresh")
    with admin.connect() as connection:
        connection.execute(sa.text("DROP DATABASE fresh WITH (FORCE)"))


def test_the_tables_are_those_that_the_code_uses(url: str) -> None:
    migrate(url)
    engine = sa.create_engine(sync_url(url), poolclass=sa.NullPool)
    ours = sa.MetaData()
    for metadata in (models.METADATA, tables.METADATA):
        for table in metadata.tables.values():
            table.to_metadata(ours)
    with engine.connect() as connection:
        differences = compare_metadata(MigrationContext.configure(connection, opts={"compare_type": True}), ours)
    engine.dispose()
    assert differences == []


def test_many_processes_at_once_and_once_more(url: str) -> None:
    spawn = multiprocessing.get_context("spawn")
    children = [spawn.Process(target=migrate, args=(url,)) for _ in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0, 0, 0]
    migrate(url)
    engine = sa.create_engine(sync_url(url), poolclass=sa.NullPool)
    with engine.connect() as connection:
        assert connection.execute(sa.text("SELECT revision FROM key_revision")).all() == [(1,)]
    engine.dispose()


async def test_it_runs_beside_an_event_loop(url: str) -> None:
    await asyncio.to_thread(migrate, url)


def test_a_sqlite_file_is_private_and_writes_ahead(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path / 'state' / 'gateway.db'}"
    migrate(url)
    path = sqlite_path(url)
    assert path is not None and path.stat().st_mode & 0o777 == 0o600 and path.parent.stat().st_mode & 0o777 == 0o700
    database = sqlite3.connect(path)
    assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    database.close()


@pytest.mark.parametrize("url", ["sqlite+aiosqlite://", "sqlite+aiosqlite:///:memory:", "mysql+aiomysql://host/db"])
def test_other_databases_are_refused(url: str) -> None:
    with pytest.raises(UnsupportedDatabase, match=r"^ledger\.url:"):
        migrate(url)
