"""`make soak`: a gateway under mixed load for minutes, with reloads, Redis restarts and clients that leave.

At the end resident memory, file descriptors and metric series must have stayed where they were, and the ledger must have one
row for each admitted request. `--seconds` shortens it, `--out FOLDER` writes the samples and, where matplotlib is
installed, a picture.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sqlite3
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import psutil

from tests.soak.house import SoakedHouse, soaked
from tests.soak.judge import MIB, Sample, judged, ledger_faults
from tests.soak.load import Noted, clients

SAMPLE_S, RELOAD_S, REDIS_S, REDIS_AWAY_S = 1.0, 15.0, 45.0, 1.0
#: What everything that is open at the end gets to end, and the ledger to be written.
SETTLE_S = 20.0


def look(house: SoakedHouse, began: float) -> Sample:
    """One sample."""
    assert house.gateway.process is not None
    root = psutil.Process(house.gateway.process.pid)
    resident = descriptors = 0
    for process in (root, *root.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            resident += process.memory_info().rss
            descriptors += process.num_fds()
    lines = [line for line in house.gateway.metrics().splitlines() if line and line[0] != "#"]
    open_requests = next(int(float(line.split()[1])) for line in lines if line.startswith("switchyard_open_streams "))
    return Sample(time.monotonic() - began, resident, descriptors, len(lines), open_requests)


async def _watch(house: SoakedHouse, began: float, samples: list[Sample], until: float) -> None:
    while time.monotonic() < until:
        with contextlib.suppress(OSError):
            samples.append(await asyncio.to_thread(look, house, began))
        await asyncio.sleep(SAMPLE_S)


async def _disturb(house: SoakedHouse, until: float) -> int:
    """Reload every 15 s, kill Redis every 45 s and start an empty one; how often Redis died."""
    began, deaths, reloads = time.monotonic(), 0, 0
    while time.monotonic() < until - REDIS_AWAY_S:
        await asyncio.sleep(0.5)
        ran = time.monotonic() - began
        if ran > (reloads + 1) * RELOAD_S:
            reloads += 1
            house.reload()
        if ran > (deaths + 1) * REDIS_S:
            deaths += 1
            await asyncio.to_thread(house.redis.kill)
            await asyncio.sleep(REDIS_AWAY_S)
            await asyncio.to_thread(house.redis.start)
    return deaths


async def _soak(house: SoakedHouse, seconds: float, count: int) -> tuple[list[Sample], Noted, int]:
    noted, samples, began = Noted(), [], time.monotonic()
    until = began + seconds
    async with asyncio.TaskGroup() as group:
        group.create_task(_watch(house, began, samples, until))
        disturbing = group.create_task(_disturb(house, until))
        group.create_task(clients(house, until, count, noted))
    deadline = time.monotonic() + SETTLE_S
    while time.monotonic() < deadline:
        await asyncio.sleep(1)
        last = await asyncio.to_thread(look, house, began)
        if not last.open_requests and noted.admitted.keys() <= {row[0] for row in _rows(house)}:
            break
    samples.append(await asyncio.to_thread(look, house, began))
    return samples, noted, disturbing.result()


def _rows(house: SoakedHouse) -> list[tuple[str, str, int]]:
    file = next((house.gateway.folder / "var").glob("*.db"))
    with contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as database:
        return database.execute("SELECT id, outcome, output_tokens FROM ledger WHERE state = 'final'").fetchall()


def main() -> int:
    """Soak, judge, report; 1 when something is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak")
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--clients", type=int, default=12)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="switchyard-soak-") as name, soaked(Path(name)) as house:
        samples, noted, deaths = asyncio.run(_soak(house, chosen.seconds, chosen.clients))
        logged = {str(line["request_id"]) for line in house.gateway.events("request")}
        bugs = house.gateway.events("bug")
        wrong = [*judged(samples), *ledger_faults(noted.admitted, logged, rows := _rows(house))]
        wrong += [f"{len(bugs)} defects in the log, for instance {bugs[0]}"] if bugs else []
    report = {
        "seconds": chosen.seconds,
        "requests": noted.made,
        "answers": {str(status): count for status, count in sorted(noted.statuses.items())},
        "left": noted.left,
        "unanswered": noted.unanswered,
        "reloads": house.changes,
        "redis_deaths": deaths,
        "ledger_rows": len(rows),
        "admitted_as_clients_know": len(noted.admitted),
        "resident_mib": [
            round(one.resident / MIB, 1) for one in (samples[0], samples[len(samples) // 2], samples[-2], samples[-1])
        ],
        "descriptors": [one.descriptors for one in (samples[0], samples[len(samples) // 2], samples[-2], samples[-1])],
        "series": [one.series for one in (samples[0], samples[len(samples) // 2], samples[-2], samples[-1])],
        "wrong": wrong,
    }
    print(json.dumps(report, indent=1))
    if chosen.out is not None:
        chosen.out.mkdir(parents=True, exist_ok=True)
        (chosen.out / "soak.json").write_text(
            json.dumps({"report": report, "samples": [asdict(one) for one in samples]}) + "\n"
        )
        from tests.soak.plot import plotted

        plotted(samples, chosen.out / "soak.png")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
