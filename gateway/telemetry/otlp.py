"""Finished spans to a collector over OTLP/HTTP, by OpenTelemetry's own SDK (the extra `otel`): the one file that knows it.

Its batching processor has a bounded queue and a thread of its own; what does not fit is dropped, and nobody waits. The
finished spans are handed over as the SDK's `ReadableSpan`, so that none of its context machinery runs per request.
"""

from __future__ import annotations

import threading
from typing import Literal

import requests
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

from gateway.telemetry.spans import Span

_KINDS: dict[Literal["server", "client", "internal"], SpanKind] = {
    "server": SpanKind.SERVER,
    "client": SpanKind.CLIENT,
    "internal": SpanKind.INTERNAL,
}
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)


class OtlpSink:
    """Takes spans and returns at once. Make it after the fork: it has a thread.

    Args:
        endpoint: the full URL, `http://collector:4318/v1/traces`. Further headers (a collector's key) come from the
            standard variable OTEL_EXPORTER_OTLP_HEADERS.
        service, version, instance: what the resource says.
    """

    def __init__(self, endpoint: str, *, service: str, version: str, instance: str) -> None:
        session = requests.Session()
        session.trust_env = False  # no proxy, no .netrc of the environment's
        self._processor = BatchSpanProcessor(OTLPSpanExporter(endpoint, session=session))
        names = {"service.name": service, "service.version": version, "service.instance.id": instance}
        self._resource = Resource(names)
        self._scope = InstrumentationScope("switchyard", version)

    def take(self, span: Span) -> None:
        """One finished span."""
        context = SpanContext(span.trace_id, span.span_id, is_remote=False, trace_flags=_SAMPLED)
        parent = None
        if span.parent_id:
            parent = SpanContext(span.trace_id, span.parent_id, is_remote=span.remote_parent, trace_flags=_SAMPLED)
        self._processor.on_end(
            ReadableSpan(
                span.name,
                context,
                parent,
                self._resource,
                span.attributes,
                kind=_KINDS[span.kind],
                status=Status(StatusCode.ERROR, span.error) if span.error else Status(StatusCode.UNSET),
                start_time=span.began_us * 1000,
                end_time=span.ended_us * 1000,
                instrumentation_scope=self._scope,
            )
        )

    def close(self, timeout_s: float) -> None:
        """Send what waits, for at most that long; a collector that does not answer gets no more."""
        closing = threading.Thread(target=self._processor.shutdown, daemon=True)
        closing.start()
        closing.join(timeout_s)
