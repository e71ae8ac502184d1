"""The one-method seam between a deployment's dialect and the network: send a request, read its response.

A transport serves one deployment: it knows the base URL and the credential, and adds both. Dialects and backends
never see either.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import msgspec

from backends.core.contracts import UpstreamRequest


class Timeouts(msgspec.Struct, frozen=True):
    """Seconds that a transport bounds by itself. The wait for the first event is bounded above it, by its caller.

    `connect_s`: name lookup, TCP and TLS. `write_s`: without progress while the request is being sent. `idle_s`:
    between two reads inside the head and, from its first byte on, inside the body (not while the consumer has paused
    reading; not between the two, where a model reads its prompt). `total_s`: everything,
    from the call to the last byte.
    """

    connect_s: float = 5.0
    write_s: float = 30.0
    idle_s: float = 60.0
    total_s: float = 1800.0


class Body(Protocol):
    """A body's bytes with the transfer coding removed, one piece per network read (several when the consumer was slower),
    never empty. Raises `BackendError` when it breaks off.
    """

    @property
    def taken(self) -> bool:
        """Whether the last byte was taken: nothing more will come. False where that is not known before it is asked."""

    def __aiter__(self) -> AsyncIterator[bytes]: ...

    async def __anext__(self) -> bytes: ...


class Response:
    """A response whose body is still coming. `headers` have lower-case names; repeated ones are joined with ", "."""

    __slots__ = ("chunks", "headers", "status")

    def __init__(self, status: int, headers: Mapping[str, str], chunks: Body) -> None:
        self.status = status
        self.headers = headers
        self.chunks = chunks


class Sending(AbstractAsyncContextManager[Response]):
    """A request on its way. Leaving before the body was read to its end closes the connection at once; it never waits."""

    def part(self) -> float:
        """See `Party.part`."""
        return 0.0


class Transport(Protocol):
    """A way to one deployment's server."""

    def send(self, request: UpstreamRequest, timeouts: Timeouts, /) -> Sending:
        """Send a request; entering returns once the response's head is there.

        Raises:
            UpstreamUnavailable: not reachable, or closed before it answered.
            UpstreamProtocol: what came is not acceptable HTTP; redirects too.
            UpstreamTruncated: it closed inside the response.
            UpstreamTimeout: one of `Timeouts` ran out.
        """

    async def aclose(self) -> None:
        """Close all connections; no response may be open."""
