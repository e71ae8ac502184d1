"""What the pipeline needs of one HTTP exchange; `gateway.edge.exchange` is the real one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from backends.core.errors import GatewayError


class BodyTooLarge(GatewayError):
    """The body is over the configured size (413)."""

    status = 413
    type = "invalid_request_error"
    default_code = "request_too_large"


class Exchange(Protocol):
    """One request and its one answer. Nothing is written before the first `send`, `finish` or `fail`."""

    path: str
    headers: Sequence[tuple[bytes, bytes]]
    """Request headers, lower-case names, in order, duplicates kept."""

    response_headers: list[tuple[bytes, bytes]]
    """What goes out with the status line; set before anything is sent."""

    content_type: bytes
    """Of a successful answer; set before the first `send` or `finish`."""

    @property
    def started(self) -> bool:
        """Whether the status line is out."""

    @property
    def draining(self) -> bool:
        """Whether it came when the drain time was over: it must end now."""

    def when_gone(self, ends: Callable[[], bool], /) -> None:
        """Asked when the client has left, before the task is cancelled: True = it ends by itself, within moments."""

    def header(self, name: bytes, /) -> str | None:
        """The first value of a header as Latin-1 text, or None."""

    async def body(self, max_bytes: int, /) -> bytes:
        """The whole request body.

        Raises:
            BodyTooLarge: as soon as it is known, by Content-Length or by count.
            BadRequest: it ended early or came too slowly.
        """

    async def send(self, data: bytes, /) -> None:
        """More of a streamed answer; the first call commits status 200. Waits while the client reads too slowly.

        Raises:
            ConnectionError: the client is gone, or did not read for `client_stall_s`.
        """

    def comment(self) -> None:
        """Write an SSE comment line now, so that proxies and clients see life; commits status 200 if nothing was sent.

        Synchronous and without back-pressure; ignored once the answer is finished or the client is gone.
        """

    async def finish(self, data: bytes, /) -> None:
        """The last bytes of a streamed answer, or a whole unary one (with Content-Length) when nothing was sent."""

    async def fail(self, error: GatewayError, body: bytes, /) -> None:
        """An error: its status and headers (Retry-After) when nothing was sent yet, else an in-stream event and the end."""
