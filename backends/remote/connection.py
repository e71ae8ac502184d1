"""One upstream connection as an asyncio protocol, and one exchange on it: bytes out, a response in, on time.

Time costs almost nothing here: a read stores the loop's clock, and one timer per connection, armed again only when it
has fired too early, looks at that. It serves the write, idle and total timeouts and the expiry of an idle connection.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from typing import cast

from backends.core.errors import BackendError, UpstreamProtocol, UpstreamTimeout, UpstreamTruncated, UpstreamUnavailable
from backends.remote.framing import Head, ResponseReader
from backends.remote.transport import Timeouts

#: Reading pauses above this many unread body bytes and resumes when they are taken.
MAX_UNREAD_BYTES = 256 * 1024
#: Until a connection that has not sent its whole request is half-closed again.
_AGAIN_S = 0.001


class ClosedUnanswered(UpstreamUnavailable):
    """The connection closed before the first byte of a response: on a reused one, the request may be sent again."""


class Exchange:
    """One request on one connection, and the asynchronous iterator of its response's body."""

    __slots__ = (
        "_connection",
        "_error",
        "_flowing",
        "_paused",
        "_pieces",
        "_reader",
        "_total_at",
        "_unread",
        "_waiter",
        "parted",
        "taken",
        "timeouts",
    )

    def __init__(self, connection: Connection, timeouts: Timeouts, total_at: float) -> None:
        self.timeouts = timeouts
        self.parted = False  # the server was asked to stop
        self._connection = connection
        self._total_at = total_at
        self._reader = ResponseReader()
        self._pieces: list[bytes] = []
        self._unread = 0
        self._paused = False
        self.taken = False  # the body was read to its end
        self._flowing = False  # a byte of body has come
        self._error: BackendError | None = None
        self._waiter: asyncio.Future[None] | None = None

    async def head(self) -> Head:
        """The final response's head, once it is there.

        Raises:
            BackendError: as `Transport.send`; `ClosedUnanswered` when not one byte came.
        """
        reader = self._reader
        while (head := reader.head) is None:
            if self._error is not None:
                raise self._error
            waiter = self._waiter = self._connection.loop.create_future()
            try:
                await waiter
            finally:
                self._waiter = None
        # an error's status is worth more than how its body ended, and so is what came of a body that was asked to end
        if self._error is not None and head.status < 400 and not self.parted:
            raise self._error
        return head

    def __aiter__(self) -> Exchange:
        return self

    async def __anext__(self) -> bytes:
        while not self._pieces:
            if self._error is not None:
                raise self._error
            if self._reader.complete:
                self.taken = True
                raise StopAsyncIteration
            await self._wait()
        pieces = self._pieces
        self.taken = self._reader.complete
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        self._unread = 0
        if self._paused:
            self._paused = False
            self._connection.resume_reading()
        return data

    @property
    def unread(self) -> int:
        """Body bytes that have come and were not taken."""
        return self._unread

    @property
    def reusable(self) -> bool:
        """Whether the response was read to its end and the connection may carry another request."""
        head = self._reader.head
        return self.taken and head is not None and head.keep_alive and self._error is None

    def received(self, data: bytes) -> None:
        """What the connection read."""
        reader = self._reader
        begun, answered = reader.begun, reader.head is not None
        try:
            body = reader.feed(data)
            if not answered and reader.head is not None and self._connection.unsent():
                self._before_sent(reader.head)
        except BackendError as error:
            self.fail(error)
            return
        complete = reader.complete
        if not complete and (not begun or (body and not self._flowing)):
            self._flowing = bool(body)
            self._connection.answering(self.timeouts.idle_s)
        if body:
            self._pieces.append(body)
            self._unread += len(body)
            if self._unread > MAX_UNREAD_BYTES and not complete and not self._paused:
                self._paused = True
                self._connection.pause_reading()
        waiter = self._waiter
        if waiter is not None and (body or complete or not answered) and not waiter.done():
            waiter.set_result(None)

    def closed(self, error: Exception | None) -> None:
        """The peer has closed (`error` None), or the connection broke."""
        reader = self._reader
        if self._error is not None or reader.complete:
            return
        if not reader.begun:
            self.fail(ClosedUnanswered("The deployment closed the connection before it answered.", detail=_detail(error)))
            return
        if error is not None:
            self.fail(UpstreamTruncated("The connection to the deployment broke inside its response.", detail=_detail(error)))
            return
        try:
            reader.close()
        except BackendError as truncated:
            self.fail(truncated)
        else:
            self._wake()

    def leave(self) -> None:
        """Nobody reads on: close the connection at once, unless it was read to its end."""
        if not self.taken:
            self.fail(UpstreamUnavailable("The response was abandoned."))
        self._connection.abort()

    def fail(self, error: BackendError) -> None:
        """End the exchange with an error and close the connection at once."""
        if self._error is None:
            self._error = error
        self._connection.abort()
        self._wake()

    def due_at(self, now: float) -> float:
        """When a deadline may be passed next; fails the exchange when one is. Loop time, seconds."""
        if now >= self._total_at:
            return self._late("total")
        reader = self._reader
        if not reader.begun or (reader.head is not None and not self._flowing):
            return self._total_at  # a model that reads its prompt: the caller bounds the wait for the first event
        since = now if self._paused or reader.complete else self._connection.read_at
        if now >= since + self.timeouts.idle_s:
            return self._late("idle")
        return min(self._total_at, since + self.timeouts.idle_s)

    @property
    def begun(self) -> bool:
        """Whether a byte of the response has come."""
        return self._reader.begun

    def late_write(self) -> None:
        """The request could not be written in time."""
        self._late("write")

    def _late(self, which: str) -> float:
        self.fail(UpstreamTimeout(f"The deployment did not answer in time ({which}).", detail=which))
        return self._total_at

    def _before_sent(self, head: Head) -> None:
        """A server may refuse (4xx, 5xx) what it has not read to its end; nothing else can be an answer to it."""
        if head.status < 400:
            raise UpstreamProtocol("The deployment answered before it had the request.", detail=f"status {head.status}")
        head.keep_alive = False

    async def _wait(self) -> None:
        waiter = self._waiter = self._connection.loop.create_future()
        try:
            await waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


class Connection(asyncio.Protocol):
    """A connection that carries one exchange at a time, or waits in the pool until `expires_at`.

    `on_closed` is called once, when it is of no more use.
    """

    __slots__ = (
        "_exchange",
        "_expires_at",
        "_on_closed",
        "_timer",
        "_timer_at",
        "_transport",
        "_unsent",
        "_write_at",
        "closed",
        "loop",
        "read_at",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, on_closed: Callable[[Connection], None]) -> None:
        self.loop = loop
        self.closed = False
        self.read_at = 0.0
        self._on_closed = on_closed
        self._transport: asyncio.Transport | None = None
        self._exchange: Exchange | None = None
        self._expires_at = float("inf")
        self._write_at = 0.0
        self._unsent = 0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0

    # --- for the pool ---

    def begin(self, head: bytes, body: bytes, timeouts: Timeouts, total_at: float) -> Exchange:
        """Write a request; `total_at` is the loop time by which all must be over."""
        transport = self._transport
        exchange = self._exchange = Exchange(self, timeouts, total_at)
        if transport is None or transport.is_closing():  # lost, though the loop has not told us yet
            self.abort()
            exchange.closed(None)
            return exchange
        transport.writelines((head, body))  # in one piece, without a copy of a long prompt
        self._unsent = transport.get_write_buffer_size()
        self._write_at = min(self.loop.time() + timeouts.write_s, total_at)
        self._arm(self._write_at)
        return exchange

    def rest(self, expires_at: float) -> None:
        """The exchange is over; keep the connection until then (loop time) unless it is taken again."""
        self._exchange = None
        self._expires_at = expires_at
        self._arm(expires_at)

    def expired(self, now: float) -> bool:
        """Whether it has waited too long to be used again."""
        return self.closed or now >= self._expires_at

    def abort(self) -> None:
        """Close at once, whatever was in flight. May be called again."""
        if not self.closed:
            self.closed = True
            self._on_closed(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._transport is not None:
            self._transport.abort()
            self._transport = None

    def half_close(self) -> bool:
        """Send no more: the peer sees the end of its input at once, and what it writes is still read. False: that cannot be.

        Below asyncio, which has no such call for TLS: there the peer sees its input end without TLS's own farewell.
        """
        transport = self._transport
        if transport is None or transport.is_closing():
            return False
        if transport.get_write_buffer_size():  # what is written goes out with the loop's next turn, or the peer is slow
            self.loop.call_later(_AGAIN_S, self.half_close)
            return True
        try:
            with socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno())) as twin:
                twin.shutdown(socket.SHUT_WR)
        except OSError:
            return False
        return True

    # --- for the exchange ---

    def pause_reading(self) -> None:
        """Let the kernel's window fill up."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read on; the idle clock starts anew, the peer was not the one to be late."""
        self.read_at = self.loop.time()
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def answering(self, idle_s: float) -> None:
        """The first byte of a response has come: from now on the idle timeout counts."""
        self._arm(self.read_at + idle_s)

    def unsent(self) -> int:
        """Bytes of the request that the kernel has not taken."""
        return self._transport.get_write_buffer_size() if self._transport is not None else 0

    # --- asyncio.Protocol ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport; small requests must not wait for an acknowledgement (TCP_NODELAY)."""
        self._transport = cast("asyncio.Transport", transport)
        raw = transport.get_extra_info("socket")
        if raw is not None and raw.family in (socket.AF_INET, socket.AF_INET6):
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        """Bytes of the response; unasked bytes make the connection useless."""
        exchange = self._exchange
        if exchange is None:
            self.abort()
        elif not self.closed:
            self.read_at = self.loop.time()
            exchange.received(data)

    def eof_received(self) -> bool:
        """The peer has closed its side; so do we."""
        self.connection_lost(None)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone; whoever waits for a response learns it."""
        if self.closed:
            return
        exchange = self._exchange
        self.abort()
        if exchange is not None:
            exchange.closed(exc)

    # --- time ---

    def _arm(self, at: float) -> None:
        if self._timer is not None:
            if self._timer_at <= at:
                return
            self._timer.cancel()
        self._timer = self.loop.call_at(at, self._tick)
        self._timer_at = at

    def _tick(self) -> None:
        self._timer = None
        now = self.loop.time()
        exchange = self._exchange
        if exchange is None:
            if now >= self._expires_at:
                self.abort()
                return
            at = self._expires_at
        else:
            at = exchange.due_at(now)
            if not self.closed and not exchange.begun and self._sending(exchange, now):
                at = min(at, self._write_at)
        if not self.closed:
            self._arm(at)

    def _sending(self, exchange: Exchange, now: float) -> bool:
        """Whether the request is still going out; its deadline moves while it makes progress."""
        left = self.unsent()
        if not left or now < self._write_at:
            return bool(left)
        if left >= self._unsent:
            exchange.late_write()
            return True
        self._unsent = left
        self._write_at = now + exchange.timeouts.write_s
        return True


def _detail(error: Exception | None) -> str:
    return f"{type(error).__name__}: {error}" if error is not None else "closed by the peer"
