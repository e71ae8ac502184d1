"""The interface that every limit store fulfils, and the refusals it raises."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Protocol

from backends.core.errors import GatewayError
from gateway.domain.settlement import LedgerRow, Progress, Reservation, Rule, RuleState, Settlement

#: How long a lease is said to last when nobody asks for one.
PEEK_LEASE_MS = 15_000


class LimitExceeded(GatewayError):
    """A rate or a concurrency limit refused the request (429). Nothing was charged to any rule.

    `states` are all rules' states at the refusal, for the response headers.
    """

    status = 429
    type = "rate_limit_exceeded"
    default_code = "rate_limit_exceeded"

    def __init__(self, message: str, *, rule: Rule, retry_after_ms: int, states: Sequence[RuleState] = ()) -> None:
        super().__init__(message, retry_after_ms=retry_after_ms)
        self.rule = rule
        self.states = tuple(states)


class QuotaExhausted(LimitExceeded):
    """A calendar quota is used up (429 insufficient_quota)."""

    type = "insufficient_quota"
    default_code = "insufficient_quota"


class LimitsUnavailable(GatewayError):
    """The store does not answer and a rule says `on_outage: deny` (503)."""

    status = 503
    default_code = "limits_unavailable"


class PeriodOver(Exception):
    """A quota's period ended between the making of the rules and the store's instant: make them again. Nothing is charged."""


def check_periods(rules: Sequence[Rule], now_us: int) -> None:
    """Refuse quotas whose period is over at the store's instant.

    Raises:
        PeriodOver: there is one.
    """
    for rule in rules:
        if rule.kind == "quota" and 0 < rule.ends_us <= now_us:
            raise PeriodOver(rule.name)


class LimitStore(Protocol):
    """Admission and settlement. One implementation in this process, one in Redis; same maths.

    A charge belongs to the store's clock at its admission. In no rolling window of a rule's length is more admitted
    than its limit. Every rule of one call is charged, or none.
    """

    def now_us(self) -> int:
        """The store's clock as well as this process knows it, µs UTC; never ahead of it by more than drift."""

    async def admit(self, id: str, rules: Sequence[Rule], opening: LedgerRow, lease_ms: int, waited_us: int = 0) -> Reservation:
        """Check and charge every rule atomically; `opening` is what the ledger shows if nobody ever settles.

        `waited_us`: how long this request has waited for the store before. All its tries together wait no longer than one
        may.

        Raises:
            LimitExceeded: the first rule that refuses; nothing was charged.
            PeriodOver: a quota of `rules` has ended; nothing is charged, and the id may be used again.
            LimitsUnavailable: no answer in time and some rule denies on outage; nothing will be charged.
        """

    async def peek(self, rules: Sequence[Rule]) -> Sequence[RuleState]:
        """What is left of these rules now; nothing is charged.

        Raises:
            LimitsUnavailable: no answer in time.
        """

    async def renew(self, live: Sequence[Progress]) -> None:
        """Prolong the leases of live requests, in one call."""

    def settle(self, settlement: Settlement) -> asyncio.Future[bool]:
        """Replace the reserved by the actual amounts, release the slots and append the ledger row, in one atom.

        The handover itself is synchronous (it happens on cancellation too, where nothing may await); the returned
        future tells when the store has it. Idempotent: it resolves to False when this reservation was settled
        before. It never fails for an outage: the settlement is kept and repeated until the store takes it.
        """

    def written(self) -> Awaitable[None] | None:
        """What waits until everything that was handed over is on its way; None: it is.

        Whoever asks the store after that, from this process or another, is answered after it.
        """

    def void(self, id: str) -> None:
        """Forget an admission whose caller gave up waiting; it must never stay charged."""

    async def aclose(self) -> None:
        """Flush what is pending, bounded in time, and close."""
