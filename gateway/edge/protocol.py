"""The HTTP/1.1 server side of one client connection, with limits that uvicorn's own protocols do not have.

It fulfils the small contract between `uvicorn.Server` and a protocol class (constructor, `ServerState.connections`,
`.tasks`, `.default_headers`, `.total_requests`, `shutdown()`; read in uvicorn 0.54) over httptools (llhttp, strict:
bare LF, NUL, obs-fold, differing lengths, length beside chunked are refused there). Refused here: heads over the
limits (431), heads and bodies that come too slowly (408), CONNECT, other transfer codings than `chunked`, a missing
or repeated Host (400). Another protocol that a client asks for (Upgrade) is not taken. A client that half-closes has
left: its task is cancelled. Reading goes on while a request is answered, so that this is seen; what is pipelined
meanwhile is kept within bounds, beyond which the connection ends after the answers that are due.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, cast

import httptools
from uvicorn import Config

from backends.core.errors import BadRequest
from gateway.edge.cycle import EXTENSION, App, Cycle, Headers, RequestTimeout, Straight
from gateway.edge.head import facts, framing, scope
from gateway.edge.limits import Limits, Refused, head_too_large, malformed, not_supported, slow_head, too_many_fields
from gateway.edge.upgrade import body_parser
from gateway.protocols.openai_errors import envelope

if TYPE_CHECKING:
    from uvicorn.server import ServerState


class EdgeProtocol(asyncio.Protocol):
    """One per connection; uvicorn makes it."""

    limits: ClassVar[Limits] = Limits()

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        if not config.loaded:
            config.load()
        self._app: App = config.loaded_app
        self._straight: Mapping[bytes, Straight] = getattr(config.loaded_app, "straight", {})
        self.loop = _loop or asyncio.get_running_loop()
        self._state = server_state
        self._app_state = app_state
        self._transport: asyncio.Transport
        self._parser: Any = httptools.HttpRequestParser(self)
        self._facts: dict[str, Any] = {}
        self._answering: Cycle | None = None
        self._reading: Cycle | None = None
        self._waiting: deque[tuple[Cycle, Callable[[], Awaitable[None]]]] = deque()
        self._ahead = 0
        self._in_head = False
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._max_head_bytes, self._max_header_fields = self.limits.max_head_bytes, self.limits.max_header_fields
        self._head_size = 0
        self._fed_in_head = 0
        self._head_only = False
        self._refused: Refused | None = None
        self._asked: tuple[Cycle, list[tuple[bytes, bytes]]] | None = None
        self._deaf = self._closing = False
        self._read_paused = self.write_paused = False
        self._writable: asyncio.Future[None] | None = None
        self._deadline: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client connected; both loops set TCP_NODELAY themselves."""
        self._state.connections.add(self)  # type: ignore[arg-type]  # uvicorn types its own classes only
        self._transport = transport = cast(asyncio.Transport, transport)  # uvloop's is not derived from it
        transport.set_write_buffer_limits(high=self.limits.write_high_water)
        self._facts = facts(transport)
        self._arm(self.limits.head_s)

    def connection_lost(self, _exc: Exception | None, /) -> None:
        """It is over, whoever ended it."""
        self._state.connections.discard(self)
        self._deaf = self._closing = True
        self._deadline = None
        if self._timer is not None:
            self._timer.cancel()
        self._wake_writer(None)
        self._all_leave()
        self._parser = None

    def eof_received(self) -> None:
        """The client will send no more: it has left. None lets the transport flush and close."""
        if self._answering is not None:
            self._all_leave()
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Bytes of the client."""
        if self._deaf:
            return
        self._head_only = self._in_head or self._reading is None
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as pause:
            self._not_upgraded(data[pause.args[0] :])
            return
        except httptools.HttpParserError:
            self._refuse(self._refused or malformed())
            return
        if self._head_size > self._max_head_bytes or len(self._headers) > self._max_header_fields:
            self._refuse(self._oversized())  # an unfinished head, or trailers
        elif self._in_head:
            # What belongs to one unfinished header is counted too, or it could grow without end inside the parser.
            self._fed_in_head = self._fed_in_head + len(data) if self._head_only else 0
            if self._fed_in_head > self.limits.max_head_bytes:
                self._refuse(head_too_large(self.limits))
            elif self._fed_in_head == len(data) and self._answering is None:
                self._arm(self.limits.head_s)
        elif (
            self._reading is not None and self._deadline is None and self._reading is self._answering and not self._read_paused
        ):
            self._arm(self.limits.body_s)  # the rest of a body that did not come with its head

    def pause_writing(self) -> None:
        """The client reads too slowly."""
        self.write_paused = True

    def resume_writing(self) -> None:
        """It has caught up."""
        self.write_paused = False
        self._wake_writer(None)

    # httptools

    def on_message_begin(self) -> None:
        """A request begins."""
        self._in_head = True
        self._url, self._headers, self._head_size, self._fed_in_head = b"", [], 0, 0

    def on_url(self, url: bytes) -> None:
        """A piece of the request target."""
        self._url += url
        self._head_size += len(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer after the body; trailers are counted and left out."""
        if self._in_head:
            self._headers.append((name.lower(), value))
        else:
            self._head_size += len(name) + len(value) + 4

    def on_headers_complete(self) -> None:
        """The head is whole: make the cycle and its scope. A read is bounded, so its fields are counted only now."""
        self._in_head = self._head_only = False
        headers = self._headers
        self._head_size += 4 * len(headers) + len(b"".join(chain.from_iterable(headers)))
        if self._head_size > self._max_head_bytes or len(self._headers) > self._max_header_fields:
            self._stop(self._oversized())
        http10 = (version := self._parser.get_http_version()) == "1.0"
        method = self._parser.get_method()
        if (upgrade := self._parser.should_upgrade()) and method == b"CONNECT":
            self._stop(not_supported("CONNECT is not supported."))
        straight = self._straight.get(self._url) if method == b"POST" else None
        try:
            framed = framing(headers, version)
            request = None if straight is not None else scope(method.decode("ascii"), self._url, headers, self._facts)
        except Refused as refused:
            self._stop(refused)
        keep_alive = not (http10 or upgrade) and self._parser.should_keep_alive()
        cycle = Cycle(self, keep_alive, http10, method == b"HEAD", framed.expects, framed.length)
        answer: Callable[[], Awaitable[None]]
        if straight is not None:
            answer = partial(straight, cycle, headers, framed.first)
        else:
            assert request is not None
            request.update(http_version=version, state=self._app_state.copy(), extensions={EXTENSION: cycle})
            answer = partial(self._app, request, cycle.receive, cycle.send)
        self._reading = cycle
        if self._answering is None:
            self._begin(cycle, answer)
        elif len(self._waiting) < self.limits.max_pipelined:
            self._waiting.append((cycle, answer))
        else:
            self._reading = None
            self._stop(malformed())
        if upgrade:
            self._reading, self._asked = None, (cycle, headers)

    def on_body(self, data: bytes) -> None:
        """A piece of a body."""
        cycle = self._reading
        if cycle is None:
            return
        if cycle is not self._answering:
            self._ahead += len(data)
            if self._ahead > self.limits.max_ahead_bytes:
                self._waiting.pop()
                self._reading = None
                self._stop(malformed())
        elif self._deadline is not None:
            self._deadline = self.loop.time() + self.limits.body_s
        cycle.feed(data)

    def on_message_complete(self) -> None:
        """A body is whole."""
        if self._reading is not None:
            if self._reading is self._answering:
                self._deadline = None
            self._reading.end()
            self._reading = None
            self._read_on()  # the client's leaving must be seen

    # What a cycle asks

    def write(self, data: bytes, /) -> None:
        """Send bytes."""
        self._transport.write(data)

    def common_headers(self) -> Headers:
        """The date, from uvicorn."""
        return self._state.default_headers

    async def drained(self) -> None:
        """Wait until the client reads again; abort when it does not for `client_stall_s`.

        Raises:
            ConnectionError: it left, or was aborted.
        """
        while self.write_paused and not self._closing:
            self._writable = self.loop.create_future()
            stall = self.loop.call_later(self.limits.client_stall_s, self._stalled)
            try:
                await self._writable
            finally:
                stall.cancel()
                self._writable = None
        if self._closing:
            raise ConnectionResetError("the client left")

    def body_wanted(self, cycle: Cycle, /) -> None:
        """Someone waits for body bytes: read on, and in time."""
        self._read_on()
        if cycle is self._reading and self._deadline is None:
            self._arm(self.limits.body_s)

    def body_unwanted(self) -> None:
        """More body is held than anyone asked for."""
        if not self._read_paused and not self._closing:
            self._read_paused = True
            self._transport.pause_reading()
            self._deadline = None

    def finished(self, cycle: Cycle, /) -> None:
        """The answer is written: next request, idle, or the end."""
        self._state.total_requests += 1
        self._answering = None
        self._deadline = None
        if self._closing:
            return
        if not cycle.keep_alive:
            self._close()
        elif self._waiting:
            following, answer = self._waiting.popleft()
            self._ahead -= following.held
            self._begin(following, answer)
            if following is self._reading:
                self._arm(self.limits.body_s)
        else:
            self._arm(self.limits.head_s if self._in_head else self.limits.keepalive_s)

    def abort(self) -> None:
        """Drop the connection at once."""
        self._transport.abort()

    # uvicorn.Server

    def shutdown(self) -> None:
        """The server stops: idle connections end now, others after their answer."""
        self._waiting.clear()
        if self._answering is None:
            self._transport.close()
        else:
            self._answering.keep_alive = False

    # Inside

    def _begin(self, cycle: Cycle, answer: Callable[[], Awaitable[None]]) -> None:
        self._answering = cycle
        self._deadline = None
        # The connection owns the task, `ServerState.tasks` keeps it for uvicorn's shutdown: no group outlives a request.
        # Made by its class, for the loop would number it for a name; out of the set at its end, not a turn of the loop later.
        tasks = self._state.tasks
        task = cycle.task = asyncio.Task(cycle.run(answer, tasks.discard), loop=self.loop, name="request")
        tasks.add(task)

    def _not_upgraded(self, rest: bytes) -> None:
        """The head asked for another protocol: its body is read by a parser of its own, and then nothing more."""
        asked, self._asked = self._asked, None
        if asked is None:
            self._refuse(self._refused or malformed())
            return
        self._reading = asked[0]
        self._parser = body_parser(asked[1], asked[0].length, self)
        self.data_received(rest)

    def _oversized(self) -> Refused:
        return head_too_large(self.limits) if self._head_size > self._max_head_bytes else too_many_fields(self.limits)

    def _stop(self, refused: Refused) -> NoReturn:
        """Leave a parser callback for `_refuse`.

        Raises:
            Refused: always.
        """
        self._refused = refused
        raise refused

    def _refuse(self, refused: Refused) -> None:
        """Nothing more of this client is read; it is told, unless an earlier answer is still due."""
        self._deaf = True
        if self._reading is not None:
            reading, self._reading = self._reading, None
            reading.fail(BadRequest(refused.message, code=refused.code))
        elif self._answering is None:
            self._answer_refusal(refused)
        else:
            (self._waiting[-1][0] if self._waiting else self._answering).keep_alive = False

    def _answer_refusal(self, refused: Refused) -> None:
        body = envelope(refused.message, "invalid_request_error", code=refused.code)
        cycle = Cycle(self, keep_alive=False, http10=False, head_only=False, expects=False, length=None)
        cycle.respond(refused.status, [(b"content-type", b"application/json")], body)

    def _close(self) -> None:
        """End the connection gently: what was written is flushed, what still comes is thrown away for a while."""
        self._deaf = self._closing = True
        self._read_on()
        if not self._transport.can_write_eof():
            self._transport.close()
            return
        self._transport.write_eof()
        self._arm(self.limits.client_stall_s if self._transport.get_write_buffer_size() else self.limits.linger_s)

    def _read_on(self) -> None:
        if self._read_paused:
            self._read_paused = False
            self._transport.resume_reading()

    def _all_leave(self) -> None:
        self._waiting.clear()
        if self._answering is not None:
            self._answering.leave()

    def _stalled(self) -> None:
        """The client did not read for `client_stall_s`: whoever writes gets a ConnectionError and no cancellation."""
        if self._answering is not None:
            self._answering.gone = True
        self._wake_writer(ConnectionAbortedError("the client does not read"))
        self._transport.abort()

    def _wake_writer(self, error: ConnectionError | None) -> None:
        if self._writable is not None and not self._writable.done():
            if error is None:
                self._writable.set_result(None)
            else:
                self._writable.set_exception(error)

    def _arm(self, seconds: float) -> None:
        """Set the connection's one deadline. The timer is moved only when it would be too late."""
        at = self._deadline = self.loop.time() + seconds
        if self._timer is None or self._timer_at > at:
            if self._timer is not None:
                self._timer.cancel()
            self._timer, self._timer_at = self.loop.call_at(at, self._tick), at

    def _tick(self) -> None:
        self._timer = None
        if self._deadline is None:
            return
        if (left := self._deadline - self.loop.time()) > 0.001:
            self._arm(left)
            return
        self._deadline = None
        if self._closing or self._transport.get_write_buffer_size():
            self._transport.abort()
        elif self._reading is not None and not self._in_head:
            reading, self._reading, self._deaf = self._reading, None, True
            reading.fail(RequestTimeout("The request's body did not arrive in time."))
        elif self._in_head:
            self._refuse(slow_head())
        else:
            self._transport.close()
