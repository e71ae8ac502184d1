"""One look at some rules over the link: what is left of them now."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from gateway.domain.settlement import Rule
from gateway.limits.commands import AdmitReply, Args, parse_admit, peek_args
from gateway.limits.link import Command, LinkDown
from gateway.limits.scripts import Script
from gateway.limits.store import PEEK_LEASE_MS


class Peek(Command):
    """Asks once; its future gets the reply, or LinkDown."""

    __slots__ = ("_rules", "_script", "future")

    def __init__(self, script: Script, rules: Sequence[Rule]) -> None:
        super().__init__()
        self._script = script
        self._rules = rules
        self.future: asyncio.Future[AdmitReply] = asyncio.get_running_loop().create_future()

    def args(self, server_us: int) -> Args:  # noqa: ARG002
        """See `Command.args`."""
        return peek_args(self._script, self._rules, PEEK_LEASE_MS)

    def answered(self, reply: Any) -> None:
        """See `Command.answered`."""
        if self.future.done():
            return
        if isinstance(reply, list):
            self.future.set_result(parse_admit(reply, self._rules))
        else:
            self.future.set_exception(LinkDown(f"refused: {str(reply)[:64]}", sent=False))

    def failed(self, error: LinkDown) -> None:
        """See `Command.failed`."""
        if not self.future.done():
            self.future.set_exception(error)
