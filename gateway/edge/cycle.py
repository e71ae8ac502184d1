"""One request and its one answer on a connection: body coming in, status line and bytes going out.

The head and the first bytes leave in one write, so do the last bytes and the terminator. `EdgeProtocol` feeds it and
is told when the answer is finished. It also speaks plain ASGI (`receive`, `send`) for what is not a generation.
"""

from __future__ import annotations

import asyncio
import http
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping, Sequence
from itertools import chain
from typing import Any, Protocol

import msgspec

from backends.core.errors import BadRequest, GatewayError
from gateway.pipeline.exchange import BodyTooLarge
from gateway.protocols.openai_errors import envelope

Headers = Iterable[tuple[bytes, bytes]]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]
#: Answers a POST for one target without an ASGI scope: the cycle, the headers as ASGI has them, the first of each name.
Straight = Callable[["Cycle", Sequence[tuple[bytes, bytes]], Mapping[bytes, bytes]], Awaitable[None]]

#: Where the scope carries the cycle, for `gateway.edge.asgi`.
EXTENSION = "switchyard.cycle"
#: Request body bytes held before anyone asked for them; more pauses reading.
UNASKED_BODY_BYTES = 1 << 20

_STATUS = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in http.HTTPStatus}
_NO_BODY = frozenset({204, 304})
_CHUNKED = ((b"transfer-encoding", b"chunked"),)
_LINE = b"%b: %b\r\n"
_LF, _CR, _NUL = b"\n\r\0"  # as numbers: bytes in bytes first fails to be one, at the price of twenty comparisons
_log = logging.getLogger("switchyard.edge")


class RequestTimeout(BadRequest):
    """The body came too slowly (408)."""

    status = 408
    default_code = "request_timeout"


class Connection(Protocol):
    """What a cycle needs of its connection."""

    write_paused: bool
    """Whether more is written than the client has read."""

    def write(self, data: bytes, /) -> None:
        """Send bytes."""

    def common_headers(self) -> Headers:
        """Headers of every answer."""

    async def drained(self) -> None:
        """Wait until the client reads again.

        Raises:
            ConnectionError: it left, or did not read for too long.
        """

    def body_wanted(self, cycle: Cycle, /) -> None:
        """The answerer now waits for body bytes."""

    def body_unwanted(self) -> None:
        """Too much body is held that nobody asked for."""

    def finished(self, cycle: Cycle, /) -> None:
        """The answer is written."""

    def abort(self) -> None:
        """Drop the connection at once."""


class Cycle(msgspec.Struct, eq=False):
    """See the module. `length`: the request's Content-Length, or None. `held`: how many bytes of its body wait here.

    A struct only because one is made in C, for a tenth of what an `__init__` with as many fields costs.
    """

    connection: Connection
    keep_alive: bool
    http10: bool
    head_only: bool
    expects: bool
    length: int | None
    held: int = 0
    task: asyncio.Task[None] | None = None
    cancel_when_gone: bool = False
    ends_when_gone: Callable[[], bool] | None = None
    complete: bool = False
    started: bool = False
    finished: bool = False
    gone: bool = False
    _body: bytes | bytearray = b""
    _waiter: asyncio.Future[None] | None = None
    _failure: GatewayError | None = None
    _taken: bool = False
    _chunked: bool = False
    _start: Message | None = None

    # The request.

    def feed(self, data: bytes) -> None:
        """More body; `held` counts its bytes."""
        if not self.held:
            self._body = data
        elif isinstance(self._body, bytes):
            self._body = bytearray(self._body) + data
        else:
            self._body += data
        self.held = len(self._body)
        self._wake()
        if self._waiter is None and self.held > UNASKED_BODY_BYTES:
            self.connection.body_unwanted()

    def end(self) -> None:
        """The body is complete."""
        self.complete = True
        self._wake()

    def fail(self, error: GatewayError) -> None:
        """The body will never be complete: whoever waits for it gets this error, and the connection ends after."""
        self.keep_alive = False
        self._failure = error
        if self.started and not self.finished:
            self.connection.abort()
        self._wake()

    def leave(self) -> None:
        """The client is gone."""
        if self.gone:
            return
        self.gone = True
        self._wake()
        if not self.cancel_when_gone or self.finished or self.task is None:
            return
        ends, self.ends_when_gone = self.ends_when_gone, None
        if ends is None or not ends():
            self.task.cancel()

    async def read_body(self, max_bytes: int) -> bytes:
        """The whole body.

        Raises:
            BodyTooLarge: as soon as it is known.
            RequestTimeout: it made no progress for too long.
            BadRequest: its framing is wrong.
            ConnectionError: the client left.
        """
        if self.length is not None and self.length > max_bytes:
            raise _too_large(max_bytes)
        while not self.complete:
            if self.held > max_bytes:
                raise _too_large(max_bytes)
            await self._more()
        if self.held > max_bytes:
            raise _too_large(max_bytes)
        return self._taken_body()

    def _taken_body(self) -> bytes:
        """What is held; a body that came in one piece is that piece."""
        body, self._body, self.held = bytes(self._body), b"", 0
        return body

    async def _more(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self.gone:
            raise ConnectionResetError("the client left")
        if self.expects and not self.started:
            self.expects = False
            self.connection.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._waiter = asyncio.get_running_loop().create_future()
        self.connection.body_wanted(self)
        try:
            await self._waiter
        finally:
            self._waiter = None
        if self._failure is not None:
            raise self._failure

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # The answer.

    def respond(self, status: int, headers: Headers, body: bytes) -> None:
        """A whole answer in one write."""
        framing = () if status in _NO_BODY else ((b"content-length", b"%d" % len(body)),)
        head = self._head(status, headers, framing)
        self.connection.write(head if self.head_only or status in _NO_BODY else head + body)
        self._finish()

    def begin(self, status: int, headers: Headers, first: bytes) -> None:
        """The head of an answer of unknown length, and its first bytes."""
        self._chunked = not self.http10
        self.keep_alive = self.keep_alive and self._chunked
        head = self._head(status, headers, _CHUNKED if self._chunked else ())
        self.connection.write(head + self._framed(first))

    def more(self, data: bytes) -> None:
        """More of it."""
        self.connection.write(self._framed(data))

    def close(self, last: bytes) -> None:
        """The last of it."""
        self.connection.write(self._framed(last) + (b"0\r\n\r\n" if self._chunked and not self.head_only else b""))
        self._finish()

    @property
    def blocked(self) -> bool:
        """Whether more is written than the client has read."""
        return self.connection.write_paused

    async def drained(self) -> None:
        """Wait while the client reads too slowly.

        Raises:
            ConnectionError: it left, or did not read for `client_stall_s`.
        """
        await self.connection.drained()

    def _framed(self, data: bytes) -> bytes:
        if not data or self.head_only:
            return b""
        return b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data

    def _head(self, status: int, headers: Headers, framing: Headers) -> bytes:
        if self.started:
            raise RuntimeError("the answer has begun already")
        if not self.complete:
            self.keep_alive = False  # what is left of the body would be read as the next request
        pairs = [*self.connection.common_headers(), *headers, *framing]
        if not self.keep_alive:
            pairs.append((b"connection", b"close"))
        words = tuple(chain.from_iterable(pairs))
        told = b"".join(words)
        if _LF in told or _CR in told or _NUL in told:
            raise ValueError("a response header contains a line break")
        self.started = True
        return b"%b%b\r\n" % (_STATUS[status], _LINE * len(pairs) % words)

    def _finish(self) -> None:
        self.finished = True
        self.ends_when_gone = None  # it knows us: a circle would keep the whole request until the collector runs
        self._wake()
        self.connection.finished(self)

    # ASGI.

    async def run(self, answer: Callable[[], Awaitable[None]], over: Callable[[asyncio.Task[None]], object]) -> None:
        """Have it answered; whatever `answer` does, the connection is left in a known state, and `over` gets the task."""
        try:
            await answer()
        except asyncio.CancelledError:
            if not self.finished:
                self.connection.abort()
            raise
        except ConnectionError:
            self.connection.abort()
        except Exception:
            _log.exception("unhandled exception")
        finally:
            if self.task is not None:
                over(self.task)
        if self.finished or self.gone:
            return
        if self.started:
            self.connection.abort()
        else:
            body = envelope("The gateway failed to process this request.", "server_error", code="internal_error")
            self.keep_alive = False
            self.respond(500, [(b"content-type", b"application/json")], body)

    async def receive(self) -> Message:
        """ASGI receive: the body so far, then `http.disconnect` once the client has left or the answer is out."""
        while not (self.gone or self.finished or self._failure):
            if self.held or (self.complete and not self._taken):
                self._taken = self.complete
                return {"type": "http.request", "body": self._taken_body(), "more_body": not self.complete}
            await self._more()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """ASGI send; ignored once the client has left."""
        if self.gone:
            return
        if message["type"] == "http.response.start":
            self._start = message
            return
        start, body, more = self._start, message.get("body", b""), message.get("more_body", False)
        if start is None:
            raise RuntimeError("http.response.body before http.response.start")
        if not self.started:
            headers = [(name, value) for name, value in start["headers"] if name.lower() != b"content-length"]
            if not more:
                self.respond(start["status"], headers, body)
                return
            self.begin(start["status"], headers, body)
        elif more:
            self.more(body)
        else:
            self.close(body)
            return
        await self.drained()


def _too_large(max_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(f"The request body is larger than {max_bytes} bytes.")
