"""The file's teams in SQL: written at first, on change, after an outage, and nothing left of what the file has no more."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
import sqlalchemy as sa

from gateway.auth.declared import tell_declared
from gateway.config.snapshot import Snapshot, Team
from gateway.domain.principal import LimitSpec
from gateway.ledger.migrations import migrate, sync_url

HOURLY = LimitSpec("team:red", "requests", 60, 3_600_000)
MONTHLY = LimitSpec("team:blue", "nusd", 10**11, period="month", zone="Europe/Berlin", model="chat")
EMPTY = Snapshot(version="1", models={}, deployments={}, engines={})


def told(url: str) -> dict[str, tuple[str, list[dict[str, object]]]]:
    engine = sa.create_engine(sync_url(url), poolclass=sa.NullPool)
    with engine.connect() as connection:
        rows: Sequence[sa.Row[tuple[object, ...]]] = connection.execute(sa.text("SELECT * FROM declared_teams")).all()
    engine.dispose()
    return {str(row.name): (str(row.zone), json.loads(row.limits)) for row in rows}


async def until(url: str, names: set[str]) -> None:
    async with asyncio.timeout(20):
        while set(told(url)) != names:
            await asyncio.sleep(0.02)


def having(*teams: Team) -> Snapshot:
    return msgspec.structs.replace(EMPTY, teams={team.name: team for team in teams}, zone="Asia/Tokyo")


async def test_the_table_is_what_the_file_declares(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path / 'one.db'}"
    migrate(url)
    present = having(Team("red", limits=(HOURLY,)), Team("blue", limits=(MONTHLY,), zone="Europe/Berlin"))
    task = asyncio.ensure_future(tell_declared(url, lambda: present, every_s=0.02))
    try:
        await until(url, {"red", "blue"})
        rows = told(url)
        assert rows["red"][0] == "Asia/Tokyo" and rows["blue"][0] == "Europe/Berlin"
        (red,), (blue,) = rows["red"][1], rows["blue"][1]
        assert (red["unit"], red["limit"], red["window_ms"], red["period"]) == ("requests", 60, 3_600_000, None)
        assert (blue["unit"], blue["limit"], blue["period"], blue["model"]) == ("nusd", 10**11, "month", "chat")
        present = having(Team("green"))
        await until(url, {"green"})
        present = EMPTY
        await until(url, set())
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_what_the_database_did_not_take_is_written_again(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path / 'one.db'}"
    task = asyncio.ensure_future(tell_declared(url, lambda: having(Team("red")), every_s=0.02))  # no table yet
    try:
        await asyncio.sleep(0.2)
        assert not task.done()
        migrate(url)
        await until(url, {"red"})
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
