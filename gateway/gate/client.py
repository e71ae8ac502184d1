"""A worker's side of the gate process: asks in one frame per loop turn, keeps what it holds, comes back after a loss."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterable, Sequence
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
    Stop,
    from_gate,
    pack,
    pairs,
)
from gateway.gate.protocol import GatedDeployment
from gateway.gate.waiting import Asked, GrantedSlot

#: Between two tries to reach the gate, and between two looks for who has waited too long while it is away.
RETRY_S = 0.05
SWEEP_S = 0.25
#: The gate itself refuses at the deadline; this much later it counts as deaf.
GRACE_S = 0.5
AWAY_RETRY_MS = 2000


class _Link(asyncio.Protocol):
    """One connection to the gate."""

    def __init__(self, client: GateClient) -> None:
        self._client = client
        self._frames = Frames()
        self._transport: asyncio.Transport | None = None
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one in all but name

    def data_received(self, data: bytes) -> None:
        try:
            for frame in self._frames.feed(data):
                self._client.heard(from_gate(frame))
        except FrameError:
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        if not self.closed.done():
            self.closed.set_result(None)

    def write(self, messages: Sequence[FromWorker]) -> None:
        """One frame."""
        if self._transport is not None:
            self._transport.write(pack(messages))

    def close(self) -> None:
        """Close after what was written."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Cut it."""
        if self._transport is not None:
            self._transport.abort()


class GateClient:
    """A `Gate` whose queue lives in the gate process. `run` keeps the connection; questions wait until there is one.

    Args:
        path: the gate's socket.
        worker: this worker's index.
        boot: a number that grows with each incarnation of the worker (its start instant).
        samples: the worker's packed metrics, asked for at each scrape.
    """

    def __init__(self, path: Path, worker: int, boot: int, samples: Callable[[], bytes]) -> None:
        self._path, self._worker, self._boot, self._samples = path, worker, boot, samples
        self._serials = itertools.count(1)
        self._asked: dict[int, Asked] = {}
        self._held: dict[int, tuple[str, int]] = {}
        self._outbox: list[FromWorker] = []
        self._flushing = False
        self._link: _Link | None = None

    @property
    def connected(self) -> bool:
        """Whether the gate is there."""
        return self._link is not None

    async def run(self) -> None:
        """Keep a connection until cancelled; belongs to the worker's TaskGroup."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                try:
                    _, link = await loop.create_unix_connection(lambda: _Link(self), str(self._path))
                except OSError:
                    self._sweep()
                    await asyncio.sleep(RETRY_S)
                    continue
                self._begin(link)
                while not link.closed.done():
                    await asyncio.wait([link.closed], timeout=SWEEP_S)
                    self._sweep()
                self._link = None
        finally:
            if self._link is not None:
                self._link.write([Samples(0, self._samples())])
                self._link.close()
                self._link = None

    def stop(self) -> None:
        """The gateway's drain is over: the gate shall grant nothing any more, whatever is released from now on."""
        self._say(Stop())

    async def acquire(
        self,
        request_id: str,
        fairness_key: str,
        deployments: Sequence[GatedDeployment],
        max_wait_s: float,
        weight: float = 1.0,
        priority: int = 0,
    ) -> GrantedSlot:
        """The first slot that frees in the set. Cancelling the awaiting task takes the request out of the queue.

        Raises:
            Overloaded: the queue is full or `max_wait_s` went by (the gate being away counts); with `retry_after_ms`.
        """
        loop = asyncio.get_running_loop()
        serial = next(self._serials)
        asked = Asked(serial, fairness_key, weight, priority, deployments, loop.time() + max_wait_s, loop.create_future())
        self._asked[serial] = asked
        if self._link is not None:
            self._say(_question(asked, request_id, max_wait_s))
        try:
            deployment_id = await asked.answer
        except asyncio.CancelledError:
            self._held.pop(serial, None)
            self._say(Cancel(serial))
            raise
        finally:
            self._asked.pop(serial, None)
        return GrantedSlot(deployment_id, serial, self._release)

    def heard(self, messages: Iterable[FromGate]) -> None:
        """One frame of the gate."""
        for message in messages:
            if isinstance(message, Grant):
                asked = self._asked.get(message.serial)
                if asked is not None and not asked.answer.done():
                    limit = next(d.max_in_flight for d in asked.deployments if d.id == message.deployment)
                    self._held[message.serial] = (message.deployment, limit)
                    asked.grant(message.deployment)
            elif isinstance(message, Refuse):
                asked = self._asked.get(message.serial)
                if asked is not None:
                    asked.refuse(message.reason, message.retry_after_ms)
            else:
                self._say(Samples(message.scrape, self._samples()))

    def _begin(self, link: _Link) -> None:
        """A new connection: first what is held, then every open question, in order."""
        self._outbox.clear()
        self._link = link
        link.write([Hello(VERSION, self._worker, self._boot, [(s, d, limit) for s, (d, limit) in self._held.items()])])
        now = asyncio.get_running_loop().time()
        for asked in list(self._asked.values()):
            if not asked.answer.done():
                self._say(_question(asked, "", max(0.0, asked.deadline - now)))

    def _release(self, serial: int) -> None:
        if self._held.pop(serial, None) is not None:
            self._say(Release(serial))

    def _say(self, message: FromWorker) -> None:
        """Send with everything else of this loop turn. Without a connection there is nobody to tell: `_begin` does."""
        if self._link is None:
            return
        self._outbox.append(message)
        if not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        if self._outbox and self._link is not None:
            messages, self._outbox = self._outbox, []
            self._link.write(messages)

    def _sweep(self) -> None:
        """Refuse who waits for a gate that does not answer."""
        overdue = asyncio.get_running_loop().time() - GRACE_S
        for asked in list(self._asked.values()):
            if asked.deadline < overdue and not asked.answer.done():
                asked.refuse("timeout", AWAY_RETRY_MS)
                self._say(Cancel(asked.serial))


def _question(asked: Asked, request_id: str, max_wait_s: float) -> Acquire:
    return Acquire(
        asked.serial, request_id, asked.key, asked.weight, asked.priority, pairs(asked.deployments), int(max_wait_s * 1e6)
    )
