"""A plain command over the link whose reply one function takes; nobody waits for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from gateway.limits.commands import Args
from gateway.limits.link import Command, LinkDown
from gateway.limits.wire import ReplyError


class Ask(Command):
    """Asks once. `then` gets the reply, or None where none came."""

    __slots__ = ("_args", "_then")
    scripted: ClassVar[bool] = False

    def __init__(self, args: Args, then: Callable[[Any], None]) -> None:
        super().__init__()
        self._args = args
        self._then = then

    def args(self, server_us: int) -> Args:  # noqa: ARG002
        """See `Command.args`."""
        return self._args

    def answered(self, reply: Any) -> None:
        """See `Command.answered`."""
        self._then(None if isinstance(reply, ReplyError) else reply)

    def failed(self, error: LinkDown) -> None:  # noqa: ARG002
        """See `Command.failed`."""
        self._then(None)
