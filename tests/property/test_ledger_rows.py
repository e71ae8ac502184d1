"""Any order and repetition of rows, through either way of writing, ends in the same table as a model of the rule."""

import asyncio
import sqlite3
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.domain.settlement import LedgerRow
from gateway.ledger.embedded import EmbeddedLedger
from gateway.ledger.migrations import migrate
from gateway.ledger.rows import connect, store_rows
from tests.rows import row

ROWS = st.lists(
    st.builds(
        lambda id, outcome, tokens: row(id, outcome=outcome, output_tokens=tokens),
        st.sampled_from("abc"),
        st.sampled_from(["ok", "cancelled", "abandoned"]),
        st.integers(0, 2**63 - 1),
    ),
    max_size=12,
)


def expected(rows: list[LedgerRow]) -> dict[str, tuple[str, int]]:
    """The first final row of an id stays; an abandoned one gives way to one that is not."""
    table: dict[str, tuple[str, int]] = {}
    for each in rows:
        there = table.get(each.id)
        if there is None or (there[0] == "abandoned" and each.outcome != "abandoned"):
            table[each.id] = (each.outcome, each.output_tokens)
    return table


def table_of(path: Path) -> dict[str, tuple[str, int]]:
    database = sqlite3.connect(path)
    try:
        return {id: (outcome, n) for id, outcome, n in database.execute("SELECT id, outcome, output_tokens FROM ledger")}
    finally:
        database.close()


@settings(max_examples=25, deadline=None)
@given(ROWS, st.integers(1, 5), st.sets(st.sampled_from("abc")))
def test_both_writers_follow_the_rule(rows: list[LedgerRow], batch: int, opened: set[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        streamed, embedded = Path(folder, "streamed.db"), Path(folder, "embedded.db")
        for path in (streamed, embedded):
            migrate(f"sqlite+aiosqlite:///{path}")
        asyncio.run(_stream(streamed, rows, batch))
        asyncio.run(_embed(embedded, rows, opened))
        assert table_of(streamed) == expected(rows)
        assert table_of(embedded) == {**dict.fromkeys(opened, ("abandoned", 0)), **expected(rows)}


async def _stream(path: Path, rows: list[LedgerRow], batch: int) -> None:
    engine = connect(f"sqlite+aiosqlite:///{path}")
    for start in range(0, len(rows), batch):
        await store_rows(engine, rows[start : start + batch])
    await engine.dispose()


async def _embed(path: Path, rows: list[LedgerRow], opened: set[str]) -> None:
    ledger = EmbeddedLedger(path)
    ledger.start(1)
    for id in sorted(opened):
        await ledger.open(row(id), b"")
    for each in rows:
        ledger.append(each, b"")
    ledger.close()
