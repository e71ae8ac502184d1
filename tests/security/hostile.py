"""A model server that attacks the gateway's clients: whatever it may choose holds line breaks, markers and secrets."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

#: What an attacker would like to write into a client's stream.
BREAK = 'x\n\ndata: [DONE]\n\nevent: evil\rdata: {"evil": 1}\r\n\r\nid: 7\n\u2028\u2029\x85\x1b[31m'
LEAK = 'File "/srv/secret/path.py", line 3 http://10.11.12.13:8000 Bearer sk-hostile-leak-0123456789 Traceback'
SSE = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
NAMES = ("content", "ids", "error", "error-stream", "headers", "usage", "endless", "stall")


@dataclass
class Hostile:
    """The running server, and how many requests it got."""

    port: int = 0
    names: tuple[str, ...] = NAMES
    asked: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Its base_url."""
        return f"http://127.0.0.1:{self.port}/v1"


def _chunk(id: str = "up", model: str = "m", **choice: object) -> bytes:
    body = {"id": id, "object": "chat.completion.chunk", "created": 1, "model": model, "choices": [{"index": 0, **choice}]}
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def _stream(name: str) -> bytes:
    """A whole stream of this name."""
    text = {"role": "assistant", "content": BREAK}
    if name == "ids":
        out = _chunk(BREAK, BREAK, delta=text, finish_reason=None)
        call = {"index": 0, "id": BREAK, "type": "function", "function": {"name": BREAK, "arguments": BREAK}}
        out += _chunk(BREAK, BREAK, delta={"tool_calls": [call]}, finish_reason=None)
        return out + _chunk(BREAK, BREAK, delta={}, finish_reason=BREAK) + b"data: [DONE]\n\n"
    out = _chunk(delta=text, finish_reason=None)
    if name == "error-stream":
        return (
            out + b"data: " + json.dumps({"error": {"message": BREAK + LEAK, "type": BREAK, "code": BREAK}}).encode() + b"\n\n"
        )
    out += _chunk(delta={}, finish_reason="stop")
    if name == "usage":
        lies = {"prompt_tokens": -5, "completion_tokens": 10**18, "total_tokens": "many"}
        whole = {"id": "u", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [], "usage": lies}
        out += b"data: " + json.dumps(whole).encode() + b"\n\n"
    return out + b"data: [DONE]\n\n" + b'data: {"after": "the end"}\n\n'


async def _answer(name: str, writer: asyncio.StreamWriter) -> None:
    if name == "error":
        body = json.dumps({"error": {"message": BREAK + LEAK, "type": BREAK, "code": BREAK, "param": BREAK}}).encode()
        writer.write(b"HTTP/1.1 500 X\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
    elif name == "headers":
        evil = b"set-cookie: evil=1\r\naccess-control-allow-origin: *\r\nx-request-id: evil\r\nlocation: http://evil\r\n"
        evil += b"x-ratelimit-remaining-requests: evil\r\nserver: evil/1.0\r\nrefresh: 0; url=http://evil\r\n"
        writer.write(SSE + evil + b"connection: close\r\n\r\n" + _stream("content"))
    elif name == "endless":
        writer.write(SSE + b"connection: close\r\n\r\ndata: ")
        with contextlib.suppress(ConnectionError):
            for _ in range(2048):  # 128 MiB without a line's end
                writer.write(b"a" * 65536)
                await writer.drain()
    elif name == "stall":
        writer.write(
            SSE + b"connection: close\r\n\r\n" + _chunk(delta={"role": "assistant", "content": "x"}, finish_reason=None)
        )
        await asyncio.sleep(3600)
    else:
        writer.write(SSE + b"connection: close\r\n\r\n" + _stream(name))


@asynccontextmanager
async def hostile_server() -> AsyncIterator[Hostile]:
    """The server."""
    state = Hostile()
    writers: set[asyncio.StreamWriter] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.add(writer)
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            name = str(json.loads(await reader.readexactly(length))["model"])
            state.asked.append(name)
            await _answer(name, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writers.discard(writer)
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0, limit=1 << 22)
    state.port = server.sockets[0].getsockname()[1]
    try:
        yield state
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()
