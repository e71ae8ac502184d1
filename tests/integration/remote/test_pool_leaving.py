"""Leaving a server: it sees the end at once, what it wrote until it did is read, and nothing is asked of it again."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from time import monotonic

import pytest
import uvloop

from backends.core.errors import BackendError
from backends.core.leaving import Leaving
from backends.core.request import GenerationRequest
from backends.registry import dialect
from backends.remote.backend import RemoteBackend
from backends.remote.fanout import FanOut
from backends.remote.origin import Origin, tls_context
from backends.remote.pool import PART_S, HttpPool
from tests.integration.remote.pools import CHUNKED, PATIENT
from tests.integration.remote.test_pool_tls import certificate
from tests.raw_upstream import Peer, RawUpstream, raw_upstream

__all__ = ["certificate"]
JOB = GenerationRequest("m", stream=True)
Handler = Callable[[Peer], Awaitable[None]]
Test = Callable[[RemoteBackend, RawUpstream], Awaitable[None]]


_LAST = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
WHOLE = b"%x\r\n%b\r\n0\r\n\r\n" % (len(_LAST), _LAST)


def word(text: str) -> bytes:
    data = b'data: {"choices":[{"index":0,"delta":{"content":"%b"},"finish_reason":null}]}\n\n' % text.encode()
    return b"%x\r\n%b\r\n" % (len(data), data)


@pytest.fixture(params=["plain", "tls"])
def tls(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "tls")


@pytest.fixture
def run(tls: bool, certificate: tuple[Path, Path]) -> Callable[[Handler, Test], None]:
    """Runs a test on the workers' own loop, uvloop, with a backend on a raw server."""

    async def main(handler: Handler, test: Test) -> None:
        context = None
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*certificate)
        async with asyncio.timeout(20), raw_upstream(handler, context) as upstream:
            url = f"https://localhost:{upstream.port}/v1" if tls else upstream.url
            pool = HttpPool(Origin.parse(url), tls=tls_context(ca_file=str(certificate[0])))
            backend = RemoteBackend(dialect("openai_compatible"), pool, timeouts=PATIENT)
            try:
                await test(backend, upstream)
                assert pool.connections == (0, 0)
            finally:
                await backend.aclose()

    def go(handler: Handler, test: Test) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main(handler, test))

    return go


async def read(backend: RemoteBackend | FanOut, leave: Callable[[Leaving], Awaitable[None]], after: int = 1) -> list[str]:
    """The texts that come, of a job that is left after so many of them."""
    texts: list[str] = []
    leaving = Leaving()
    job = JOB if isinstance(backend, RemoteBackend) else GenerationRequest("m", stream=True, n=2)
    try:
        async with backend.open(job, leaving) as batches:
            async for batch in batches:
                texts += [event.text for event in batch if hasattr(event, "text")]
                if len(texts) >= after and not leaving.gone:
                    await leave(leaving)
    except BackendError:
        assert leaving.gone
    return texts


def test_what_lies_in_the_socket_is_read(run: Callable[[Handler, Test], None]) -> None:
    wrote = asyncio.Event()

    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED + word("one"))
        await asyncio.sleep(0.05)
        await peer.send(word("two") + word("three"))
        wrote.set()
        await peer.gone()

    async def leave(leaving: Leaving) -> None:
        await wrote.wait()
        assert leaving.leave() == PART_S

    async def test(backend: RemoteBackend, _: RawUpstream) -> None:
        assert await read(backend, leave) == ["one", "two", "three"]

    run(handler, test)


def test_the_server_sees_the_end_at_once_and_what_it_still_writes_is_read(
    run: Callable[[Handler, Test], None], tls: bool
) -> None:
    gone: list[float] = []

    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED + word("one"))
        gone.append(await peer.gone())
        if not tls:  # asyncio closes a TLS connection by itself when its peer has ended
            await peer.send(word("two"))

    async def leave(leaving: Leaving) -> None:
        gone.append(monotonic())
        leaving.leave()

    async def test(backend: RemoteBackend, _: RawUpstream) -> None:
        assert await read(backend, leave) == ["one"] + ["two"] * (not tls)
        assert gone[1] - gone[0] < 0.5

    run(handler, test)


def test_a_server_that_has_not_answered_yet_is_read_too_and_asked_once(run: Callable[[Handler, Test], None]) -> None:
    async def handler(peer: Peer) -> None:
        await peer.request()
        if len(peer.requests) == 1 and peer.number == 0:
            await peer.send(CHUNKED + word("whole") + WHOLE)
            await peer.request()
        await peer.gone()

    async def test(backend: RemoteBackend, upstream: RawUpstream) -> None:
        async with backend.open(JOB) as batches:  # leaves a connection to be used again
            assert [batch async for batch in batches]
        leaving = Leaving()
        asyncio.get_running_loop().call_later(0.05, leaving.leave)
        with pytest.raises(BackendError):
            async with backend.open(JOB, leaving):
                pass
        asked = len(upstream.requests)
        with pytest.raises(BackendError):  # nothing is begun for who has left
            async with backend.open(JOB, leaving):
                pass
        assert len(upstream.requests) == asked == 2

    run(handler, test)


def test_every_part_of_a_fan_is_read_to_its_end(run: Callable[[Handler, Test], None]) -> None:
    answered: list[int] = []

    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED + word(f"{peer.number}a"))
        answered.append(peer.number)
        await peer.gone()

    async def leave(leaving: Leaving) -> None:
        while len(answered) < 2:  # a part that has not begun is not begun for who has left
            await asyncio.sleep(0.01)
        leaving.leave()

    async def test(backend: RemoteBackend, upstream: RawUpstream) -> None:
        texts = await read(FanOut(backend), leave, after=1)
        assert sorted(texts) == ["0a", "1a"]
        assert len(upstream.requests) == 2

    run(handler, test)


def test_an_answer_that_begins_and_ends_after_it_was_left_is_read(run: Callable[[Handler, Test], None], tls: bool) -> None:
    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.gone()
        if not tls:
            await peer.send(CHUNKED + word("late"))

    async def test(backend: RemoteBackend, _: RawUpstream) -> None:
        leaving = Leaving()
        asyncio.get_running_loop().call_later(0.05, leaving.leave)
        texts: list[str] = []
        with pytest.raises(BackendError):
            async with backend.open(JOB, leaving) as batches:
                async for batch in batches:
                    texts += [event.text for event in batch if hasattr(event, "text")]
        assert texts == ["late"] * (not tls)

    run(handler, test)
