"""A real engine host process for a test: started as the supervisor starts it, ended with the test."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from backends.core.errors import UpstreamOverloaded
from backends.core.events import Event, EventGrammar
from backends.core.request import Job
from backends.engines import kinds
from backends.engines.client import EngineClient
from backends.engines.launch import EngineLaunch, command

ROOT = Path(__file__).parent.parent
ENGINES = kinds.ENGINES
TOKEN = "a-token-of-this-boot"


class HostProcess:
    """One host. `journal` is its step log."""

    def __init__(self, kind: str, model: str = "scripted", **launch: Any) -> None:
        # a short path of its own: a socket's path is at most 107 bytes, and its directory must be 0700
        self.directory = Path(tempfile.mkdtemp(prefix="sy"))
        self.socket = str(self.directory / "e.sock")
        self.journal = self.directory / "steps.jsonl"
        self.stderr = self.directory / "stderr"
        options = {"step_log": str(self.journal), **launch.pop("options", {})}
        read, self._write = os.pipe()
        self.launch = EngineLaunch(
            "e1", kind, ENGINES[kind], model, self.socket, TOKEN, options=options, parent_fd=read, **launch
        )
        self.start()
        os.close(read)

    def start(self) -> None:
        """Start it, or start it again (then without the parent's pipe)."""
        argv, stdin = command(self.launch)
        fd = self.launch.parent_fd
        with self.stderr.open("ab") as errors:
            self.process = subprocess.Popen(
                argv, stdin=subprocess.PIPE, stderr=errors, cwd=ROOT, pass_fds=[] if fd is None else [fd], process_group=0
            )
        assert self.process.stdin is not None
        self.process.stdin.write(stdin)
        self.process.stdin.close()

    def restart(self) -> None:
        self.launch = EngineLaunch(**{**{f: getattr(self.launch, f) for f in self.launch.__struct_fields__}, "parent_fd": None})
        self.start()

    def close_pipe(self) -> None:
        """What the supervisor's death looks like."""
        if self._write >= 0:
            os.close(self._write)
            self._write = -1

    def lines(self, event: str | None = None) -> list[dict[str, Any]]:
        """The journal so far."""
        if not self.journal.exists():
            return []
        whole = self.journal.read_text().rpartition("\n")[0]
        found = [json.loads(line) for line in whole.splitlines()]
        return [line for line in found if event is None or line["event"] == event]

    async def until(self, event: str, count: int = 1, within_s: float = 20.0) -> list[dict[str, Any]]:
        """Wait for lines of the journal."""
        async with asyncio.timeout(within_s):
            while len(found := self.lines(event)) < count:
                await asyncio.sleep(0.005)
        return found

    def end(self) -> None:
        self.close_pipe()
        if self.process.poll() is None:
            self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(5)
        shutil.rmtree(self.directory, ignore_errors=True)


async def up(client: EngineClient, within_s: float = 40.0, host: HostProcess | None = None) -> None:
    """Wait until the engine is ready; a host that ends meanwhile is told at once, with what it wrote."""
    async with asyncio.timeout(within_s):
        while True:
            try:
                await client.probe()
                return
            except UpstreamOverloaded:
                await asyncio.sleep(0.02)
            if host is not None and host.process.poll() is not None:
                raise AssertionError(f"the host ended: {host.stderr.read_text()[-2000:]}")


@asynccontextmanager
async def running(kind: str, model: str = "scripted", **launch: Any) -> AsyncIterator[tuple[HostProcess, EngineClient]]:
    """A host that is up, and a client of it."""
    host = HostProcess(kind, model, **launch)
    client = EngineClient(host.socket, TOKEN, "e1", worker="test")
    try:
        await up(client)
        yield host, client
    finally:
        await client.aclose()
        host.end()


async def events(client: EngineClient, job: Job) -> list[Event]:
    """Every event of a job, checked against the grammar."""
    grammar, got = EventGrammar(), list[Event]()
    async with client.open(job) as stream:
        async for batch in stream:
            assert batch, "batches are never empty"
            got += grammar.feed(batch)
    grammar.close()
    return got


def text(got: Sequence[Event], choice: int = 0) -> str:
    """A choice's text."""
    return "".join(e.text for e in got if getattr(e, "choice", None) == choice and hasattr(e, "text"))
