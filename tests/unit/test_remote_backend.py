"""A dialect over a scripted transport: prompts, batches, bounds, errors and how it is left."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager

import pytest

from backends.core.contracts import NO_HEADERS, UpstreamRequest
from backends.core.errors import (
    BackendError,
    UnsupportedParameter,
    UpstreamOverloaded,
    UpstreamProtocol,
    UpstreamTruncated,
)
from backends.core.events import Event, Failure, Finish, TextDelta
from backends.core.request import EmbeddingRequest, GenerationRequest, Job, Message, Prompt, Sampling, Text
from backends.remote.backend import MAX_ERROR_BYTES, RemoteBackend
from backends.remote.counted import Untold
from backends.remote.transport import Response, Timeouts

JOB = GenerationRequest("m", messages=(Message("user", (Text("hi"),)),), stream=True)


class LineDecoder:
    """One delta per letter; `!` is a failure, `?` a bug, `.` nothing, `$` the end."""

    ended = False

    def feed(self, data: bytes) -> list[Event]:
        out: list[Event] = []
        for letter in data.decode():
            if letter == "?":
                raise RuntimeError("cannot read this")
            if letter == "!":
                return [*out, Failure("protocol", "bad")]
            if letter == "$":
                self.ended = True
                return [*out, Finish("stop")]
            if letter != ".":
                out.append(TextDelta(letter))
        return out

    def close(self) -> list[Event]:
        return [] if self.ended else [Finish("stop")]


class ToyDialect:
    """Sends the prompts' texts."""

    name = "toy"
    capabilities = frozenset({"chat", "completions", "max_tokens", "embeddings"})

    def __init__(self, needs_prompt: bool = False) -> None:
        self.needs_prompt = needs_prompt
        self.job: Job | None = None
        self.prompts: Sequence[Prompt] = ()

    def encode(self, job: Job, prompts: Sequence[Prompt] = ()) -> UpstreamRequest:
        self.job, self.prompts = job, prompts
        return UpstreamRequest("POST", "/toy", {}, "|".join(prompt.text for prompt in prompts).encode())

    def decoder(self, job: Job, prompts: Sequence[Prompt] = (), headers: Mapping[str, str] = NO_HEADERS) -> LineDecoder:
        return LineDecoder()

    def failure(self, status: int, headers: Mapping[str, str], body: bytes) -> BackendError:
        return UpstreamOverloaded(f"{status} {headers.get('retry-after')} {len(body)}")


class ToyTransport:
    """Answers with the given pieces; an exception among them is raised in its place."""

    def __init__(self, *pieces: bytes | Exception, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        self.pieces = pieces
        self.status = status
        self.headers = headers or {"content-type": "text/event-stream"}
        self.sent: list[UpstreamRequest] = []
        self.read = 0
        self.tells = self.endless = False
        self.left: list[object] = []
        self.closed = False

    def send(self, request: UpstreamRequest, timeouts: Timeouts) -> AbstractAsyncContextManager[Response]:
        self.sent.append(request)
        return ToySending(self)

    async def aclose(self) -> None:
        self.closed = True


class ToyBody:
    """Its end is known with the last piece when the transport `tells`."""

    def __init__(self, transport: ToyTransport) -> None:
        self.transport = transport
        self.taken = False

    def __aiter__(self) -> ToyBody:
        return self

    async def __anext__(self) -> bytes:
        transport = self.transport
        if transport.read == len(transport.pieces):
            if transport.endless:
                await asyncio.get_running_loop().create_future()
            self.taken = True
            raise StopAsyncIteration
        piece = transport.pieces[transport.read]
        if isinstance(piece, Exception):
            raise piece
        transport.read += 1
        self.taken = transport.tells and transport.read == len(transport.pieces)
        return piece


class ToySending(AbstractAsyncContextManager[Response]):
    def __init__(self, transport: ToyTransport) -> None:
        self.transport = transport

    async def __aenter__(self) -> Response:
        return Response(self.transport.status, self.transport.headers, ToyBody(self.transport))

    async def __aexit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self.transport.left.append(kind)


async def collect(backend: RemoteBackend, job: Job = JOB) -> list[list[Event]]:
    async with backend.open(job) as batches:
        return [list(batch) async for batch in batches]


async def test_one_batch_per_read_and_none_that_is_empty() -> None:
    transport = ToyTransport(b"ab", b".", b"c")
    assert await collect(RemoteBackend(ToyDialect(), transport)) == [
        [TextDelta("a"), TextDelta("b")],
        [TextDelta("c")],
        [Finish("stop")],
    ]
    assert transport.left == [None]


async def test_the_end_that_is_known_with_the_last_piece_comes_in_its_batch() -> None:
    transport = ToyTransport(b"ab", b".")
    transport.tells = True
    assert await collect(RemoteBackend(ToyDialect(), transport)) == [
        [TextDelta("a"), TextDelta("b")],
        [Finish("stop")],
    ]
    assert transport.left == [None]


async def test_nothing_is_read_after_a_failure() -> None:
    transport = ToyTransport(b"a", b"!", b"b")
    batches = await collect(RemoteBackend(ToyDialect(), transport))
    assert batches == [[TextDelta("a")], [Failure("protocol", "bad")]]
    assert transport.read == 2


@pytest.mark.parametrize("rest", [(b"x", b"y"), (UpstreamTruncated("cut"),), ()])
async def test_what_follows_the_end_of_the_answer_is_passed_over(rest: tuple[bytes | Exception, ...]) -> None:
    transport = ToyTransport(b"a$", *rest)
    assert await collect(RemoteBackend(ToyDialect(), transport)) == [[TextDelta("a"), Finish("stop")]]
    assert transport.left == [None]
    assert transport.read == 1 + sum(isinstance(piece, bytes) for piece in rest)


async def test_a_body_that_never_ends_after_its_answer_is_left() -> None:
    transport = ToyTransport(b"a$")
    transport.endless = True
    assert await collect(RemoteBackend(ToyDialect(), transport)) == [[TextDelta("a"), Finish("stop")]]
    assert transport.left == [None]


async def test_a_decoder_that_raises_is_a_protocol_error_without_its_words() -> None:
    with pytest.raises(UpstreamProtocol) as caught:
        await collect(RemoteBackend(ToyDialect(), ToyTransport(b"?")))
    assert "cannot read this" not in caught.value.message
    assert "cannot read this" in caught.value.detail


async def test_a_truncated_body_raises_after_what_came() -> None:
    transport = ToyTransport(b"a", UpstreamTruncated("cut"))
    seen: list[Event] = []
    with pytest.raises(UpstreamTruncated):
        async with RemoteBackend(ToyDialect(), transport).open(JOB) as batches:
            async for batch in batches:
                seen += batch
    assert seen == [TextDelta("a")]
    assert transport.left == [UpstreamTruncated]


async def test_an_error_status_is_the_dialects_to_judge() -> None:
    transport = ToyTransport(b"x" * 50_000, b"y" * 50_000, b"z", status=503, headers={"retry-after": "7"})
    with pytest.raises(UpstreamOverloaded, match=f"503 7 {MAX_ERROR_BYTES}"):
        await collect(RemoteBackend(ToyDialect(), transport))
    assert transport.read == 2  # no more than needed
    assert transport.left == [UpstreamOverloaded]


async def test_an_error_body_that_breaks_off_still_has_its_status() -> None:
    transport = ToyTransport(b"abc", UpstreamTruncated("cut"), status=429)
    with pytest.raises(UpstreamOverloaded, match="429 None 3"):
        await collect(RemoteBackend(ToyDialect(), transport))


async def test_a_web_page_is_no_answer() -> None:
    transport = ToyTransport(b"<html>", headers={"content-type": "Text/HTML; charset=utf-8"})
    with pytest.raises(UpstreamProtocol, match="web page"):
        await collect(RemoteBackend(ToyDialect(), transport))
    assert transport.left == [UpstreamProtocol]


@pytest.mark.parametrize("stream", [True, False])
async def test_only_an_answer_that_is_not_streamed_is_bounded_in_total(stream: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = RemoteBackend(ToyDialect(), ToyTransport(b"aa", b"bb"))
    monkeypatch.setattr("backends.remote.backend.MAX_BODY_BYTES", 3)
    job = GenerationRequest("m", messages=JOB.messages, stream=stream)
    if stream:
        assert len(await collect(backend, job)) == 3
    else:
        with pytest.raises(UpstreamProtocol, match="too large"):
            await collect(backend, job)


async def test_embeddings_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = RemoteBackend(ToyDialect(), ToyTransport(b"aa", b"bb"))
    monkeypatch.setattr("backends.remote.backend.MAX_BODY_BYTES", 3)
    with pytest.raises(UpstreamProtocol, match="too large"):
        await collect(backend, EmbeddingRequest("m", (Prompt("x"),)))


async def test_parameters_follow_the_deployments_rule() -> None:
    job = GenerationRequest("m", messages=JOB.messages, sampling=Sampling(top_k=3, max_tokens=5))
    transport = ToyTransport(b"a")
    with pytest.raises(UnsupportedParameter) as caught:
        await collect(RemoteBackend(ToyDialect(), transport), job)
    assert caught.value.param == "top_k"
    assert transport.sent == []
    dialect = ToyDialect()
    await collect(RemoteBackend(dialect, transport, params="drop"), job)
    assert isinstance(dialect.job, GenerationRequest)
    assert dialect.job.sampling == Sampling(max_tokens=5)
    dialect = ToyDialect()
    await collect(RemoteBackend(dialect, transport, capabilities=ToyDialect.capabilities | {"top_k"}), job)
    assert dialect.job == job


@pytest.mark.parametrize("asynchronous", [True, False])
async def test_the_conversation_is_rendered_where_the_dialect_wants_it(asynchronous: bool) -> None:
    async def later(job: Job) -> Sequence[Prompt]:
        return at_once(job)

    def at_once(job: Job) -> Sequence[Prompt]:
        assert isinstance(job, GenerationRequest)
        return [Prompt(f"<{job.messages[0].text}>")]

    transport = ToyTransport(b"a")
    backend = RemoteBackend(ToyDialect(needs_prompt=True), transport, render=later if asynchronous else at_once)
    await collect(backend)
    await collect(backend, GenerationRequest("m", prompts=(Prompt("raw"), Prompt("two"))))
    assert [request.body for request in transport.sent] == [b"<hi>", b"raw|two"]


async def test_a_renderer_is_required_where_it_is_needed() -> None:
    with pytest.raises(ValueError, match="renderer"):
        RemoteBackend(ToyDialect(needs_prompt=True), ToyTransport())


async def test_closing_closes_the_transport() -> None:
    transport = ToyTransport()
    await RemoteBackend(ToyDialect(), transport).aclose()
    assert transport.closed


async def test_a_template_s_stops_join_those_of_rendered_jobs_only() -> None:
    dialect = ToyDialect(needs_prompt=True)
    backend = RemoteBackend(dialect, ToyTransport(b"$"), render=lambda job: [Prompt("P")], stops=("END", "X"))
    own = GenerationRequest("m", messages=JOB.messages, sampling=Sampling(stop=("X",)), stream=True)
    plain = GenerationRequest("m", prompts=(Prompt("p"),))
    allowed = RemoteBackend(
        dialect,
        ToyTransport(b"$"),
        capabilities=dialect.capabilities | {"stop"},
        render=lambda job: [Prompt("P")],
        stops=("END", "X"),
    )
    assert allowed.resolve(own).sampling.stop == ("X", "END")
    assert backend.resolve(JOB).sampling.stop == ("END", "X")
    assert backend.resolve(plain).sampling.stop == ()
    taking = RemoteBackend(ToyDialect(), ToyTransport(b"$"), stops=("END",))
    assert taking.resolve(JOB).sampling.stop == ()


async def test_a_prompt_is_counted_for_a_server_whose_cap_includes_it() -> None:
    toy = ToyDialect(needs_prompt=True)
    untold = Untold(len, reasons=False, prompt=lambda text: len(text) + 1)
    backend = RemoteBackend(toy, ToyTransport(b"a$"), render=lambda job: (Prompt("hello"),), untold=untold)
    for job, counted in ((JOB, [6]), (GenerationRequest("m", prompts=(Prompt("ab"), Prompt("x" * 5000))), [3, 5001])):
        async with backend.open(job):
            assert [one.count for one in toy.prompts] == counted
