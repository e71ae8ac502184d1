"""The limit store shared by every worker of every gateway: one Lua call at admission, one at settlement.

The clock is the server's. An admission carries the server instant at which its caller will have given up; past it the
script does nothing, and whatever may have been carried out unseen is voided when Redis answers again: no ghosts.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Self

import msgspec

from gateway.domain.settlement import LedgerRow, Progress, Reservation, Rule, RuleState, Settlement
from gateway.domain.usage_stream import COMMITTED, EPOCH, META, REBUILT, pack_row
from gateway.limits.ask import Ask
from gateway.limits.commands import AdmitReply, Args, Closing, admit_args, ask, pack_opening, parse_admit, renew_args
from gateway.limits.link import Command, Link, LinkDown
from gateway.limits.outstanding import Outstanding
from gateway.limits.peek import Peek
from gateway.limits.refusal import refusal, unavailable
from gateway.limits.scripts import Script, Scripts, compose
from gateway.limits.spool import Spool
from gateway.limits.store import PeriodOver, check_periods
from gateway.limits.stream import StreamLook, StreamState
from gateway.limits.wire import ReplyError

log = logging.getLogger(__name__)
_RENEW_AT_ONCE = 128
_RETRY_MS = 1000
#: Between two looks whether the quotas are rebuilt.
_LOOK_S = 0.05


class _Live(msgspec.Struct, frozen=True, gc=False):
    """A reservation that this worker holds. `epoch` 0: Redis does not know of it."""

    rules: tuple[Rule, ...]
    epoch: int
    admitted_us: int
    lease_ms: int


class _Admit(Command):
    """One admission; its future gets the reply, or LinkDown."""

    __slots__ = ("_again", "_asked", "_blob", "_lease_ms", "_store", "future", "given_up", "id", "rules")

    def __init__(self, store: RedisStore, id: str, rules: tuple[Rule, ...], lease_ms: int, blob: bytes) -> None:
        self.reloaded = False
        self._store = store
        self._asked = ask(rules)
        self.id = id
        self.rules = rules
        self._lease_ms = lease_ms
        self._blob = blob
        self._again = False
        self.given_up = False
        self.future: asyncio.Future[AdmitReply] = store.link.loop.create_future()

    def args(self, server_us: int) -> Args:
        return admit_args(self._store.scripts.admit, self.id, self._asked, self._lease_ms, server_us, self._blob)

    def answered(self, reply: Any) -> None:
        if not isinstance(reply, list):
            self._store.poisoned += 1
            log.error("limit_counter_poisoned", extra={"reason": str(reply)[:128], "rules": [r.name for r in self.rules]})
            self._fail(LinkDown(f"refused: {str(reply)[:64]}", sent=False))
            return
        answer = parse_admit(reply, self.rules)
        self._store.link.learn(answer.now_us)
        if answer.code == 1:
            self._store.settlements.seen(answer.epoch)
        if self.given_up or self.future.done():
            if answer.code == 1:
                self._store.forget(self.id, self.rules, answer.epoch, answer.now_us)
        elif answer.code == -1 and not self._again:  # its clock and ours had parted: once more with what was learnt
            self._again = True
            if not self._store.link.send_again(self):
                self._fail(LinkDown("down", sent=False))
        elif answer.code < 0:
            self._fail(LinkDown("too late" if answer.code == -1 else "id was used", sent=False))
        else:
            self.future.set_result(answer)

    def failed(self, error: LinkDown) -> None:
        if error.sent and (self.given_up or self.future.done() or any(rule.on_outage == "deny" for rule in self.rules)):
            self._store.forget(self.id, self.rules, 0, 0)
        self._fail(error)

    def _fail(self, error: LinkDown) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class _Renew(Command):
    """One batch of renewals; failing is harmless, the next one re-adds what was lost."""

    __slots__ = ("_live", "_script", "done")

    def __init__(self, script: Script, live: Sequence[tuple[Progress, int]]) -> None:
        super().__init__()
        self._script = script
        self._live = live
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def args(self, server_us: int) -> Args:
        return renew_args(self._script, self._live, server_us)

    def answered(self, reply: Any) -> None:
        if isinstance(reply, ReplyError):
            log.error("renewal_refused", extra={"reason": str(reply)[:128]})
        self._end()

    def failed(self, error: LinkDown) -> None:  # noqa: ARG002
        self._end()

    def _end(self) -> None:
        if not self.done.done():
            self.done.set_result(None)


class RedisStore:
    """A `LimitStore` in Redis. Enter it, or `start` it, and close it in the same task.

    Args:
        url: `redis://`, `rediss://` or `unix://`.
        wall_us: µs UTC of this machine, for admissions while Redis is away.
        worker: this worker's name in the usage stream, unique among all gateways.
        timeout_ms: the longest that an admission waits for Redis.
        spool: where settlements go that neither Redis nor memory can take.
        max_kept: how many settlements wait in memory while Redis is away.
        rebuilt: somebody rebuilds the quotas of a Redis that lost its data; until then they are out, and `on_outage` says
            what follows.

    Raises:
        ValueError: the URL cannot be read.
    """

    def __init__(
        self,
        url: str,
        wall_us: Callable[[], int],
        *,
        worker: str,
        timeout_ms: int = 50,
        spool: Spool | None = None,
        max_kept: int = 10_000,
        rebuilt: bool = False,
    ) -> None:
        self.scripts: Scripts = compose()
        self.poisoned = 0
        self.degraded = 0
        self.config_version = 0
        self._wall_us = wall_us
        self._worker = worker
        self._seq = 0
        self._open: dict[str, _Live] = {}
        self._spool = spool
        self.settlements = Outstanding(self.scripts.settle, max_kept, spool)
        self.link = Link(url, self.scripts.all, timeout_ms / 1000, self._reconnected)
        self._rebuilt = rebuilt
        self._rebuilt_epoch = 0
        self._looking = False
        self.settlements.bind(self.link)
        self._group: asyncio.TaskGroup | None = None
        self._keeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to connect; does not wait for Redis."""
        self._group = asyncio.TaskGroup()
        await self._group.__aenter__()
        self._keeper = self._group.create_task(self.link.keep(), name="limits-link")

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    @property
    def ready(self) -> bool:
        """False when a settlement could be lost: memory and spool are full."""
        return not self.settlements.full

    @property
    def rebuilding(self) -> bool:
        """Whether Redis answers, but its quotas do not yet hold what the ledger knows."""
        return self._rebuilt and self.link.breaker.closed and not self._rebuilt_epoch

    @property
    def open_count(self) -> int:
        """How many reservations this worker holds."""
        return len(self._open)

    def now_us(self) -> int:
        """See `LimitStore.now_us`: the server's clock, or before the first contact this machine's."""
        return self.link.now_us() if self.link.known_offset else self._wall_us()

    async def admit(self, id: str, rules: Sequence[Rule], opening: LedgerRow, lease_ms: int, waited_us: int = 0) -> Reservation:
        """See `LimitStore.admit`; answers within the timeout whatever Redis does."""
        ours = tuple(rules)
        command = _Admit(self, id, ours, lease_ms, pack_opening(ours, opening))
        if not self.link.send(command, waited_us / 1e6):
            return self._without(id, ours, lease_ms, "breaker open" if not self.link.breaker.closed else "its time is over")
        try:
            answer = await command.future
        except LinkDown as error:
            return self._without(id, ours, lease_ms, str(error))
        except asyncio.CancelledError:
            self._give_up(command)
            raise
        self.config_version = answer.config
        try:
            check_periods(ours, answer.now_us)
        except PeriodOver:
            if answer.code:
                self.forget(id, ours, answer.epoch, answer.now_us)
            raise
        if not answer.code:
            raise refusal(ours, answer.index, answer.retry_after_ms, answer.states)
        if self._rebuilt and answer.epoch != self._rebuilt_epoch:
            self._look()
            if any(rule.kind == "quota" and rule.on_outage == "deny" for rule in ours):
                self.forget(id, ours, answer.epoch, answer.now_us)
                raise unavailable(_RETRY_MS, "quotas are being rebuilt")
        self._open[id] = _Live(ours, answer.epoch, answer.now_us, lease_ms)
        return Reservation(id, answer.now_us, ours, answer.states)

    async def peek(self, rules: Sequence[Rule]) -> Sequence[RuleState]:
        """See `LimitStore.peek`."""
        command = Peek(self.scripts.peek, rules)
        if not self.link.send(command):
            raise unavailable(_RETRY_MS, "breaker open")
        try:
            return (await command.future).states
        except LinkDown as error:
            raise unavailable(_RETRY_MS, str(error)) from None

    async def stream(self) -> StreamState:
        """What waits in the usage stream.

        Raises:
            LinkDown: Redis does not answer.
        """
        command = StreamLook()
        if not self.link.send(command):
            raise LinkDown("breaker open", sent=False)
        return await command.future

    def acknowledge(self) -> None:
        """Ask which rows are in SQL, where some are held and no settlement's answer tells of it."""
        if self.settlements.held:
            self.link.send(Ask(("GET", COMMITTED), self.settlements.acknowledged))

    async def renew(self, live: Sequence[Progress]) -> None:
        """See `LimitStore.renew`; bounded batches, so that no script runs long."""
        known = [(progress, held.lease_ms) for progress in live if (held := self._open.get(progress.id)) is not None]
        for start in range(0, len(known), _RENEW_AT_ONCE):
            command = _Renew(self.scripts.renew, known[start : start + _RENEW_AT_ONCE])
            if not self.link.send(command):
                return
            await command.done

    def settle(self, settlement: Settlement) -> asyncio.Future[bool]:
        """See `LimitStore.settle`; resolves within the timeout, with True also when the settlement is kept."""
        done: asyncio.Future[bool] = self.link.loop.create_future()
        held = self._open.pop(settlement.reservation.id, None)
        if held is None:
            done.set_result(False)
            return done
        row = settlement.row
        if row.admitted_us != held.admitted_us:
            row = msgspec.structs.replace(row, admitted_us=held.admitted_us)
        self._give(settlement.reservation.id, held.rules, settlement.actual, held.epoch, held.admitted_us, pack_row(row), done)
        return done

    def written(self) -> Awaitable[None] | None:
        """See `LimitStore.written`: the bytes are in the connection, and the server reads in the order of arrival."""
        return self.link.written()

    def void(self, id: str) -> None:
        """See `LimitStore.void`: the charges go back, no row is written."""
        held = self._open.pop(id, None)
        if held is not None:
            self.forget(id, held.rules, held.epoch, held.admitted_us)

    def forget(self, id: str, rules: tuple[Rule, ...], epoch: int, admitted_us: int) -> None:
        """Take back an admission that may have been charged."""
        self._give(id, rules, (0,) * len(rules), epoch, admitted_us, b"", None)

    async def aclose(self, flush_s: float = 1.0) -> None:
        """See `LimitStore.aclose`: what Redis does not take within `flush_s` goes to the spool."""
        loop = asyncio.get_running_loop()
        until = loop.time() + flush_s
        while self.link.breaker.closed and loop.time() < until:
            if self.settlements.idle and self.link.idle:
                break
            await asyncio.sleep(0.002)
        self.link.close()
        self.settlements.close()
        if self._group is not None and self._keeper is not None:
            group, self._group = self._group, None
            self._keeper.cancel()
            await group.__aexit__(None, None, None)

    def _reconnected(self) -> None:
        self.settlements.reconnected()
        if self._rebuilt:
            self._look()

    def _look(self) -> None:
        """Ask whether the quotas hold what the ledger knows; again until they do."""
        if not self._looking:
            self._looking = self.link.send(Ask(("HMGET", META, EPOCH, REBUILT), self._looked))

    def _looked(self, reply: Any) -> None:
        self._looking = False
        if reply is None:
            return  # the next connection looks
        epoch, rebuilt = reply
        if rebuilt is not None and rebuilt == epoch:
            self._rebuilt_epoch = int(epoch)
        else:
            self._rebuilt_epoch = 0
            asyncio.get_running_loop().call_later(_LOOK_S, self._look)

    def _give_up(self, command: _Admit) -> None:
        """The caller of an admission left."""
        command.given_up = True
        if self.link.forget(command) or not command.future.done() or command.future.cancelled():
            return
        if command.future.exception() is None and (answer := command.future.result()).code == 1:
            self.forget(command.id, command.rules, answer.epoch, answer.now_us)

    def _without(self, id: str, rules: tuple[Rule, ...], lease_ms: int, reason: str) -> Reservation:
        """What the rules say for an admission that could not be counted."""
        if any(rule.on_outage == "deny" for rule in rules):
            raise unavailable(_RETRY_MS, reason)
        self.degraded += 1
        now_us = self.now_us()
        self._open[id] = _Live(rules, 0, now_us, lease_ms)
        return Reservation(id, now_us, rules, degraded=True)

    def _give(
        self,
        id: str,
        rules: tuple[Rule, ...],
        actual: tuple[int, ...],
        epoch: int,
        admitted_us: int,
        row: bytes,
        done: asyncio.Future[bool] | None,
    ) -> None:
        self._seq += 1
        closing = Closing(id, epoch, admitted_us, rules, actual, row, self._worker, self._seq)
        self.settlements.give(closing, done)
