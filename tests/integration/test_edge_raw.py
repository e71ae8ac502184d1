"""The connection layer against raw bytes: limits, slowness, framing, pipelining, leaving. A real uvicorn and sockets."""

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import Iterator

import pytest

from gateway.edge.asgi import Scope
from gateway.edge.cycle import Receive, Send
from gateway.edge.limits import Limits
from gateway.pipeline.exchange import Exchange
from gateway.protocols.contract import ClientProtocol
from tests.integration.edge_server import QUICK, Log, Running, no_web, post, read_all, read_answer, serving

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\n"


async def echo(x: Exchange, _protocol: ClientProtocol, _log: Log) -> None:
    """Answers with the length of the body."""
    body = await x.body(100_000)
    await x.finish(b'{"length":%d}' % len(body))


async def hang(x: Exchange, _protocol: ClientProtocol, log: Log) -> None:
    """Reads the body and waits for good."""
    await x.body(100_000)
    log.add("waiting")
    await asyncio.sleep(30)


async def stream_and_hang(x: Exchange, _protocol: ClientProtocol, log: Log) -> None:
    await x.body(100_000)
    x.content_type = b"text/event-stream"
    await x.send(b"data: 1\n\n")
    log.add("waiting")
    await asyncio.sleep(30)


async def flood(x: Exchange, _protocol: ClientProtocol, log: Log) -> None:
    """Streams for as long as it may."""
    await x.body(100_000)
    log.add("began")
    for _ in range(100_000):
        await x.send(b"data: " + b"x" * 4096 + b"\n\n")


@contextlib.contextmanager
def echoing(limits: Limits = QUICK):  # type: ignore[no-untyped-def]
    with serving(echo, limits=limits) as running:
        yield running


@pytest.fixture(scope="module")
def server():  # type: ignore[no-untyped-def]
    with echoing() as running:
        yield running


def status(answer: bytes) -> int:
    assert answer.startswith(b"HTTP/1.1 "), answer[:200]
    return int(answer.split(b" ", 2)[1])


def error_of(answer: bytes) -> dict[str, object]:
    value = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert set(value["error"]) == {"message", "type", "param", "code"}
    return value["error"]  # type: ignore[no-any-return]


def test_a_request_and_its_answer(server: Running) -> None:
    with server.connect() as sock:
        for _ in range(3):
            sock.sendall(post(b"12345"))
            answer = read_answer(sock)
            assert status(answer) == 200
            assert answer.endswith(b'\r\n\r\n{"length":5}')
            assert b"content-length: 12\r\n" in answer
            assert b"x-request-id: req-1\r\n" in answer
            assert b"connection: close" not in answer


def test_a_body_in_pieces_and_chunks(server: Running) -> None:
    with server.connect() as sock:
        for byte in post(b"12345"):
            sock.sendall(bytes([byte]))
        assert read_answer(sock).endswith(b'{"length":5}')
        sock.sendall(
            b"POST /embeddings HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n4;ext=1\r\ndefg\r\n"
        )
        sock.sendall(b"0\r\nTrailer: 1\r\n\r\n")
        assert read_answer(sock).endswith(b'{"length":7}')


def test_pipelined_requests_are_answered_in_order(server: Running) -> None:
    with server.connect() as sock:
        sock.sendall(b"".join(post(b"x" * n) for n in range(1, 6)))
        seen = b""
        while seen.count(b'{"length":') < 5:
            seen += sock.recv(65536)
    assert [int(part.split(b"}")[0]) for part in seen.split(b'{"length":')[1:]] == [1, 2, 3, 4, 5]


def test_pipelining_is_bounded(server: Running) -> None:
    answers = server.talk(b"".join(post(b"x") for _ in range(100)))
    assert answers.count(b"HTTP/1.1 200") == 1 + QUICK.max_pipelined
    assert b"connection: close" in answers


def test_forty_megabytes_of_headers(server: Running) -> None:
    filler = b"X-A: " + b"a" * 1000 + b"\r\n"
    for head in (filler * 40_000, b"X-A: " + b"a" * 40_000_000):
        answer = server.talk(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n" + head)
        assert status(answer) == 431
        assert error_of(answer.removesuffix(b"<reset>"))["code"] == "headers_too_large"


def test_many_small_headers(server: Running) -> None:
    fields = "".join(f"A{n}: 1\r\n" for n in range(99))
    assert status(server.talk(post(extra=fields))) == 431
    fields = "".join(f"A{n}: 1\r\n" for n in range(97))
    with server.connect() as sock:
        sock.sendall(post(extra=fields))
        assert status(read_answer(sock)) == 200


def test_a_huge_request_line(server: Running) -> None:
    assert status(server.talk(b"GET /" + b"a" * 1_000_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n")) == 431
    assert status(server.talk(b"GET /" + b"a" * 40_000)) == 431


@pytest.mark.parametrize("seed", [b"", b"GET /", b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nA: "])
def test_a_slow_head_is_cut(server: Running, seed: bytes) -> None:
    with server.connect() as sock:
        began = time.monotonic()
        sock.sendall(seed)
        sock.settimeout(0.1)
        answer = b""
        while time.monotonic() - began < 4:
            try:
                piece = sock.recv(1000)
            except TimeoutError:
                if seed:
                    sock.sendall(b"a")
                continue
            if not piece:
                break
            answer += piece
        assert 0.2 < time.monotonic() - began < 3
        assert (status(answer) if seed else answer) == (408 if seed else b"")


def test_a_slow_body_is_cut(server: Running) -> None:
    with server.connect() as sock:
        sock.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc")
        answer = read_all(sock)
    assert status(answer) == 408
    assert error_of(answer)["code"] == "request_timeout"
    assert b"connection: close" in answer


def test_chunk_extensions_are_no_progress(server: Running) -> None:
    with server.connect() as sock:
        sock.sendall(HEAD + b"Host: x\r\nTransfer-Encoding: chunked\r\n\r\n5;")
        began = time.monotonic()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while time.monotonic() - began < 0.8:
                sock.sendall(b"a=b;" * 100)
                time.sleep(0.05)
        assert status(read_all(sock)) == 408


def test_a_body_that_progresses_may_take_its_time(server: Running) -> None:
    with server.connect() as sock:
        sock.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n")
        for _ in range(4):
            time.sleep(0.2)
            sock.sendall(b"x")
        assert read_answer(sock).endswith(b'{"length":4}')


def test_bodies_over_the_limit(server: Running) -> None:
    stated = server.talk(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 50000000\r\n\r\n" + b"x" * 3_000_000
    )
    assert status(stated) == 413
    assert error_of(stated.removesuffix(b"<reset>"))["code"] == "request_too_large"
    chunks = (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        + b"10000\r\n"
        + b"x" * 65536
        + b"\r\n"
    )
    assert status(server.talk(chunks + b"ffff\r\n" + b"x" * 65535)) == 413


def test_a_compressed_body_is_refused(server: Running) -> None:
    with server.connect() as sock:
        sock.sendall(post(extra="Content-Encoding: gzip\r\n"))
        assert status(read_answer(sock)) == 415


def test_continue(server: Running) -> None:
    with server.connect() as sock:
        sock.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
        assert sock.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(b"ab")
        assert read_answer(sock).endswith(b'{"length":2}')


@pytest.mark.parametrize(
    "data",
    [
        HEAD + b"Host: x\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"Host: x\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nab",
        HEAD + b"Host: x\r\nContent-Length: -1\r\n\r\n",
        HEAD + b"Host: x\r\nContent-Length: 2x\r\n\r\n",
        HEAD + b"Host: x\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        HEAD + b"Host: x\r\nTransfer-Encoding: xchunked\r\n\r\n",
        HEAD + b"Host: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"Host: x\nContent-Length: 0\n\n",
        HEAD + b"Host: x\r\nA: b\r\n c\r\nContent-Length: 0\r\n\r\n",
        HEAD + b"Host: x\r\nA : b\r\nContent-Length: 0\r\n\r\n",
        HEAD + b"Host: x\r\nA: b\0c\r\nContent-Length: 0\r\n\r\n",
        HEAD + b"Host: x\r\nHost: y\r\nContent-Length: 0\r\n\r\n",
        HEAD + b"Content-Length: 0\r\n\r\n",
        b"CONNECT evil:443 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /\xff HTTP/1.1\r\nHost: x\r\n\r\n",
        b"BREW /pot HTTP/1.1\r\nHost: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        HEAD.replace(b"1.1", b"1.0") + b"Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n",
        b"\x16\x03\x01\x02\x00",
        b"\r\n\r\n\0\r\n\r\n",
    ],
)
def test_what_is_not_quite_http_is_a_400(server: Running, data: bytes) -> None:
    answer = server.talk(data)
    assert status(answer) == 400
    assert error_of(answer)["code"] == "invalid_http"
    assert answer.count(b"HTTP/1.1") == 1


UPGRADE = b"Host: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"


@pytest.mark.parametrize(
    ("body", "length"),
    [
        (b"Content-Length: 3\r\n\r\nabc", 3),
        (b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\nX: trailer\r\n\r\n", 5),
        (b"Content-Length: 0\r\n\r\n", 0),
        (b"\r\n", 0),
    ],
)
@pytest.mark.parametrize("step", [1, 7, 1000])
def test_another_protocol_is_not_taken_and_the_request_answered_in_this_one(
    server: Running, body: bytes, length: int, step: int
) -> None:
    """JDK's HttpClient asks for h2c with its first request; what follows it is no request of ours."""
    data = HEAD + UPGRADE + body + post(b"smuggled")
    with server.connect() as sock:
        for at in range(0, len(data), step):
            with contextlib.suppress(ConnectionError):
                sock.sendall(data[at : at + step])
        answer = read_all(sock)
    assert status(answer) == 200
    assert answer.removesuffix(b"<reset>").endswith(b'{"length":%d}' % length)
    assert answer.count(b"HTTP/1.1 ") == 1
    assert b"connection: close" in answer


def test_a_body_of_an_upgrade_that_never_comes_is_a_408(server: Running) -> None:
    with server.connect() as sock:
        sock.sendall(HEAD + UPGRADE + b"Content-Length: 3\r\n\r\nab")
        assert status(read_all(sock)) == 408


def test_a_broken_chunk_is_a_400(server: Running) -> None:
    answer = server.talk(HEAD + b"Host: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n")
    assert status(answer) == 400
    assert error_of(answer)["code"] == "invalid_http"


OTHER = b"POST /admin/v1/teams HTTP/1.1\r\nHost: x\r\n"


@pytest.fixture(scope="module")
def other() -> Iterator[tuple[Running, list[bytes]]]:
    """A server whose other paths note the bodies that reach them."""
    reached: list[bytes] = []

    async def web(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            reached.append((await receive())["body"])
        await no_web(scope, receive, send)

    with serving(echo, web=web, other_body_s=1.5) as running:
        yield running, reached


@pytest.mark.parametrize(
    ("body", "answered"),
    [
        (b"Content-Length: 2\r\nConnection: close\r\n\r\n{}", 404),
        (b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n2\r\n{}\r\n0\r\n\r\n", 404),
        (b"Content-Length: 3\r\n\r\n{}", 408),
        (b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\nzz\r\n", 400),
        (b"Content-Length: 1048577\r\n\r\n{}", 413),
        (
            b"Transfer-Encoding: chunked\r\n\r\n100001\r\n" + b" " * 0x100001,
            413,
        ),  # not at its end: a whole one keeps the connection
    ],
)
def test_only_a_whole_body_reaches_the_other_paths(other: tuple[Running, list[bytes]], body: bytes, answered: int) -> None:
    running, reached = other
    before = len(reached)
    answer = running.talk(OTHER + body)
    assert status(answer) == answered
    assert b"x-request-id: minted" in answer
    assert reached[before:] == ([b"{}"] if answered == 404 else [])


def test_who_leaves_within_a_body_of_the_other_paths_has_asked_nothing(other: tuple[Running, list[bytes]]) -> None:
    running, reached = other
    before = len(reached)
    with running.connect() as sock:
        sock.sendall(OTHER + b"Content-Length: 3\r\n\r\n{}")
        time.sleep(0.1)
        sock.shutdown(socket.SHUT_WR)
        assert read_all(sock) in (b"", b"<reset>")
    assert len(reached) == before


def test_a_drip_on_the_other_paths_ends(other: tuple[Running, list[bytes]]) -> None:
    """Each byte is progress, yet nobody has shown a key."""
    running, reached = other
    before = len(reached)
    began = time.monotonic()
    with running.connect() as sock:
        sock.sendall(OTHER + b"Content-Length: 1000\r\n\r\n")
        sock.settimeout(0.1)
        answer = b""
        while not answer:
            assert time.monotonic() - began < 10, "it was borne with for 10 s"
            sock.sendall(b" ")
            with contextlib.suppress(TimeoutError):
                answer = sock.recv(65536)
    assert status(answer) == 408
    assert len(reached) == before


def test_other_methods_and_paths(server: Running) -> None:
    for method in ("GET", "PUT", "DELETE"):
        with server.connect() as sock:
            sock.sendall(f"{method} /v1/completions HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            answer = read_answer(sock)
            assert status(answer) == 405
            assert b"allow: POST, OPTIONS" in answer
            assert error_of(answer)["code"] == "method_not_allowed"
    with server.connect() as sock:
        sock.sendall(b"HEAD /nowhere HTTP/1.1\r\nHost: x\r\n\r\nGET /nowhere HTTP/1.1\r\nHost: a/health?\r\n\r\n")
        head = b""
        while head.count(b"HTTP/1.1 404") < 2 or not head.endswith(b"web"):
            head += sock.recv(65536)
        assert head.count(b"\r\n\r\nweb") == 1
        assert b"x-request-id: minted" in head


def test_http_1_0(server: Running) -> None:
    answer = server.talk(b"POST /v1/chat/completions HTTP/1.0\r\nContent-Length: 2\r\n\r\nab")
    assert status(answer) == 200
    assert answer.endswith(b'{"length":2}')


def test_cors_is_off_by_default(server: Running) -> None:
    with server.connect() as sock:
        sock.sendall(post(extra="Origin: https://a.example\r\n"))
        assert b"access-control" not in read_answer(sock)


def test_cors_for_a_configured_origin() -> None:
    with serving(echo, cors=("https://a.example",)) as running, running.connect() as sock:
        sock.sendall(post(extra="Origin: https://a.example\r\n"))
        assert b"access-control-allow-origin: https://a.example\r\n" in read_answer(sock)
        for origin in ("https://b.example", "null"):
            sock.sendall(post(extra=f"Origin: {origin}\r\n"))
            assert b"access-control-allow-origin" not in read_answer(sock)
        sock.sendall(
            b"OPTIONS /v1/chat/completions HTTP/1.1\r\nHost: x\r\nOrigin: https://a.example\r\n"
            b"Access-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: authorization,x-stainless-os\r\n\r\n"
        )
        answer = sock.recv(65536)
        assert status(answer) == 204
        assert b"access-control-allow-headers: authorization,x-stainless-os\r\n" in answer


def test_a_reader_that_stops_is_cut() -> None:
    with serving(flood) as running, running.connect() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.sendall(post())
        running.log.wait("began")
        running.log.wait("ConnectionAbortedError", 5)
        assert "cancelled" not in running.log.lines


def test_a_slow_reader_is_not_cut() -> None:
    async def some(x: Exchange, _protocol: ClientProtocol, _log: Log) -> None:
        await x.body(1000)
        for _ in range(300):
            await x.send(b"x" * 10_000)
        await x.finish(b"end")

    with serving(some) as running, running.connect() as sock:
        sock.sendall(post())
        seen = b""
        while not seen.endswith(b"0\r\n\r\n"):
            seen += sock.recv(100_000)
            time.sleep(0.01)
        assert seen.endswith(b"3\r\nend\r\n0\r\n\r\n")


@pytest.mark.parametrize("script", [hang, stream_and_hang])
@pytest.mark.parametrize("how", ["close", "reset", "half", "while_pipelined"])
def test_a_client_that_leaves_is_noticed(script, how: str) -> None:  # type: ignore[no-untyped-def]
    with serving(script) as running, running.connect() as sock:
        sock.sendall(post())
        running.log.wait("waiting")
        if how == "while_pipelined":
            sock.sendall(post() * 3)
            time.sleep(0.05)
        if how == "reset":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        if how == "half":
            sock.shutdown(socket.SHUT_WR)
        else:
            sock.close()
        assert running.log.wait("cancelled") < 0.5
        assert running.log.lines.count("cancelled") == 1


def test_leaving_in_the_middle_of_a_body() -> None:
    with serving(hang) as running, running.connect() as sock:
        sock.sendall(HEAD + b"Host: x\r\nContent-Length: 50\r\n\r\nabc")
        time.sleep(0.05)
        sock.close()
        assert running.log.wait("cancelled") < 0.5


@pytest.mark.parametrize("size", [1_100_000, 8_000_000])
def test_leaving_after_a_big_body_that_was_asked_late(size: int) -> None:
    async def late(x: Exchange, _protocol: ClientProtocol, log: Log) -> None:
        await asyncio.sleep(0.3)
        log.add(f"got {len(await x.body(10_000_000))}")
        await asyncio.sleep(30)

    with serving(late) as running, running.connect() as sock:
        sock.sendall(post(b"x" * size))
        running.log.wait(f"got {size}")
        sock.close()
        assert running.log.wait("cancelled") < 0.5


def test_an_answer_before_the_body_ends_the_connection() -> None:
    async def refuse(x: Exchange, protocol: ClientProtocol, _log: Log) -> None:
        await x.finish(b"no")

    with serving(refuse) as running:
        answer = running.talk(HEAD + b"Host: x\r\nContent-Length: 500000\r\n\r\n" + b"POST /x HTTP/1.1\r\n" * 1000)
        assert answer.count(b"HTTP/1.1") == 1
        assert b"connection: close" in answer
        assert answer.endswith(b"no")


def test_the_app_fails_and_the_server_lives(caplog: pytest.LogCaptureFixture) -> None:
    async def broken(x: Exchange, _protocol: ClientProtocol, _log: Log) -> None:
        if (await x.body(100)) == b"early":
            raise RuntimeError("secret")
        await x.send(b"data: 1\n\n")
        raise RuntimeError("secret")

    with serving(broken) as running:
        answer = running.talk(post(b"early"))
        assert status(answer) == 500
        assert error_of(answer)["code"] == "internal_error"
        assert b"secret" not in answer
        late = running.talk(post(b"late"))
        assert status(late) == 200
        assert not late.endswith(b"0\r\n\r\n")


def test_headers_cannot_be_split() -> None:
    async def split(x: Exchange, _protocol: ClientProtocol, _log: Log) -> None:
        x.response_headers.append((b"x-a", b"1\r\nset-cookie: a=b"))
        await x.finish(b"{}")

    with serving(split) as running:
        answer = running.talk(post())
        assert status(answer) == 500
        assert b"set-cookie" not in answer


def test_comments_keep_a_stream_alive() -> None:
    async def slow(x: Exchange, _protocol: ClientProtocol, _log: Log) -> None:
        await x.body(100)
        x.content_type = b"text/event-stream"
        x.comment()
        await x.send(b"data: 1\n\n")
        x.comment()
        await x.finish(b"data: [DONE]\n\n")
        x.comment()

    with serving(slow) as running, running.connect() as sock:
        sock.sendall(post())
        seen = b""
        while not seen.endswith(b"0\r\n\r\n"):
            seen += sock.recv(1000)
        assert seen.count(b"3\r\n:\n\n\r\n") == 2
        assert b"text/event-stream" in seen
