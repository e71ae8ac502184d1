"""docs/backup.md, run: its commands back up a gateway under load, and what they restore is what was there."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psycopg
import pytest

from tests.gateway_process import ROOT, GatewayProcess, http_client
from tests.servers import PostgresServer, RedisServer
from tests.upstream import upstream_server

PEPPER = {"SY_PEPPER": "p" * 40}
BEFORE = 20


def documented(name: str) -> str:
    """The commands of the page's block of this name."""
    text = (ROOT / "docs/backup.md").read_text()
    found = re.search(rf"<!-- tested: {name} -->\n```sh\n(.*?)```", text, re.S)
    assert found, f"docs/backup.md has no block {name}"
    return found[1]


def shell(commands: str, folder: Path, env: dict[str, str] | None = None) -> None:
    """Run commands as a person would; `docker compose exec -T SERVICE` and `runuser -u NAME --` are this machine."""
    here = 'docker() { shift 4; "$@"; }\nrunuser() { shift 3; "$@"; }\nsystemctl() { :; }\n'
    found = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", here + commands],
        cwd=folder, env={**os.environ, **(env or {})}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr


def mint(gateway: GatewayProcess, env: dict[str, str]) -> str:
    words = [sys.executable, "-m", "gateway", "keys", "new", "--config", str(gateway.file), "--name", "kept", "--json"]
    found = subprocess.run(words, cwd=ROOT, env={**os.environ, **env}, capture_output=True, text=True, timeout=60, check=True)
    return str(json.loads(found.stdout)["secret"])


async def ask(gateway: GatewayProcess, key: str, count: int) -> None:
    async with http_client(key) as http:
        for _ in range(count):
            body = {"model": "words-1", "messages": [{"role": "user", "content": "hi"}]}
            assert (await http.post(gateway.url + "/v1/chat/completions", json=body)).status_code == 200


def tree(url: str, **more: object) -> dict[str, object]:
    return {
        "deployments": {"d": {"dialect": "openai_compatible", "base_url": url, "model": "words-1"}},
        "models": {"words-1": {"tiers": [["d"]]}},
        "keys": {"default": {"limits": [{"requests": 10_000, "per": "day"}]}},
        **more,
    }


@asynccontextmanager
async def under_load(gateway: GatewayProcess, key: str) -> AsyncIterator[None]:
    """Requests go on within."""
    stop = asyncio.Event()

    async def load() -> None:
        while not stop.is_set():
            await ask(gateway, key, 1)

    async with asyncio.TaskGroup() as group:
        group.create_task(load())
        yield
        stop.set()


async def used(gateway: GatewayProcess, key: str) -> int:
    async with http_client(key) as http:
        (one,) = (await http.get(gateway.url + "/v1/me")).json()["limits"]
    return int(one["limit"]["requests"]) - int(one["remaining"])


@pytest.mark.skipif(shutil.which("sqlite3") is None, reason="the sqlite3 shell is not installed (apt: sqlite3)")
async def test_sqlite_comes_back_as_it_was(tmp_path: Path) -> None:
    async with upstream_server() as upstream:
        with GatewayProcess(tmp_path, tree(upstream.url)) as gateway:
            await asyncio.to_thread(gateway.start)
            key = await asyncio.to_thread(mint, gateway, {})
            await ask(gateway, key, BEFORE)
            async with under_load(gateway, key):
                await asyncio.to_thread(shell, documented("sqlite-backup"), tmp_path)
            await ask(gateway, key, 5)
        there = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.glob("switchyard.*")}
        assert there == {"switchyard.db": 0o600, "switchyard.pepper": 0o600}
        with sqlite3.connect(tmp_path / "switchyard.db") as backup:
            kept = {id for (id,) in backup.execute("SELECT id FROM ledger")}
            assert backup.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert len(kept) >= BEFORE
        # Another machine: nothing but the two files.
        other = tmp_path / "other"
        other.mkdir()
        for path in tmp_path.glob("switchyard.*"):
            shutil.copy2(path, other)
        shell(documented("sqlite-restore"), other)
        with GatewayProcess(other, tree(upstream.url)) as gateway:
            await asyncio.to_thread(gateway.start)
            assert await used(gateway, key) == len(kept)
            await ask(gateway, key, 1)
            with sqlite3.connect(other / "var/gateway.db") as database:
                now = {id for (id,) in database.execute("SELECT id FROM ledger")}
            assert kept < now and len(now) == len(kept) + 1


@pytest.mark.redis
@pytest.mark.skipif(shutil.which("pg_dump") is None, reason="pg_dump is not installed (apt: postgresql-client)")
@pytest.mark.parametrize("place", ["postgres", "metal"])
async def test_postgresql_comes_back_as_it_was(
    place: str, tmp_path: Path, own_redis: RedisServer, postgres_server: PostgresServer
) -> None:
    """`metal`: by the database's administrator, who is not the gateway's role."""
    env = {"PGHOST": "127.0.0.1", "PGPORT": str(postgres_server.port)}
    if place == "metal":
        env["PGUSER"] = "chief"
        with psycopg.connect(f"host=127.0.0.1 port={postgres_server.port} user=switchyard dbname=postgres") as connection:
            connection.execute("CREATE ROLE chief LOGIN SUPERUSER")
    create = "createdb --username=switchyard --maintenance-db=postgres switchyard"
    shell(create, tmp_path, env)
    url = postgres_server.url.replace("/postgres", "/switchyard")
    dsn = f"host=127.0.0.1 port={postgres_server.port} user=switchyard dbname=switchyard"

    def ids() -> set[str]:
        with psycopg.connect(dsn) as connection:
            return {id for (id,) in connection.execute("SELECT id FROM ledger")}

    async with upstream_server() as upstream:
        parts = {
            "redis": {"url": own_redis.url, "timeout_ms": 2000},
            "ledger": {"url": url},
            "auth": {"pepper": "env:SY_PEPPER"},
        }
        with GatewayProcess(tmp_path, tree(upstream.url, **parts), PEPPER) as gateway:
            await asyncio.to_thread(gateway.start)
            key = await asyncio.to_thread(mint, gateway, PEPPER)
            await ask(gateway, key, BEFORE)
            while len(ids()) < BEFORE:
                await asyncio.sleep(0.05)
            async with under_load(gateway, key):
                await asyncio.to_thread(shell, documented(f"{place}-backup").split("cp -p /etc")[0], tmp_path, env)
        before = ids()
        assert (tmp_path / "switchyard.dump").stat().st_mode & 0o777 == 0o600
        with psycopg.connect(dsn) as connection:
            connection.execute("DELETE FROM keys")
            connection.execute("DELETE FROM ledger")
        shell(documented(f"{place}-restore"), tmp_path, env)
        with psycopg.connect(dsn) as connection:
            owners = connection.execute("SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'public'").fetchall()
        assert owners == [("switchyard",)]
        after = ids()
        assert len(after) >= BEFORE and after <= before
        with GatewayProcess(tmp_path / "again", tree(upstream.url, **parts), PEPPER) as gateway:
            await asyncio.to_thread(gateway.start)
            charged = await used(gateway, key)
            assert charged == len(before), "the counters are Redis', which was not restored"
            await ask(gateway, key, 1)
        assert len(ids()) == len(after) + 1
    with psycopg.connect(dsn.replace("dbname=switchyard", "dbname=postgres"), autocommit=True) as connection:
        connection.execute("DROP DATABASE switchyard WITH (FORCE)")
