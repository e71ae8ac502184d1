"""The models that a server says it has."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from backends.core.errors import UpstreamProtocol, UpstreamUnavailable
from backends.remote.control import ControlClient


class Listing(NamedTuple):
    """Where a server lists its models: the path below base_url, the list's key, and the key of a name in an entry."""

    path: str
    entries: str
    name: str


async def listed_models(client: ControlClient, listing: Listing) -> list[str]:
    """The names.

    Raises:
        BackendError: not reachable, refused, or no such list.
    """
    answer = await client.get(listing.path)
    if answer.status != 200:
        raise UpstreamUnavailable("The server lists no models.", detail=f"status {answer.status}")
    try:
        entries = msgspec.json.decode(answer.body, type=dict[str, Any])[listing.entries]
        return [str(entry[listing.name]) for entry in entries]
    except (msgspec.DecodeError, KeyError, TypeError):
        raise UpstreamProtocol("The server's list of models is none.") from None
