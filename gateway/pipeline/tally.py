"""The pipeline's only mutable object: everything that is learnt about one request, handed to the settler once."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import msgspec

from backends.core.errors import GatewayError
from backends.core.events import Event, Failure, Finish, Item, ReasoningDelta, RefusalDelta, Started, TextDelta, ToolCallDelta
from backends.core.leaving import Leaving
from backends.core.usage import Usage
from gateway.domain.principal import Principal
from gateway.domain.route import Deployment, Route
from gateway.domain.settlement import LedgerRow, Outcome, Reservation
from gateway.limits.flights import Flight, nowhere
from gateway.pipeline.counting import Counter
from gateway.protocols.contract import Call

#: Upper bounds of the inter-token-latency buckets, µs; one more bucket holds what is above the last.
ITL_BOUNDS_US = (1_000, 2_500, 5_000, 10_000, 20_000, 40_000, 80_000, 160_000, 320_000, 640_000, 1_280_000, 2_560_000)


#: So much of an answer's text is kept for counting, where its model has a tokenizer; a longer one is estimated.
KEPT_BYTES = 1 << 20


_TEXTS = frozenset({TextDelta, ReasoningDelta, RefusalDelta})


class AttemptRecord(msgspec.Struct, eq=False):
    """One try on one deployment. `error` None = it answered. Instants are monotonic µs.

    `begun`: it had begun its answer, without content yet, and then told an error.
    """

    deployment: Deployment
    began_us: int
    ended_us: int = 0
    begun: bool = False
    error: GatewayError | None = None


#: For requests that were not admitted yet.
_UNRECORDED = nowhere()


class Tally(msgspec.Struct, eq=False):
    """What one request came to. Written by the pipeline, read by settler, metrics, log and spans.

    Instants without `_wall` are monotonic µs, so differences are durations. `counter` is the model's tokenizer, and `kept`
    the answer's text by choice for it, in case that no backend reports usage.
    """

    id: str
    protocol: str
    began_us: int
    began_wall_us: int
    client_request_id: str = ""
    principal: Principal | None = None
    call: Call | None = None
    route: Route | None = None
    reservation: Reservation | None = None
    opening: LedgerRow | None = None
    attempts: list[AttemptRecord] = []
    input_estimate: int = 0
    input_counted: bool = False
    counter: Counter | None = None
    kept: list[tuple[int, str]] = []
    imposed_cap: int = 0
    admitting: bool = False
    limiter_us: int = 0
    queue_us: int = 0
    first_event_us: int = 0
    last_event_us: int = 0
    ended_us: int = 0
    deltas: int = 0
    delta_bytes: int = 0
    finished_choices: int = 0
    itl_buckets: list[int] = []
    """Inter-token gaps by bucket; empty until there is one."""

    itl_sum_us: int = 0
    usage: Usage | None = None
    outcome: Outcome = "ok"
    status: int = 200
    error: GatewayError | None = None
    settled: bool = False
    leaving: Leaving = msgspec.field(default_factory=Leaving)
    flight: Flight = _UNRECORDED
    """Where the counts so far stand for who finds them when this worker is gone."""

    @property
    def deployment(self) -> Deployment | None:
        """The deployment that answered, or the last one tried."""
        return self.attempts[-1].deployment if self.attempts else None

    def observe(self, batch: Sequence[Event], now_us: int) -> Failure | None:
        """Count a batch of events that arrived at `now_us` (one inter-token gap a batch); its Failure, if it ends in one."""
        fresh, size = 0, self.delta_bytes
        failure: Failure | None = None
        for event in batch:
            kind = type(event)
            if kind in _TEXTS:
                fresh += 1
                text: str = event.text  # type: ignore[union-attr]
                size += len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
                if self.counter is not None and size <= KEPT_BYTES:
                    self.kept.append((event.choice, text))  # type: ignore[union-attr]
            elif kind is Started:
                pass
            elif kind is Finish:
                self.finished_choices += 1
            elif kind is Usage:
                self.usage = event  # type: ignore[assignment]
                self.flight.reports(event)  # type: ignore[arg-type]
            elif kind is ToolCallDelta:
                fresh += 1
                size += len(event.arguments)  # type: ignore[union-attr]
                if self.counter is not None and size <= KEPT_BYTES:
                    self.kept.append((event.choice, event.name + event.arguments))  # type: ignore[union-attr]
            elif kind is Item:
                fresh += 1
            elif kind is Failure:
                failure = event  # type: ignore[assignment]
        if not fresh:
            return failure
        if not self.first_event_us:
            self.first_event_us = now_us
        else:
            if not self.itl_buckets:
                self.itl_buckets = [0] * (len(ITL_BOUNDS_US) + 1)
            gap = now_us - self.last_event_us
            self.itl_sum_us += gap
            self.itl_buckets[bisect_left(ITL_BOUNDS_US, gap)] += 1
        self.last_event_us, self.delta_bytes = now_us, size
        self.deltas += fresh
        self.flight.told(self.deltas, size)
        return failure

    def fail(self, error: GatewayError, outcome: Outcome) -> None:
        """The request ends with this error."""
        self.error = error
        self.outcome = outcome
        self.status = error.status

    def cancel(self) -> None:
        """The client left. One that left before the last bytes of a settled answer changes nothing: metrics and log tell what
        its row does.
        """
        if self.settled:
            return
        self.outcome = "cancelled"
        self.status = 499
