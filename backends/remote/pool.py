"""The hot upstream client: an HTTP/1.1 connection pool to one deployment, over asyncio.Protocol and httptools.

One connection carries one exchange at a time, the last one used is used first, and an idle one is dropped after
`keepalive_s` or when the server closes it. A request is sent again exactly once, and only when a *reused* connection
closed before any byte of a response: llama.cpp's server closes idle connections after 5 s and each one after 100
requests (cpp-httplib's keep-alive defaults). Nothing else is ever retried here, and redirects are not followed.
"""

from __future__ import annotations

import asyncio
import ssl
from types import TracebackType

from backends.core.contracts import UpstreamRequest
from backends.core.errors import UpstreamTimeout, UpstreamUnavailable
from backends.remote.connection import ClosedUnanswered, Connection, Exchange
from backends.remote.origin import Credential, Origin, RequestHeads, tls_context
from backends.remote.transport import Response, Sending, Timeouts

#: Servers that do not heed the end of a connection's other side are left so many seconds after it.
PART_S = 0.25
#: Idle connections kept at most; what comes back beyond it is closed.
MAX_IDLE = 256


class HttpPool:
    """A `Transport` to one deployment. Belongs to one event loop.

    Args:
        origin: where the server is.
        credential: sent with every request, to this origin only.
        tls: for https; default: the system's authorities, verified.
        keepalive_s: how long an idle connection is kept.
    """

    def __init__(
        self,
        origin: Origin,
        *,
        credential: Credential | None = None,
        tls: ssl.SSLContext | None = None,
        keepalive_s: float = 4.0,
    ) -> None:
        self._origin = origin
        self._heads = RequestHeads(origin, credential)
        self._tls = (tls or tls_context()) if origin.scheme == "https" else None
        self._keepalive_s = keepalive_s
        self._idle: dict[Connection, None] = {}  # in the order of their return: the newest is taken first
        self._open: set[Connection] = set()
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None

    def send(self, request: UpstreamRequest, timeouts: Timeouts, /) -> Sending:
        """See `Transport.send`."""
        return _Sending(self, self._heads.head(request), request.body, timeouts)

    async def aclose(self) -> None:
        """Close every connection, in use or not; sending fails from now on."""
        self._closed = True
        for connection in list(self._open):
            connection.connection_lost(None)
        await asyncio.sleep(0)  # the sockets are closed in the loop's next turn

    @property
    def connections(self) -> tuple[int, int]:
        """How many connections are open, and how many of them are idle."""
        return len(self._open), len(self._idle)

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop that it belongs to: the first that sends."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        return self._loop

    def reuse(self, now: float) -> Connection | None:
        """The idle connection that was used last, if any is fit."""
        while self._idle:
            connection, _ = self._idle.popitem()
            if not connection.expired(now):
                return connection
            connection.abort()
        return None

    def release(self, connection: Connection, now: float) -> None:
        """Take a connection back whose exchange is over."""
        if connection.closed:
            return
        if self._closed or len(self._idle) >= MAX_IDLE or self._keepalive_s <= 0:
            connection.abort()
            return
        connection.rest(now + self._keepalive_s)
        self._idle[connection] = None

    async def connect(self, timeout_s: float) -> Connection:
        """A new connection.

        Raises:
            UpstreamUnavailable: refused, unresolvable, or its certificate is not acceptable.
            UpstreamTimeout: not within `timeout_s`.
        """
        if self._closed:
            raise UpstreamUnavailable("The deployment is no longer in use.")
        loop = asyncio.get_running_loop()
        origin = self._origin
        try:
            async with asyncio.timeout(timeout_s):
                _, connection = await loop.create_connection(
                    lambda: Connection(loop, self._forget), origin.host, origin.port, ssl=self._tls
                )
        except TimeoutError as error:
            raise UpstreamTimeout("The deployment could not be reached in time (connect).", detail="connect") from error
        except (OSError, ssl.SSLError, UnicodeError) as error:  # UnicodeError: a host name that DNS cannot carry
            detail = f"{type(error).__name__}: {error}"
            raise UpstreamUnavailable("The deployment could not be reached.", detail=detail) from error
        if connection.closed:
            raise UpstreamUnavailable("The deployment closed the connection at once.")
        self._open.add(connection)
        return connection

    def _forget(self, connection: Connection) -> None:
        self._open.discard(connection)
        self._idle.pop(connection, None)


class _Sending(Sending):
    """One request from its first byte to its connection's return. Its exit has only synchronous effects."""

    __slots__ = ("_body", "_connection", "_exchange", "_head", "_pool", "_timeouts")

    def __init__(self, pool: HttpPool, head: bytes, body: bytes, timeouts: Timeouts) -> None:
        self._pool = pool
        self._head = head
        self._body = body
        self._timeouts = timeouts
        self._connection: Connection | None = None
        self._exchange: Exchange | None = None

    async def __aenter__(self) -> Response:
        pool, timeouts = self._pool, self._timeouts
        loop = pool.loop
        now = loop.time()
        total_at = now + timeouts.total_s
        connection = reused = pool.reuse(now)
        while True:
            if connection is None:
                connection = await pool.connect(min(timeouts.connect_s, total_at - loop.time()))
            exchange = self._exchange = connection.begin(self._head, self._body, timeouts, total_at)
            self._connection = connection
            try:
                head = await exchange.head()
            except BaseException as error:
                self._connection = None
                connection.abort()
                if reused is None or exchange.parted or not isinstance(error, ClosedUnanswered):
                    raise
                connection = reused = None  # the server had closed it already: the one resend, on a new connection
                continue
            self._body = b""
            return Response(head.status, head.headers, exchange)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        connection, exchange = self._connection, self._exchange
        self._connection = None
        if connection is None or exchange is None:
            return
        if exchange.reusable:
            self._pool.release(connection, connection.loop.time())
        else:
            exchange.leave()

    def part(self) -> float:
        """The server sees the end of the connection now; what it wrote before it does is still read."""
        connection, exchange = self._connection, self._exchange
        if connection is None or exchange is None or not connection.half_close():
            return 0.0
        exchange.parted = True
        return PART_S
