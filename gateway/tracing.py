"""Tracing, wired around the parts of a worker: wrappers that note when things began and ended, and spans at the end.

A part of the composition root. Nothing of it is in the pipeline: without `telemetry.tracing.otlp_endpoint` no wrapper is
made, and a request costs what it costs without tracing. What is noted of a request travels in a context variable, which is
the request's task's own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar
from random import Random
from typing import Protocol

from backends.core.capabilities import Capabilities
from backends.core.contracts import Backend, Batches
from backends.core.errors import GatewayError
from backends.core.leaving import Leaving
from backends.core.request import Job
from gateway.boot import Boot
from gateway.domain.route import Deployment
from gateway.domain.settlement import LedgerRow, Progress, Reservation, Rule, RuleState, Settlement
from gateway.edge.web import VERSION
from gateway.gate.protocol import Gate, GatedDeployment, Slot
from gateway.limits.store import LimitStore
from gateway.pipeline.clock import monotonic_us
from gateway.pipeline.exchange import Exchange
from gateway.pipeline.tally import Tally
from gateway.protocols.contract import ClientProtocol
from gateway.telemetry.spans import Interval, Span, Trace, parse_traceparent, spans_of

Serve = Callable[[Exchange, ClientProtocol], Awaitable[None]]
Build = Callable[[Deployment], tuple[Backend, Capabilities]]
#: A wait in the gate's queue that is shorter than this had a free slot.
NO_WAIT_US = 1_000
#: What the last spans get to reach their collector.
CLOSE_S = 2.0

_present: ContextVar[Trace | None] = ContextVar("switchyard_trace", default=None)


class SpanSink(Protocol):
    """Takes finished spans and returns at once."""

    def take(self, span: Span, /) -> None:
        """One span."""

    def close(self, timeout_s: float, /) -> None:
        """Send what waits, for at most that long."""


def outgoing() -> Mapping[str, str]:
    """What the upstream of the present attempt is told, as headers."""
    trace = _present.get()
    return {} if trace is None else {"traceparent": trace.traceparent}


class Tracing:
    """One worker's tracing.

    Args:
        sink: gets the spans of sampled requests.
        random_bits: makes ids.
        chance: a number from 0 to 1, to sample by.
        sample: which part of the requests without a parent is sampled.
        follow_clients: whether a client's `traceparent` is continued, its sampling decision with it.
    """

    def __init__(
        self,
        sink: SpanSink,
        random_bits: Callable[[int], int],
        chance: Callable[[], float],
        *,
        sample: float,
        follow_clients: bool,
    ) -> None:
        self._sink = sink
        self._random_bits, self._chance = random_bits, chance
        self._sample, self._follow = sample, follow_clients
        self._open: dict[str, Trace] = {}

    def served(self, serve: Serve) -> Serve:
        """`serve` with a trace around each exchange."""

        async def traced(exchange: Exchange, protocol: ClientProtocol) -> None:
            token = _present.set(self._begin(exchange))
            try:
                await serve(exchange, protocol)
            finally:
                _present.reset(token)

        return traced

    def built(self, build: Build) -> Build:
        """`build` of backends whose attempts are noted."""

        def traced(deployment: Deployment) -> tuple[Backend, Capabilities]:
            backend, can = build(deployment)
            return _Traced(backend, self.new_id), can

        return traced

    def minted(self, mint_id: Callable[[int], str]) -> Callable[[int], str]:
        """`mint_id` that remembers whose trace a request's id belongs to, until the request is observed."""

        def remembering(now_us: int) -> str:
            id = mint_id(now_us)
            if (trace := _present.get()) is not None:
                self._open[id] = trace
            return id

        return remembering

    def observe(self, tally: Tally) -> str:
        """A request has ended: its spans go out. Gives the trace's id for the log, "" without one.

        It may be told a moment later and by another task than the request's. Requests without a valid key make no spans:
        whoever knows no key could make as many as he likes.
        """
        trace = self._open.pop(tally.id, None)
        if trace is None:
            return ""
        if trace.sampled and tally.principal is not None:
            began_us = tally.began_wall_us - tally.began_us
            for span in spans_of(trace, tally, began_us, self.new_id):
                self._sink.take(span)
        return trace.trace_hex

    def close(self) -> None:
        """Send the last spans; blocks for a moment."""
        self._sink.close(CLOSE_S)

    def new_id(self) -> int:
        """A span's id: 64 bits, not 0."""
        return self._random_bits(64) or 1

    def _begin(self, exchange: Exchange) -> Trace:
        parent = None
        if self._follow:
            told = [value for name, value in exchange.headers if name == b"traceparent"]
            parent = parse_traceparent(told[0]) if len(told) == 1 else None
        if parent is not None:
            return Trace(parent.trace_id, self.new_id(), parent.span_id, parent.sampled, exchange.path, [], [])
        sampled = self._sample > 0 and self._chance() < self._sample
        return Trace(self._random_bits(128) or 1, self.new_id(), 0, sampled, exchange.path, [], [])


def tracing_of(boot: Boot, instance: str, dice: Random) -> Tracing | None:
    """A worker's tracing as it is configured; None = none. Made after the fork: the exporter has a thread."""
    wanted = boot.configuration.static.telemetry.tracing
    if wanted.otlp_endpoint is None:
        return None
    from gateway.telemetry.otlp import OtlpSink

    sink = OtlpSink(wanted.otlp_endpoint, service=wanted.service_name, version=VERSION, instance=instance)
    return Tracing(sink, dice.getrandbits, dice.random, sample=wanted.sample, follow_clients=wanted.follow_clients)


class TracedLimits:
    """A `LimitStore` whose admissions are noted."""

    def __init__(self, inner: LimitStore) -> None:
        self._inner = inner
        self.now_us = inner.now_us
        self.settle: Callable[[Settlement], asyncio.Future[bool]] = inner.settle
        self.written: Callable[[], Awaitable[None] | None] = inner.written
        self.void: Callable[[str], None] = inner.void

    async def admit(self, id: str, rules: Sequence[Rule], opening: LedgerRow, lease_ms: int, waited_us: int = 0) -> Reservation:
        """See `LimitStore.admit`."""
        interval = _note("admission")
        try:
            return await self._inner.admit(id, rules, opening, lease_ms, waited_us)
        except GatewayError as error:
            interval.error = type(error).default_code or type(error).type
            raise
        finally:
            interval.ended_us = monotonic_us()

    async def peek(self, rules: Sequence[Rule]) -> Sequence[RuleState]:
        """See `LimitStore.peek`."""
        return await self._inner.peek(rules)

    async def renew(self, live: Sequence[Progress]) -> None:
        """See `LimitStore.renew`."""
        await self._inner.renew(live)

    async def aclose(self) -> None:
        """See `LimitStore.aclose`."""
        await self._inner.aclose()


class TracedGate:
    """A `Gate` whose waits are noted, where there was one."""

    def __init__(self, inner: Gate) -> None:
        self._inner = inner

    async def acquire(
        self, request_id: str, fairness_key: str, deployments: Sequence[GatedDeployment], max_wait_s: float
    ) -> Slot:
        """See `Gate.acquire`."""
        interval = _note("queue")
        try:
            return await self._inner.acquire(request_id, fairness_key, deployments, max_wait_s)
        except GatewayError as error:
            interval.error = type(error).default_code or type(error).type
            raise
        finally:
            interval.ended_us = monotonic_us()
            trace = _present.get()
            if trace is not None and not interval.error and interval.ended_us - interval.began_us < NO_WAIT_US:
                trace.intervals.remove(interval)


class _Traced:
    """A `Backend` of which each opening is an attempt's span: its id is made here, so that the upstream can be told."""

    def __init__(self, inner: Backend, new_id: Callable[[], int]) -> None:
        self._inner = inner
        self._new_id = new_id

    def open(self, job: Job, leaving: Leaving | None = None) -> AbstractAsyncContextManager[Batches]:
        """See `Backend.open`."""
        trace = _present.get()
        if trace is not None:
            trace.attempts.append(self._new_id())
        return self._inner.open(job, leaving)

    async def aclose(self) -> None:
        """See `Backend.aclose`."""
        await self._inner.aclose()


def _note(name: str) -> Interval:
    interval = Interval(name, monotonic_us())
    trace = _present.get()
    if trace is not None:
        trace.intervals.append(interval)
    return interval
