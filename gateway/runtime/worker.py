"""A worker: one uvicorn server on its own socket, its background tasks in one group, and its way out (`drain.py`)."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import ssl
from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any

import uvicorn

from gateway.runtime.drain import Drain, DrainTimes, Effect
from gateway.runtime.line import Line, run_async
from gateway.runtime.ports import worker_socket
from gateway.runtime.roles import Child

#: Connections that the kernel keeps until they are accepted.
BACKLOG = 2048
#: Between two looks at the open requests while draining, and when nothing happens.
DRAIN_TICK_S, IDLE_TICK_S = 0.02, 0.1
#: Objects made between two looks of the cyclic collector (Python's own: 700, 10, 10). A request's objects live across
#: several awaits, so frequent looks find them all alive: at 64 requests they took a fifth of the worker's time.
COLLECT_EVERY = (20_000, 20, 20)
#: A block of memory of so many bytes, freed once, tells glibc to keep twice as much free memory instead of 128 KiB: else a
#: prompt of 40 kB gives pages back to the kernel and takes them anew at each request.
KEPT_FREE_BYTES = 4 << 20
#: What requests get that outlived drain, cut and flush, before their tasks are cancelled.
LAST_S = 0.5


def _heed_nothing(_: object) -> None:
    """For a worker that has no configuration of its own."""


async def _nothing() -> None:
    """For a worker that has nothing to flush."""


@dataclass(frozen=True, kw_only=True)
class WorkerParts:
    """What a worker serves and whom it tells. `gateway.app` builds it inside the worker's event loop.

    `protocol_class`: uvicorn's HTTP protocol (None: its own). `background`: run until the worker ends; one that fails
    ends the worker. `tls`: what handshakes are made with, None for plain HTTP. `open_requests`: how many are being
    answered. `cut`: end them. `flush`: settlements leave.
    `on_config` gets the bytes of a file that the supervisor has checked; `on_refused` why a newer one may not be used.
    """

    app: Any
    protocol_class: type[asyncio.Protocol] | None = None
    set_ready: Callable[[bool], object] = _heed_nothing
    open_requests: Callable[[], int] = int
    cut: Callable[[], object] = lambda: None
    flush: Callable[[], Awaitable[object]] = _nothing
    background: Sequence[Callable[[], Coroutine[Any, Any, object]]] = ()
    on_config: Callable[[bytes], None] = _heed_nothing
    on_refused: Callable[[str], None] = _heed_nothing
    tls: ssl.SSLContext | None = None
    uvicorn_options: Mapping[str, Any] = field(default_factory=dict)


Build = Callable[[Line], AbstractAsyncContextManager[WorkerParts]]


def run_worker(child: Child, owner: socket.socket, times: DrainTimes, build: Build) -> int:
    """A worker's whole life, for `ForkRole.run`; returns the exit status.

    Args:
        owner: the supervisor's socket that owns the port.
        build: makes the parts in the worker's loop and takes them down again after the last request.
    """

    async def main(line: Line) -> None:
        sock = worker_socket(owner)
        async with build(line) as parts:
            line.listen(parts.on_config, parts.on_refused)
            bytearray(KEPT_FREE_BYTES)
            gc.set_threshold(*COLLECT_EVERY)
            gc.collect()
            gc.freeze()  # the parts live as long as the worker: never look at them again
            server = _Server(parts, line, Drain(times))
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(run()) for run in parts.background]
                await server.serve(sockets=[sock])
                for task in tasks:
                    task.cancel()

    return run_async(child, main)


class _Server(uvicorn.Server):
    """uvicorn's server with our signals and our order of ending. Overrides read in uvicorn 0.54 `server.py`."""

    def __init__(self, parts: WorkerParts, line: Line, drain: Drain) -> None:
        options: dict[str, Any] = {
            "lifespan": "off",
            "log_config": None,
            "log_level": "warning",  # that it started is told by the supervisor
            "access_log": False,
            "proxy_headers": False,
            "ws": "none",
            "server_header": False,
            "backlog": BACKLOG,
            **parts.uvicorn_options,
        }
        config = uvicorn.Config(parts.app, interface="asgi3", http=parts.protocol_class or "httptools", **options)
        config.load()
        config.ssl = parts.tls
        super().__init__(config)
        self._parts, self._line, self._drain = parts, line, drain
        self._flush: asyncio.Task[object] | None = None

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Signals belong to `Line`."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then say so."""
        await super().startup(sockets=sockets)
        self._parts.set_ready(True)
        self._line.ready()

    async def main_loop(self) -> None:
        """Until the drain is over."""
        loop = asyncio.get_running_loop()
        ticked = -1.0
        async with asyncio.TaskGroup() as group:
            while self._drain.phase != "closed":
                now = loop.time()
                if now - ticked >= 1.0:
                    ticked = now
                    await self.on_tick(0)  # the date header
                for effect in self._effects(now):
                    await self._carry_out(effect, group)
                await self._wait(IDLE_TICK_S if self._drain.phase == "serving" else DRAIN_TICK_S)
            if self._flush is not None:
                self._flush.cancel()

    def _effects(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        if self._line.hurried.is_set():
            effects += self._drain.hurry(now)
        elif self._line.draining.is_set():
            effects += self._drain.begin(now)
        if self._drain.phase != "serving":
            open_requests = max(self._parts.open_requests(), len(self.server_state.tasks))
            effects += self._drain.look(now, open_requests, self._flush is not None and self._flush.done())
        return effects

    async def _carry_out(self, effect: Effect, group: asyncio.TaskGroup) -> None:
        if effect == "unready":
            self._parts.set_ready(False)
        elif effect == "stop_accepting":
            await asyncio.sleep(0)  # what the kernel has queued is accepted in a turn of the loop
            await asyncio.sleep(0)
            for server in self.servers:
                server.close()
            for connection in list(self.server_state.connections):
                connection.shutdown()
        elif effect == "cut":
            self._parts.cut()
        elif effect == "flush":
            self._flush = group.create_task(self._flushed())

    async def _flushed(self) -> None:
        await self._parts.flush()

    async def _wait(self, seconds: float) -> None:
        """Sleep, or less when the supervisor speaks."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._line.woken.wait()
        self._line.woken.clear()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """The drain is over: whoever is still there is cut."""
        for sock in sockets or []:
            sock.close()
        if self.server_state.tasks:
            await asyncio.wait(self.server_state.tasks, timeout=LAST_S)
        for task in list(self.server_state.tasks):
            task.cancel()
        await asyncio.sleep(0)
        await self.lifespan.shutdown()
