"""One JSON line per request: what happened, never what was said. No body, no key, nothing that a client chose unchecked."""

from __future__ import annotations

from typing import Protocol

from gateway.telemetry.observed import Observed
from gateway.telemetry.redact import redact
from gateway.telemetry.sink import encode, timestamp

MAX_DETAIL = 512


class LineSink(Protocol):
    """Takes whole lines and returns at once."""

    def write(self, line: bytes, /) -> None:
        """Hand over one line."""


class RequestLog:
    """Writes the line of each request that has ended."""

    def __init__(self, sink: LineSink) -> None:
        self._sink = sink

    def observe(self, tally: Observed, now_wall_us: int, trace_id: str = "") -> None:
        """Log one request. `now_wall_us`: µs UTC. `trace_id`: of its trace, "" without tracing."""
        fields = request_fields(tally, now_wall_us)
        if trace_id:
            fields["trace_id"] = trace_id
        self._sink.write(encode(fields))


def request_fields(tally: Observed, now_wall_us: int) -> dict[str, object]:
    """The line's fields. Durations are milliseconds; a field that does not apply is left out."""
    principal, usage, error, deployment = tally.principal, tally.usage, tally.error, tally.deployment
    fields: dict[str, object] = {
        "ts": timestamp(now_wall_us),
        "event": "request",
        "request_id": tally.id,
        "protocol": tally.protocol,
        "outcome": tally.outcome,
        "status": tally.status,
        "duration_ms": (tally.ended_us - tally.began_us) / 1000,
        "attempts": len(tally.attempts),
    }
    if tally.client_request_id:
        fields["client_request_id"] = redact(tally.client_request_id)
    if principal is not None:
        fields["key_id"] = principal.key_id
        if principal.team_id:
            fields["team"] = principal.team_id
    if tally.route is not None:
        fields["model"] = tally.route.name
    if deployment is not None:
        fields["deployment"] = deployment.id
    if tally.call is not None:
        fields["stream"] = tally.call.options.stream
    if tally.first_event_us:
        fields["ttft_ms"] = (tally.first_event_us - tally.began_us) / 1000
    if tally.queue_us:
        fields["queue_ms"] = tally.queue_us / 1000
    if usage is not None:
        fields["input_tokens"], fields["output_tokens"] = usage.input_tokens, usage.output_tokens
        fields["usage"] = usage.source
    if usage is not None and usage.calls:
        fields["calls"] = [[one.input_tokens, one.output_tokens] for one in usage.calls]
    if error is not None:
        fields["error"] = redact((error.code or error.type)[:64])
        if error.detail:
            fields["detail"] = redact(error.detail[:MAX_DETAIL])
    return fields
