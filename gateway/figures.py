"""What a worker's parts say of themselves as metrics: read at each scrape, or asked for every few seconds.

A part of the composition root: it knows the parts and the metrics, and neither knows the other.
"""

from __future__ import annotations

import asyncio
import os
import resource
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Protocol

from backends.core.errors import GatewayError
from gateway.config.snapshot import Snapshot
from gateway.domain.engines import EngineState
from gateway.domain.settlement import RuleState
from gateway.ledger.embedded import EmbeddedLedger
from gateway.limits.embedded_store import EmbeddedStore
from gateway.limits.link import LinkDown
from gateway.limits.redis_store import RedisStore
from gateway.limits.signals import labels
from gateway.limits.store import LimitExceeded, LimitStore
from gateway.limits.stream import StreamState
from gateway.pipeline.clock import monotonic_us
from gateway.pipeline.tally import Tally
from gateway.routing.catalog import Place
from gateway.telemetry import families as f
from gateway.telemetry.metrics import Metrics

#: Between two looks at engines and at the usage stream.
LOOK_S = 5.0
#: Between two ticks that the event loop's lateness is told by.
TICK_S = 1.0
_PAGE = os.sysconf("SC_PAGE_SIZE")
#: An engine's own figures, by the names in `Engine.describe()`.
_ENGINE_GAUGES = {
    "running": f.ENGINE_RUNNING,
    "queued": f.ENGINE_QUEUED,
    "slots": f.ENGINE_SLOTS,
    "kv_tokens": f.ENGINE_KV,
    "kv_size": f.ENGINE_KV_SIZE,
    "resident_bytes": f.ENGINE_MEMORY,
}


class AsksEngine(Protocol):
    """A connection to an engine's host."""

    async def stats(self) -> Mapping[str, object]:
        """The engine's figures."""


def read_process(metrics: Metrics, version: str) -> None:
    """This worker's memory, descriptors and CPU time, and what version it is."""
    metrics.set(f.BUILD, 1.0, version)
    metrics.read(f.WORKER_MEMORY, _resident_bytes)
    metrics.read(f.WORKER_FDS, lambda: len(os.listdir("/proc/self/fd")))  # noqa: PTH208
    metrics.read(f.WORKER_CPU, _cpu_s)


def read_limits(metrics: Metrics, limits: LimitStore, ledger: EmbeddedLedger | None) -> None:
    """What the limit store and the ledger in this process count."""
    if isinstance(limits, RedisStore):
        settlements, link = limits.settlements, limits.link
        metrics.read(f.LIMITER_DEGRADED, lambda: 0.0 if link.breaker.closed else 1.0)
        metrics.read(f.LIMITER_OUTAGES, lambda: link.outages)
        metrics.read(f.LEDGER_QUEUE, lambda: float(settlements.kept))
        metrics.read(f.LEDGER_SPOOL, lambda: settlements.spool_bytes)
        metrics.read(f.LIMIT_OVERRUN, lambda: settlements.overruns)
        metrics.read(f.SETTLEMENTS_LOST, lambda: settlements.dropped)
        metrics.read(f.LIMIT_POISONED, lambda: limits.poisoned)
        metrics.read(f.DEGRADED_ADMISSIONS, lambda: limits.degraded)
    elif ledger is not None and isinstance(limits, EmbeddedStore):
        metrics.read(f.LIMIT_OVERRUN, lambda: limits.overruns)
        metrics.read(f.SETTLEMENTS_LOST, lambda: ledger.unstored)
        metrics.read(f.LEDGER_WRITTEN, lambda: ledger.written)


def prepare(metrics: Metrics, snapshot: Snapshot) -> None:
    """Make the series of every configured model and its deployments, of what is no model, and of the limits' kinds."""
    metrics.prepare(f.OTHER, ())
    for route in snapshot.models.values():
        metrics.prepare(route.name, (deployment.id for tier in route.tiers for deployment in tier))
    for spec in snapshot.limits():
        owner = spec.scope.partition(":")[0]
        kind = (f"{owner}_model" if spec.model else owner, spec.unit)  # as `gateway.limits.signals.labels`
        metrics.child(f.LIMIT_SHADOW if spec.shadow else f.LIMIT_REFUSALS, *kind)
        if spec.unit != "slots":
            metrics.child(f.LIMIT_NEAR, *kind)


def read_places(metrics: Metrics, places: Callable[[], Iterable[Place]]) -> None:
    """The breakers of the present configuration's deployments."""

    def look() -> None:
        now_us = monotonic_us()
        metrics.replace(
            f.BREAKER_OPEN, {place.deployment.id: 0.0 if place.breaker.healthy(now_us) else 1.0 for place in places()}
        )

    metrics.before_dump(look)


def read_engines(metrics: Metrics, states: Callable[[], Iterable[EngineState]]) -> None:
    """What the supervisor tells of the local engines."""

    def look() -> None:
        now = list(states())
        metrics.replace(f.ENGINE_READY, {one.name: float(one.state == "ready") for one in now})
        metrics.replace(f.ENGINE_FAILED, {one.name: float(one.state == "failed") for one in now})
        metrics.replace(f.ENGINE_LOADS, {one.name: float(one.loads) for one in now})

    metrics.before_dump(look)


def count_refusal(metrics: Metrics, tally: Tally) -> None:
    """Which limit refused a request, if one did: by its scope and unit, never by whose it is."""
    error = tally.error
    if isinstance(error, LimitExceeded):
        metrics.add(f.LIMIT_REFUSALS, *labels(RuleState(error.rule, 0, 0)))


async def tick(metrics: Metrics) -> None:
    """Measure how late the event loop is, until cancelled."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + TICK_S
        await asyncio.sleep(TICK_S)
        metrics.set(f.LOOP_LAG, max(0.0, loop.time() - due))


class Looking:
    """Asks engines and the usage stream for their figures. One worker of a gateway does: they are the same for all.

    Args:
        engines: by name, those of the configuration.
        stream: asks for the usage stream, None where there is none.
    """

    def __init__(
        self,
        metrics: Metrics,
        engines: Mapping[str, AsksEngine],
        stream: Callable[[], Awaitable[StreamState]] | None,
        now_us: Callable[[], int],
    ) -> None:
        self._metrics, self._engines, self._stream, self._now_us = metrics, engines, stream, now_us
        self._gone: int | None = None
        self._steps: dict[str, float] = {}
        self._vllm: dict[tuple[str, str], float] = {}
        if stream is not None:
            metrics.child(f.LEDGER_WRITTEN)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_S)

    async def look(self) -> None:
        """One look at each."""
        for name, engine in self._engines.items():
            await self._look_at_engine(name, engine)
        if self._stream is not None:
            try:
                state = await self._stream()
            except LinkDown:
                return  # another metric tells of the outage; the last figures stay
            self._take_stream(state)

    async def _look_at_engine(self, name: str, engine: AsksEngine) -> None:
        try:
            figures = await engine.stats()
        except (GatewayError, TimeoutError):
            figures = {}  # not loaded, or on its way down: it computes nothing and holds nothing
        for key, family in _ENGINE_GAUGES.items():
            value = figures.get(key, None if figures else 0.0)
            if isinstance(value, int | float):
                self._metrics.set(family, float(value), name)
        steps = figures.get("steps")
        if isinstance(steps, int | float):
            before = self._steps.get(name, float(steps))
            self._steps[name] = float(steps)
            self._metrics.add(f.ENGINE_STEPS, name, by=_grown(before, steps))

        own = figures.get("vllm")
        if isinstance(own, dict):
            self._take_vllm(name, own)

    def _take_vllm(self, name: str, own: Mapping[str, object]) -> None:
        """vLLM's own figures; those that this version of it does not tell are left out."""
        for key, family in f.VLLM_GAUGES.items():
            if isinstance(value := own.get(key), int | float):
                self._metrics.set(family, float(value), name)
        for key, family in f.VLLM_COUNTERS.items():
            if isinstance(value := own.get(key), int | float):
                before = self._vllm.get((name, key), float(value))
                self._vllm[name, key] = float(value)
                self._metrics.add(family, name, by=_grown(before, value))

    def _take_stream(self, state: StreamState) -> None:
        self._metrics.set(f.STREAM_ROWS, state.rows)
        self._metrics.set(f.STREAM_LAG, max(0.0, (self._now_us() - state.oldest_us) / 1e6) if state.oldest_us else 0.0)
        if state.gone is not None:
            before = state.gone if self._gone is None else self._gone
            self._gone = state.gone
            self._metrics.add(f.LEDGER_WRITTEN, by=_grown(before, state.gone))


def _grown(before: float, now: float) -> float:
    """How much a foreign counter has grown; one that fell began anew at nothing."""
    return now - before if now >= before else now


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
