"""An OpenAI-like upstream on a real socket whose model names are its script, and which logs what it saw.

Model names: `words-N[-dMS][-tMS]` answers N words, MS between them, MS before the first byte; suffixes
`-cut` (closes in the middle), `-error` (an in-stream error in the middle), `-mute` (never answers),
`-status-CODE` (answers that status), `-nousage` (no usage), `-kN` (each word is N KiB long),
`-hN` (says no more after N words), `-pN` (its prompt has N tokens, else 7), `-deaf` (goes on when its client has closed
the sending side), `-tools` (calls the tool `add`), `-echo-400` (a 400 that repeats the prompt).
"""

from __future__ import annotations

import asyncio
import json
import queue
import re
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")


@dataclass
class Seen:
    """One request as the upstream saw it; instants are time.monotonic()."""

    model: str
    body: dict[str, object]
    headers: dict[str, str]
    began: float
    closed: float | None = None
    completed: bool = False
    written: int = 0


@dataclass
class Upstream:
    """The running upstream."""

    port: int = 0
    seen: list[Seen] = field(default_factory=list)
    writers: set[asyncio.StreamWriter] = field(default_factory=set)

    @property
    def url(self) -> str:
        """Its base_url."""
        return f"http://127.0.0.1:{self.port}/v1"

    def of(self, model: str) -> list[Seen]:
        """The requests for a model."""
        return [one for one in self.seen if one.model == model]


def _number(model: str, letter: str) -> float:
    found = re.search(rf"-{letter}(\d+)", model)
    return int(found[1]) / 1000 if found else 0.0


async def _read(reader: asyncio.StreamReader) -> tuple[dict[str, str], bytes] | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    headers = {}
    for line in head.decode("latin-1").split("\r\n")[1:]:
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    return headers, await reader.readexactly(int(headers.get("content-length", "0")))


def _frame(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def _chunk(model: str, **choice: object) -> bytes:
    body = {"id": "up", "object": "chat.completion.chunk", "created": 1, "model": model, "choices": [{"index": 0, **choice}]}
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def _usage(words: int, model: str = "") -> dict[str, int]:
    prompt = int(found[1]) if (found := re.search(r"-p(\d+)", model)) else 7
    return {"prompt_tokens": prompt, "completion_tokens": words, "total_tokens": prompt + words}


def _call(writer: asyncio.StreamWriter, seen: Seen) -> None:
    """A call of the tool `add`, whole or in pieces."""
    call = {"id": "call_up", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    seen.completed = True
    if not seen.body.get("stream"):
        message = {"role": "assistant", "content": None, "tool_calls": [call]}
        whole = {"id": "up", "object": "chat.completion", "created": 1, "model": seen.model,
                 "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}], "usage": _usage(3)}  # fmt: skip
        body = json.dumps(whole).encode()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        return
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
    pieces = [{**call, "index": 0, "function": {"name": "add", "arguments": ""}}]
    pieces += [{"index": 0, "function": {"arguments": part}} for part in ('{"a"', ": 1}")]
    for piece in pieces:
        writer.write(_frame(_chunk(seen.model, delta={"tool_calls": [piece]}, finish_reason=None)))
    writer.write(_frame(_chunk(seen.model, delta={}, finish_reason="tool_calls")))
    writer.write(_frame(b"data: [DONE]\n\n") + b"0\r\n\r\n")


async def _answer(writer: asyncio.StreamWriter, seen: Seen) -> None:
    model, words = seen.model, int(found[1]) if (found := re.match(r"words-(\d+)", seen.model)) else 3
    if "-mute" in model:
        await asyncio.sleep(3600)
    await asyncio.sleep(_number(model, "t"))
    if "-echo-400" in model:
        wrong = {"loc": ["body", "messages"], "msg": "Input should be valid", "input": seen.body["messages"]}
        body = json.dumps({"detail": [wrong], "error": {"type": json.dumps(seen.body["messages"])}}).encode()
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        seen.completed = True
        return
    if found := re.search(r"-status-(\d+)", model):
        body = json.dumps({"error": {"message": f"scripted {found[1]}", "type": "x", "code": None, "param": None}}).encode()
        head = f"HTTP/1.1 {found[1]} X\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        seen.completed = True
        return
    if "-tools" in model:
        _call(writer, seen)
        return
    pause, padding = _number(model, "d"), "x" * int(_number(model, "k") * 1000) * 1024
    if not seen.body.get("stream"):
        await asyncio.sleep(pause * words)
        text = "".join(f"w{n} " for n in range(words))
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        whole = {"id": "up", "object": "chat.completion", "created": 1, "model": model,
                 "choices": [choice], "usage": _usage(words, model)}  # fmt: skip
        body = json.dumps(whole).encode()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        seen.completed = True
        return
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
    writer.write(_frame(_chunk(model, delta={"role": "assistant", "content": ""}, finish_reason=None)))
    for n in range(words):
        if n == words // 2 and "-cut" in model:
            writer.transport.abort()
            return
        if n == words // 2 and "-error" in model:
            writer.write(_frame(b'data: {"error":{"message":"scripted","type":"server_error","code":null,"param":null}}\n\n'))
            writer.write(b"0\r\n\r\n")
            return
        if n and n == _number(model, "h") * 1000:
            await asyncio.sleep(3600)
        writer.write(_frame(_chunk(model, delta={"content": f"w{n} {padding}"}, finish_reason=None)))
        seen.written += 1
        if padding:
            await writer.drain()
        if pause:
            await writer.drain()
            await asyncio.sleep(pause)
    writer.write(_frame(_chunk(model, delta={}, finish_reason="stop")))
    if "-nousage" not in model and (seen.body.get("stream_options") or {}).get("include_usage"):  # type: ignore[attr-defined]
        body = {
            "id": "up",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": model,
            "choices": [],
            "usage": _usage(words, model),
        }
        writer.write(_frame(b"data: " + json.dumps(body).encode() + b"\n\n"))
    writer.write(_frame(b"data: [DONE]\n\n") + b"0\r\n\r\n")
    seen.completed = True


async def _until_gone(work: Coroutine[object, object, object]) -> None:
    """Run it; a client that resets the connection ends it."""
    with suppress(ConnectionError):
        await work


async def _connection(upstream: Upstream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    upstream.writers.add(writer)
    try:
        while (read := await _read(reader)) is not None:
            headers, raw = read
            body = json.loads(raw or b"{}")
            seen = Seen(body.get("model", ""), body, headers, time.monotonic())
            upstream.seen.append(seen)
            async with asyncio.TaskGroup() as group:
                answering = group.create_task(_until_gone(_answer(writer, seen)))
                watching = group.create_task(_until_gone(reader.read(1) if "-deaf" not in seen.model else asyncio.sleep(3600)))
                done, _ = await asyncio.wait({answering, watching}, return_when=asyncio.FIRST_COMPLETED)
                if answering not in done or writer.transport.is_closing():
                    seen.closed = time.monotonic()
                    answering.cancel()
                    return
                watching.cancel()
            with suppress(ConnectionError):
                await writer.drain()
    except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
        pass  # the server is being closed
    finally:
        upstream.writers.discard(writer)
        writer.close()


@asynccontextmanager
async def upstream_server() -> AsyncIterator[Upstream]:
    """A running upstream on a free port of 127.0.0.1."""
    upstream = Upstream()
    server = await asyncio.start_server(lambda r, w: _connection(upstream, r, w), "127.0.0.1", 0)
    upstream.port = server.sockets[0].getsockname()[1]
    try:
        yield upstream
    finally:
        server.close()
        for writer in list(upstream.writers):
            writer.transport.abort()


@contextmanager
def in_thread(make: Callable[[], AbstractAsyncContextManager[T]]) -> Iterator[T]:
    """A server in a thread and loop of its own, for several tests: read what it noted, change nothing."""
    started: queue.SimpleQueue[tuple[T, asyncio.AbstractEventLoop, asyncio.Event]] = queue.SimpleQueue()

    async def main() -> None:
        async with make() as server:
            stop = asyncio.Event()
            started.put((server, asyncio.get_running_loop(), stop))
            await stop.wait()

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    server, loop, stop = started.get(timeout=10)
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
