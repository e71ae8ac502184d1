"""A gateway of toys under the real supervisor: `python -m tests.toy_gateway SETTINGS.json` (see `main`)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
import urllib.parse
from collections.abc import AsyncIterator
from pathlib import Path

from backends.engines.launch import EngineLaunch
from gateway.domain.engines import EngineKeep
from gateway.gate.client import GateClient
from gateway.gate.protocol import GatedDeployment
from gateway.runtime.drain import DrainTimes
from gateway.runtime.engine_keeper import EngineKeeper
from gateway.runtime.gate_role import run_gate
from gateway.runtime.lifecycle import Lifecycle
from gateway.runtime.line import Line
from gateway.runtime.ports import PortTaken, own_port
from gateway.runtime.roles import Child, ForkRole
from gateway.runtime.supervisor import Reload, Supervisor
from gateway.runtime.worker import WorkerParts, run_worker
from gateway.telemetry import families as f
from gateway.telemetry.aggregate import pack
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.sink import DirectSink


class Toy:
    """One worker's app."""

    def __init__(self, index: int, settings: dict, gate: GateClient | None, metrics: Metrics) -> None:
        self.index, self.settings, self.gate, self.metrics = index, settings, gate, metrics
        self.open = 0
        self.ready = False
        self.cut = asyncio.Event()
        self.config = ""
        self.refused = ""

    async def __call__(self, scope, receive, send) -> None:
        self.open += 1
        try:
            query = {k: v[0] for k, v in urllib.parse.parse_qs(scope["query_string"].decode()).items()}
            await getattr(self, "do_" + scope["path"].strip("/"))(query, send)
        finally:
            self.open -= 1

    async def _text(self, send, text: str, status: int = 200) -> None:
        body = text.encode()
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"%d" % len(body))]})
        await send({"type": "http.response.body", "body": body})

    async def do_who(self, _query, send) -> None:
        self.metrics.add(f.FALLBACKS, "toy")
        await self._text(send, f"{self.index} {os.getpid()}")

    async def do_ready(self, _query, send) -> None:
        await self._text(send, str(self.ready), 200 if self.ready else 503)

    async def do_config(self, _query, send) -> None:
        await self._text(send, json.dumps([self.config, self.refused]))

    async def do_fatal(self, _query, send) -> None:
        await self._text(send, "")
        os._exit(78)

    async def do_stream(self, query, send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for n in range(int(query["n"])):
            if self.cut.is_set():
                await send({"type": "http.response.body", "body": b"cut\n", "more_body": False})
                return
            await send({"type": "http.response.body", "body": b"%d\n" % n, "more_body": True})
            await asyncio.sleep(float(query["gap"]))
        await send({"type": "http.response.body", "body": b"end\n"})

    async def do_slot(self, query, send) -> None:
        slot = await self.gate.acquire("r", query.get("key", "k"), [GatedDeployment("d", self.settings["slots"])], 20)
        try:
            with Path(self.settings["journal"]).open("a") as journal:
                journal.write(f"+ {os.getpid()} {time.monotonic()}\n")
            await asyncio.sleep(float(query["hold"]))
            with Path(self.settings["journal"]).open("a") as journal:
                journal.write(f"- {os.getpid()} {time.monotonic()}\n")
        finally:
            slot.release()
        await self._text(send, "done")


def build(index: int, settings: dict):
    """The parts of one toy worker."""

    @contextlib.asynccontextmanager
    async def parts(line: Line) -> AsyncIterator[WorkerParts]:
        metrics = Metrics()
        gate = None
        if settings.get("gate"):
            gate = GateClient(Path(settings["run_dir"]) / "gate.sock", index, line.child.boot, lambda: pack(metrics.dump()))
        toy = Toy(index, settings, gate, metrics)
        metrics.read(f.OPEN_STREAMS, lambda: toy.open)

        async def flush() -> None:
            await asyncio.sleep(0.01)
            with Path(settings["journal"]).open("a") as journal:
                journal.write(f"flushed {index}\n")

        def on_config(data: bytes) -> None:
            toy.config, toy.refused = data.decode(), ""
            metrics.set(f.CONFIG_FAILED, 0)

        def on_refused(why: str) -> None:
            toy.refused = why
            metrics.set(f.CONFIG_FAILED, 1)

        yield WorkerParts(
            app=toy,
            set_ready=lambda on: setattr(toy, "ready", on),
            open_requests=lambda: toy.open,
            cut=toy.cut.set,
            flush=flush,
            background=[gate.run] if gate else [],
            on_config=on_config,
            on_refused=on_refused,
        )

    return parts


def check(data: bytes) -> None:
    """Anything but the word `broken` is a good file."""
    if b"broken" in data:
        raise ValueError("models.chat: broken")


def main() -> int:
    """Settings: port, workers, drain (DrainTimes), journal; gate + run_dir + slots + metrics; file;
    engine (`run`: its folder; ScriptedOptions).
    """
    settings = json.loads(Path(sys.argv[1]).read_text())
    log = DirectSink(1)
    try:
        owner = own_port("127.0.0.1", settings["port"])
    except PortTaken as taken:
        log.event("port_taken", error=str(taken))
        return 1
    times = DrainTimes(**settings.get("drain", {}))
    roles: list[ForkRole] = []
    if settings.get("gate"):

        def gate(child: Child) -> int:
            path = Path(settings["run_dir"]) / "gate.sock"
            metrics = ("127.0.0.1", settings["metrics"])
            return run_gate(child, path=path, workers=settings["workers"], max_waiting=1000, metrics=metrics, log=log)

        roles.append(ForkRole(name="gate", run=gate))
    for index in range(settings["workers"]):

        def worker(child: Child, index: int = index) -> int:
            return run_worker(child, owner, times, build(index, settings))

        roles.append(ForkRole(name=f"worker-{index}", run=worker, stage="requests"))
    engines = None
    if "engine" in settings:
        socket = str(Path(settings["engine"].pop("run")) / "e.sock")
        kind = "backends.engines.scripted:ScriptedEngine"
        launch = EngineLaunch("toy", "scripted", kind, "none", socket, "token", options=settings["engine"])
        engines = EngineKeeper([launch], Lifecycle([EngineKeep("toy")]), log)
    reload = Reload(path=Path(settings["file"]), check=check) if "file" in settings else None
    return Supervisor(roles, log, engines=engines, requests_s=times.longest_s + 2, reload=reload).run()


if __name__ == "__main__":
    sys.exit(main())
