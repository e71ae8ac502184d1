"""The replica step of docs/scaling.md, tried: clients go on asking while Redis fails over, while one gateway is restarted
in good order, and while one is killed. What was admitted and what was lost, in figures.

    python -m tests.deploy.replicas [--clients 16] [--phase 15] [--down-after-ms 5000]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import httpx
import psycopg

from tests.deploy.fleet import ALLOW, DENY, Fleet, missing
from tests.upstream import Upstream, upstream_server

WHOLE, STREAM = "words-1", "words-20-d20"
PHASES = ("quiet", "redis killed", "redis back", "gateway restarted", "gateway killed", "after")


@dataclass
class Answer:
    """What a client saw: `outcome` is ok, cut (a stream without its end), refused-STATUS or unreachable."""

    key: str
    began: float
    ended: float
    outcome: str
    id: str


async def _ask(http: httpx.AsyncClient, url: str, secret: str, stream: bool) -> tuple[str, str]:
    body = {"model": STREAM if stream else WHOLE, "stream": stream, "messages": [{"role": "user", "content": "hi"}]}
    try:
        async with http.stream(
            "POST", url + "/v1/chat/completions", json=body, headers={"authorization": f"Bearer {secret}"}
        ) as answer:
            id = answer.headers.get("x-request-id", "")
            try:
                data = await answer.aread()
            except httpx.HTTPError:
                return "cut", id
            if answer.status_code != 200:
                return f"refused-{answer.status_code}", id
            whole = data.rstrip().endswith(b"data: [DONE]") if stream else b'"finish_reason"' in data
            return ("ok" if whole else "cut"), id
    except httpx.HTTPError:
        return "unreachable", ""


async def _client(url: str, number: int, answers: list[Answer], stop: asyncio.Event) -> None:
    key, secret = (("deny", DENY), ("allow", ALLOW))[number % 2]
    limits = httpx.Limits(max_connections=1, max_keepalive_connections=1)
    async with httpx.AsyncClient(timeout=30, limits=limits) as http:
        while not stop.is_set():
            began = time.monotonic()
            outcome, id = await _ask(http, url, secret, stream=number % 4 >= 2)
            answers.append(Answer(key, began, time.monotonic(), outcome, id))
            await asyncio.sleep(0.1 if outcome == "ok" else 0.25)


async def _events(fleet: Fleet, phase_s: float) -> list[float]:
    """What happens while the clients ask; returns the instant at which each phase began."""
    first, second = fleet.gateways

    async def restart() -> None:
        assert first.process is not None
        first.process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(first.process.wait, 60)
        await asyncio.to_thread(first.start)

    began = []
    acts = (None, fleet.redis[0].kill, fleet.redis[0].start, restart, second.kill, second.start)
    for act in acts:
        began.append(time.monotonic())
        if act is restart:
            await restart()
        elif act is not None:
            await asyncio.to_thread(act)
        await asyncio.sleep(max(0.0, phase_s - (time.monotonic() - began[-1])))
    return [*began, time.monotonic()]


def _rows(fleet: Fleet) -> dict[str, str]:
    """Outcome of each row of the ledger by its id."""
    dsn = f"host=127.0.0.1 port={fleet.postgres.port} user=switchyard dbname=postgres"
    with psycopg.connect(dsn) as connection:
        return dict(connection.execute("SELECT id, outcome FROM ledger").fetchall())


async def _settled_rows(fleet: Fleet, within_s: float = 60.0) -> dict[str, str]:
    """The ledger when it no longer grows: leases of killed workers take 15 s to expire."""
    deadline = time.monotonic() + within_s
    rows = await asyncio.to_thread(_rows, fleet)
    still = 0
    while still < 20 and time.monotonic() < deadline:
        await asyncio.sleep(1)
        now = await asyncio.to_thread(_rows, fleet)
        still = still + 1 if len(now) == len(rows) else 0
        rows = now
    return rows


async def _charged(fleet: Fleet) -> dict[str, int]:
    """Requests that each key's limit says were used in the last day."""
    used = {}
    async with httpx.AsyncClient(timeout=30) as http:
        for key, secret in (("deny", DENY), ("allow", ALLOW)):
            found = (await http.get(fleet.url + "/v1/me", headers={"authorization": f"Bearer {secret}"})).json()
            (one,) = found["limits"]
            used[key] = int(one["limit"]["requests"]) - int(one["remaining"])
    return used


def _longest_gap(answers: Sequence[Answer], key: str, after: float) -> float:
    """Seconds, at most, in which no request of a key was answered, counted from one answer to the next."""
    good = sorted(one.ended for one in answers if one.key == key and one.outcome == "ok" and one.ended >= after)
    return max((later - earlier for earlier, later in pairwise(good)), default=0.0)


async def trial(folder: Path, *, clients: int, phase_s: float, down_after_ms: int) -> dict[str, object]:
    """Run it once; returns the figures."""
    answers: list[Answer] = []
    async with upstream_server() as upstream:
        fleet = Fleet(folder, upstream.url, [WHOLE, STREAM], down_after_ms)
        try:
            await asyncio.to_thread(fleet.start)
            stop = asyncio.Event()
            async with asyncio.TaskGroup() as group:
                for number in range(clients):
                    group.create_task(_client(fleet.url, number, answers, stop))
                marks = await _events(fleet, phase_s)
                stop.set()
            rows = await _settled_rows(fleet)
            charged = await _charged(fleet)
        finally:
            await asyncio.to_thread(fleet.stop)
    return _figures(answers, marks, rows, charged, upstream)


def _figures(
    answers: list[Answer], marks: list[float], rows: dict[str, str], charged: dict[str, int], upstream: Upstream
) -> dict[str, object]:
    phases = {}
    for name, (start, end) in zip(PHASES, pairwise(marks), strict=True):
        within = [one for one in answers if start <= one.ended < end]
        phases[name] = {
            key: dict(sorted(Counter(one.outcome for one in within if one.key == key).items())) for key in ("deny", "allow")
        }
    admitted = {one.id: one for one in answers if one.outcome in ("ok", "cut") and one.id}
    answered = Counter(one.key for one in answers if one.outcome in ("ok", "cut"))
    return {
        "phases": phases,
        "seconds without an answer": {key: round(_longest_gap(answers, key, marks[0]), 2) for key in ("deny", "allow")},
        "answered": dict(answered),
        "charged at the end": charged,
        "upstream requests": len(upstream.seen),
        "rows": dict(Counter(rows.values())),
        "answered without a row": sum(id not in rows for id in admitted),
        "rows that nobody was answered for": sum(id not in admitted for id in rows),
    }


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--phase", type=float, default=15.0, metavar="S")
    parser.add_argument("--down-after-ms", type=int, default=5000)
    chosen = parser.parse_args()
    if lacking := missing():
        raise SystemExit(f"missing: {lacking}")
    with tempfile.TemporaryDirectory(prefix="switchyard-replicas-") as folder:
        found = asyncio.run(
            trial(Path(folder), clients=chosen.clients, phase_s=chosen.phase, down_after_ms=chosen.down_after_ms)
        )
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
