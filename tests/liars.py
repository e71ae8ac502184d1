"""Upstreams that lie and die: the model's name says how. A raw server, for whole-gateway tests; see `LIES`."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

#: What may never reach a client: secrets and addresses that these upstreams put everywhere.
SECRETS = ("sk-upstream-secret-1234567890", "10.11.12.13", "internal.example")
OK = b"HTTP/1.1 200 OK\r\n"
SSE = OK + b"Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
WORDS = ("one ", "two ", "three ")


@dataclass
class Asked:
    """One request as a liar saw it."""

    model: str
    stream: bool
    headers: dict[str, str]
    connection: int


@dataclass
class Liars:
    """The running server."""

    port: int = 0
    asked: list[Asked] = field(default_factory=list)
    connections: int = 0


class Line:
    """The way back to the gateway."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.writer = writer

    async def raw(self, data: bytes) -> None:
        """Bytes as they are."""
        self.writer.write(data)
        await self.writer.drain()

    async def chunk(self, data: bytes) -> None:
        """One HTTP chunk."""
        await self.raw(b"%x\r\n%s\r\n" % (len(data), data))

    async def whole(self, body: bytes, kind: str = "application/json", more: bytes = b"", status: bytes = b"200 OK") -> None:
        """A whole answer."""
        head = b"HTTP/1.1 %s\r\nContent-Type: %s\r\nContent-Length: %d\r\n%s\r\n"
        await self.raw(head % (status, kind.encode(), len(body), more) + body)

    def reset(self) -> None:
        """Close with a TCP reset."""
        raw = self.writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


def event(value: object) -> bytes:
    """One SSE event of JSON."""
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def piece(delta: object, finish: object = None, index: object = 0) -> bytes:
    """A chat chunk."""
    choice = {"index": index, "delta": delta, "finish_reason": finish}
    return event({"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]})


def usage(**tokens: object) -> bytes:
    """A usage chunk."""
    whole = {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6, **tokens}
    return event({"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [], "usage": whole})


def answer(text: object = "one two three ", **more: object) -> bytes:
    """A whole chat completion."""
    message = {"role": "assistant", "content": text}
    choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
    counts = {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6}
    base = {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": choices, "usage": counts}
    return json.dumps({**base, **more}).encode()


DONE = b"data: [DONE]\n\n"
#: A whole and good stream, event by event.
GOOD = [piece({"role": "assistant", "content": ""}), *(piece({"content": w}) for w in WORDS), piece({}, "stop"), usage(), DONE]
Lie = Callable[[Line, bool], Awaitable[None]]
LIES: dict[str, Lie] = {}


def lie(function: Lie) -> Lie:
    """Register under the function's name."""
    LIES[function.__name__.replace("_", "-")] = function
    return function


async def both(line: Line, stream: bool, events: list[bytes], body: bytes) -> None:
    """These events, or this whole body."""
    if not stream:
        await line.whole(body)
        return
    await line.raw(SSE)
    for one in events:
        await line.chunk(one)
    await line.raw(b"0\r\n\r\n")


@lie
async def good(line: Line, stream: bool) -> None:
    await both(line, stream, GOOD, answer())


@lie
async def endless_line(line: Line, stream: bool) -> None:
    await line.raw(SSE if stream else OK + b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
    begin = b'{"choices":[{"index":0,"delta":{"content":"' if stream else b'{"choices":[{"message":{"content":"'
    await line.chunk(GOOD[0] + GOOD[1] + b"data: " + begin if stream else begin)
    for _ in range(8000):
        await line.chunk(b"a" * 65536)


@lie
async def body_instead_of_events(line: Line, stream: bool) -> None:
    await line.raw(OK + b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
    await line.chunk(b'{"choices":[{"message":{"content":"')
    for _ in range(8000):
        await line.chunk(b"a" * 65536)


@lie
async def big_event(line: Line, stream: bool) -> None:
    before, _, after = (piece({"content": "@"}) if stream else answer("@")).partition(b"@")
    kind = b"text/event-stream" if stream else b"application/json"
    await line.raw(OK + b"Content-Type: %s\r\nContent-Length: %d\r\n\r\n" % (kind, len(before + after) + 1600 * 65536))
    await line.raw(before)
    for _ in range(1600):
        await line.raw(b"a" * 65536)
    await line.raw(after)


@lie
async def bad_json(line: Line, stream: bool) -> None:
    await both(line, stream, [*GOOD[:2], b"data: {nope sk-upstream-secret-1234567890}\n\n", *GOOD[2:]], b'{"choices": [nope')


@lie
async def deep_json(line: Line, stream: bool) -> None:
    deep = b'{"choices":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    await both(line, stream, [*GOOD[:2], b"data: " + deep + b"\n\n", *GOOD[2:]], deep)


@lie
async def html(line: Line, stream: bool) -> None:
    await line.whole(b"<html>internal.example 10.11.12.13</html>", "text/html")


@lie
async def wrong_type(line: Line, stream: bool) -> None:
    body = b"".join(GOOD) if stream else answer()
    await line.whole(body, "application/octet-stream")


@lie
async def gzipped(line: Line, stream: bool) -> None:
    body = gzip.compress(b"".join(GOOD) if stream else answer())
    await line.whole(body, "text/event-stream" if stream else "application/json", b"Content-Encoding: gzip\r\n")


@lie
async def redirect(line: Line, stream: bool) -> None:
    await line.whole(
        b"", more=b"Location: http://internal.example:81/v1/chat/completions\r\n", status=b"307 Temporary Redirect"
    )


@lie
async def bad_usage(line: Line, stream: bool) -> None:
    wrong = {"prompt_tokens": -5, "completion_tokens": 10**30, "total_tokens": "many"}
    await both(line, stream, [*GOOD[:-2], usage(**wrong), DONE], answer(usage=wrong))


@lie
async def done_in_content(line: Line, stream: bool) -> None:
    text = 'data: [DONE]\n\ndata: {"choices":[]}\n\n: x\r\n\r\n0\r\n\r\n'
    await both(line, stream, [GOOD[0], piece({"content": text}), *GOOD[4:]], answer(text))


@lie
async def mute(line: Line, stream: bool) -> None:
    await asyncio.sleep(3600)


@lie
async def mute_after_head(line: Line, stream: bool) -> None:
    await line.raw(SSE)
    await asyncio.sleep(3600)


@lie
async def mute_in_stream(line: Line, stream: bool) -> None:
    if stream:
        await line.raw(SSE)
        await line.chunk(GOOD[0] + GOOD[1])
    else:
        await line.raw(OK + b"Content-Type: application/json\r\nContent-Length: 5000\r\n\r\n" + answer())
    await asyncio.sleep(3600)


@lie
async def only_roles(line: Line, stream: bool) -> None:
    await line.raw(SSE)
    while True:
        await line.chunk(GOOD[0])
        await asyncio.sleep(0.02)


@lie
async def never_ends(line: Line, stream: bool) -> None:
    if not stream:
        await good(line, stream)
        return
    await line.raw(SSE)
    await line.chunk(b"".join(GOOD))
    await asyncio.sleep(3600)


@lie
async def talks_on(line: Line, stream: bool) -> None:
    if not stream:
        await good(line, stream)
        return
    await line.raw(SSE)
    await line.chunk(b"".join(GOOD))
    while True:
        await line.chunk(piece({"content": "more "}) * 100)


@lie
async def bytes_after_the_end(line: Line, stream: bool) -> None:
    await good(line, stream)
    await asyncio.sleep(0.05)
    await line.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nbad")


@lie
async def late_401(line: Line, stream: bool) -> None:
    error = {"error": {"message": "Incorrect API key provided: sk-upstream-secret-1234567890", "code": "invalid_api_key"}}
    await both(line, stream, [*GOOD[:2], event(error), DONE], json.dumps(error).encode())


@lie
async def rejected_401(line: Line, stream: bool) -> None:
    error = {"error": {"message": "Incorrect API key provided: sk-upstream-secret-1234567890", "code": "invalid_api_key"}}
    await line.whole(
        json.dumps(error).encode(), status=b"401 Unauthorized", more=b"Set-Cookie: sk-upstream-secret-1234567890\r\n"
    )


@lie
async def telling_400(line: Line, stream: bool) -> None:
    said = "cannot reach http://internal.example:8000/v1 at 10.11.12.13:8000 with key sk-upstream-secret-1234567890"
    await line.whole(json.dumps({"error": {"message": said, "type": "x"}}).encode(), status=b"400 Bad Request")


@lie
async def telling_500(line: Line, stream: bool) -> None:
    said = (
        'Traceback (most recent call last):\n  File "/srv/own.py", line 3, in f\nOSError: http://internal.example 10.11.12.13'
    )
    await line.whole(json.dumps({"error": {"message": said}}).encode(), status=b"500 Internal Server Error")


@lie
async def huge_500(line: Line, stream: bool) -> None:
    await line.raw(b"HTTP/1.1 500 Oh\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
    for _ in range(8000):
        await line.chunk(b"a" * 65536)


@lie
async def mute_500(line: Line, stream: bool) -> None:
    await line.raw(b"HTTP/1.1 500 Oh\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
    await asyncio.sleep(3600)


@lie
async def telling_headers(line: Line, stream: bool) -> None:
    head = b"Set-Cookie: a=sk-upstream-secret-1234567890\r\nServer: internal.example\r\nX-Backend: 10.11.12.13\r\n"
    await line.whole(b"".join(GOOD) if stream else answer(), "text/event-stream" if stream else "application/json", head)


@lie
async def resets_in_head(line: Line, stream: bool) -> None:
    await line.raw(b"HTTP/1.1 200 OK\r\nContent-Ty")
    await asyncio.sleep(0.02)
    line.reset()


@lie
async def resets_in_body(line: Line, stream: bool) -> None:
    await line.raw(SSE)
    await line.chunk(GOOD[0] + GOOD[1])
    await asyncio.sleep(0.05)
    line.reset()


@lie
async def drips(line: Line, stream: bool) -> None:
    body = b"".join(GOOD) if stream else answer()
    head = OK + b"Content-Length: %d\r\n\r\n" % len(body)
    for byte in head + body:
        await line.raw(bytes([byte]))
        await asyncio.sleep(0.03)


@lie
async def closes_short(line: Line, stream: bool) -> None:
    body = b"".join(GOOD[:-2]) if stream else answer()
    await line.raw(OK + b"Content-Length: %d\r\n\r\n" % (len(body) + 10) + body)


@lie
async def empty(line: Line, stream: bool) -> None:
    await line.whole(b"")


@lie
async def no_content(line: Line, stream: bool) -> None:
    await line.raw(b"HTTP/1.1 204 No Content\r\n\r\n")


@lie
async def switches(line: Line, stream: bool) -> None:
    await line.raw(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nsomething")


@lie
async def many_1xx(line: Line, stream: bool) -> None:
    for _ in range(100):
        await line.raw(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n")
    await good(line, stream)


@lie
async def huge_chunk_size(line: Line, stream: bool) -> None:
    await line.raw(SSE + b"FFFFFFFFFFFFFFFFF\r\n" + GOOD[1])


@lie
async def huge_head(line: Line, stream: bool) -> None:
    await line.raw(OK)
    for number in range(100_000):
        await line.raw(b"X-%d: %s\r\n" % (number, b"a" * 1000))


@lie
async def two_lengths(line: Line, stream: bool) -> None:
    body = answer()
    await line.raw(OK + b"Content-Length: %d\r\nContent-Length: %d\r\n\r\n" % (len(body), len(body) - 5) + body)


@lie
async def no_choices(line: Line, stream: bool) -> None:
    await both(line, stream, [event({"id": "x", "choices": None}), DONE], answer(choices=[]))


@lie
async def odd_choices(line: Line, stream: bool) -> None:
    odd = [piece({"content": 5}), piece({"content": "x"}, index=10**9), piece({"content": "x"}, index=-3)]
    await both(line, stream, [*odd, *GOOD[4:]], answer(5))


@lie
async def no_finish(line: Line, stream: bool) -> None:
    await both(line, stream, [*GOOD[:4], DONE], answer(choices=[{"index": 0, "message": {"content": "x"}}]))


def truncated_at(line: Line, count: int, how: str) -> Awaitable[None]:
    """A stream of the first `count` events, ended by `how`: cleanly, in the middle of the next one, by close or by reset."""

    async def tell() -> None:
        await line.raw(SSE)
        for one in GOOD[:count]:
            await line.chunk(one)
        if how == "middle":
            await line.chunk(GOOD[count][: len(GOOD[count]) // 2])
        if how in ("clean", "middle"):
            await line.raw(b"0\r\n\r\n")
        await asyncio.sleep(0.03)
        if how == "reset":
            line.reset()

    return tell()


async def _serve(liars: Liars, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    liars.connections += 1
    number = liars.connections
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            pairs = (line.partition(":") for line in head.decode("latin-1").split("\r\n")[1:])
            headers = {name.lower(): value.strip() for name, _, value in pairs}
            body = json.loads(await reader.readexactly(int(headers["content-length"])))
            model, stream = body["model"], bool(body.get("stream"))
            liars.asked.append(Asked(model, stream, headers, number))
            if model.startswith("cut-"):
                _, count, how = model.split("-")
                await truncated_at(Line(writer), int(count), how)
                return
            await LIES[model](Line(writer), stream)
            if model not in ("good", "never-ends", "talks-on", "bad-usage", "done-in-content", "wrong-type", "telling-headers"):
                return
    except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
        pass
    finally:
        with contextlib.suppress(ConnectionError):
            writer.close()


@asynccontextmanager
async def liar_server() -> AsyncIterator[Liars]:
    """A running server on a free port of 127.0.0.1."""
    liars = Liars()
    server = await asyncio.start_server(lambda r, w: _serve(liars, r, w), "127.0.0.1", 0)
    liars.port = server.sockets[0].getsockname()[1]
    try:
        yield liars
    finally:
        server.close()
