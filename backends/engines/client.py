"""A local engine as a `Backend`: one connection per worker to the engine's host, its jobs multiplexed by id.

The connection is made by the first job that needs it and made again after the host was restarted. The socket is
always drained: a stream whose reader is slow fails alone, when it passes its own bound.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Final, cast

from backends.core.contracts import Batches
from backends.core.errors import (
    BackendError,
    EngineCrashed,
    GatewayError,
    UpstreamOverloaded,
    UpstreamProtocol,
    UpstreamUnavailable,
)
from backends.core.events import Event, Failure
from backends.core.leaving import Leaving
from backends.core.request import Job
from backends.engines import ipc

#: A stream that has this many batches, or this many bytes of them, unread is failed.
MAX_BATCHES: Final = 256
MAX_BYTES: Final = 1 << 20
#: Unsent bytes to a host that does not read, above which new jobs are refused.
MAX_UNSENT: Final = 64 << 20
#: Seconds for connecting and the host's answer to `Hello`.
CONNECT_S: Final = 2.0
#: Seconds between two attempts to connect: doubled from the first to the last. A try costs microseconds, while a
#: request between two tries is refused, perhaps by the last worker that does not know yet that the engine is up.
BACKOFF_S: Final = (0.02, 0.1)
STATS_S: Final = 2.0
#: Seconds that a cancelled job is given to tell what it came to; a step of its engine may have to end first.
PART_S: Final = 0.25
COUNT_S: Final = 0.5


class EngineClient:
    """A Backend over one engine host's socket. Belongs to one event loop."""

    def __init__(
        self, socket_path: str, token: str, name: str, *, worker: str = "", clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`name` is the engine's, for messages; `worker` this process', for the host's log."""
        self.name = name
        self._path = socket_path
        self._hello = ipc.Hello(ipc.VERSION, token, worker)
        self._clock = clock
        self._link: _Link | None = None
        self._connecting = asyncio.Lock()
        self._backoff_s = 0.0
        self._next_try = 0.0
        self._ids = (f"{prefix}-{n}" for prefix in (secrets.token_hex(4),) for n in itertools.count(1))
        self._description: Mapping[str, object] = {}

    def describe(self) -> Mapping[str, object]:
        """The engine's facts (context, slots, capabilities …) as last told; empty before the first connection."""
        return self._link.ready.description if self._link and self._link.ready else self._description

    @asynccontextmanager
    async def open(self, job: Job, leaving: Leaving | None = None) -> AsyncIterator[Batches]:
        """Run a job.

        Raises:
            UpstreamOverloaded: the host is not up or still loading (`model_loading`).
            BadRequest, ContextTooLong, Overloaded: from the first `__anext__`, what the engine said to the job.
            EngineCrashed: the host died before the first event; later it is a `Failure`.
        """
        link = await self._ready_link()
        stream = link.submit(next(self._ids), job)
        if leaving is not None:
            leaving.join(stream)
        try:
            yield stream
        finally:
            stream.leave()

    async def probe(self) -> Mapping[str, object]:
        """Connect when needed, and give the engine's description.

        Raises:
            UpstreamOverloaded, UpstreamUnavailable: as `open`.
        """
        await self._ready_link()
        return self.describe()

    async def stats(self) -> Mapping[str, object]:
        """The engine's figures now.

        Raises:
            UpstreamOverloaded, UpstreamUnavailable: as `open`.
            EngineCrashed: the host died meanwhile.
            TimeoutError: no answer within STATS_S.
        """
        link = await self._ready_link()
        async with asyncio.timeout(STATS_S):
            return await link.stats()

    async def prompt_tokens(self, job: Job) -> int | None:
        """How many tokens the engine counts in a job's prompts; None where it is not up, cannot tell, or not in COUNT_S."""
        link = self._link
        if link is None or not link.up or link.ready is None or not link.ready.ready:
            return None
        try:
            async with asyncio.timeout(COUNT_S):
                return await link.count(job)
        except (TimeoutError, BackendError, ipc.FrameError):
            return None

    async def aclose(self) -> None:
        """Close the connection; the host cancels what is open."""
        if self._link is not None:
            self._link.close()
            self._link = None

    async def _ready_link(self) -> _Link:
        link = self._link
        if link is None or not link.up:
            async with self._connecting:
                link = self._link
                if link is None or not link.up:
                    link = self._link = await self._connect()
        ready = link.ready
        assert ready is not None, "a link is kept after its greeting"
        if ready.failed:
            raise UpstreamUnavailable("The model could not be loaded.", code="engine_failed", detail=ready.reason)
        if not ready.ready:
            raise UpstreamOverloaded("The model is being loaded.", code="model_loading", retry_after_ms=1000)
        self._description = ready.description
        return link

    async def _connect(self) -> _Link:
        now = self._clock()
        if now < self._next_try:
            raise self._not_up("waiting to connect again")
        link: _Link | None = None
        try:
            async with asyncio.timeout(CONNECT_S):
                _, link = await asyncio.get_running_loop().create_unix_connection(_Link, self._path)
                await link.greet(self._hello)
        except (OSError, TimeoutError, BackendError) as error:
            if link is not None:
                link.close()
            low, high = BACKOFF_S
            self._backoff_s = min(high, self._backoff_s * 2 or low)
            self._next_try = self._clock() + self._backoff_s
            raise self._not_up(f"{type(error).__name__}: {error}") from None
        except asyncio.CancelledError:
            if link is not None:
                link.close()
            raise
        self._backoff_s = 0.0
        return link

    def _not_up(self, detail: str) -> UpstreamOverloaded:
        message = "The model's engine is not up; try again shortly."
        return UpstreamOverloaded(message, code="model_loading", retry_after_ms=1000, detail=f"engine {self.name}: {detail}")


class _Link(asyncio.Protocol):
    """One connection."""

    def __init__(self) -> None:
        self._inbound = ipc.WorkerInbound()
        self._transport: asyncio.Transport | None = None
        self._greeting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._streams: dict[str, _Stream] = {}
        self._asked: dict[int, asyncio.Future[Mapping[str, object]]] = {}
        self._counts: dict[int, asyncio.Future[int | None]] = {}
        self._numbers = itertools.count(1)
        self.ready: ipc.Ready | None = None

    @property
    def up(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    async def greet(self, hello: ipc.Hello) -> None:
        """Raises EngineCrashed when the host closes instead of answering."""
        self._write(hello)
        await self._greeting

    def submit(self, id: str, job: Job) -> _Stream:
        if self._transport is not None and self._transport.get_write_buffer_size() > MAX_UNSENT:
            raise UpstreamOverloaded("The model's engine does not keep up.", retry_after_ms=1000)
        stream = _Stream(self, id)
        try:
            self._write(ipc.Submit(id, ipc.pack_job(job)))
        except ipc.FrameError as error:
            raise UpstreamProtocol("The request is too large for the engine.", detail=str(error)) from None
        self._streams[id] = stream
        return stream

    def part(self, id: str) -> bool:
        """Have the job cancelled; its last batch says what it came to. False: it is over."""
        if id in self._streams:
            self._write(ipc.Cancel(id))
        return id in self._streams

    def leave(self, id: str) -> None:
        """Nobody reads this job any more."""
        if self._streams.pop(id, None) is not None:
            self._write(ipc.Cancel(id))

    async def stats(self) -> Mapping[str, object]:
        number = next(self._numbers)
        answer: asyncio.Future[Mapping[str, object]] = asyncio.get_running_loop().create_future()
        self._asked[number] = answer
        self._write(ipc.AskStats(number))
        try:
            return await answer
        finally:
            self._asked.pop(number, None)

    async def count(self, job: Job) -> int | None:
        number = next(self._numbers)
        answer: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
        self._counts[number] = answer
        try:
            self._write(ipc.Count(number, ipc.pack_job(job)))
            return await answer
        finally:
            self._counts.pop(number, None)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _write(self, message: ipc.ToHost) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(ipc.frame(message))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is not derived from it

    def connection_lost(self, _: Exception | None) -> None:
        self._transport = None
        if not self._greeting.done():
            self._greeting.set_exception(EngineCrashed("The model's engine closed the connection."))
            self._greeting.exception()  # nobody may be waiting any more
        streams, self._streams = self._streams, {}
        unloading = self.ready is not None and self.ready.reason == ipc.UNLOADING
        for stream in streams.values():
            stream.crash(unloading)
        for count in self._counts.values():
            if not count.done():
                count.set_result(None)
        for answer in self._asked.values():
            if not answer.done():
                answer.set_exception(EngineCrashed("The model's engine stopped."))

    def data_received(self, data: bytes) -> None:
        try:
            for message in self._inbound.feed(data):
                self._take(message)
        except ipc.FrameError:
            self.close()

    def _take(self, message: ipc.ToWorker) -> None:
        match message:
            case ipc.Events(batches=batches):
                for batch in batches:
                    if stream := self._streams.get(batch.id):
                        self._deal(stream, batch)
            case ipc.Refused(id=id):
                if stream := self._streams.pop(id, None):
                    stream.refuse(ipc.refusal(message))
            case ipc.Ready():
                self.ready = message
                if not self._greeting.done():
                    self._greeting.set_result(None)
            case ipc.Counted(number=number, tokens=tokens):
                count = self._counts.get(number)
                if count is not None and not count.done():
                    count.set_result(tokens)
            case ipc.Stats(number=number, figures=figures):
                answer = self._asked.get(number)
                if answer is not None and not answer.done():
                    answer.set_result(figures)

    def _deal(self, stream: _Stream, batch: ipc.Batch) -> None:
        if batch.last:
            del self._streams[batch.id]
        if not stream.take(batch) and not batch.last:
            self.leave(batch.id)


class _Stream(AsyncIterator[Sequence[Event]]):
    """The batches of one job: filled by the link, read by its owner, who is given all that has come as one."""

    def __init__(self, link: _Link, id: str) -> None:
        self._link = link
        self._id = id
        self._batches: list[ipc.Batch] = []
        self._bytes = 0
        self._spoke = False
        self._ending: GatewayError | Failure | None = None
        self._closed = False
        self._waiter: asyncio.Future[None] | None = None

    def take(self, batch: ipc.Batch) -> bool:
        """Keep a batch for the reader. False: the bound is passed, the stream has failed."""
        if self._ending is not None:
            return False
        self._batches.append(batch)
        self._bytes += len(batch.events)
        if len(self._batches) > MAX_BATCHES or self._bytes > MAX_BYTES:
            self._end(Failure("timeout", "The answer was not read in time.", code="client_too_slow"))
            return False
        self._closed = batch.last
        self._wake()
        return True

    def refuse(self, error: GatewayError) -> None:
        self._end(error)

    def crash(self, unloading: bool) -> None:
        """The connection is gone. A host that was `unloading` may have gone before it read the job: as if it had refused."""
        if unloading and not self._spoke and not self._batches:
            self._end(UpstreamOverloaded("The model is being unloaded.", code="model_loading", retry_after_ms=1000))
            return
        self._end(Failure("crashed", "The model's engine stopped while it answered.", code="engine_crashed"))

    def part(self) -> float:
        """See `Party.part`."""
        return PART_S if self._link.part(self._id) else 0.0

    def leave(self) -> None:
        self._link.leave(self._id)
        self._batches.clear()
        self._closed = True

    def _end(self, ending: GatewayError | Failure) -> None:
        self._ending = ending
        self._closed = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def __anext__(self) -> Sequence[Event]:
        while not self._batches and not self._closed:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        if self._batches:
            taken, self._batches, self._bytes = self._batches, [], 0
            self._spoke = True
            try:
                return ipc.unpack_events(taken[0]) if len(taken) == 1 else [e for one in taken for e in ipc.unpack_events(one)]
            except ipc.FrameError as error:
                self.leave()
                return [Failure("protocol", "The model's engine sent what cannot be read.", detail=str(error))]
        ending, self._ending = self._ending, None
        if ending is None:
            raise StopAsyncIteration
        if isinstance(ending, GatewayError):
            raise ending
        if not self._spoke:
            raise BackendError.of(ending)
        return [ending]
