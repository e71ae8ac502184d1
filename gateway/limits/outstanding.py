"""Settlements on their way to Redis: sent, kept while it is away, written to the spool when there are too many."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import Any

from gateway.limits.commands import Args, Closing, EntryId, SettleReply, committed_id, parse_settle, settle_args
from gateway.limits.link import Command, Link, LinkDown
from gateway.limits.scripts import Script
from gateway.limits.spool import Spool

log = logging.getLogger(__name__)
_AT_ONCE = 256
_RETRY_S = 1.0


class _Settle(Command):
    """One settlement or void. Its future resolves when Redis has it, or when it is kept."""

    __slots__ = ("_again", "_closing", "_done", "_owner", "spooled")

    def __init__(
        self, owner: Outstanding, closing: Closing, done: asyncio.Future[bool] | None, *, again: bool, spooled: bool = False
    ) -> None:
        self.reloaded = False
        self._owner = owner
        self._closing = closing
        self._done = done
        self._again = again
        self.spooled = spooled

    def args(self, server_us: int) -> Args:  # noqa: ARG002
        return settle_args(self._owner.script, self._closing, again=self._again)

    def answered(self, reply: Any) -> None:
        owner = self._owner
        if not isinstance(reply, list):
            log.error("settlement_refused", extra={"reason": str(reply)[:128]})
            owner.refused()
            owner.failed(self, self._closing, again=self._again)
            self._resolve(True)
            return
        answer = parse_settle(reply)
        owner.arrived(self, self._closing, answer)
        self._resolve(answer.code > 0)

    def failed(self, error: LinkDown) -> None:
        self._owner.failed(self, self._closing, again=self._again or error.sent)
        self._resolve(True)

    def _resolve(self, value: bool) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_result(value)


class Outstanding:
    """Every settlement given here reaches Redis, or the spool, or is counted in `dropped`.

    One that Redis has taken is held until its row is in SQL: when Redis loses its data (another epoch), it is settled
    again, which charges it and appends its row anew.

    Args:
        link: the connection; `bind` it before the first settlement.
        script: settle.lua.
        max_kept: how many wait in memory while Redis is away.
        spool: where the others go; None = they are dropped, and counted.
        max_held: how many rows are held until they are in SQL; the oldest beyond are trusted to Redis alone.
    """

    def __init__(self, script: Script, max_kept: int, spool: Spool | None, max_held: int = 100_000) -> None:
        self.script = script
        self.overruns = 0
        self.dropped = 0
        self.restored = 0
        """Settlements given to Redis once more because it had lost its data."""
        self._max_held = max_held
        self._held: deque[tuple[EntryId, Closing]] = deque()
        self._epoch = 0
        self._max_kept = max_kept
        self._spool = spool
        self._link: Link | None = None
        self._kept: deque[tuple[Closing, bool]] = deque()
        self._on_the_way = 0
        self._from_spool: int | None = None
        self._spool_ok = True
        self._spool_left = 0
        self._refused = False
        self._timer: asyncio.TimerHandle | None = None

    def bind(self, link: Link) -> None:
        """Say where to send."""
        self._link = link

    @property
    def kept(self) -> int:
        """How many wait in memory."""
        return len(self._kept)

    @property
    def held(self) -> int:
        """How many rows Redis has that are not in SQL yet, as far as is known."""
        return len(self._held)

    @property
    def spool_bytes(self) -> int:
        """The size of the spool file."""
        return self._spool.size if self._spool is not None else 0

    @property
    def full(self) -> bool:
        """Whether a settlement could be lost now."""
        return len(self._kept) >= self._max_kept and (self._spool is None or self._spool.full)

    @property
    def idle(self) -> bool:
        """Whether everything has arrived."""
        return not self._kept and not self._on_the_way

    def give(self, closing: Closing, done: asyncio.Future[bool] | None = None) -> None:
        """Hand over a settlement; `done` resolves when Redis has it or it is kept."""
        command = _Settle(self, closing, done, again=False)
        assert self._link is not None
        self._on_the_way += 1
        if not self._link.send(command):
            command.failed(LinkDown("down", sent=False))

    def reconnected(self) -> None:
        """The connection is up again: send what waits, and one settlement that was taken, to learn whether it is there."""
        if self._held:
            self._kept.appendleft((self._held.popleft()[1], True))
        self.repeat()

    def seen(self, epoch: int) -> None:
        """An answer named the data in Redis: when they are others than before, everything held is settled again."""
        if epoch == self._epoch:
            return
        if self._epoch and self._held:
            log.warning("redis_lost_its_data", extra={"rows": len(self._held)})
            self.restored += len(self._held)
            self._kept.extendleft((closing, True) for _, closing in reversed(self._held))
            self._held.clear()
        self._epoch = epoch
        if self._kept:
            self.repeat()

    def repeat(self) -> None:
        """Send what waits, a bounded number at once; called when the connection is up, and again by each answer."""
        if self._link is None or not self._link.up or self._refused:
            return
        for _ in range(min(len(self._kept), _AT_ONCE - self._on_the_way)):
            closing, again = self._kept.popleft()
            self._send(_Settle(self, closing, None, again=again))
        spool = self._spool
        if spool is None or self._kept or self._from_spool is not None or not spool.waiting:
            return
        closings, self._from_spool = spool.peek(_AT_ONCE)
        self._spool_ok = True
        self._spool_left = len(closings)
        for closing in closings:
            self._send(_Settle(self, closing, None, again=True, spooled=True))

    def arrived(self, command: _Settle, closing: Closing, answer: SettleReply) -> None:
        """Redis took one."""
        self._on_the_way -= 1
        self.overruns += answer.overruns
        if answer.epoch != self._epoch:
            self.seen(answer.epoch)
        held = self._held
        if answer.entry > answer.committed:
            held.append((answer.entry, closing))
            if len(held) > self._max_held:
                held.popleft()
        while held and held[0][0] <= answer.committed:
            held.popleft()
        if command.spooled:
            self._spool_answer(ok=True)
        if self._kept or (self._spool is not None and self._spool.waiting):
            self.repeat()

    def acknowledged(self, committed: bytes | None) -> None:
        """What is in SQL, asked for where no settlement's answer tells it."""
        upto = committed_id(committed or b"")
        while self._held and self._held[0][0] <= upto:
            self._held.popleft()

    def refused(self) -> None:
        """Redis answered with an error (out of memory, a poisoned stream): nothing is repeated for a while."""
        self._refused = True

    def failed(self, command: _Settle, closing: Closing, *, again: bool) -> None:
        """Redis did not take one: keep it, or leave it in the spool."""
        self._on_the_way -= 1
        if command.spooled:
            self._spool_answer(ok=False)
        else:
            self._keep(closing, again=again)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_RETRY_S, self._retry)

    def close(self) -> None:
        """Write what never arrived to the spool."""
        if self._timer is not None:
            self._timer.cancel()
        self._max_kept = 0
        while self._kept:
            closing, again = self._kept.popleft()
            self._keep(closing, again=again)
        if self._spool is not None:
            self._spool.close()

    def _send(self, command: _Settle) -> None:
        assert self._link is not None
        self._on_the_way += 1
        if not self._link.send(command):
            command.failed(LinkDown("down", sent=False))

    def _keep(self, closing: Closing, *, again: bool) -> None:
        if len(self._kept) < self._max_kept:
            self._kept.append((closing, again))
        elif self._spool is None or not self._spool.append(closing):
            self.dropped += 1
            log.error("settlement_lost", extra={"request_id": closing.id})

    def _spool_answer(self, *, ok: bool) -> None:
        self._spool_ok = self._spool_ok and ok
        self._spool_left -= 1
        if self._spool_left == 0 and self._from_spool is not None and self._spool is not None:
            if self._spool_ok:
                self._spool.take(self._from_spool)
            self._from_spool = None

    def _retry(self) -> None:
        self._timer, self._refused = None, False
        self.repeat()
