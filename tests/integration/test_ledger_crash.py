"""A gateway's process killed with SIGKILL while it writes: what was committed is kept, what was open is abandoned."""

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

from gateway.ledger.embedded import EmbeddedLedger
from gateway.ledger.migrations import migrate

ROOT = Path(__file__).resolve().parents[2]
# Prints an id after its commit: "o" opened, "f" handed over as final. Every third request stays open.
WRITER = """
import asyncio, sys
from pathlib import Path
from gateway.ledger.embedded import EmbeddedLedger
from tests.rows import row

async def main():
    ledger = EmbeddedLedger(Path(sys.argv[1]))
    ledger.start(1)
    n = 0
    while True:
        await ledger.open(row(f"{n:06}", admitted_us=n), b"reserved")
        print("o", f"{n:06}", flush=True)
        if n % 3:
            ledger.append(row(f"{n:06}", admitted_us=n, outcome="ok", output_tokens=1), b"actual")
        n += 1

asyncio.run(main())
"""


def test_kill_9_while_writing(tmp_path: Path) -> None:
    path = tmp_path / "gateway.db"
    migrate(f"sqlite+aiosqlite:///{path}")
    opened: list[str] = []
    for _ in range(3):
        first = len(opened)
        script = WRITER.replace("n = 0", f"n = {first}")
        child = subprocess.Popen(
            [sys.executable, "-c", script, str(path)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
        )
        assert child.stdout is not None
        while len(opened) < first + 200:
            opened.append(child.stdout.readline().split()[1].decode())
        child.send_signal(signal.SIGKILL)
        tail = child.stdout.read().split(b"\n")
        opened += [line.split()[1].decode() for line in tail if len(line) == 8]
        child.wait(10)
        child.stdout.close()
    ledger = EmbeddedLedger(path)
    assert ledger.start(2**40) > 0
    recent = ledger.recent(0)
    ledger.close()
    database = sqlite3.connect(path)
    assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    rows = {id: (outcome, charges) for id, outcome, charges in database.execute("SELECT id, outcome, charges FROM ledger")}
    assert database.execute("SELECT count(*) FROM ledger WHERE state = 'open'").fetchone() == (0,)
    database.close()
    assert set(opened) <= set(rows)
    assert set(rows.values()) == {("ok", b"actual"), ("abandoned", b"reserved")}
    assert all(rows[id][0] == "abandoned" for id in rows if int(id) % 3 == 0)
    assert sorted(at for at, _, _ in recent) == sorted(int(id) for id in rows)
