"""One JSON line per request: what happened, never what was said. No body, no key, nothing that a client chose unchecked."""

from __future__ import annotations

from typing import Protocol

import msgspec

from gateway.domain.settlement import Outcome
from gateway.telemetry.observed import Observed
from gateway.telemetry.redact import redact
from gateway.telemetry.sink import encode, timestamp

MAX_DETAIL = 512


class LineSink(Protocol):
    """Takes whole lines and returns at once."""

    def write(self, line: bytes, /) -> None:
        """Hand over one line."""


class RequestLine(msgspec.Struct, omit_defaults=True, gc=False):
    """The line's fields, in their order. Durations are milliseconds; a field that does not apply is left out."""

    ts: str
    event: str
    request_id: str
    protocol: str
    outcome: Outcome
    status: int
    duration_ms: float
    attempts: int
    client_request_id: str | None = None
    key_id: str | None = None
    team: str | None = None
    model: str | None = None
    deployment: str | None = None
    stream: bool | None = None
    ttft_ms: float | None = None
    queue_ms: float | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    usage: str | None = None
    calls: list[list[int]] | None = None
    error: str | None = None
    detail: str | None = None
    trace_id: str | None = None


class RequestLog:
    """Writes the line of each request that has ended."""

    def __init__(self, sink: LineSink) -> None:
        self._sink = sink

    def observe(self, tally: Observed, now_wall_us: int, trace_id: str = "") -> None:
        """Log one request. `now_wall_us`: µs UTC. `trace_id`: of its trace, "" without tracing."""
        line = request_line(tally, now_wall_us)
        if trace_id:
            line.trace_id = trace_id
        self._sink.write(encode(line))


def request_line(tally: Observed, now_wall_us: int) -> RequestLine:
    """What there is to say of a request."""
    principal, route, call, usage, attempts = tally.principal, tally.route, tally.call, tally.usage, tally.attempts
    began_us = tally.began_us
    line = RequestLine(
        timestamp(now_wall_us),
        "request",
        tally.id,
        tally.protocol,
        tally.outcome,
        tally.status,
        (tally.ended_us - began_us) / 1000,
        len(attempts),
        redact(tally.client_request_id) if tally.client_request_id else None,
        None if principal is None else principal.key_id,
        None if principal is None else principal.team_id or None,
        None if route is None else route.name,
        attempts[-1].deployment.id if attempts else None,
        None if call is None else call.options.stream,
        (tally.first_event_us - began_us) / 1000 if tally.first_event_us else None,
        tally.queue_us / 1000 if tally.queue_us else None,
    )
    if usage is not None:
        line.input_tokens, line.output_tokens, line.usage = usage.input_tokens, usage.output_tokens, usage.source
        if usage.calls:
            line.calls = [[one.input_tokens, one.output_tokens] for one in usage.calls]
    if tally.error is not None:
        line.error = redact((tally.error.code or tally.error.type)[:64])
        line.detail = redact(tally.error.detail[:MAX_DETAIL]) if tally.error.detail else None
    return line
