"""A request's spans as plain values, made at its end from what was noted: pure, and without any tracing library.

Names and attributes follow OpenTelemetry's semantic conventions for generative AI and HTTP (opentelemetry-semantic-conventions
0.66b2); what has no convention is under `switchyard.`. Trace context is W3C's `traceparent` (Trace Context, level 1).

    POST /v1/chat/completions          server
      admission                        the limit store's answer
      queue                            only where the request had to wait for a slot
      chat MODEL                       client (internal on a local engine), one per attempt
        first token                    from the attempt's start to its first delta
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Literal
from urllib.parse import urlsplit

import msgspec

from backends.core.errors import BackendError, GatewayError
from backends.core.request import EmbeddingRequest, GenerationRequest, RerankRequest
from backends.core.usage import Usage
from gateway.telemetry.observed import AttemptView, Observed

Attributes = dict[str, str | int | float | bool]
#: version, trace id, parent id, flags; what follows belongs to versions that are yet to come.
_TRACEPARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
#: Who speaks a dialect, by the conventions' well-known names; others are called as they are here.
_PROVIDERS = {"openai": "openai", "anthropic": "anthropic"}


class Parent(msgspec.Struct, frozen=True):
    """A client's trace context."""

    trace_id: int
    span_id: int
    sampled: bool


class Span(msgspec.Struct, frozen=True):
    """`parent_id` 0 = none. Instants are µs UTC. `error`: what kind, "" = none."""

    name: str
    kind: Literal["server", "client", "internal"]
    trace_id: int
    span_id: int
    parent_id: int
    began_us: int
    ended_us: int
    attributes: Attributes
    error: str = ""
    remote_parent: bool = False


class Interval(msgspec.Struct):
    """Something that took a while, monotonic µs."""

    name: str
    began_us: int
    ended_us: int = 0
    error: str = ""


class Trace(msgspec.Struct):
    """What is noted of one request under way. `attempts`: the span ids of its attempts, in their order."""

    trace_id: int
    span_id: int
    parent_id: int
    sampled: bool
    path: str
    intervals: list[Interval]
    attempts: list[int]

    @property
    def trace_hex(self) -> str:
        """The trace's id as logs have it."""
        return f"{self.trace_id:032x}"

    @property
    def traceparent(self) -> str:
        """What the upstream of the present attempt is told."""
        span_id = self.attempts[-1] if self.attempts else self.span_id
        return f"00-{self.trace_id:032x}-{span_id:016x}-{1 if self.sampled else 0:02x}"


def parse_traceparent(text: bytes) -> Parent | None:
    """A client's `traceparent`; None when it is none, as the standard asks."""
    found = _TRACEPARENT.fullmatch(text.strip())
    if found is None or found[1] == b"ff" or (found[1] == b"00" and found[5] is not None):
        return None
    trace_id, span_id = int(found[2], 16), int(found[3], 16)
    if not trace_id or not span_id:
        return None
    return Parent(trace_id, span_id, bool(int(found[4], 16) & 1))


def spans_of(trace: Trace, tally: Observed, wall_us: int, new_id: Callable[[], int]) -> Iterator[Span]:
    """The spans of a request that has ended.

    Args:
        wall_us: µs UTC of the monotonic instant 0.
        new_id: makes span ids: 64 bits, not 0.
    """

    def span(
        name: str, kind: Literal["server", "client", "internal"], began_us: int, ended_us: int, attributes: Attributes,
        error: str = "", parent_id: int = trace.span_id, span_id: int = 0,
    ) -> Span:  # fmt: skip
        return Span(
            name, kind, trace.trace_id, span_id or new_id(), parent_id, wall_us + began_us, wall_us + max(began_us, ended_us),
            attributes, error,
        )  # fmt: skip

    root = span(
        f"POST {trace.path}", "server", tally.began_us, tally.ended_us, _root(trace, tally), _kind(tally.error),
        trace.parent_id, trace.span_id,
    )  # fmt: skip
    yield msgspec.structs.replace(root, remote_parent=bool(trace.parent_id))
    for one in trace.intervals:
        yield span(one.name, "internal", one.began_us, one.ended_us, {}, one.error)
    for number, (attempt, id) in enumerate(zip(tally.attempts, trace.attempts, strict=False)):
        last = number == len(tally.attempts) - 1
        name, attributes = _attempt(attempt, tally, last=last)
        kind: Literal["client", "internal"] = "internal" if attempt.deployment.engine else "client"
        error = _kind(attempt.error) or (_kind(tally.error) if last and isinstance(tally.error, BackendError) else "")
        yield span(name, kind, attempt.began_us, attempt.ended_us, attributes, error, span_id=id)
        if last and tally.first_event_us >= attempt.began_us:
            yield span("first token", "internal", attempt.began_us, tally.first_event_us, {}, parent_id=id)


def _root(trace: Trace, tally: Observed) -> Attributes:
    out: Attributes = {
        "http.request.method": "POST",
        "http.route": trace.path,
        "url.path": trace.path,
        "http.response.status_code": tally.status,
        "switchyard.request_id": tally.id,
        "switchyard.outcome": tally.outcome,
        "switchyard.attempts": len(tally.attempts),
    }
    if tally.client_request_id:
        out["switchyard.client_request_id"] = tally.client_request_id
    if tally.principal is not None:
        out["switchyard.key_id"] = tally.principal.key_id
        if tally.principal.team_id:
            out["switchyard.team"] = tally.principal.team_id
    if tally.route is not None:
        out["gen_ai.request.model"] = tally.route.name
    if tally.error is not None:
        out["error.type"] = _kind(tally.error)
    return out


#: OpenTelemetry's conventions name no operation for scores; theirs for custom ones is a word of one's own.
_OPERATIONS: dict[type, str] = {EmbeddingRequest: "embeddings", RerankRequest: "rerank"}


def _attempt(attempt: AttemptView, tally: Observed, *, last: bool) -> tuple[str, Attributes]:
    deployment = attempt.deployment
    job = tally.call.job if tally.call is not None else None
    operation = _OPERATIONS.get(type(job), "chat")
    if isinstance(job, GenerationRequest) and job.prompts:
        operation = "text_completion"
    spoken = deployment.quirks or deployment.dialect or "switchyard.engine"
    out: Attributes = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": _PROVIDERS.get(spoken, spoken),
        "gen_ai.request.model": deployment.model,
        "switchyard.deployment": deployment.id,
    }
    if deployment.base_url:
        address = urlsplit(deployment.base_url)
        out["server.address"] = address.hostname or ""
        out["server.port"] = address.port or (443 if address.scheme == "https" else 80)
    if isinstance(job, GenerationRequest):
        out |= _asked(job)
    if attempt.error is not None:
        out["error.type"] = _kind(attempt.error)
    elif last:
        out |= _used(tally.usage)
        if tally.first_event_us:
            out["gen_ai.response.time_to_first_chunk"] = max(0, tally.first_event_us - attempt.began_us) / 1e6
    return f"{operation} {deployment.model}", out


def _asked(job: GenerationRequest) -> Attributes:
    sampling = job.sampling
    stated: Sequence[tuple[str, float | int | None]] = (
        ("max_tokens", sampling.max_tokens),
        ("temperature", sampling.temperature),
        ("top_p", sampling.top_p),
        ("top_k", sampling.top_k),
        ("seed", sampling.seed),
        ("frequency_penalty", sampling.frequency_penalty),
        ("presence_penalty", sampling.presence_penalty),
    )
    out: Attributes = {f"gen_ai.request.{name}": value for name, value in stated if value is not None}
    out["gen_ai.request.stream"] = job.stream
    if job.n != 1:
        out["gen_ai.request.choice.count"] = job.n
    return out


def _used(usage: Usage | None) -> Attributes:
    if usage is None:
        return {}
    out: Attributes = {"gen_ai.usage.input_tokens": usage.input_tokens, "gen_ai.usage.output_tokens": usage.output_tokens}
    if usage.cached_input_tokens:
        out["gen_ai.usage.cache_read.input_tokens"] = usage.cached_input_tokens
    if usage.reasoning_tokens:
        out["gen_ai.usage.reasoning.output_tokens"] = usage.reasoning_tokens
    return out


def _kind(error: GatewayError | None) -> str:
    """An error's kind from a fixed list, "" for none: a message may hold what a client or a backend said."""
    if error is None:
        return ""
    return error.kind if isinstance(error, BackendError) else type(error).default_code or type(error).type
