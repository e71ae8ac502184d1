"""The engine host: a process of its own around one model, started as `python -m backends.engines.host NAME`.

Two threads. The main one runs asyncio and owns the Unix socket and who asked what; the engine thread owns the model
and never waits for a socket. Commands go over by a queue, events come back one call per step and leave as one frame
per connection. The launch value comes on standard input (see `launch.py`).

Exit status: 0 asked to stop, or the supervisor is gone; 2 bad launch; 3 the model did not load; 4 the engine failed.
An engine ends every job with `Usage` or `Failure`: that is how the host knows that a job is over. SIGTERM ends the host
now, SIGUSR1 when the jobs that it has have ended; new ones are then refused as by a model that is loading.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from backends.core.errors import Overloaded, UpstreamOverloaded
from backends.core.events import Failure
from backends.core.request import Job
from backends.core.usage import Usage
from backends.engines import ipc
from backends.engines.engine_thread import EngineThread, Stepped
from backends.engines.launch import MAX_LAUNCH, EngineLaunch
from backends.engines.listening import listen
from backends.engines.options import EngineLoadFailed
from backends.engines.status import EVERY_S, Status, StatusPipe

#: A connection with more unsent bytes than this has a stopped worker behind it, and is closed.
MAX_UNSENT: Final = 8 << 20
#: Seconds in which a connection must have shown its token.
HELLO_S: Final = 5.0
MAX_CONNECTIONS: Final = 256
#: Seconds that the engine thread is given to end its step when the host stops.
STOP_S: Final = 2.0
#: Jobs that one worker may have open.
MAX_OPEN: Final = 4096
#: Prompts that wait to be counted.
MAX_COUNTING: Final = 64


def log(event: str, **fields: object) -> None:
    """One JSON line on standard error."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    sys.stderr.write(msgspec.json.encode({"ts": now, "event": event, **fields}).decode() + "\n")
    sys.stderr.flush()


def resident_bytes() -> int:
    """This process' resident memory (proc(5), statm)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Connection(asyncio.Protocol):
    """One worker."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._inbound = ipc.HostInbound(host.token)
        self._transport: asyncio.Transport | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self.open: set[str] = set()

    @property
    def greeted(self) -> bool:
        """Whether it has shown the token."""
        return self._inbound.worker is not None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A peer connected; it has HELLO_S to show its token."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        if not self._host.joined(self):
            transport.abort()
            return
        self._deadline = asyncio.get_running_loop().call_later(HELLO_S, self._late)

    def connection_lost(self, _: Exception | None) -> None:
        """Its jobs are cancelled at once."""
        if self._deadline is not None:
            self._deadline.cancel()
        self._transport = None
        self._host.left(self)

    def data_received(self, data: bytes) -> None:
        """Messages of the worker."""
        try:
            messages = self._inbound.feed(data)
            for message in messages:
                self._host.message(self, message)
        except ipc.FrameError as error:
            self.drop(str(error))

    def send(self, message: ipc.ToWorker) -> None:
        """Write a message; never waits. Too many unsent bytes close the connection."""
        if self._transport is None or self._transport.is_closing():
            return
        self._transport.write(ipc.frame(message))
        if self._transport.get_write_buffer_size() > MAX_UNSENT:
            self.drop("its worker does not read")

    def drop(self, reason: str) -> None:
        """Close without sending the rest."""
        log("connection_dropped", engine=self._host.name, worker=self._inbound.worker, reason=reason)
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        """Close after the rest is sent."""
        if self._transport is not None:
            self._transport.close()

    def _late(self) -> None:
        if not self.greeted:
            self.drop("no hello in time")


class Host:
    """The loop's side: connections, who owns which job, and the process' end."""

    def __init__(self, launch: EngineLaunch) -> None:
        self.name = launch.name
        self.token = launch.token
        self._launch = launch
        self._connections: set[Connection] = set()
        self._owners: dict[str, Connection] = {}
        self._state = ipc.Ready(False, reason="loading")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._done: asyncio.Future[int] | None = None
        self._engine = EngineThread(launch, self.post, self)
        self._status = StatusPipe(launch.status_fd)
        self._taken = 0
        self._draining = False
        self._counter = ThreadPoolExecutor(1, "counter")
        self._counting = 0

    async def run(self) -> int:
        """Serve until stopped; the exit status."""
        self._loop = asyncio.get_running_loop()
        self._done = self._loop.create_future()
        self._loop.add_signal_handler(signal.SIGTERM, self._finish, 0)
        self._loop.add_signal_handler(signal.SIGUSR1, self._drain)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's ^C is the supervisor's to act on
        if self._launch.parent_fd is not None:
            os.set_blocking(self._launch.parent_fd, False)
            self._loop.add_reader(self._launch.parent_fd, self._parent_spoke, self._launch.parent_fd)
        listener = listen(self._launch.socket)
        server = await self._loop.create_unix_server(lambda: Connection(self), sock=listener)
        log("engine_loading", engine=self.name, kind=self._launch.kind, pid=os.getpid())
        self._engine.start()
        self._say_alive()
        status = await self._done
        server.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._launch.socket)  # noqa: PTH108  (pathlib here would only hide the same call from the linter)
        for connection in list(self._connections):
            connection.close()
        await asyncio.sleep(0.05)  # last frames leave
        if not self._engine.stop(STOP_S):
            log("engine_thread_abandoned", engine=self.name)
            os._exit(status)
        return status

    def post(self, call: Callable[..., None], *args: object) -> None:
        """Run on the loop; for the engine thread."""
        assert self._loop is not None
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(call, *args)

    # what the engine thread posts

    def loaded(self, description: dict[str, object]) -> None:
        """The model is up."""
        log("engine_ready", engine=self.name, **description)
        self._status.tell(Status("ready", memory_mb=resident_bytes() >> 20))
        self._tell(ipc.Ready(True, description=description))

    def load_failed(self, reason: str) -> None:
        """The model did not load: say so and end."""
        log("engine_load_failed", engine=self.name, reason=" ".join(reason.split()))
        self._status.tell(Status("failed", reason=reason))
        self._tell(ipc.Ready(False, failed=True, reason=reason))
        self._finish(3)

    def engine_failed(self, reason: str) -> None:
        """The engine raised out of a step: its jobs fail by the closing connections, the process ends."""
        log("engine_failed", engine=self.name, reason=" ".join(reason.split()))
        self._status.tell(Status("failed", reason=reason))
        self._finish(4)

    def refuse(self, id: str, error: Exception) -> None:
        """The engine did not take a job."""
        message = ipc.refuse(id, error)
        if message.error == "InternalError":
            log("submit_failed", engine=self.name, id=id, error=message.detail)
        if connection := self._forget(id):
            connection.send(message)

    def deliver(self, stepped: Stepped) -> None:
        """Events of one step: one frame per connection."""
        frames: dict[Connection, list[ipc.Batch]] = {}
        for id, events in stepped:
            connection = self._owners.get(id)
            if connection is None or not events:
                continue  # cancelled meanwhile
            last = isinstance(events[-1], Usage | Failure)
            frames.setdefault(connection, []).append(ipc.batch(id, list(events), last))
            if last:
                self._forget(id)
        for connection, batches in frames.items():
            connection.send(ipc.Events(tuple(batches)))

    def cancelled(self, id: str, made: Usage | None) -> None:
        """A job was forgotten: its last batch tells what it came to, after all that it had made before."""
        if connection := self._forget(id):
            connection.send(ipc.Events((ipc.batch(id, [made] if made is not None else [], True),)))

    # what connections report

    def joined(self, connection: Connection) -> bool:
        """A connection was made. False: there are too many."""
        if len(self._connections) >= MAX_CONNECTIONS:
            log("connection_refused", engine=self.name, reason="too many connections")
            return False
        self._connections.add(connection)
        return True

    def left(self, connection: Connection) -> None:
        """A connection is gone: so are its jobs."""
        self._connections.discard(connection)
        for id in list(connection.open):
            self._forget(id)
            self._engine.cancel(id)

    def message(self, connection: Connection, message: ipc.ToHost) -> None:
        """A message of a worker that has shown its token.

        Raises:
            FrameError: a message that no correct worker sends.
        """
        match message:
            case ipc.Hello(worker=worker):
                log("worker_connected", engine=self.name, worker=worker)
                connection.send(self._state)
            case ipc.Submit():
                self._submit(connection, message)
            case ipc.Cancel(id=id):
                if self._owners.get(id) is connection:
                    self._engine.cancel(id)  # its owner hears of what it had made until then
            case ipc.AskStats(number=number):
                self._tell_figures(connection, number)
            case ipc.Count(number=number, job=job):
                self._count(connection, number, ipc.unpack_job(job))

    def _count(self, connection: Connection, number: int, job: Job) -> None:
        """On a thread beside the loop and the engine, one at a time; who asks when many wait is told nothing."""
        if not self._state.ready or self._counting >= MAX_COUNTING:
            connection.send(ipc.Counted(number, None))
            return
        assert self._loop is not None
        self._counting += 1
        counted = self._loop.run_in_executor(self._counter, self._engine.prompt_tokens, job)

        def tell(done: asyncio.Future[int | None]) -> None:
            self._counting -= 1
            connection.send(ipc.Counted(number, None if done.cancelled() else done.result()))

        counted.add_done_callback(tell)

    def _submit(self, connection: Connection, message: ipc.Submit) -> None:
        if message.id in self._owners:
            raise ipc.FrameError("a job id that is in use")
        job = ipc.unpack_job(message.job)
        if not self._state.ready:
            error = UpstreamOverloaded("The model is being loaded.", code="model_loading", retry_after_ms=1000)
            connection.send(ipc.refuse(message.id, error))
        elif len(connection.open) >= MAX_OPEN:
            connection.send(ipc.refuse(message.id, Overloaded("Too many requests are open.", retry_after_ms=1000)))
        else:
            self._owners[message.id] = connection
            connection.open.add(message.id)
            self._taken += 1
            self._engine.submit(message.id, job)

    def _tell_figures(self, connection: Connection, number: int) -> None:
        if not self._state.ready:
            connection.send(ipc.Stats(number, {}))
            return

        def tell(figures: dict[str, object]) -> None:
            self.post(connection.send, ipc.Stats(number, {**figures, "resident_bytes": resident_bytes()}))

        self._engine.figures(tell)

    def _forget(self, id: str) -> Connection | None:
        connection = self._owners.pop(id, None)
        if connection is not None:
            connection.open.discard(id)
        if self._draining and not self._owners:
            self._finish(0)
        return connection

    def _tell(self, state: ipc.Ready) -> None:
        self._state = state
        for connection in list(self._connections):
            if connection.greeted:
                connection.send(state)

    def _say_alive(self) -> None:
        """Now, and again and again."""
        assert self._loop is not None
        step_s = round(self._engine.step_s, 3)
        self._status.tell(Status("alive", open=len(self._owners), taken=self._taken, step_s=step_s))
        self._loop.call_later(EVERY_S, self._say_alive)

    def _drain(self) -> None:
        """Take nothing new; end when nothing is open."""
        log("engine_draining", engine=self.name, open=len(self._owners))
        self._draining = True
        self._tell(ipc.Ready(False, reason=ipc.UNLOADING))
        if not self._owners:
            self._finish(0)

    def _parent_spoke(self, fd: int) -> None:
        try:
            gone = os.read(fd, 4096) == b""
        except BlockingIOError:
            return
        except OSError:
            gone = True
        if gone:
            log("supervisor_gone", engine=self.name)
            self._finish(0)

    def _finish(self, status: int) -> None:
        assert self._loop is not None
        if self._launch.parent_fd is not None:
            self._loop.remove_reader(self._launch.parent_fd)
        if self._done is not None and not self._done.done():
            self._done.set_result(status)


def main() -> int:
    """Read the launch, run the host, give its exit status."""
    data = sys.stdin.buffer.read(MAX_LAUNCH + 1)
    try:
        launch = msgspec.json.decode(data[:MAX_LAUNCH], type=EngineLaunch)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        log("bad_launch", reason=str(error))
        return 2
    if (problem := launch.problem()) is not None:
        log("bad_launch", engine=launch.name, reason=problem)
        return 2
    os.environ.update(launch.environment)
    if launch.memory_limit_mb:
        most = launch.memory_limit_mb << 20
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))  # private memory: not the weights of a mapped file
    try:
        return asyncio.run(Host(launch).run())
    except EngineLoadFailed as error:
        log("engine_load_failed", engine=launch.name, reason=str(error))
        return 3


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    os._exit(status)  # native threads of an engine must not run destructors after main
