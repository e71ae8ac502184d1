"""What the pipeline is given: the parts of one worker, wired once by `gateway.app`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from backends.core.request import Job
from gateway.config.snapshot import Snapshot
from gateway.domain.principal import Principal
from gateway.domain.route import Route
from gateway.domain.settlement import RuleState
from gateway.gate.protocol import Gate
from gateway.limits.flights import NoRecord, Records
from gateway.limits.plans import Plans
from gateway.limits.store import LimitStore
from gateway.pipeline.counting import Counter
from gateway.pipeline.open_requests import OpenRequests
from gateway.pipeline.settler import Settler
from gateway.routing.catalog import Catalog


class Authenticates(Protocol):
    """Finds the principal of a request's headers."""

    async def authenticate(self, headers: Sequence[tuple[bytes, bytes]], now_us: int) -> Principal:
        """Raises NotAuthenticated (401) or BadRequest (two different keys)."""


class View(msgspec.Struct, frozen=True):
    """One configuration, compiled and connected. A request uses one view from its first to its last byte."""

    snapshot: Snapshot
    catalog: Catalog
    max_body_bytes: int
    max_wait_s: float = 30.0
    counters: Mapping[str, Counter] = {}
    """Prompt counters by `counting.key_of` of a route."""

    ask_engines: Callable[[Route, Job], Awaitable[int | None]] | None = None
    """What the engines behind a route count in a job's prompts; None = they cannot tell, or do not serve it alone."""


@dataclass(frozen=True, kw_only=True)
class House:
    """The parts of one worker. `lease_ms`: how long a slot outlives a worker that died."""

    view: Callable[[], View]
    auth: Authenticates
    limits: LimitStore
    gate: Gate
    settler: Settler
    open_requests: OpenRequests
    report_bug: Callable[[str, BaseException], None]
    mint_id: Callable[[int], str]
    """A fresh request id (UUIDv7) for a request that began at this µs UTC."""

    flights: Records = field(default_factory=NoRecord)
    plans: Plans = field(default_factory=Plans)
    lease_ms: int = 15_000
    signal: Callable[[Sequence[RuleState], Sequence[RuleState]], None] = lambda _near, _shadowed: None
    """Counts what an admission told beside yes: limits nearly used up, and shadow limits that would have refused."""
