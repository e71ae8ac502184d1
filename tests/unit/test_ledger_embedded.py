"""The embedded ledger in a real file of one process: durability order, once-ness, refusals, bounds."""

import asyncio
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.ledger.embedded import EmbeddedLedger, LedgerInUse, LedgerUnavailable
from gateway.ledger.migrations import migrate
from tests.rows import row


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "gateway.db"
    migrate(f"sqlite+aiosqlite:///{path}")
    return path


@pytest.fixture
def ledger(path: Path) -> Iterator[EmbeddedLedger]:
    ledger = EmbeddedLedger(path, retry_s=0.01)
    ledger.start(1)
    yield ledger
    ledger.close()


def stored(path: Path, columns: str = "id, outcome, state, output_tokens") -> list[tuple[object, ...]]:
    database = sqlite3.connect(path)
    try:
        return database.execute(f"SELECT {columns} FROM ledger ORDER BY id").fetchall()
    finally:
        database.close()


async def test_open_returns_after_the_commit_and_append_replaces_the_row(path: Path, ledger: EmbeddedLedger) -> None:
    await ledger.open(row("a", admitted_us=5), b"reserved")
    assert stored(path) == [("a", "abandoned", "open", 0)]
    ledger.append(row("a", admitted_us=5, outcome="ok", output_tokens=7, streamed=True, cost_nusd=2**62), b"actual")
    ledger.close()
    assert stored(path) == [("a", "ok", "final", 7)]
    assert stored(path, "cost_nusd, streamed, charges") == [(2**62, 1, b"actual")]


async def test_every_field_arrives_in_its_own_column(path: Path, ledger: EmbeddedLedger) -> None:
    fields = row("a").__struct_fields__
    numbers = {name: n for n, name in enumerate(fields) if isinstance(getattr(row("a"), name), int) and name != "streamed"}
    full = row("a", **numbers, key_id="key", team_id="team", org_id="org", user="user", model="model", deployment="dep")
    ledger.append(full, b"")
    ledger.close()
    names = ", ".join(f'"{name}"' for name in fields)
    assert stored(path, names) == [tuple(getattr(full, name) for name in fields)]


async def test_a_second_final_row_changes_nothing_but_abandoned_gives_way(path: Path, ledger: EmbeddedLedger) -> None:
    ledger.append(row("a", outcome="ok", output_tokens=1), b"")
    ledger.append(row("a", outcome="cancelled", output_tokens=2), b"")
    ledger.append(row("a", outcome="abandoned"), b"")
    ledger.append(row("b", outcome="abandoned", output_tokens=3), b"")
    ledger.append(row("b", outcome="abandoned", output_tokens=4), b"")
    ledger.append(row("c", outcome="abandoned"), b"")
    ledger.append(row("c", outcome="ok", output_tokens=5), b"")
    ledger.close()
    assert stored(path) == [("a", "ok", "final", 1), ("b", "abandoned", "final", 3), ("c", "ok", "final", 5)]


async def test_what_was_open_is_abandoned_at_the_next_start(path: Path, ledger: EmbeddedLedger) -> None:
    await ledger.open(row("a", admitted_us=10), b"x")
    await ledger.open(row("b", admitted_us=20), b"y")
    ledger.append(row("b", admitted_us=20, outcome="ok"), b"z")
    ledger.close()
    again = EmbeddedLedger(path)
    assert again.start(99) == 1
    assert again.recent(0) == [(10, False, b"x"), (20, True, b"z")]
    assert again.recent(11) == [(20, True, b"z")]
    again.close()
    assert stored(path, "id, outcome, state, settled_us")[0] == ("a", "abandoned", "final", 99)


async def test_many_at_once_share_commits_and_all_arrive(path: Path, ledger: EmbeddedLedger) -> None:
    async with asyncio.TaskGroup() as group:
        for n in range(500):
            group.create_task(ledger.open(row(f"{n:04}"), b""))
    assert len(stored(path)) == 500
    for n in range(500):
        ledger.append(row(f"{n:04}", outcome="ok", output_tokens=n), b"")
    ledger.close()
    assert stored(path, "sum(output_tokens), count(*)") == [(sum(range(500)), 500)]
    assert {state for (state,) in stored(path, "DISTINCT state")} == {"final"}


async def test_a_cancelled_open_leaves_the_writer_well(path: Path, ledger: EmbeddedLedger) -> None:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(ledger.open(row("a"), b""))
        await asyncio.sleep(0)
        task.cancel()
    ledger.append(row("a", outcome="cancelled"), b"")
    await ledger.open(row("b"), b"")
    ledger.close()
    assert stored(path) == [("a", "cancelled", "final", 0), ("b", "abandoned", "open", 0)]


def test_a_second_owner_is_refused_and_told_who_has_it(path: Path, ledger: EmbeddedLedger) -> None:
    with pytest.raises(LedgerInUse, match=r"in use by process \d+.*redis\.url"):
        EmbeddedLedger(path).start(1)
    ledger.close()
    other = EmbeddedLedger(path)
    other.start(1)
    other.close()


def test_a_file_without_tables_or_no_file_is_refused_at_start(tmp_path: Path) -> None:
    with pytest.raises(sqlite3.OperationalError):
        EmbeddedLedger(tmp_path / "none.db").start(1)
    assert not (tmp_path / "none.db").exists()


async def test_while_the_disk_fails_openings_are_refused_and_final_rows_kept(path: Path, ledger: EmbeddedLedger) -> None:
    await ledger.open(row("a"), b"")
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("ALTER TABLE ledger RENAME TO gone")
    with pytest.raises(LedgerUnavailable) as caught:
        await ledger.open(row("b"), b"")
    assert caught.value.status == 503 and "no such table" not in caught.value.message
    ledger.append(row("a", outcome="ok", output_tokens=3), b"")
    async with asyncio.timeout(5):
        while ledger.ready:
            await asyncio.sleep(0.001)
    database.execute("ALTER TABLE gone RENAME TO ledger")
    database.close()
    async with asyncio.timeout(5):
        while not ledger.ready:
            await asyncio.sleep(0.001)
    await ledger.open(row("c"), b"")
    ledger.close()
    assert stored(path) == [("a", "ok", "final", 3), ("c", "abandoned", "open", 0)] and ledger.unstored == 0


async def test_a_row_that_cannot_be_stored_is_logged_and_stops_nobody(
    path: Path, ledger: EmbeddedLedger, caplog: pytest.LogCaptureFixture
) -> None:
    ledger.append(row("bad", outcome="ok", output_tokens=2**63), b"")
    ledger.append(row("good", outcome="ok"), b"")
    await ledger.open(row("next"), b"")
    ledger.close()
    assert [id for id, *_ in stored(path)] == ["good", "next"] and ledger.unstored == 1
    assert ["bad" in getattr(record, "row", "") for record in caplog.records if record.levelname == "ERROR"] == [True]


async def test_rows_that_cannot_be_written_before_the_end_are_in_the_log(
    path: Path, ledger: EmbeddedLedger, caplog: pytest.LogCaptureFixture
) -> None:
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("ALTER TABLE ledger RENAME TO gone")
    database.close()
    ledger.append(row("lost-by-disk", outcome="ok"), b"")
    ledger.close()
    assert ledger.unstored == 1
    assert any("lost-by-disk" in getattr(record, "row", "") for record in caplog.records)


async def test_more_rows_than_may_wait_for_the_disk_are_in_the_log(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ledger = EmbeddedLedger(path, max_held=3, retry_s=0.05)
    ledger.start(1)
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("ALTER TABLE ledger RENAME TO gone")
    for number in range(5):
        ledger.append(row(str(number), outcome="ok"), b"")
    async with asyncio.timeout(5):
        while ledger.unstored < 2:
            await asyncio.sleep(0.001)
    database.execute("ALTER TABLE gone RENAME TO ledger")
    database.close()
    async with asyncio.timeout(5):
        while not ledger.ready:
            await asyncio.sleep(0.001)
    ledger.close()
    assert [id for id, *_ in stored(path)] == ["0", "1", "2"] and ledger.unstored == 2
    assert sum("outcome" in getattr(record, "row", "") for record in caplog.records) == 2


async def test_a_full_queue_refuses_new_requests_only(path: Path) -> None:
    ledger = EmbeddedLedger(path, max_waiting=2)
    ledger.start(1)
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    async with asyncio.TaskGroup() as group:
        first = group.create_task(ledger.open(row("0"), b""))
        while ledger.ready:
            ledger.append(row("a", outcome="ok"), b"")
            await asyncio.sleep(0)
        with pytest.raises(LedgerUnavailable):
            await ledger.open(row("1"), b"")
        ledger.append(row("0", outcome="ok"), b"")
        holder.execute("ROLLBACK")
        holder.close()
    assert first.done()
    ledger.close()
    assert stored(path) == [("0", "ok", "final", 0), ("a", "ok", "final", 0)]


def test_a_final_row_after_the_end_is_in_the_log(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ledger = EmbeddedLedger(path)
    ledger.start(1)
    ledger.close()
    ledger.append(row("late"), b"")
    assert ledger.unstored == 1 and any("late" in getattr(record, "row", "") for record in caplog.records)


def test_close_twice_and_without_start_is_harmless(path: Path) -> None:
    ledger = EmbeddedLedger(path)
    ledger.close()
    ledger.start(1)
    ledger.close()
    ledger.close()
    assert not ledger.ready and not any(thread.name == "ledger" for thread in threading.enumerate())
