"""The ledger of a gateway without Redis: one writer thread owns the SQLite file.

An `open` is committed before it returns, at once when the writer is idle; what arrives during a commit shares the next
one. Final rows alone wait up to 5 ms for company: nobody waits for them. The rows of one turn of the event loop are
handed over together, and up to 64 are one statement: at each handover, and for each row that SQLite is asked to write by
itself, two threads fight for the interpreter. WAL with synchronous=NORMAL: a killed process
loses nothing that was committed, a power failure may lose the last commits (sqlite.org/wal.html, "Durability").
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import NamedTuple

import msgspec

from backends.core.errors import GatewayError
from gateway.domain.settlement import LedgerRow
from gateway.ledger.models import ROW_FIELDS

_COLUMNS = ", ".join(f'"{name}"' for name in (*ROW_FIELDS, "state", "charges"))
_MARKS = "(" + ", ".join("?" for _ in range(len(ROW_FIELDS) + 2)) + ")"
_INSERT = f"INSERT INTO ledger ({_COLUMNS}) VALUES "  # noqa: S608  # our own column names
#: How many rows a statement writes: few texts, so that SQLite's statement cache holds them all.
_SIZES = (64, 16, 4, 1)
_OPEN = " ON CONFLICT (id) DO NOTHING"
_FINAL = (
    " ON CONFLICT (id) DO UPDATE SET "
    + ", ".join(f'"{name}" = excluded."{name}"' for name in (*ROW_FIELDS[1:], "state", "charges"))
    + " WHERE ledger.state = 'open' OR (ledger.outcome = 'abandoned' AND excluded.outcome <> 'abandoned')"
)
_ABANDON = "UPDATE ledger SET state = 'final', outcome = 'abandoned', settled_us = ? WHERE state = 'open'"
_OPEN_ROWS = f"SELECT {_COLUMNS} FROM ledger WHERE state = 'open' AND charges IS NOT NULL"  # noqa: S608
_JUDGED = (
    "UPDATE ledger SET " + ", ".join(f'"{name}" = ?' for name in (*ROW_FIELDS[1:], "charges")) + " WHERE id = ?"  # noqa: S608
)
_STREAMED = ROW_FIELDS.index("streamed")
#: What becomes of an open row and its charges.
Judge = Callable[[LedgerRow, bytes], tuple[LedgerRow, bytes]]
_RECENT = (
    "SELECT admitted_us, state = 'final' AND outcome <> 'abandoned', charges FROM ledger"
    " WHERE admitted_us >= ? AND charges IS NOT NULL ORDER BY admitted_us"
)
# What a row's own content can raise; any other error is the file's or the disk's, and is waited out.
_CONTENT = (OverflowError, UnicodeError, sqlite3.DataError, sqlite3.IntegrityError, sqlite3.ProgrammingError)
_log = logging.getLogger(__name__)


class LedgerInUse(RuntimeError):
    """Another process owns this SQLite ledger."""


class LedgerUnavailable(GatewayError):
    """The ledger cannot store the request, so it is not begun (503)."""

    status = 503
    default_code = "ledger_unavailable"

    def __init__(self, detail: str) -> None:
        super().__init__("The gateway cannot record requests at the moment.", retry_after_ms=1000, detail=detail)


class _Item(NamedTuple):
    """One row on its way: its column values, and for an opening who waits for it."""

    values: tuple[object, ...]
    waiter: asyncio.Future[None] | None


class EmbeddedLedger:
    """An outbox in SQLite. `start`, then `open`/`append` from the event loop's thread, then `close`.

    Args:
        path: the file, already migrated.
        linger_s: how long final rows may wait for a shared commit.
        retry_s: pause between tries while the disk refuses.
        max_waiting: rows in the queue above which new requests are refused. Final rows are always taken: there is at
            most one for each request that was let in.
        max_held: final rows kept while the disk refuses them; further ones are in the log only.
    """

    def __init__(
        self,
        path: Path,
        *,
        linger_s: float = 0.005,
        retry_s: float = 0.5,
        max_waiting: int = 20_000,
        max_held: int = 100_000,
    ) -> None:
        self._path = path
        self._linger_s = linger_s
        self._retry_s = retry_s
        self._max_waiting = max_waiting
        self._max_held = max_held
        self._turn: list[_Item] = []
        self._given = self._taken = 0  # rows: counted by the loop's thread, and by the writer's
        self._queue: queue.SimpleQueue[list[_Item] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock: int | None = None
        self._failing = ""
        self.written = 0
        """Final rows committed."""
        self.unstored = 0
        """Final rows that SQLite refuses, or refused until there were too many or `close` gave up; each is in the log."""

    @property
    def ready(self) -> bool:
        """Whether requests can be recorded now."""
        return self._thread is not None and not self._failing and self._given - self._taken < self._max_waiting

    def start(self, now_us: int, judge: Judge | None = None) -> int:
        """Take the file, mark what a former process left open as abandoned, start the writer. Blocks for moments.

        Args:
            now_us: µs UTC, when they are settled.
            judge: the row and the charges of each of them as they are to be, given both as they were opened.

        Returns:
            How many rows were abandoned.

        Raises:
            LedgerInUse: another process owns it.
            sqlite3.Error: it cannot be used.
        """
        self._lock = self._acquire()
        database: sqlite3.Connection | None = None
        try:
            database = self._connect()
            if judge is not None:
                self._judge_open(database, judge)
            abandoned = database.execute(_ABANDON, (now_us,)).rowcount
        except BaseException:
            if database is not None:
                database.close()
            self._release()
            raise
        if abandoned:
            _log.warning("requests of a former process abandoned", extra={"rows": abandoned})
        self._thread = threading.Thread(target=self._run, args=(database,), name="ledger", daemon=True)
        self._thread.start()
        return abandoned

    def _judge_open(self, database: sqlite3.Connection, judge: Judge) -> None:
        """Open rows stay open, with the amounts that they came to."""
        database.execute("BEGIN IMMEDIATE")
        for values in database.execute(_OPEN_ROWS).fetchall():
            given = LedgerRow(**{**dict(zip(ROW_FIELDS, values, strict=False)), "streamed": bool(values[_STREAMED])})
            row, charges = judge(given, values[-1])
            if row is not given:
                database.execute(_JUDGED, (*msgspec.structs.astuple(row)[1:], charges, row.id))
        database.execute("COMMIT")

    async def open(self, row: LedgerRow, charges: bytes) -> None:
        """Store the row of an admitted request; returns after the commit.

        Raises:
            LedgerUnavailable: it was not stored.
        """
        if not self.ready:
            raise LedgerUnavailable(self._failing or "too many rows wait to be written")
        waiter = asyncio.get_running_loop().create_future()
        self._give(_Item((*msgspec.structs.astuple(row), "open", charges), waiter))
        await waiter

    def append(self, row: LedgerRow, charges: bytes) -> None:
        """Store the final row in place of the opening one, once. Never blocks, never raises."""
        item = _Item((*msgspec.structs.astuple(row), "final", charges), None)
        if self._thread is None:
            self._give_up(item, "the ledger is closed")
        else:
            self._give(item)

    def _give(self, item: _Item) -> None:
        """Hand over with the others of this turn."""
        if not self._turn:
            asyncio.get_running_loop().call_soon(self._hand_over)
        self._turn.append(item)
        self._given += 1

    def _hand_over(self) -> None:
        turn, self._turn = self._turn, []
        if turn:
            self._queue.put(turn)

    def recent(self, since_us: int) -> Sequence[tuple[int, bool, bytes]]:
        """(admitted_us, settled, charges) of every row admitted since; let it reach back as far as the longest period."""
        with closing(self._connect()) as database:
            return [(at, bool(settled), charges) for at, settled, charges in database.execute(_RECENT, (since_us,))]

    def close(self, timeout_s: float = 10.0) -> None:
        """Write what waits and give the file back. Blocks, at most `timeout_s` and one try; what fails is logged whole."""
        if self._thread is not None:
            self._hand_over()
            self._queue.put(None)
            self._thread.join(timeout_s)
            if self._thread.is_alive():
                _log.error("ledger writer did not end in time", extra={"waiting": self._given - self._taken})
            self._thread = None
        self._release()

    def _run(self, database: sqlite3.Connection) -> None:
        """The writer thread: take what waits, commit it, tell who waits for it."""
        held: list[_Item] = []
        heartbeat = 0
        with closing(database):
            last = False
            while not last:
                batch, last = self._take(pause_s=self._retry_s if self._failing else None)
                opens = [item for item in batch if item.waiter is not None]
                held += [item for item in batch if item.waiter is None]
                heartbeat += 1
                error = self._store(database, opens, held, heartbeat if self._failing else 0)
                if error is None:
                    self.written += len(held)
                    held = []
                elif isinstance(error, _CONTENT):
                    error = self._store(database, opens, [], 0)
                    held = self._store_singly(database, held)
                self._answer(opens, error)
                self._note(error)
                while len(held) > self._max_held:
                    self._give_up(held.pop(), "too many rows wait for the disk")
        for item in held:
            self._give_up(item, "not written before the end")

    def _take(self, pause_s: float | None) -> tuple[list[_Item], bool]:
        """The next batch (empty only after a pause) and whether it is the last one. Lingers while nobody waits: with
        `pause_s` for that long, or each final row would be a try to write all that the disk has refused so far.
        """
        batch: list[_Item] = []
        try:
            items = self._queue.get(timeout=pause_s)
            deadline = time.monotonic() + (self._linger_s if pause_s is None else pause_s)
            urgent = False
            while items is not None:
                batch += items
                self._taken += len(items)
                urgent = urgent or any(item.waiter is not None for item in items)
                left_s = 0.0 if urgent else deadline - time.monotonic()
                if len(batch) >= 1000:
                    return batch, False
                items = self._queue.get(timeout=left_s) if left_s > 0 else self._queue.get_nowait()
        except queue.Empty:
            return batch, False
        return batch, True

    def _store(
        self, database: sqlite3.Connection, opens: Sequence[_Item], finals: Sequence[_Item], heartbeat: int
    ) -> Exception | None:
        """One transaction, all or nothing. Openings go first: a row is opened before it is closed."""
        try:
            database.execute("BEGIN IMMEDIATE")
            if heartbeat:
                # While failing there may be nothing to write: this number makes the disk prove itself.
                database.execute(f"PRAGMA user_version = {heartbeat % 2**31}")
            _write(database, _OPEN, opens)
            _write(database, _FINAL, finals)
            database.execute("COMMIT")
        except Exception as error:
            with suppress(sqlite3.Error):
                database.execute("ROLLBACK")
            return error
        return None

    def _store_singly(self, database: sqlite3.Connection, finals: Sequence[_Item]) -> list[_Item]:
        """After a refusal of content: each row by itself, so that one bad row holds up no other. Returns the unwritten."""
        left: list[_Item] = []
        for item in finals:
            error = self._store(database, [], [item], 0)
            if isinstance(error, _CONTENT):
                self._give_up(item, type(error).__name__)
            elif error is not None:
                left.append(item)
            else:
                self.written += 1
        return left

    def _give_up(self, item: _Item, reason: str) -> None:
        self.unstored += 1
        row = dict(zip(ROW_FIELDS, item.values, strict=False))
        _log.error("ledger row not stored", extra={"reason": reason, "row": repr(row)})

    def _answer(self, opens: Sequence[_Item], error: Exception | None) -> None:
        waiters = [item.waiter for item in opens if item.waiter is not None]
        if not waiters:
            return
        # A closed loop has nobody left who waits.
        with suppress(RuntimeError):
            waiters[0].get_loop().call_soon_threadsafe(_resolve, waiters, "" if error is None else type(error).__name__)

    def _note(self, error: Exception | None) -> None:
        failing = "" if error is None or isinstance(error, _CONTENT) else f"{type(error).__name__}: {error}"
        if bool(failing) != bool(self._failing):
            _log.log(logging.ERROR if failing else logging.INFO, "ledger disk %s", "fails" if failing else "works again")
        self._failing = failing

    def _connect(self) -> sqlite3.Connection:
        # mode=rw: a file that vanished is an error, not a new and empty ledger.
        uri = f"{self._path.absolute().as_uri()}?mode=rw"
        database = sqlite3.connect(uri, uri=True, timeout=5.0, isolation_level=None, check_same_thread=False)
        database.execute("PRAGMA synchronous = NORMAL")
        return database

    def _acquire(self) -> int:
        name = self._path.with_name(self._path.name + ".lock")
        lock = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(lock, 32).decode("ascii", "replace").strip()
            os.close(lock)
            raise LedgerInUse(
                f"the ledger {self._path} is in use by process {owner or 'unknown'}: stop that one,"
                " or set redis.url, with which several processes can share a ledger"
            ) from None
        os.truncate(lock, 0)
        os.write(lock, str(os.getpid()).encode())
        return lock

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _write(database: sqlite3.Connection, how: str, items: Sequence[_Item]) -> None:
    """Insert rows in their order."""
    at = 0
    for size in _SIZES:
        while len(items) - at >= size:
            values = [value for item in items[at : at + size] for value in item.values]
            database.execute(_INSERT + ", ".join([_MARKS] * size) + how, values)
            at += size


def _resolve(waiters: Sequence[asyncio.Future[None]], reason: str) -> None:
    for waiter in waiters:
        if waiter.done():
            continue
        if reason:
            waiter.set_exception(LedgerUnavailable(reason))
        else:
            waiter.set_result(None)
