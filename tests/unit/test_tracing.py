"""Spans: what a client's traceparent may be, which spans a request makes, and that the wrappers change nothing else."""

from __future__ import annotations

import random

import pytest

from backends.core.errors import Overloaded, UpstreamTimeout
from backends.core.events import Finish, TextDelta
from backends.core.request import GenerationRequest, Sampling
from backends.core.usage import Usage
from gateway.domain.principal import Principal
from gateway.domain.route import Deployment, Route
from gateway.pipeline.tally import AttemptRecord, Tally
from gateway.protocols.contract import Call, Options
from gateway.telemetry.spans import Interval, Parent, Span, Trace, parse_traceparent, spans_of
from gateway.tracing import TracedGate, TracedLimits, Tracing, outgoing
from tests.fakes import FakeBackend, FakeExchange, FakeStore

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"00-{TRACE}-{SPAN}-01", Parent(int(TRACE, 16), int(SPAN, 16), True)),
        (f"00-{TRACE}-{SPAN}-00", Parent(int(TRACE, 16), int(SPAN, 16), False)),
        (f" 00-{TRACE}-{SPAN}-03 ", Parent(int(TRACE, 16), int(SPAN, 16), True)),
        (f"cc-{TRACE}-{SPAN}-01-what-the-future-will-be-like", Parent(int(TRACE, 16), int(SPAN, 16), True)),
        (f"00-{TRACE}-{SPAN}-01-extra", None),
        (f"ff-{TRACE}-{SPAN}-01", None),
        (f"00-{'0' * 32}-{SPAN}-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (f"00-{TRACE.upper()}-{SPAN}-01", None),
        (f"00-{TRACE}-{SPAN}-1", None),
        (f"00-{TRACE[:-1]}-{SPAN}-01", None),
        (f"00-{TRACE}-{SPAN}-01\r\nx: y", None),
        ("", None),
    ],
)
def test_traceparent_as_the_standard_has_it(text: str, expected: Parent | None) -> None:
    assert parse_traceparent(text.encode()) == expected


NEAR = Deployment(id="near", model="small", dialect="openai_compatible", quirks="vllm", base_url="http://gpu1:8000/v1")
FAR = Deployment(id="far", model="big", dialect="openai_compatible", quirks="openai", base_url="https://api.example.com/v1")


def ended() -> Tally:
    tally = Tally("id-1", "openai_chat", 1_000_000, 5_000_000_000)
    tally.principal = Principal("key-1", team_id="research")
    tally.route = Route(name="chat", tiers=((NEAR,), (FAR,)))
    sampling = Sampling(max_tokens=64, temperature=0.5)
    tally.call = Call(GenerationRequest("chat", sampling=sampling, stream=True), Options(stream=True), text_bytes=2, items=1)
    failed, good = AttemptRecord(NEAR, 1_010_000), AttemptRecord(FAR, 1_110_000)
    failed.ended_us, failed.error = 1_110_000, UpstreamTimeout("https://gpu1 said secret things")
    good.ended_us = 2_000_000
    tally.attempts = [failed, good]
    tally.observe([TextDelta("x")], 1_400_000)
    tally.observe([Finish("stop")], 1_900_000)
    tally.usage = Usage(100, 3, cached_input_tokens=40)
    tally.ended_us = 2_010_000
    return tally


def trace(**changes: object) -> Trace:
    values = {"trace_id": int(TRACE, 16), "span_id": 7, "parent_id": int(SPAN, 16), "sampled": True}
    values |= {"path": "/v1/chat/completions", "intervals": [Interval("admission", 1_001_000, 1_003_000)], "attempts": [11, 12]}
    return Trace(**{**values, **changes})  # type: ignore[arg-type]


def test_a_request_is_a_tree_of_spans() -> None:
    ids = iter(range(100, 200))
    spans = {span.name: span for span in spans_of(trace(), ended(), 4_999_000_000, lambda: next(ids))}
    assert list(spans) == ["POST /v1/chat/completions", "admission", "chat small", "chat big", "first token"]
    root = spans["POST /v1/chat/completions"]
    assert (root.kind, root.span_id, root.parent_id, root.remote_parent) == ("server", 7, int(SPAN, 16), True)
    assert (root.began_us, root.ended_us) == (5_000_000_000, 5_001_010_000)
    assert {span.trace_id for span in spans.values()} == {int(TRACE, 16)}
    assert {spans[name].parent_id for name in ("admission", "chat small", "chat big")} == {7}
    assert (spans["chat small"].span_id, spans["chat big"].span_id) == (11, 12)
    assert spans["first token"].parent_id == 12
    assert (spans["first token"].began_us, spans["first token"].ended_us) == (5_000_110_000, 5_000_400_000)
    failed, good = spans["chat small"], spans["chat big"]
    assert (failed.kind, failed.error, failed.attributes["error.type"]) == ("client", "timeout", "timeout")
    assert good.error == ""
    assert good.attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "big",
        "gen_ai.request.max_tokens": 64,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.stream": True,
        "gen_ai.response.time_to_first_chunk": 0.29,
        "gen_ai.usage.input_tokens": 100,
        "gen_ai.usage.output_tokens": 3,
        "gen_ai.usage.cache_read.input_tokens": 40,
        "server.address": "api.example.com",
        "server.port": 443,
        "switchyard.deployment": "far",
    }
    assert root.attributes["http.response.status_code"] == 200
    assert root.attributes["switchyard.team"] == "research"
    assert "secret things" not in repr(spans)


def test_names_of_the_conventions_are_those_of_the_library() -> None:
    conventions = pytest.importorskip("opentelemetry.semconv._incubating.attributes.gen_ai_attributes")
    known = {value for name, value in vars(conventions).items() if name.startswith("GEN_AI")}
    for span in spans_of(trace(), ended(), 0, lambda: 1):
        assert {name for name in span.attributes if name.startswith("gen_ai.")} <= known


class Sink:
    def __init__(self) -> None:
        self.spans: list[Span] = []

    def take(self, span: Span) -> None:
        self.spans.append(span)

    def close(self, timeout_s: float) -> None:
        pass


def tracing(sink: Sink, *, sample: float = 1.0, follow: bool = True, chance: float = 0.5) -> Tracing:
    return Tracing(sink, random.Random(1).getrandbits, lambda: chance, sample=sample, follow_clients=follow)


async def through(
    one: Tracing, traceparent: str = "", *, principal: bool = True, backend: FakeBackend | None = None
) -> tuple[str, dict[str, str]]:
    """One exchange through the wrappers: the id for the log, and what the upstream was told."""
    told: dict[str, str] = {}
    logged = ""
    exchange = FakeExchange(b"")
    if traceparent:
        exchange.headers.append((b"traceparent", traceparent.encode()))
    built, _ = one.built(lambda _: (backend or FakeBackend(), frozenset()))(NEAR)

    async def serve(x: object, protocol: object) -> None:
        nonlocal logged
        async with built.open(GenerationRequest("m")):
            told.update(outgoing())
        tally = ended()
        tally.id = one.minted(lambda _: "id-1")(0)
        tally.attempts = tally.attempts[:1]
        tally.principal = tally.principal if principal else None
        logged = one.observe(tally)

    await one.served(serve)(exchange, None)  # type: ignore[arg-type]
    assert outgoing() == {}
    return logged, told


async def test_a_clients_trace_is_continued_and_told_to_the_upstream() -> None:
    sink = Sink()
    logged, told = await through(tracing(sink), f"00-{TRACE}-{SPAN}-01")
    assert logged == TRACE
    attempt = next(span for span in sink.spans if span.name == "chat small")
    assert told == {"traceparent": f"00-{TRACE}-{attempt.span_id:016x}-01"}


async def test_an_unsampled_trace_is_told_on_and_makes_no_spans() -> None:
    sink = Sink()
    logged, told = await through(tracing(sink), f"00-{TRACE}-{SPAN}-00")
    assert (logged, told["traceparent"][-3:], sink.spans) == (TRACE, "-00", [])


@pytest.mark.parametrize(
    ("sample", "chance", "sampled"), [(0.5, 0.49, True), (0.5, 0.51, False), (0, 0, False), (1, 0.999, True)]
)
async def test_a_part_is_sampled(sample: float, chance: float, sampled: bool) -> None:
    sink = Sink()
    logged, told = await through(tracing(sink, sample=sample, chance=chance))
    assert bool(sink.spans) is sampled
    assert told["traceparent"] == f"00-{logged}-{told['traceparent'][36:52]}-{'01' if sampled else '00'}"


@pytest.mark.parametrize("header", [f"00-{TRACE}-{SPAN}-01", "nonsense\r\nx: y"])
async def test_who_does_not_follow_clients_begins_anew(header: str) -> None:
    sink = Sink()
    logged, told = await through(tracing(sink, follow=header == "nonsense"), header)
    assert logged != TRACE
    assert TRACE not in told["traceparent"]


async def test_a_request_without_a_key_makes_no_spans() -> None:
    sink = Sink()
    await through(tracing(sink), f"00-{TRACE}-{SPAN}-01", principal=False)
    assert sink.spans == []


async def test_admissions_and_waits_are_noted_with_their_errors() -> None:
    sink, store = Sink(), FakeStore()
    one = tracing(sink)

    class Full:
        async def acquire(self, *_: object) -> object:
            raise Overloaded("full")

    async def serve(x: object, protocol: object) -> None:
        limits = TracedLimits(store)  # type: ignore[arg-type]
        await limits.admit("id", (), None, 1)  # type: ignore[arg-type]
        store.refuse = lambda rules: Overloaded("no")
        for call in (limits.admit("id", (), None, 1), TracedGate(Full()).acquire("id", "key", (), 1)):  # type: ignore[arg-type]
            with pytest.raises(Overloaded):
                await call
        one.minted(lambda _: "id-1")(0)
        one.observe(ended())

    await one.served(serve)(FakeExchange(b""), None)  # type: ignore[arg-type]
    noted = [(span.name, span.error) for span in sink.spans if span.name in ("admission", "queue")]
    assert noted == [("admission", ""), ("admission", "overloaded"), ("queue", "overloaded")]
