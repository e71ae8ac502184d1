"""Hostile clients on bare sockets, against the whole gateway: each is refused in OpenAI's shape, and others live on."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator

import pytest

from tests.gateway_process import GatewayProcess, declared_key
from tests.raw_client import RawClient
from tests.upstream import in_thread, upstream_server

KEY = "sk-abuse-0123456789abcdef"
AUTH = f"Authorization: Bearer {KEY}\r\n".encode()
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n" + AUTH
MESSAGES = [{"role": "user", "content": "hi"}]
GOOD = json.dumps({"model": "words-3", "messages": MESSAGES}).encode()


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    with in_thread(upstream_server) as upstream:
        tree = {
            "server": {"max_body_mb": 1, "head_timeout_s": 0.8, "body_timeout_s": 0.8, "keepalive_s": 5},
            "deployments": {"words-3": {"dialect": "openai_compatible", "base_url": upstream.url, "model": "words-3"}},
            "models": {"words-3": {"tiers": [["words-3"]]}},
            "keys": {"declared": [declared_key("user", KEY)]},
        }
        with GatewayProcess(tmp_path_factory.mktemp("abuse"), tree) as process:
            process.upstream = upstream
            process.start()
            yield process


@pytest.fixture(autouse=True)
async def others_live_on(gateway: GatewayProcess):  # type: ignore[no-untyped-def]
    """Whatever a test did, the next client is served by the same process, and no bug was logged."""
    yield
    client = await RawClient.connect(gateway.port)
    await client.send(post(GOOD))
    assert (await client.answer())[0] == 200
    client.leave()
    assert gateway.events("bug") == []
    assert gateway.events("process_died") == []


def post(body: bytes, *more: bytes, path: bytes = b"/v1/chat/completions") -> bytes:
    """A whole request with more header lines."""
    head = b"POST " + path + b" HTTP/1.1\r\nHost: x\r\n" + AUTH + b"Content-Length: %d\r\n" % len(body)
    return head + b"".join(line + b"\r\n" for line in more) + b"\r\n" + body


def error_of(body: bytes) -> dict[str, object]:
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert KEY not in body.decode()
    return error


async def told(gateway: GatewayProcess, data: bytes) -> tuple[int, dict[str, str], bytes]:
    """The first answer to these bytes; sending may break off, since a refused client is not read on."""
    client = await RawClient.connect(gateway.port)
    async with asyncio.TaskGroup() as group:
        sending = group.create_task(_send(client, data))
        answer = await client.answer(10)
        sending.cancel()
    client.leave()
    return answer


async def _send(client: RawClient, data: bytes) -> None:
    try:
        for at in range(0, len(data), 1 << 20):
            await client.send(data[at : at + (1 << 20)])
    except ConnectionError:
        pass


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (HEAD + b"X: " + b"a" * 40_000_000 + b"\r\n\r\n", 431),
        (HEAD + b"".join(b"X-%d: 1\r\n" % n for n in range(1000)) + b"\r\n", 431),
        (b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 431),
        (HEAD + b"X: 1\r\n X: folded\r\n\r\n", 400),
        (HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n{}", 400),
        (HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (HEAD + b"Content-Length: -1\r\n\r\n", 400),
        (HEAD + b"Content-Length: 99999999999999999999999\r\n\r\n", 400),
        (HEAD + b"Content-Length: 0x10\r\n\r\n", 400),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFFF\r\n", 400),
        (HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 400),
        (HEAD + b"Content-Length: 2000000\r\n\r\n" + b"a" * 2_000_000, 413),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\naaaaaXX5\r\n", 400),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + (b"10000\r\n" + b"a" * 65536 + b"\r\n") * 40, 413),
        (HEAD + b"Content-Encoding: gzip\r\nContent-Length: 5\r\n\r\nabcde", 415),
        (b"POST /v1/chat/completions HTTP/1.1\r\n" + AUTH + b"\r\n", 400),
        (HEAD + b"Host: y\r\nContent-Length: 2\r\n\r\n{}", 400),
        (HEAD.replace(b"HTTP/1.1", b"HTTP/2.0") + b"Content-Length: 2\r\n\r\n{}", 400),
        (HEAD.replace(b"HTTP/1.1", b"HTTP/0.9") + b"Content-Length: 2\r\n\r\n{}", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (b"GET http://x/\x00 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"CONNECT internal:80 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    ],
)
async def test_what_is_not_good_http_is_refused(gateway: GatewayProcess, data: bytes, status: int) -> None:
    got, headers, body = await told(gateway, data)
    assert got == status, body
    assert error_of(body)["type"] == "invalid_request_error"
    assert headers.get("connection") == "close" or status == 415


@pytest.mark.parametrize("drop", [b"", b"GET / HTT", HEAD, HEAD + b"Content-Length: 100\r\n\r\n{", HEAD + b"X: "])
async def test_who_is_slow_is_cut_in_time(gateway: GatewayProcess, drop: bytes) -> None:
    client = await RawClient.connect(gateway.port)
    began = time.monotonic()
    await client.send(drop)
    got = await client.rest(5)
    assert 0.6 < time.monotonic() - began < 3.5
    if drop:
        assert got.startswith(b"HTTP/1.1 408"), got
        error_of(got.partition(b"\r\n\r\n")[2])
    client.leave()


async def test_a_drip_of_head_bytes_is_cut_all_the_same(gateway: GatewayProcess) -> None:
    clients = [await RawClient.connect(gateway.port) for _ in range(50)]
    began = time.monotonic()

    async def drip(client: RawClient) -> None:
        try:
            for byte in HEAD * 20:
                await client.send(bytes([byte]))
                await asyncio.sleep(0.1)
        except ConnectionError:
            pass

    async with asyncio.TaskGroup() as group:
        drips = [group.create_task(drip(client)) for client in clients]
        good = await told(gateway, post(GOOD))
        ends = await asyncio.gather(*(client.rest(6) for client in clients))
        for task in drips:
            task.cancel()
    assert good[0] == 200
    assert time.monotonic() - began < 4
    assert all(end.startswith((b"HTTP/1.1 408", b"<reset>")) for end in ends)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"", None),
        (b"{", None),
        (b"[]", None),
        (b"null", None),
        (b'"x"', None),
        (b"\xff\xfe", None),
        (b'{"model": "\xff", "messages": []}', None),
        (b'{"model": "words-3", "messages": [{"role": "user", "content": "\\ud800"}], "temperature": NaN}', None),
        (b'{"model": "words-3", "messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", None),
        (b'{"a":' * 50_000 + b"1" + b"}" * 50_000, None),
        (b'{"model": "words-3", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1e400}', "max_tokens"),
        (GOOD[:-1] + b', "max_tokens": ' + b"9" * 5000 + b"}", "max_tokens"),
        (b'{"model": "words-3", "messages": [{"role": "user", "content": "hi"}], "seed": 99999999999999999999999}', "seed"),
        (b'{"model": "words-3", "messages": [{"role": "user", "content": "hi"}], "n": -1}', "n"),
        (b'{"model": "words-3", "messages": [{"role": "user", "content": "hi"}], "n": true}', "n"),
        (b'{"model": "words-3", "messages": [{"role": "user", "content": "hi"}], "stream": "yes"}', "stream"),
        (b'{"model": "words-3", "messages": [{"role": "user", "content": "hi"}], "temprature": 1}', "temprature"),
        (b'{"model": "words-3", "messages": [{"role": "root", "content": "hi"}]}', "messages[0].role"),
        (b'{"model": "words-3", "messages": [{"role": "user", "content": 5}]}', "messages[0].content"),
        (b'{"model": "words-3", "messages": "hi"}', "messages"),
        (b'{"model": "words-3", "messages": []}', "messages"),
        (b'{"model": "words-3"}', "messages"),
        (b'{"messages": [{"role": "user", "content": "hi"}]}', "model"),
        (b'{"model": 7, "messages": [{"role": "user", "content": "hi"}]}', "model"),
        (b'{"model": "", "messages": [{"role": "user", "content": "hi"}]}', "model"),
    ],
)  # fmt: skip
async def test_a_bad_body_is_a_400_that_names_the_parameter(gateway: GatewayProcess, body: bytes, param: str | None) -> None:
    before = len(gateway.upstream.seen)
    status, headers, answer = await told(gateway, post(body))
    error = error_of(answer)
    assert status == (404 if error["code"] == "model_not_found" else 400), answer
    assert param is None or error["param"] == param, error
    assert headers["x-request-id"]
    assert len(answer) < 2000
    assert len(gateway.upstream.seen) == before


async def test_a_duplicate_key_is_not_read_twice_differently(gateway: GatewayProcess) -> None:
    body = b'{"model": "nothing", "model": "words-3", "messages": [{"role": "user", "content": "hi"}], "n": 3, "n": 1}'
    status, _, answer = await told(gateway, post(body))
    if status == 200:
        assert gateway.upstream.seen[-1].body["model"] == json.loads(answer)["model"] == "words-3"
        assert gateway.upstream.seen[-1].body.get("n", 1) == len(json.loads(answer)["choices"]) == 1
    else:
        assert status == 400


@pytest.mark.parametrize("kind", [b"text/plain", b"application/x-www-form-urlencoded", b"\xff", b"multipart/form-data", None])
async def test_the_body_is_json_whatever_its_type_says(gateway: GatewayProcess, kind: bytes | None) -> None:
    more = [b"Content-Type: " + kind] if kind else []
    assert (await told(gateway, post(GOOD, *more)))[0] == 200


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"POST /chat/completions", 200),
        (b"POST http://elsewhere.example/v1/chat/completions", 200),
        (b"POST /v1/chat/completions?api-version=1", 200),
        (b"POST //v1/chat/completions", 404),
        (b"POST /v1//chat/completions", 404),
        (b"POST /v1/chat/completions/", 404),
        (b"POST /v1/chat/../chat/completions", 404),
        (b"POST /V1/CHAT/COMPLETIONS", 404),
        (b"POST /v1%2fchat/completions", 404),
        (b"POST /v1/chat/completions%00", 404),
        (b"POST /v1/chat/completions%0d%0aX:y", 404),
        (b"POST /metrics", 405),
        (b"GET /metrics", 404),
        (b"GET /v1/chat/completions", 405),
        (b"HEAD /v1/chat/completions", 405),
        (b"HEAD /health/live", 200),
        (b"OPTIONS /v1/chat/completions", 204),
        (b"OPTIONS *", 204),
        (b"DELETE /v1/models/words-3", 405),
        (b"GET /v1/models/%2e%2e/words-3", 404),
        (b"GET /v1/models/words-3", 200),
        (b"GET /v1/models", 200),
        (b"TRACE /v1/models", 405),
    ],
)
async def test_paths_are_taken_as_they_are(gateway: GatewayProcess, line: bytes, status: int) -> None:
    body = GOOD if line.startswith(b"POST") else b""
    request = line + b" HTTP/1.1\r\nHost: evil.example\r\nX-Forwarded-Host: evil\r\nX-Forwarded-Prefix: /p\r\n" + AUTH
    client = await RawClient.connect(gateway.port)
    await client.send(request + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    answer = await client.rest()
    client.leave()
    head, _, text = answer.partition(b"\r\n\r\n")
    assert int(head.split()[1]) == status, answer
    assert b"evil" not in answer
    assert b"\r\nX:y" not in head
    assert b"access-control-allow-origin" not in head.lower()
    if line.startswith(b"HEAD") or status == 204:
        assert text == b""
    elif status != 200:
        error_of(text)


async def test_pipelined_requests_are_answered_in_order_and_bounded(gateway: GatewayProcess) -> None:
    client = await RawClient.connect(gateway.port)
    await client.send(post(GOOD) + post(b"{") + b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n" + post(GOOD))
    assert [(await client.answer())[0] for _ in range(4)] == [200, 400, 200, 200]
    await client.send(post(GOOD) * 200)
    answers = await client.rest(10)
    assert 1 <= answers.count(b"HTTP/1.1 200") <= 10
    client.leave()


async def test_a_smuggled_request_is_not_answered(gateway: GatewayProcess) -> None:
    client = await RawClient.connect(gateway.port)
    inner = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n" + AUTH + b"\r\n"
    await client.send(HEAD + b"Content-Length: 6\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + inner)
    answers = await client.rest(10)
    assert answers.count(b"HTTP/1.1 ") == 1
    assert answers.startswith(b"HTTP/1.1 400")
    client.leave()


async def test_many_idle_connections_cost_little(gateway: GatewayProcess) -> None:
    (worker,) = (
        child
        for child in gateway.children()
        if any(one.laddr.port == gateway.port and one.status == "LISTEN" for one in child.net_connections("tcp"))
    )
    before = worker.memory_full_info().pss
    clients = [await RawClient.connect(gateway.port) for _ in range(400)]
    for client in clients:
        await client.send(HEAD + b"X: " + b"a" * 10_000)
    await asyncio.sleep(0.1)
    assert worker.memory_full_info().pss - before < 400 * 64 * 1024
    ends = await asyncio.gather(*(client.rest(6) for client in clients))
    assert all(end.startswith((b"HTTP/1.1 408", b"<reset>")) for end in ends)
