"""The connection pool against real sockets: reuse, the one resend, refusals, backpressure, time and leaving."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic

import pytest

from backends.core.contracts import UpstreamRequest
from backends.core.errors import (
    BackendError,
    UpstreamProtocol,
    UpstreamTimeout,
    UpstreamTruncated,
    UpstreamUnavailable,
)
from backends.remote.connection import MAX_UNREAD_BYTES
from backends.remote.origin import Credential, Origin, tls_context
from backends.remote.pool import HttpPool
from backends.remote.transport import Timeouts
from tests.raw_upstream import Peer, RawUpstream, raw_upstream

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
REQUEST = UpstreamRequest("POST", "/chat", {"content-type": "application/json"}, b"{}")
PATIENT = Timeouts(connect_s=5, write_s=5, idle_s=5, total_s=10)
#: A read is at most this long in asyncio and uvloop.
MAX_READ_BYTES = 256 * 1024


@asynccontextmanager
async def served(handler: Callable[[Peer], Awaitable[None]], **options: float) -> AsyncIterator[tuple[HttpPool, RawUpstream]]:
    """A pool to a raw server with this handler; all within 20 s."""
    async with asyncio.timeout(20), raw_upstream(handler) as upstream:
        pool = HttpPool(Origin.parse(upstream.url), credential=Credential("sk-up"), **options)
        try:
            yield pool, upstream
        finally:
            await pool.aclose()
            assert pool.connections == (0, 0)


async def fetch(pool: HttpPool, timeouts: Timeouts = PATIENT, request: UpstreamRequest = REQUEST) -> tuple[int, bytes]:
    async with pool.send(request, timeouts) as response:
        return response.status, b"".join([piece async for piece in response.chunks])


async def until(true: Callable[[], bool]) -> None:
    """Wait for something to become true; the test's own time limit bounds it."""
    while not true():
        await asyncio.sleep(0.005)


async def always_ok(peer: Peer) -> None:
    while True:
        await peer.request()
        await peer.send(OK)


def answering(*answers: bytes) -> Callable[[Peer], Awaitable[None]]:
    """Answer the requests of a connection with these bytes in turn, then wait for the client to close."""

    async def handler(peer: Peer) -> None:
        for answer in answers:
            await peer.request()
            await peer.send(answer)
        await peer.gone()

    return handler


# --- reuse ---


async def test_a_connection_is_reused_and_carries_host_and_credential() -> None:
    async with served(always_ok) as (pool, upstream):
        for _ in range(3):
            assert await fetch(pool) == (200, b"ok")
        assert len(upstream.peers) == 1
        assert pool.connections == (1, 1)
        head = upstream.requests[0]
        assert head.startswith(b"POST /v1/chat HTTP/1.1\r\nhost: 127.0.0.1:%d\r\n" % upstream.port)
        assert b"\r\nauthorization: Bearer sk-up\r\n" in head
        assert b"\r\naccept-encoding: identity\r\n" in head


async def test_the_connection_used_last_is_used_first() -> None:
    async with served(always_ok) as (pool, upstream):
        async with pool.send(REQUEST, PATIENT) as first, pool.send(REQUEST, PATIENT) as second:
            async for _ in second.chunks:
                pass
            async for _ in first.chunks:
                pass
        # left in the order second, first: the first one came back last
        for _ in range(3):
            await fetch(pool)
        assert [len(peer.requests) for peer in upstream.peers] == [4, 1]


async def test_an_idle_connection_expires() -> None:
    async with served(always_ok, keepalive_s=0.05) as (pool, upstream):
        await fetch(pool)
        assert pool.connections == (1, 1)
        await until(lambda: pool.connections == (0, 0))
        await fetch(pool)
        assert len(upstream.peers) == 2


async def test_no_keep_alive_at_all() -> None:
    async with served(always_ok, keepalive_s=0.0) as (pool, upstream):
        await fetch(pool)
        await fetch(pool)
        assert len(upstream.peers) == 2
        assert pool.connections == (0, 0)


async def test_a_connection_that_the_server_closes_while_idle_is_dropped() -> None:
    async def once(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)

    async with served(once) as (pool, upstream):
        await fetch(pool)
        await until(lambda: pool.connections == (0, 0))
        await fetch(pool)
        assert [len(peer.requests) for peer in upstream.peers] == [1, 1]


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\nConnection: close\r\n", b"HTTP/1.0 200 OK\r\n"])
async def test_a_connection_that_the_server_will_close_is_not_kept(head: bytes) -> None:
    async with served(answering(head + b"content-length: 2\r\n\r\nok")) as (pool, upstream):
        assert await fetch(pool) == (200, b"ok")
        assert await fetch(pool) == (200, b"ok")
        assert len(upstream.peers) == 2


async def test_unasked_bytes_on_an_idle_connection_make_it_useless() -> None:
    async def chatty(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await asyncio.sleep(0.05)
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npoison")
        await peer.gone()

    async with served(chatty) as (pool, upstream):
        await fetch(pool)
        await until(lambda: pool.connections == (0, 0))
        assert await fetch(pool) == (200, b"ok")
        assert len(upstream.peers) == 2


# --- the one resend ---


async def test_a_reused_connection_that_dies_unanswered_is_replaced_once() -> None:
    async def first_dies_on_reuse(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await peer.request()
        if peer.number == 0:
            return  # closes with the second request unanswered
        await peer.send(OK)

    async with served(first_dies_on_reuse) as (pool, upstream):
        await fetch(pool)
        assert await fetch(pool) == (200, b"ok")
        assert [len(peer.requests) for peer in upstream.peers] == [2, 1]


async def test_a_reused_connection_that_is_reset_is_replaced_too() -> None:
    async def reset_on_reuse(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        if peer.number == 0:
            await peer.request()
            peer.reset()
        else:
            await peer.gone()

    async with served(reset_on_reuse) as (pool, upstream):
        await fetch(pool)
        assert await fetch(pool) == (200, b"ok")
        assert len(upstream.peers) == 2


async def test_a_new_connection_that_dies_is_not_tried_again() -> None:
    async def dies(peer: Peer) -> None:
        await peer.request()

    async with served(dies) as (pool, upstream):
        with pytest.raises(UpstreamUnavailable):
            await fetch(pool)
        assert len(upstream.requests) == 1


async def test_the_resend_is_not_repeated() -> None:
    async def only_the_first_answer(peer: Peer) -> None:
        await peer.request()
        if peer.number == 0:
            await peer.send(OK)
            await peer.request()

    async with served(only_the_first_answer) as (pool, upstream):
        await fetch(pool)
        with pytest.raises(UpstreamUnavailable):
            await fetch(pool)
        assert [len(peer.requests) for peer in upstream.peers] == [2, 1]


@pytest.mark.parametrize("begun", [b"H", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"])
async def test_after_the_first_byte_nothing_is_sent_again(begun: bytes) -> None:
    async def dies_in_the_head(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await peer.request()
        await peer.send(begun)

    async with served(dies_in_the_head) as (pool, upstream):
        await fetch(pool)
        with pytest.raises(UpstreamTruncated):
            await fetch(pool)
        assert len(upstream.peers) == 1


# --- what is refused ---


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nok",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 9 + OK,
        b"HTTP/1.1 200 OK\r\na: b\r\n c\r\ncontent-length: 2\r\n\r\nok",
        OK + b"x",
        CHUNKED + b"2\r\nok\r\n0\r\n\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * 70_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 129 + b"\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        CHUNKED + b"nonsense\r\n",
    ],
)
async def test_refused_answers_close_the_connection(answer: bytes) -> None:
    async with served(answering(answer, OK)) as (pool, upstream):
        with pytest.raises(UpstreamProtocol) as caught:
            await fetch(pool)
        assert "127.0.0.1" not in caught.value.message
        assert pool.connections == (0, 0)
        assert len(upstream.requests) == 1


async def test_an_answer_before_the_request_is_sent() -> None:
    async def hasty(peer: Peer) -> None:
        status = b"200 OK" if peer.number == 0 else b"413 Too Large"
        await peer.reader.readexactly(1)
        await peer.send(b"HTTP/1.1 " + status + b"\r\ncontent-length: 2\r\n\r\nno")
        await asyncio.sleep(0.5)  # reads nothing more

    big = UpstreamRequest("POST", "/chat", {}, b"x" * (32 * 1024 * 1024))
    async with served(hasty) as (pool, upstream):
        with pytest.raises(UpstreamProtocol) as caught:
            await fetch(pool, request=big)
        assert "before it had the request" in caught.value.message
        assert await fetch(pool, request=big) == (413, b"no")
        assert pool.connections == (0, 0)
        assert len(upstream.peers) == 2


async def test_a_large_request_arrives_whole() -> None:
    async with served(always_ok) as (pool, upstream):
        body = bytes(range(256)) * 4096 * 4
        for _ in range(2):
            assert await fetch(pool, request=UpstreamRequest("POST", "/chat", {}, body)) == (200, b"ok")
        assert [request.endswith(body) for request in upstream.requests] == [True, True]
        assert len(upstream.peers) == 1


async def test_nobody_there() -> None:
    async with raw_upstream(always_ok) as upstream:
        url = upstream.url
    for base in (url, "http://name.invalid/v1", f"http://{'x' * 70}/"):
        with pytest.raises(UpstreamUnavailable) as caught:
            await fetch(HttpPool(Origin.parse(base)))
        assert "127.0.0.1" not in caught.value.message
        assert "invalid" not in caught.value.message


# --- bodies ---


@pytest.mark.parametrize("step", [0, 1, 7])
@pytest.mark.parametrize(
    "answer", [OK, CHUNKED + b"1\r\no\r\n1;a=b\r\nk\r\n0\r\nt: 1\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n" + OK]
)
async def test_any_segments(answer: bytes, step: int) -> None:
    async def handler(peer: Peer) -> None:
        for _ in range(2):
            await peer.request()
            await peer.send(answer, step)
        await peer.gone()

    async with served(handler) as (pool, upstream):
        assert await fetch(pool) == (200, b"ok")
        assert await fetch(pool) == (200, b"ok")
        assert len(upstream.peers) == 1


async def test_a_body_that_ends_with_the_connection() -> None:
    async def until_close(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.0 200 OK\r\n\r\n" + b"data: 1\n\n" * 10)

    async with served(until_close) as (pool, _):
        assert await fetch(pool) == (200, b"data: 1\n\n" * 10)
        assert pool.connections == (0, 0)


@pytest.mark.parametrize("reset", [True, False])
@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 200 OK\r\ncontent-length: 20\r\n\r\n0123456789", CHUNKED + b"a\r\n0123456789\r\n"]
)
async def test_a_truncated_body_hands_out_what_came_and_raises(answer: bytes, reset: bool) -> None:
    go = asyncio.Event()

    async def cut(peer: Peer) -> None:
        await peer.request()
        await peer.send(answer)
        await go.wait()
        if reset:
            peer.reset()

    async with served(cut) as (pool, _):
        seen = b""
        with pytest.raises(UpstreamTruncated):
            async with pool.send(REQUEST, PATIENT) as response:
                async for piece in response.chunks:
                    seen += piece
                    go.set()
        assert seen == b"0123456789"


async def test_a_reset_is_no_end_of_a_body_until_close() -> None:
    go = asyncio.Event()

    async def cut(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\n\r\nabc")
        await go.wait()
        peer.reset()

    async with served(cut) as (pool, _):
        with pytest.raises(UpstreamTruncated):
            async with pool.send(REQUEST, PATIENT) as response:
                async for _ in response.chunks:
                    go.set()


async def test_reading_pauses_for_a_slow_consumer() -> None:
    total = 48 * 1024 * 1024
    sent = 0

    async def flood(peer: Peer) -> None:
        nonlocal sent
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % total)
        piece = b"x" * 65536
        while sent < total:
            await peer.send(piece)
            sent += len(piece)
        await peer.gone()

    async with served(flood) as (pool, _), pool.send(REQUEST, PATIENT) as response:
        before = -1
        while sent != before:  # until the sender is stuck
            before = sent
            await asyncio.sleep(0.1)
        unread = response.chunks.unread  # type: ignore[attr-defined]
        assert MAX_UNREAD_BYTES < unread <= MAX_UNREAD_BYTES + MAX_READ_BYTES
        assert sent < total
        got = 0
        async for piece in response.chunks:
            got += len(piece)
            assert len(piece) <= MAX_UNREAD_BYTES + MAX_READ_BYTES
        assert got == total


# --- time ---


@pytest.mark.parametrize(
    ("begin", "timeouts", "which"),
    [
        (b"HTTP/1.1 200 OK\r\nx: y", Timeouts(idle_s=0.1), "idle"),
        (CHUNKED + b"2\r\nok\r\n", Timeouts(idle_s=0.1), "idle"),
        (b"", Timeouts(total_s=0.1), "total"),
        (CHUNKED, Timeouts(idle_s=0.05, total_s=0.3), "total"),
        (CHUNKED + b"2\r\nok\r\n", Timeouts(total_s=0.1), "total"),
    ],
)
async def test_silence_ends(begin: bytes, timeouts: Timeouts, which: str) -> None:
    gone: list[float] = []

    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.send(begin)
        gone.append(await peer.gone())

    async with served(handler) as (pool, _):
        began = monotonic()
        with pytest.raises(UpstreamTimeout) as caught:
            await fetch(pool, timeouts)
        assert caught.value.detail == which
        limit = timeouts.total_s if which == "total" else timeouts.idle_s
        assert limit - 0.02 <= monotonic() - began < limit + 1.0
        await until(lambda: bool(gone))


async def test_a_stream_that_dribbles_is_not_idle_but_ends_with_the_total() -> None:
    async def dribble(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED)
        while True:
            await peer.send(b"1\r\nx\r\n")
            await asyncio.sleep(0.03)

    async with served(dribble) as (pool, _):
        got = 0
        with pytest.raises(UpstreamTimeout) as caught:
            async with pool.send(REQUEST, Timeouts(idle_s=0.2, total_s=0.6)) as response:
                async for piece in response.chunks:
                    got += len(piece)
        assert caught.value.detail == "total"
        assert got > 8


async def test_the_wait_between_head_and_first_byte_is_not_idle() -> None:
    async def thinks(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED)
        await asyncio.sleep(0.3)
        await peer.send(b"2\r\nok\r\n0\r\n\r\n")

    async with served(thinks) as (pool, _):
        assert await fetch(pool, Timeouts(idle_s=0.1)) == (200, b"ok")


async def test_a_slow_consumer_is_not_an_idle_server() -> None:
    async def flood(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 16000000\r\n\r\n" + b"x" * 16_000_000)
        await peer.gone()

    async with served(flood) as (pool, _), pool.send(REQUEST, Timeouts(idle_s=0.1)) as response:
        await asyncio.sleep(0.4)
        assert sum([len(piece) async for piece in response.chunks]) == 16_000_000


async def test_a_server_that_does_not_read_the_request() -> None:
    async def deaf(peer: Peer) -> None:
        peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.sleep(3)

    async with served(deaf) as (pool, _):
        began = monotonic()
        with pytest.raises(UpstreamTimeout) as caught:
            await fetch(pool, Timeouts(write_s=0.2), UpstreamRequest("POST", "/", {}, b"x" * (64 * 1024 * 1024)))
        assert caught.value.detail == "write"
        assert monotonic() - began < 2.5


async def test_connecting_takes_too_long() -> None:
    async def no_tls(peer: Peer) -> None:
        await peer.gone()

    async with asyncio.timeout(10), raw_upstream(no_tls) as upstream:
        pool = HttpPool(Origin.parse(upstream.url.replace("http:", "https:")))
        with pytest.raises(UpstreamTimeout) as caught:
            await fetch(pool, Timeouts(connect_s=0.2))
        assert caught.value.detail == "connect"


# --- leaving ---


@pytest.mark.parametrize("begin", [b"", b"HTTP/1.1 200 OK\r\nx: y", CHUNKED, CHUNKED + b"2\r\nok\r\n"])
async def test_cancelling_closes_the_upstream_connection_at_once(begin: bytes) -> None:
    gone: list[float] = []
    ready = asyncio.Event()

    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.send(begin)
        ready.set()
        gone.append(await peer.gone())

    async with served(handler) as (pool, _):
        task = asyncio.ensure_future(fetch(pool))
        await ready.wait()
        await asyncio.sleep(0.05)
        left = monotonic()
        task.cancel()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: bool(gone))
        assert gone[0] - left < 0.5
        assert pool.connections == (0, 0)


async def test_leaving_while_reading_is_paused() -> None:
    gone: list[float] = []

    async def flood(peer: Peer) -> None:
        await peer.request()
        try:
            await peer.send(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 32_000_000)
            await peer.gone()
        finally:
            gone.append(monotonic())

    async with served(flood) as (pool, _):
        async with pool.send(REQUEST, PATIENT):
            await asyncio.sleep(0.2)
            left = monotonic()
        await until(lambda: bool(gone))
        assert gone[0] - left < 0.5


async def test_leaving_takes_no_turn_of_the_loop() -> None:
    async with served(answering(CHUNKED + b"2\r\nok\r\n")) as (pool, _):
        sending = pool.send(REQUEST, PATIENT)
        response = await sending.__aenter__()
        assert await anext(response.chunks) == b"ok"
        leaving = sending.__aexit__(None, None, None)
        with pytest.raises(StopIteration):
            leaving.send(None)  # type: ignore[attr-defined]
        assert pool.connections == (0, 0)
        with pytest.raises(BackendError):  # and whoever still reads does not wait for ever
            await anext(response.chunks)


async def test_closing_the_pool_ends_what_is_open() -> None:
    async with served(answering(CHUNKED)) as (pool, _):
        async with pool.send(REQUEST, PATIENT) as response:
            await pool.aclose()
            with pytest.raises(BackendError):
                await anext(response.chunks)
        with pytest.raises(UpstreamUnavailable):
            await fetch(pool)


async def test_many_at_once() -> None:
    async with served(always_ok) as (pool, upstream):

        async def several() -> None:
            for _ in range(20):
                assert await fetch(pool) == (200, b"ok")

        await asyncio.gather(*(several() for _ in range(16)))
        assert len(upstream.requests) == 320
        assert len(upstream.peers) <= 16


# --- TLS ---


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed certificate for `localhost` and its key."""
    binary = shutil.which("openssl")
    if binary is None:
        pytest.skip("no openssl binary to make a certificate with")
    folder = tmp_path_factory.mktemp("tls")
    key, cert = folder / "key.pem", folder / "cert.pem"
    command = [binary, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(cert)]
    subprocess.run(command, check=True, capture_output=True)
    return cert, key


@asynccontextmanager
async def tls_served(certificate: tuple[Path, Path], host: str, trust: ssl.SSLContext) -> AsyncIterator[HttpPool]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    async with asyncio.timeout(10), raw_upstream(always_ok, context) as upstream:
        pool = HttpPool(Origin.parse(f"https://{host}:{upstream.port}/v1"), tls=trust)
        try:
            yield pool
        finally:
            await pool.aclose()


async def test_tls_with_an_authority_of_our_own(certificate: tuple[Path, Path]) -> None:
    async with tls_served(certificate, "localhost", tls_context(ca_file=str(certificate[0]))) as pool:
        assert await fetch(pool) == (200, b"ok")
        assert await fetch(pool) == (200, b"ok")
        assert pool.connections == (1, 1)


@pytest.mark.parametrize("case", ["unknown authority", "other name"])
async def test_tls_that_cannot_be_trusted(certificate: tuple[Path, Path], case: str) -> None:
    host = "localhost" if case == "unknown authority" else "127.0.0.1"
    trust = tls_context() if case == "unknown authority" else tls_context(ca_file=str(certificate[0]))
    async with tls_served(certificate, host, trust) as pool:
        with pytest.raises(UpstreamUnavailable) as caught:
            await fetch(pool)
        assert "localhost" not in caught.value.message


async def test_tls_unverified_when_told_so(certificate: tuple[Path, Path]) -> None:
    async with tls_served(certificate, "127.0.0.1", tls_context(verify=False)) as pool:
        assert await fetch(pool) == (200, b"ok")
