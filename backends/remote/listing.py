"""The models that a server says it has."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from backends.core.contracts import UpstreamRequest
from backends.core.errors import UpstreamProtocol, UpstreamUnavailable
from backends.remote.transport import Timeouts, Transport

_MAX_BYTES = 4 << 20
_BOUNDS = Timeouts(connect_s=5, idle_s=10, total_s=20)


class Listing(NamedTuple):
    """Where a server lists its models: the path below base_url, the list's key, and the key of a name in an entry."""

    path: str
    entries: str
    name: str


async def listed_models(transport: Transport, listing: Listing) -> list[str]:
    """The names.

    Raises:
        BackendError: not reachable, refused, or no such list.
    """
    body = bytearray()
    async with transport.send(UpstreamRequest("GET", listing.path, {}, b""), _BOUNDS) as response:
        if response.status != 200:
            raise UpstreamUnavailable("The server lists no models.", detail=f"status {response.status}")
        async for piece in response.chunks:
            body += piece
            if len(body) > _MAX_BYTES:
                raise UpstreamProtocol("The server's list of models is too long.")
    try:
        entries = msgspec.json.decode(bytes(body), type=dict[str, Any])[listing.entries]
        return [str(entry[listing.name]) for entry in entries]
    except (msgspec.DecodeError, KeyError, TypeError):
        raise UpstreamProtocol("The server's list of models is none.") from None
