"""A transport that adds headers of the moment to each request, such as a trace's: a wrapper around the real one."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from backends.core.contracts import UpstreamRequest
from backends.remote.transport import Sending, Timeouts, Transport

#: What to add to the request that is being sent now; asked in the sender's own task.
Headers = Callable[[], Mapping[str, str]]


class Adding:
    """A `Transport`. A header of the dialect's own wins."""

    def __init__(self, inner: Transport, headers: Headers) -> None:
        self._inner = inner
        self._headers = headers

    def send(self, request: UpstreamRequest, timeouts: Timeouts, /) -> Sending:
        """See `Transport.send`."""
        if more := self._headers():
            request = msgspec.structs.replace(request, headers={**more, **request.headers})
        return self._inner.send(request, timeouts)

    async def aclose(self) -> None:
        """See `Transport.aclose`."""
        await self._inner.aclose()
