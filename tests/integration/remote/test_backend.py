"""Dialect, pool and socket together: recorded servers answer through the whole of `remote`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from random import Random
from time import monotonic

import pytest

from backends.core.errors import UpstreamOverloaded, UpstreamProtocol, UpstreamTimeout, UpstreamTruncated, UpstreamUnavailable
from backends.core.events import Event, EventGrammar, Failure, TextDelta
from backends.core.fold import fold
from backends.core.request import GenerationRequest, Message, Text
from backends.registry import dialect
from backends.remote.backend import RemoteBackend
from backends.remote.fanout import FanOut
from backends.remote.origin import Origin
from backends.remote.pool import HttpPool
from backends.remote.transport import Timeouts
from tests.integration.remote.mutations import RECORDED, recorded, written
from tests.raw_upstream import Peer, RawUpstream, raw_upstream

JOB = GenerationRequest("tiny", messages=(Message("user", (Text("hi"),)),), stream=True)
STREAMED = written(recorded(RECORDED / "llama-server.chat_stream.http"), Random(1))


@asynccontextmanager
async def backed(handler: Callable[[Peer], Awaitable[None]]) -> AsyncIterator[tuple[RemoteBackend, RawUpstream, HttpPool]]:
    async with asyncio.timeout(20), raw_upstream(handler) as upstream:
        pool = HttpPool(Origin.parse(upstream.url))
        backend = RemoteBackend(dialect("openai_compatible", "llamacpp"), pool, timeouts=Timeouts(idle_s=2, total_s=10))
        try:
            yield backend, upstream, pool
        finally:
            await backend.aclose()


def saying(answer: bytes, step: int = 0) -> Callable[[Peer], Awaitable[None]]:
    async def handler(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(answer, step)

    return handler


async def run(backend: RemoteBackend | FanOut, job: GenerationRequest = JOB) -> list[Event]:
    events: list[Event] = []
    grammar = EventGrammar()
    async with backend.open(job) as batches:
        async for batch in batches:
            assert batch
            events += grammar.feed(batch)
    grammar.close()
    return events


@pytest.mark.parametrize("step", [0, 7])
async def test_a_stream_is_the_same_in_any_segments_and_the_connection_is_kept(step: int) -> None:
    async with backed(saying(STREAMED, step)) as (backend, upstream, pool):
        first = fold(await run(backend))
        again = fold(await run(backend))
        assert "".join(first.choices[0].text).startswith("Hello")
        assert first == again
        assert first.choices[0].finish is not None
        assert first.usage is not None and first.usage.output_tokens > 0
        assert len(upstream.peers) == 1
        assert pool.connections == (1, 1)
        assert upstream.requests[0].startswith(b"POST /v1/chat/completions HTTP/1.1\r\n")


async def test_an_answer_that_is_not_streamed() -> None:
    answer = written(recorded(RECORDED / "llama-server.chat.http"), Random(1))
    async with backed(saying(answer)) as (backend, _, pool):
        whole = fold(await run(backend, GenerationRequest("tiny", messages=JOB.messages)))
        assert "".join(whole.choices[0].text)
        assert whole.usage is not None
        assert pool.connections == (1, 1)


@pytest.mark.parametrize("at", [0.3, 0.6, 0.95])
async def test_a_stream_that_is_cut_is_no_success(at: float) -> None:
    async def cut(peer: Peer) -> None:
        await peer.request()
        await peer.send(STREAMED[: int(len(STREAMED) * at)])

    async with backed(cut) as (backend, _, _):
        with pytest.raises(UpstreamTruncated):
            await run(backend)


async def test_a_stream_without_its_terminator_is_truncated_though_http_ended_well() -> None:
    whole = recorded(RECORDED / "llama-server.chat_stream.http")
    half = whole._replace(body=whole.body[: whole.body.index(b"data: [DONE]")])
    async with backed(saying(written(half, Random(1)))) as (backend, _, _):
        last = (await run(backend))[-1]
        assert isinstance(last, Failure)
        assert last.kind == "truncated"


async def test_errors_of_the_server() -> None:
    body = b'{"error":{"code":503,"message":"Loading model","type":"unavailable_error"}}'
    answer = b"HTTP/1.1 503 x\r\nretry-after: 3\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
    async with backed(saying(answer)) as (backend, _, pool):
        with pytest.raises(UpstreamOverloaded) as caught:
            await run(backend)
        assert caught.value.retry_after_ms == 3000
        assert pool.connections == (1, 1)  # an error that was read to its end costs no connection


async def test_a_web_page() -> None:
    async with backed(saying(b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 6\r\n\r\n<html>")) as (
        backend,
        _,
        _,
    ):
        with pytest.raises(UpstreamProtocol):
            await run(backend)


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("begin", [b"", STREAMED[:200], STREAMED[:1500]])
async def test_a_client_that_leaves_is_gone_from_the_server_within_half_a_second(begin: bytes, samples: int) -> None:
    gone: list[float] = []
    waiting = asyncio.Semaphore(0)

    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.send(begin)
        waiting.release()
        gone.append(await peer.gone())

    async with backed(handler) as (backend, _, pool):
        job = GenerationRequest("tiny", messages=JOB.messages, n=samples, stream=True)
        task = asyncio.ensure_future(run(FanOut(backend), job))
        for _ in range(samples):
            await waiting.acquire()
        await asyncio.sleep(0.05)
        left = monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        while len(gone) < samples:
            await asyncio.sleep(0.005)
        assert max(gone) - left < 0.5
        assert pool.connections == (0, 0)


async def test_samples_made_by_many_requests() -> None:
    async with backed(saying(STREAMED)) as (backend, upstream, _):
        answer = fold(await run(FanOut(backend), GenerationRequest("tiny", messages=JOB.messages, n=4, stream=True)))
        assert sorted(answer.choices) == [0, 1, 2, 3]
        assert len(upstream.requests) == 4


async def test_silence_in_a_stream() -> None:
    async def silent(peer: Peer) -> None:
        await peer.request()
        await peer.send(STREAMED[:1500])
        await peer.gone()

    async with backed(silent) as (backend, _, _):
        backend.timeouts = Timeouts(idle_s=0.1)
        seen: list[Event] = []
        with pytest.raises(UpstreamTimeout):
            async with backend.open(JOB) as batches:
                async for batch in batches:
                    seen += batch
        assert any(isinstance(event, TextDelta) for event in seen)


async def test_nobody_there() -> None:
    async with backed(saying(b"")) as (backend, _, _):
        pass
    backend.transport = HttpPool(Origin.parse("http://127.0.0.1:1/v1"))
    with pytest.raises(UpstreamUnavailable) as caught:
        await run(backend)
    assert "127" not in caught.value.message
