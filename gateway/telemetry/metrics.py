"""A process's own metrics: plain lists of floats; prometheus_client renders them.

prometheus_client's own counters take a lock and a label look-up per touch; at some fifteen touches a request that is
more than the gateway may add, so its public custom-collector interface is used instead (see `aggregate.exposition`).
And `observe` only notes a request's figures: many are counted together, for a third of the cost.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from typing import get_args

from backends.core.errors import BackendError, GatewayError
from backends.core.events import FailureKind
from backends.core.usage import Usage
from gateway.domain.settlement import Outcome
from gateway.telemetry import families as f
from gateway.telemetry.families import OTHER, Family
from gateway.telemetry.observed import Observed

#: Family name → label values → values (see `Family.zero`).
Dump = dict[str, dict[tuple[str, ...], list[float]]]


#: How a request may end; `abandoned` is said of it by the ledger alone.
OBSERVED_OUTCOMES: tuple[Outcome, ...] = tuple(one for one in get_args(Outcome) if one != "abandoned")
#: How an attempt may end: it answered, or a BackendError's kind.
ATTEMPT_OUTCOMES: tuple[str, ...] = ("ok", *get_args(FailureKind))


#: Why the gateway refuses a request whose model is known, but for the rare and the client's own mistakes.
REFUSALS_OF_MODELS = ("rate_limit_exceeded", "insufficient_quota", "limits_unavailable", "overloaded")


#: So many requests' figures are noted at most before they are counted.
MOST_NOTED = 256
#: Of one request, µs: its duration, and to its first delta, in the queue, in the limit store, added by us (0 = never, not
#: at all); how many attempts answered; its input, cached, output and reasoning tokens.
_Noted = tuple[int, int, int, int, int, int, int, int, int, int]
_NO_USAGE = Usage(0, 0)


class _Children:
    """The children that every request of one model, deployment and outcome touches, and what is noted for them."""

    __slots__ = ("answered", "cached", "duration", "input", "itl", "noted", "output", "queue", "reasoning", "requests", "ttft")

    def __init__(self, metrics: Metrics, model: str, deployment: str, outcome: Outcome) -> None:
        where = (model, deployment)
        self.noted: list[_Noted] = []
        self.requests = metrics.child(f.REQUESTS, model, deployment, outcome)
        self.duration = metrics.child(f.DURATION, *where)
        self.queue = metrics.child(f.QUEUE_WAIT, *where)
        self.answered = f.ATTEMPTS.zero() if deployment == OTHER else metrics.child(f.ATTEMPTS, deployment, "ok")
        told = (f.TTFT, f.ITL, f.INPUT_TOKENS, f.CACHED_TOKENS, f.OUTPUT_TOKENS, f.REASONING_TOKENS)
        # without a deployment there is no answer: these stay at nothing, and are not shown
        lists = [family.zero() if deployment == OTHER else metrics.child(family, *where) for family in told]
        self.ttft, self.itl, self.input, self.cached, self.output, self.reasoning = lists


class Metrics:
    """The registry of one process. Used from one thread."""

    def __init__(self) -> None:
        self._values: Dump = {}
        self._children: dict[tuple[str, str, Outcome], _Children] = {}
        self._looks: list[Callable[[], None]] = []
        self._readers: list[tuple[Family, tuple[str, ...], Callable[[], float]]] = []
        self._noted = 0
        self._with_notes: list[_Children] = []
        self._limiter = self.child(f.LIMITER)
        self._overhead = self.child(f.OVERHEAD)

    def child(self, family: Family, *labels: str) -> list[float]:
        """The live values of one series, made when new; whoever holds the list may bump it.

        Raises:
            ValueError: the number of labels is not the family's.
        """
        if len(labels) != len(family.labels):
            raise ValueError(f"{family.name} has the labels {family.labels}")
        return self._values.setdefault(family.name, {}).setdefault(labels, family.zero())

    def add(self, family: Family, *labels: str, by: float = 1.0) -> None:
        """Raise a counter (or move a gauge)."""
        self.child(family, *labels)[0] += by

    def set(self, family: Family, value: float, *labels: str) -> None:
        """Set a gauge."""
        self.child(family, *labels)[0] = value

    def read(self, family: Family, source: Callable[[], float], *labels: str) -> None:
        """A gauge or counter whose value is asked for at each scrape."""
        self.child(family, *labels)
        self._readers.append((family, labels, source))

    def before_dump(self, look: Callable[[], None]) -> None:
        """Have this called before each dump, to bring figures up to date."""
        self._looks.append(look)

    def replace(self, family: Family, values: Mapping[str, float]) -> None:
        """All series of a family with one label, by its value; others of it end."""
        self._values[family.name] = {(label,): [value] for label, value in values.items()}

    def prepare(self, model: str, deployments: Iterable[str]) -> None:
        """Make the series of a model at 0: a first error is then a rise, and their number does not grow under way."""
        self.child(f.FALLBACKS, model)
        for reason in REFUSALS_OF_MODELS:
            self.child(f.REFUSALS, model, reason)
        for deployment in (OTHER, *deployments):
            for outcome in OBSERVED_OUTCOMES:
                self._children.setdefault((model, deployment, outcome), _Children(self, model, deployment, outcome))
            if deployment != OTHER:
                for kind in ATTEMPT_OUTCOMES:
                    self.child(f.ATTEMPTS, deployment, kind)

    def observe(self, tally: Observed) -> None:
        """Note the figures of one request that has ended. No lock."""
        route, usage = tally.route, tally.usage or _NO_USAGE
        model = route.name if route is not None else OTHER
        deployment, upstream_us, answered = OTHER, 0, 0
        for attempt in tally.attempts:
            deployment = attempt.deployment.id
            upstream_us += attempt.ended_us - attempt.began_us
            if attempt.error is None:
                answered = 1  # the last one, then
            else:
                self.add(f.ATTEMPTS, deployment, _reason(attempt.error))
        key = (model, deployment, tally.outcome)
        children = self._children.get(key)
        if children is None:
            children = self._children[key] = _Children(self, *key)
        began_us = tally.began_us
        duration_us = tally.ended_us - began_us
        added_us = duration_us - upstream_us - tally.queue_us
        if not children.noted:
            self._with_notes.append(children)
        children.noted.append(
            (
                duration_us,
                tally.first_event_us and tally.first_event_us - began_us,
                tally.queue_us,
                tally.limiter_us,
                added_us if added_us > 0 else 0,
                answered,
                usage.input_tokens,
                usage.cached_input_tokens,
                usage.output_tokens,
                usage.reasoning_tokens,
            )
        )
        if tally.itl_sum_us:
            itl = children.itl
            for index, count in enumerate(tally.itl_buckets):
                if count:
                    itl[index] += count
            itl[-1] += tally.itl_sum_us / 1e6
        if len(tally.attempts) > 1:
            self.add(f.FALLBACKS, model, by=len(tally.attempts) - 1)
        if tally.error is not None and not isinstance(tally.error, BackendError):
            self.add(f.REFUSALS, model, _reason(tally.error))
        self._noted += 1
        if self._noted >= MOST_NOTED:
            self._count()

    def _count(self) -> None:
        """Count what is noted."""
        touched, self._with_notes, self._noted = self._with_notes, [], 0
        for children in touched:
            noted, children.noted = children.noted, []
            children.requests[0] += len(noted)
            durations, ttfts, queues, limiters, added, *counts = zip(*noted, strict=True)
            _bump(children.duration, f.DURATION, durations)
            _bump(children.ttft, f.TTFT, filter(None, ttfts))
            _bump(children.queue, f.QUEUE_WAIT, filter(None, queues))
            _bump(self._limiter, f.LIMITER, filter(None, limiters))
            _bump(self._overhead, f.OVERHEAD, added)
            counters = (children.answered, children.input, children.cached, children.output, children.reasoning)
            for counter, amounts in zip(counters, counts, strict=True):
                counter[0] += sum(amounts)

    def dump(self) -> Dump:
        """A copy of all values, with the read ones asked for now."""
        for look in self._looks:
            look()
        self._count()
        for family, labels, source in self._readers:
            self._values[family.name][labels][0] = float(source())
        return {name: {labels: list(v) for labels, v in series.items()} for name, series in self._values.items()}


def _bump(values: list[float], family: Family, durations_us: Iterable[int]) -> None:
    """Observations of durations in µs: each bound is looked up among them, not each of them among the bounds."""
    ordered = sorted(durations_us)
    if not ordered:
        return
    below = 0
    for bucket, bound in enumerate(family.bounds):
        upto = bisect_right(ordered, round(bound * 1e6))
        values[bucket] += upto - below
        below = upto
    values[len(family.bounds)] += len(ordered) - below
    values[-1] += sum(ordered) / 1e6


def _reason(error: GatewayError) -> str:
    """An error's kind from a fixed list: the class's own, since `code` may be what an upstream sent."""
    if isinstance(error, BackendError):
        return error.kind
    return type(error).default_code or type(error).type
