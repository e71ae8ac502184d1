"""The pipeline's `Exchange` on one cycle of a connection.

One task per request is enough: the connection itself watches for the client's leaving (it never stops reading while a
request is answered) and cancels the task from `connection_lost` or `eof_received`. That is the same promise as a
second task waiting for `http.disconnect`, for a tenth of its cost.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

import msgspec

from backends.core.errors import BadRequest, GatewayError
from gateway.edge.cycle import Cycle

_STREAM_HEADERS = [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
_COMMENT = b":\n\n"
#: What a 429 or a 503 says when nobody knows how long the wait will be, for instance a server that named no time.
RETRY_MS = 1000


def retry_headers(error: GatewayError) -> list[tuple[bytes, bytes]]:
    """`retry-after` (whole seconds, rounded up) and `retry-after-ms` of an error; of every 429 and 503."""
    wait_ms = error.retry_after_ms
    if wait_ms is None:
        if error.status not in (429, 503):
            return []
        wait_ms = RETRY_MS
    wait_ms = max(wait_ms, 1)
    return [(b"retry-after", b"%d" % -(-wait_ms // 1000)), (b"retry-after-ms", b"%d" % wait_ms)]


class UnsupportedEncoding(BadRequest):
    """A compressed body (415): nothing here unpacks one, so none can be a bomb."""

    status = 415
    default_code = "unsupported_content_encoding"


class HttpExchange(msgspec.Struct, eq=False):
    """See `gateway.pipeline.exchange.Exchange`. Made by `gateway.edge.asgi`, used by one task.

    `first`: the first header of each name. `draining`: the drain time is over.
    """

    cycle: Cycle
    path: str
    headers: Sequence[tuple[bytes, bytes]]
    first: Mapping[bytes, bytes]
    draining: bool
    response_headers: list[tuple[bytes, bytes]] = []
    content_type: bytes = b"application/json"

    @property
    def started(self) -> bool:
        """Whether the status line is out."""
        return self.cycle.started

    def when_gone(self, ends: Callable[[], bool], /) -> None:
        """See `Exchange.when_gone`."""
        self.cycle.ends_when_gone = ends

    def header(self, name: bytes, /) -> str | None:
        """The first value of a header as Latin-1 text, or None."""
        value = self.first.get(name)
        return None if value is None else value.decode("latin-1")

    def body(self, max_bytes: int, /) -> Coroutine[Any, Any, bytes]:
        """The whole request body, to be awaited.

        Raises:
            BodyTooLarge: as soon as it is known, by Content-Length or by count.
            UnsupportedEncoding: it is compressed.
            BadRequest: its framing is wrong, or it came too slowly (408).
            ConnectionError: the client left.
        """
        encoding = self.header(b"content-encoding")
        if encoding is not None and encoding.strip().lower() not in ("", "identity"):
            raise UnsupportedEncoding("Compressed request bodies are not supported.")
        return self.cycle.read_body(max_bytes)

    async def send(self, data: bytes, /) -> None:
        """More of a streamed answer; the first call commits status 200. Waits while the client reads too slowly.

        Raises:
            ConnectionError: the client is gone, or did not read for `client_stall_s`.
        """
        self._write(data)
        if self.cycle.blocked:
            await self.cycle.drained()

    def comment(self) -> None:
        """Write an SSE comment now; ignored once the answer is finished, or while nobody reads it."""
        if not (self.cycle.gone or self.cycle.finished or self.cycle.blocked):
            self._write(_COMMENT)

    async def finish(self, data: bytes, /) -> None:
        """The last bytes of a streamed answer, or a whole one when nothing was sent.

        Raises:
            ConnectionError: the client is gone.
        """
        self._present()
        if self.cycle.started:
            self.cycle.close(data)
        else:
            self.cycle.respond(200, [(b"content-type", self.content_type), *self.response_headers], data)

    async def fail(self, error: GatewayError, body: bytes, /) -> None:
        """An error: its status when nothing was sent yet, else an in-stream event and the end of the answer.

        Raises:
            ConnectionError: the client is gone.
        """
        self._present()
        if self.cycle.finished:
            return
        if self.cycle.started:
            self.cycle.close(body)  # the framing is whole: the connection may serve the client's next request
            return
        headers = [(b"content-type", b"application/json"), *self.response_headers]
        headers += retry_headers(error)
        if error.status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        self.cycle.respond(error.status, headers, body)

    def _write(self, data: bytes) -> None:
        cycle = self.cycle
        if cycle.gone:
            raise ConnectionResetError("the client left")
        if cycle.started:
            cycle.more(data)
        else:
            headers = [(b"content-type", self.content_type), *_STREAM_HEADERS, *self.response_headers]
            cycle.begin(200, headers, data)

    def _present(self) -> None:
        if self.cycle.gone:
            raise ConnectionResetError("the client left")
