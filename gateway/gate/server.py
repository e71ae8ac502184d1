"""The gate process's heart: one queue, a connection per worker, and the way to ask the workers for their metrics.

After a start nothing is granted until every expected worker has said what it holds, or `recover_s` went by: so the
bound survives a gate that was killed.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import cast

from gateway.gate.messages import (
    VERSION,
    Acquire,
    Cancel,
    FrameError,
    Frames,
    FromGate,
    FromWorker,
    Grant,
    Hello,
    Refuse,
    Release,
    Samples,
    Scrape,
    Stop,
    from_worker,
    pack,
)
from gateway.gate.queue import Decision, FairQueue, Granted, PoolStats

#: Unsent bytes to one worker above which it counts as stopped and is cut.
MAX_UNSENT = 8 << 20
#: Retry-After of a question that came while what is held was not yet known, and found the line full.
RETRY_MS = 1000

OnSamples = Callable[[int, int, bytes], None]
OnGone = Callable[[int, int], None]


class _Connection(asyncio.Protocol):
    """One worker. `owner` is the connection's own number: a worker that comes back is a new owner."""

    def __init__(self, server: GateServer, owner: int) -> None:
        self._server, self.owner = server, owner
        self._frames = Frames()
        self._transport: asyncio.Transport | None = None
        self.worker: int | None = None
        self.boot = 0
        self.outbox: list[FromGate] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one in all but name

    def data_received(self, data: bytes) -> None:
        try:
            for frame in self._frames.feed(data):
                self._server.heard(self, from_worker(frame))
        except (FrameError, ValueError):
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._server.lost(self)

    def flush(self) -> None:
        """Everything said in this turn, in one write."""
        if not self.outbox or self._transport is None:
            return
        messages, self.outbox = self.outbox, []
        self._transport.write(pack(messages))
        if self._transport.get_write_buffer_size() > MAX_UNSENT:
            self.abort()

    def abort(self) -> None:
        """Cut it; what it held is freed by `connection_lost`."""
        if self._transport is not None:
            self._transport.abort()


class GateServer:
    """Serves the gate's protocol on a Unix socket.

    Args:
        expected_workers: how many must have said hello before the first grant.
        max_waiting: length of the queue.
        recover_s: how long to wait for them at most.
        on_samples: a worker's metrics: worker, boot, payload.
        on_gone: a worker's connection is closed: worker, boot.
    """

    def __init__(
        self,
        expected_workers: int,
        max_waiting: int = 1024,
        recover_s: float = 2.0,
        on_samples: OnSamples = lambda _worker, _boot, _payload: None,
        on_gone: OnGone = lambda _worker, _boot: None,
    ) -> None:
        self._queue = FairQueue(max_waiting)
        self._expected, self._max_waiting, self._recover_s = expected_workers, max_waiting, recover_s
        self._on_samples, self._on_gone = on_samples, on_gone
        self._owners = itertools.count(1)
        self._connections: dict[int, _Connection] = {}
        self._limits: dict[str, int] = {}
        self._recovering = True
        self._early: dict[tuple[int, int], tuple[Acquire, int]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._scrapes: dict[int, tuple[set[int], asyncio.Future[None]]] = {}
        self._scrape_ids = itertools.count(1)
        self._server: asyncio.Server | None = None

    async def start(self, path: Path) -> None:
        """Listen.

        Raises:
            PermissionError: others may enter the socket's directory.
            OSError: the socket cannot be made.
        """
        if stat.S_IMODE(path.parent.stat().st_mode) & 0o077:
            raise PermissionError(f"{path.parent} must be private (0700)")
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(lambda: _Connection(self, next(self._owners)), sock=private_socket(path))
        loop.call_later(self._recover_s, self._recovered)

    def close(self) -> None:
        """Stop listening and cut every connection."""
        if self._server is not None:
            self._server.close()
        for connection in list(self._connections.values()):
            connection.abort()
        if self._timer is not None:
            self._timer.cancel()

    def stats(self) -> dict[str, PoolStats]:
        """Every deployment that was ever asked for."""
        return self._queue.stats()

    async def scrape(self, timeout_s: float = 1.0) -> int:
        """Ask every worker for its metrics; returns how many answered in time (each through `on_samples`)."""
        awaited = {c.owner for c in self._connections.values()}
        if not awaited:
            return 0
        number, asked = next(self._scrape_ids), len(awaited)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._scrapes[number] = (awaited, done)
        for connection in self._connections.values():
            connection.outbox.append(Scrape(number))
            connection.flush()
        try:
            async with asyncio.timeout(timeout_s):
                await done
        except TimeoutError:
            pass
        finally:
            del self._scrapes[number]
        return asked - len(awaited)

    def heard(self, connection: _Connection, messages: Iterable[FromWorker]) -> None:
        """One frame of a worker.

        Raises:
            FrameError: it breaks the protocol.
            ValueError: it uses a ticket twice, or names a limit or weight that cannot be.
        """
        for message in messages:
            if (connection.worker is None) != isinstance(message, Hello):
                raise FrameError("hello comes first, and once")
            if isinstance(message, Hello):
                self._hello(connection, message)
            elif isinstance(message, Samples):
                self._samples(connection, message)
            elif isinstance(message, Stop):
                self._queue.stop()
            else:
                self._tell(self._ask(connection.owner, message))
        self._flush()

    def lost(self, connection: _Connection) -> None:
        """A worker's socket is closed: its slots are free, its questions are void."""
        if self._connections.pop(connection.owner, None) is None:
            return
        for ticket in [t for t in self._early if t[0] == connection.owner]:
            del self._early[ticket]
        self._tell(self._queue.drop_owner(connection.owner, _now_us()))
        for awaited, done in self._scrapes.values():
            _answered(awaited, done, connection.owner)
        if connection.worker is not None:
            self._on_gone(connection.worker, connection.boot)
        self._flush()

    def _hello(self, connection: _Connection, hello: Hello) -> None:
        if hello.version != VERSION:
            raise FrameError(f"version {hello.version}, not {VERSION}")
        for other in [c for c in self._connections.values() if c.worker == hello.worker]:
            other.abort()
            self.lost(other)
        connection.worker, connection.boot = hello.worker, hello.boot
        self._connections[connection.owner] = connection
        now_us = _now_us()
        for serial, deployment, limit in hello.held:
            self._limits.setdefault(deployment, limit)
            self._queue.adopt((connection.owner, serial), deployment, limit, now_us)
        if self._recovering and len(self._connections) >= self._expected:
            self._recovered()

    def _recovered(self) -> None:
        """All that is held is known: answer who asked meanwhile, in order."""
        if not self._recovering:
            return
        self._recovering = False
        early, self._early = self._early, {}
        for (owner, _), (message, since_us) in early.items():
            left_us = message.max_wait_us - (_now_us() - since_us)
            self._tell(self._acquire(owner, message, left_us))
        self._flush()

    def _ask(self, owner: int, message: Acquire | Release | Cancel) -> list[Decision]:
        ticket = (owner, message.serial)
        if isinstance(message, Release):
            return self._queue.release(ticket, _now_us())
        if isinstance(message, Cancel):
            self._early.pop(ticket, None)
            return self._queue.cancel(ticket, _now_us())
        if not self._recovering:
            return self._acquire(owner, message, message.max_wait_us)
        if len(self._early) >= self._max_waiting:
            self._connections[owner].outbox.append(Refuse(message.serial, "full", RETRY_MS))
        else:
            self._early[ticket] = (message, _now_us())
        return []

    def _acquire(self, owner: int, message: Acquire, max_wait_us: int) -> list[Decision]:
        now_us = _now_us()
        decided: list[Decision] = []
        for deployment, limit in message.deployments:
            if self._limits.get(deployment) != limit:
                self._limits[deployment] = limit
                decided += self._queue.set_limit(deployment, limit, now_us)
        names = [name for name, _ in message.deployments]
        ticket = (owner, message.serial)
        return decided + self._queue.acquire(ticket, message.key, message.weight, message.priority, names, now_us, max_wait_us)

    def _samples(self, connection: _Connection, message: Samples) -> None:
        assert connection.worker is not None
        self._on_samples(connection.worker, connection.boot, message.payload)
        scrape = self._scrapes.get(message.scrape)
        if scrape is not None:
            _answered(*scrape, connection.owner)

    def _tell(self, decisions: Iterable[Decision]) -> None:
        for decision in decisions:
            owner, serial = decision.ticket
            connection = self._connections.get(owner)
            if connection is None:
                continue
            if isinstance(decision, Granted):
                connection.outbox.append(Grant(serial, decision.deployment))
            else:
                connection.outbox.append(Refuse(serial, decision.reason, decision.retry_after_ms))

    def _flush(self) -> None:
        for connection in self._connections.values():
            connection.flush()
        if self._timer is None and (deadline_us := self._queue.next_deadline_us()) is not None:
            self._timer = asyncio.get_running_loop().call_at(deadline_us / 1e6, self._expire)

    def _expire(self) -> None:
        self._timer = None
        self._tell(self._queue.expire(_now_us() + 1))
        self._flush()


def private_socket(path: Path) -> socket.socket:
    """A listening 0600 Unix socket in place of whatever socket was there.

    Raises:
        OSError: the path is too long, taken by something that is not a socket, or not writable.
    """
    if path.is_socket():
        path.unlink()
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    before = os.umask(0o177)
    try:
        sock.bind(str(path))
        sock.listen(128)
    except OSError:
        sock.close()
        raise
    finally:
        os.umask(before)
    return sock


def _answered(awaited: set[int], done: asyncio.Future[None], owner: int) -> None:
    awaited.discard(owner)
    if not awaited and not done.done():
        done.set_result(None)


def _now_us() -> int:
    return int(asyncio.get_running_loop().time() * 1e6)
