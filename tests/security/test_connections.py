"""How bytes come and go: items 21 and 22 of the attack list."""

from __future__ import annotations

import json
import resource
import socket
import time
from contextlib import ExitStack

import psutil
import pytest

from tests.security.house import PLAIN, House, head, resident

pytestmark = pytest.mark.redis

# 21. Slowness.


@pytest.mark.parametrize("drip", ["head", "body", "nothing"])
def test_who_drips_is_cut(house: House, drip: str) -> None:
    begin = {"head": b"POST /v1/chat/completions HTTP/1.1\r\n", "body": head("Content-Length: 1000\r\n"), "nothing": b""}[drip]
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", house.gateway.port), 20) as connection:
        connection.sendall(begin)
        connection.settimeout(0.7)
        while time.monotonic() - began < 15:
            try:
                if drip == "head":
                    connection.sendall(b"X-")
                if not connection.recv(4096):
                    break
            except TimeoutError:
                continue
            except ConnectionError:
                break
        else:
            raise AssertionError("it was borne with for 15 s")


def test_a_reader_that_stops_loses_its_stream_and_holds_no_memory(house: House) -> None:
    """25 MiB wait for a client that reads nothing: the upstream is held back, then the stream is cut."""
    before = resident(house)
    body = json.dumps({"model": "words-400-k64", "stream": True, "messages": [{"role": "user", "content": "x"}]}).encode()
    connections = []
    for _ in range(4):
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", house.gateway.port))
        connection.sendall(head(f"Content-Length: {len(body)}\r\n") + body)
        connections.append(connection)
    deadline = time.monotonic() + 25
    most = 0
    while True:
        most = max(most, resident(house) - before)
        if house.gateway.metric("switchyard_open_streams") == 0 and time.monotonic() > deadline - 22:
            break
        assert time.monotonic() < deadline, "a slot is held by a reader that stopped"
        time.sleep(0.2)
    for connection in connections:
        connection.close()
    assert most < 40 << 20
    assert all(seen.closed is not None or seen.completed for seen in house.upstream.of("words-400-k64"))


def test_more_half_open_connections_than_descriptors(house: House) -> None:
    """Whoever comes when there is none left is turned away at once; the idle ones end in time, and all is well again."""
    assert house.gateway.process is not None
    workers = psutil.Process(house.gateway.process.pid).children(recursive=True)
    with ExitStack() as stack:
        for worker in workers:
            before = resource.prlimit(worker.pid, resource.RLIMIT_NOFILE)
            resource.prlimit(worker.pid, resource.RLIMIT_NOFILE, (worker.num_fds() + 20, before[1]))
            stack.callback(resource.prlimit, worker.pid, resource.RLIMIT_NOFILE, before)
        for _ in range(200):
            connection = stack.enter_context(socket.socket())
            connection.settimeout(10)
            connection.connect(("127.0.0.1", house.gateway.port))
        deadline = time.monotonic() + 15
        while house.chat({})[0] != 200:
            assert time.monotonic() < deadline, "connections that say nothing shut everybody out for 15 s"
            time.sleep(0.2)
        assert all(worker.is_running() for worker in workers)


# 22. Smuggling.

SMUGGLED = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize(
    "framing",
    [
        b"Content-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"Transfer-Encoding: xchunked\r\n\r\n",
        b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        b"Transfer-Encoding: identity\r\n\r\n",
        b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        b"Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
        b"Content-Length: 0\r\nContent-Length: 5\r\n\r\n",
        b"Content-Length: +2\r\n\r\n{}",
        b"Content-Length: 0x2\r\n\r\n{}",
        b"Content-Length: 2, 2\r\n\r\n{}",
        b"Content-Length: -1\r\n\r\n",
        b"Content-Length: 2\n\n{}",
        b"X: a\r\n b\r\nContent-Length: 0\r\n\r\n",
        b"X: a\nContent-Length: 0\r\n\r\n",
        b"Content-Length: 0\r\nX\x00: a\r\n\r\n",
        b"X: a\rY: b\r\nContent-Length: 0\r\n\r\n",
        b"Content-Length : 0\r\n\r\n",
        b"Transfer-Encoding: chunked,\r\n\r\n0\r\n\r\n",
        b"Transfer-Encoding: ,chunked\r\n\r\n0\r\n\r\n",
        b'Transfer-Encoding: "chunked"\r\n\r\n0\r\n\r\n',
        b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n0;a\nb\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n0;a\rb\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n0x0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n-1\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n0 \r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n0\n\n",
        b"Transfer-Encoding: chunked\r\n\r\n10000000000000000\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}XX0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nContent-Length: 5\r\n\r\n",
        b"Content-Length: \r\n\r\n",
        b"Content-Length: 2_0\r\n\r\n",
        b"Content-Length: 0\r\n: empty\r\n\r\n",
        b"Content-Length: 0\r\nX\r\n\r\n",
        b"Content-Length: 0\r\nX\xc3\xa9: a\r\n\r\n",
        b"Content-Length: 0\r\nX: a\x01b\r\n\r\n",
        # another protocol is not taken: an empty body here, and what follows it is not read
        b"Content-Length: 0\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQ\r\n\r\n",
    ],
)
def test_ambiguous_framing_ends_the_connection(house: House, framing: bytes) -> None:
    start = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + PLAIN.encode() + b"\r\n"
    answer = house.raw(start + framing + SMUGGLED, within_s=4)
    assert answer.startswith(b"HTTP/1.1 400"), answer[:200]
    assert answer.count(b"HTTP/1.1 ") == 1, "what was smuggled was answered"


@pytest.mark.parametrize("field", ["user", "model", "stop", "seed"])
def test_line_breaks_of_a_body_reach_no_head(house: House, field: str) -> None:
    before = len(house.upstream.seen)
    value = "x\r\nX-Evil: 1\r\n\r\nGET /evil HTTP/1.1\r\n\r\n"
    status, headers, _ = house.chat({field: value, "stream": True})
    assert status in (200, 400, 404)
    assert "x-evil" not in headers
    assert all("x-evil" not in seen.headers for seen in house.upstream.seen[before:])


@pytest.mark.parametrize("value", ["a\rb", "a\nX-Evil: 1", "a\x00b", "a\x7fb"])
def test_a_client_id_that_is_none_is_not_used(house: House, value: str) -> None:
    status, headers, _ = house.chat({}, x_request_id=value)
    assert status in (200, 400)
    assert "x-evil" not in headers
    assert value not in headers.get("x-request-id", "")
