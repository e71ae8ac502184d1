"""The limit store of a gateway without Redis: one process counts with `reference.py`, an outbox makes it durable.

Admission is synchronous and so atomic; then the opening row is awaited, so that nothing is sent upstream that a
restart would not know of. Leases need no expiry sweep here: their holder is this process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence

import msgspec

from gateway.domain.settlement import LedgerRow, Progress, Reservation, Rule, RuleState, Settlement
from gateway.limits.outbox import Outbox, StoredCharges, pack_charges, unpack_charges
from gateway.limits.reference import Counters, Refused, check_rules
from gateway.limits.refusal import refusal, unavailable
from gateway.limits.store import PEEK_LEASE_MS, check_periods

_RETRY_MS = 1000
#: By how much the clock must have gone back to be set back: less is another thread's turn, or a clock's slow correction.
_STEP_US = 1_000_000


class EmbeddedStore:
    """A `LimitStore` in this process.

    Args:
        clock: µs UTC.
        outbox: where rows and charges survive a restart.
    """

    def __init__(self, clock: Callable[[], int], outbox: Outbox) -> None:
        self._clock = clock
        self._outbox = outbox
        self._counters = Counters()
        self._open: dict[str, tuple[LedgerRow, int]] = {}
        self._seen_us = 0
        self.overruns = 0
        """How many rules were used beyond what was reserved, since the start."""

    def restore(self, rows: Iterable[StoredCharges]) -> None:
        """Rebuild the counters from stored rows; a row that was never settled counts in full."""
        now_us = self._clock()
        for admitted_us, _, charges in rows:
            for charge in unpack_charges(charges):
                self._counters.record(charge.name, charge.kind, charge.window_ms, charge.amount, admitted_us, now_us)

    def now_us(self) -> int:
        """See `LimitStore.now_us`."""
        return self._clock()

    async def admit(
        self,
        id: str,
        rules: Sequence[Rule],
        opening: LedgerRow,
        lease_ms: int,
        waited_us: int = 0,  # noqa: ARG002
    ) -> Reservation:
        """See `LimitStore.admit`; unavailable here means that the outbox cannot store."""
        check_rules(rules)
        now_us = self._clock()
        if now_us < self._seen_us - _STEP_US:
            self._counters.stepped_back(self._seen_us - now_us)
        self._seen_us = now_us
        check_periods(rules, now_us)
        verdict = self._counters.admit(id, rules, lease_ms, now_us)
        if isinstance(verdict, Refused):
            raise refusal(rules, verdict.index, verdict.retry_after_ms, verdict.states)
        row = msgspec.structs.replace(opening, admitted_us=now_us)
        self._open[id] = (row, lease_ms)
        degraded = False
        try:
            await self._outbox.open(row, pack_charges(rules, [rule.cost for rule in rules]))
        except asyncio.CancelledError:
            self.void(id)
            raise
        except Exception as error:
            if any(rule.on_outage == "deny" for rule in rules):
                self._give_back(id)  # no row is stored, so none must be closed: a full disk would fill the memory with them
                raise unavailable(_RETRY_MS, f"outbox: {type(error).__name__}: {error}") from error
            degraded = True
        return Reservation(id, now_us, tuple(rules), verdict.states, degraded)

    async def peek(self, rules: Sequence[Rule]) -> Sequence[RuleState]:
        """See `LimitStore.peek`."""
        return self._counters.states(rules, PEEK_LEASE_MS, self._clock())

    async def renew(self, live: Sequence[Progress]) -> None:
        """See `LimitStore.renew`."""
        now_us = self._clock()
        for progress in live:
            opened = self._open.get(progress.id)
            if opened is not None:
                self._counters.renew(progress.id, progress.slots, progress.output_tokens, opened[1], now_us)

    def settle(self, settlement: Settlement) -> asyncio.Future[bool]:
        """See `LimitStore.settle`; done when this returns."""
        done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        reservation = settlement.reservation
        settled = self._counters.settle(reservation.id, settlement.actual, self._clock())
        if settled is not None:
            del self._open[reservation.id]
            self.overruns += settled.overruns
            row = msgspec.structs.replace(settlement.row, admitted_us=reservation.admitted_us)
            self._outbox.append(row, pack_charges(reservation.rules, settlement.actual))
        done.set_result(settled is not None)
        return done

    def written(self) -> None:
        """See `LimitStore.written`: what is settled here is settled."""

    def void(self, id: str) -> None:
        """See `LimitStore.void`. The opening row may be stored already, so it is closed as a cancelled one."""
        given = self._give_back(id)
        if given is None:
            return
        rules, row = given
        closed = msgspec.structs.replace(
            row,
            outcome="cancelled",
            status=499,
            input_tokens=0,
            output_tokens=0,
            cost_nusd=0,
            settled_us=row.admitted_us,
            requests=0,
        )
        self._outbox.append(closed, pack_charges(rules, [0] * len(rules)))

    def _give_back(self, id: str) -> tuple[Sequence[Rule], LedgerRow] | None:
        """Uncharge an admission; its rules and its opening row, None when there is none."""
        rules = self._counters.reserved(id)
        if rules is None:
            return None
        self._counters.settle(id, [0] * len(rules), self._clock())
        row, _ = self._open.pop(id)
        return rules, row

    async def aclose(self) -> None:
        """Nothing is pending here: the outbox flushes what it was given."""
