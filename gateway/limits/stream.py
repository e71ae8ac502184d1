"""A look at the usage stream over the link: how many rows wait for SQL, how old the oldest is, how many have gone.

`XINFO STREAM` (redis.io/commands/xinfo-stream): a flat list of names and values; `entries-added` since Redis 7.0.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from gateway.domain.usage_stream import STREAM
from gateway.limits.commands import Args
from gateway.limits.link import Command, LinkDown
from gateway.limits.wire import ReplyError


class StreamState(msgspec.Struct, frozen=True):
    """`rows` not yet in SQL, `oldest_us` the server instant of the first (0 = none), `gone` rows that were taken from it.

    `gone` None: this server does not count them. It begins anew when Redis loses its data.
    """

    rows: int
    oldest_us: int
    gone: int | None


class StreamLook(Command):
    """Asks once; its future gets the state, or LinkDown."""

    __slots__ = ("future",)
    scripted = False

    def __init__(self) -> None:
        super().__init__()
        self.future: asyncio.Future[StreamState] = asyncio.get_running_loop().create_future()

    def args(self, server_us: int) -> Args:  # noqa: ARG002
        """See `Command.args`."""
        return ("XINFO", "STREAM", STREAM)

    def answered(self, reply: Any) -> None:
        """See `Command.answered`."""
        if self.future.done():
            return
        if isinstance(reply, ReplyError) and "no such key" in str(reply):
            self.future.set_result(StreamState(0, 0, 0))
        elif isinstance(reply, list):
            self.future.set_result(read_state(reply))
        else:
            self.future.set_exception(LinkDown(f"refused: {str(reply)[:64]}", sent=False))

    def failed(self, error: LinkDown) -> None:
        """See `Command.failed`."""
        if not self.future.done():
            self.future.set_exception(error)


def read_state(reply: list[Any]) -> StreamState:
    """The state in an answer."""
    told = {name.decode() if isinstance(name, bytes) else name: value for name, value in zip(*[iter(reply)] * 2, strict=False)}
    rows = int(told.get("length", 0))
    first = told.get("first-entry")
    oldest_ms = int(first[0].partition(b"-")[0]) if first else 0
    added = told.get("entries-added")
    return StreamState(rows, oldest_ms * 1000, None if added is None else int(added) - rows)
