"""What telemetry reads of the pipeline's Tally, as typing Protocols: the arrows forbid to import it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from backends.core.errors import GatewayError
from backends.core.request import Job
from backends.core.usage import Usage
from gateway.domain.principal import Principal
from gateway.domain.route import Deployment, Route
from gateway.domain.settlement import Outcome


class AttemptView(Protocol):
    """One try. Instants are monotonic µs; `error` None = it answered."""

    @property
    def deployment(self) -> Deployment: ...  # noqa: D102
    @property
    def began_us(self) -> int: ...  # noqa: D102
    @property
    def ended_us(self) -> int: ...  # noqa: D102
    @property
    def error(self) -> GatewayError | None: ...  # noqa: D102


class OptionsView(Protocol):
    """The client's options."""

    @property
    def stream(self) -> bool: ...  # noqa: D102


class CallView(Protocol):
    """The parsed request."""

    @property
    def job(self) -> Job: ...  # noqa: D102
    @property
    def options(self) -> OptionsView: ...  # noqa: D102


class Observed(Protocol):
    """A request that has ended; `gateway.pipeline.tally.Tally` is the real one. Instants monotonic µs, 0 = never."""

    id: str
    protocol: str
    client_request_id: str
    began_us: int
    ended_us: int
    first_event_us: int
    limiter_us: int
    queue_us: int
    itl_buckets: list[int]
    itl_sum_us: int
    usage: Usage | None
    outcome: Outcome
    status: int
    error: GatewayError | None
    principal: Principal | None
    route: Route | None

    @property
    def call(self) -> CallView | None: ...  # noqa: D102
    @property
    def attempts(self) -> Sequence[AttemptView]: ...  # noqa: D102
    @property
    def deployment(self) -> Deployment | None: ...  # noqa: D102
