"""A database of an older release, with data: each revision is brought to the newest, nothing is lost, keys go on working;
one of a later release is refused.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

from gateway.auth.keys import RANDOM_BYTES, mint, stored_hash
from gateway.ledger.migrations import UnsupportedDatabase, migrate, sync_url
from tests.gateway_process import ROOT, GatewayProcess, http_client
from tests.servers import PostgresServer, RedisServer
from tests.upstream import upstream_server

PEPPER = "p" * 40
ROWS = 25


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", "gateway.ledger:migrations")
    return config


#: Oldest first, without the newest.
OLDER = [script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()][:0:-1]


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite+aiosqlite:///{tmp_path / 'old.db'}"
        return
    server: PostgresServer = request.getfixturevalue("postgres_server")
    admin = sa.create_engine(sync_url(server.url), isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with admin.connect() as connection:
        connection.execute(sa.text("CREATE DATABASE old"))
    yield server.url.replace("/postgres", "/old")
    with admin.connect() as connection:
        connection.execute(sa.text("DROP DATABASE old WITH (FORCE)"))


def _old(url: str, revision: str) -> tuple[str, dict[str, list[tuple[object, ...]]]]:
    """A database as the release of a revision left it: a key's secret, and the rows of its tables."""
    engine = sa.create_engine(sync_url(url), poolclass=sa.NullPool)
    key = mint(PEPPER.encode(), os.urandom(RANDOM_BYTES))
    now_us = time.time_ns() // 1000
    with engine.connect() as connection:
        config = _config()
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
        tables = sa.MetaData()
        tables.reflect(connection)
        holder = {
            "id": key.id,
            "hash": stored_hash(PEPPER.encode(), key.secret.encode()),
            "name": "old",
            "team": "",
            "user": "",
            "limits": "[]",
            "scopes": '["inference"]',
        }
        connection.execute(tables.tables["keys"].insert().values(**holder, created_us=now_us, revision=2))
        text = ("team_id", "org_id", "user", "deployment", "protocol")
        numbers = ("cached_input_tokens", "reasoning_tokens", "cost_nusd", "ttft_us", "duration_us")
        connection.execute(
            tables.tables["ledger"].insert(),
            [
                {"id": f"row-{n}", "admitted_us": now_us - n, "settled_us": now_us, "key_id": key.id, "model": "words-1",
                 "outcome": "ok", "status": 200, "streamed": False, "input_tokens": n, "output_tokens": 1, "state": "final",
                 "usage_source": "reported", "attempts": 1, **dict.fromkeys(text, ""), **dict.fromkeys(numbers, 0)}
                for n in range(ROWS)
            ],
        )  # fmt: skip
        connection.commit()
        rows = {name: _rows(connection, name, ["*"]) for name in ("keys", "ledger")}
    engine.dispose()
    return key.secret, rows


def _rows(connection: sa.Connection, table: str, columns: list[str]) -> list[tuple[object, ...]]:
    names = ", ".join("*" if one == "*" else f'"{one}"' for one in columns)
    return [tuple(row) for row in connection.execute(sa.text(f"SELECT {names} FROM {table} ORDER BY id"))]


@pytest.mark.redis
@pytest.mark.parametrize("revision", OLDER)
async def test_an_older_database_goes_on(url: str, revision: str, tmp_path: Path, own_redis: RedisServer) -> None:
    secret, before = await asyncio.to_thread(_old, url, revision)
    engine = sa.create_engine(sync_url(url), poolclass=sa.NullPool)
    with engine.connect() as connection:
        columns = {name: [one["name"] for one in sa.inspect(connection).get_columns(name)] for name in before}
    async with upstream_server() as upstream:
        tree: dict[str, object] = {
            "redis": {"url": own_redis.url, "timeout_ms": 2000},
            "ledger": {"url": url},
            "auth": {"pepper": "env:SY_PEPPER"},
            "deployments": {"d": {"dialect": "openai_compatible", "base_url": upstream.url, "model": "words-1"}},
            "models": {"words-1": {"tiers": [["d"]]}},
        }
        with GatewayProcess(tmp_path / "gateway", tree, {"SY_PEPPER": PEPPER}) as gateway:
            await asyncio.to_thread(gateway.start)
            async with http_client(secret) as http:
                body = {"model": "words-1", "messages": [{"role": "user", "content": "hi"}]}
                assert (await http.post(gateway.url + "/v1/chat/completions", json=body)).status_code == 200
    with engine.connect() as connection:
        for name, rows in before.items():
            after = _rows(connection, name, columns[name])
            assert [row for row in rows if row not in after] == [], name
        assert connection.execute(sa.text("SELECT count(*) FROM ledger")).scalar() == ROWS + 1
    engine.dispose()


def _tree(url: str) -> dict[str, object]:
    """A gateway that gets no further than its database."""
    return {"ledger": {"url": url}, "redis": {"url": "redis://127.0.0.1:1/0"}, "auth": {"pepper": "env:SY_PEPPER"}}


def test_a_later_release_is_told_and_nothing_is_changed(url: str, tmp_path: Path) -> None:
    migrate(url)
    engine = sa.create_engine(sync_url(url), poolclass=sa.NullPool)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(UnsupportedDatabase, match="later release"):
        migrate(url)
    gateway = GatewayProcess(tmp_path, _tree(url))
    words = [sys.executable, "-m", "gateway", "serve", "--config", str(gateway.file)]
    env = {**os.environ, "SY_PEPPER": PEPPER}
    found = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert found.returncode == 1
    assert "later release (revision 9999" in found.stderr and "Traceback" not in found.stderr
    with engine.connect() as connection:
        assert connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar() == "9999"
    engine.dispose()


def test_a_database_out_of_reach_is_one_line(tmp_path: Path) -> None:
    gateway = GatewayProcess(tmp_path, _tree("postgresql+asyncpg://switchyard@127.0.0.1:1/none"))
    words = [sys.executable, "-m", "gateway", "serve", "--config", str(gateway.file)]
    env = {**os.environ, "SY_PEPPER": PEPPER}
    found = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert found.returncode == 1
    events = [json.loads(line)["event"] for line in found.stdout.splitlines()]
    assert set(events) <= {"redis_unwise"}, "no Redis runs here, which is only a warning"
    assert found.stderr == "switchyard: ledger.url: the database cannot be used: OperationalError\n"
