"""Every dialect against servers that lie in its own words: bounded memory, an OpenAI error, and never an address of theirs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from backends.registry import DIALECTS
from tests.gateway_process import GatewayProcess, declared_key

KEY = "sk-test-user-0123456789abcdef"
SECRET = "internal.example"
GENERATING = sorted(set(DIALECTS) - {"tei"})
Send = Callable[[bytes], Awaitable[None]]


def _begin(dialect: str) -> bytes:
    """What an event of this dialect's streams begins with."""
    return b"" if dialect == "ollama" else b"data: "


async def endless(dialect: str, send: Send) -> None:
    await send(_begin(dialect) + b'{"text": "')
    for _ in range(100):
        await send(b"a" * (1 << 20))


async def garbage(dialect: str, send: Send) -> None:
    await send(_begin(dialect) + b'{"a": [1, 2\n\n')


async def deep(dialect: str, send: Send) -> None:
    await send(_begin(dialect) + b"[" * 100_000 + b"\n\n")


async def html(dialect: str, send: Send) -> None:
    del dialect
    await send(f"<html>proxy of http://{SECRET}:8080/</html>".encode())


async def nothing(dialect: str, send: Send) -> None:
    del dialect, send


async def comments(dialect: str, send: Send) -> None:
    await send(b"\n\n\n" if dialect == "ollama" else b": ping\n\n" * 50)


async def traceback(dialect: str, send: Send) -> None:
    said = f'Traceback (most recent call last):\n  File "/srv/{SECRET}.py", line 3\nValueError: http://{SECRET}:1'
    await send(_begin(dialect) + json.dumps({"error": said}).encode() + b"\n\n")


async def number(dialect: str, send: Send) -> None:
    await send(_begin(dialect) + b"-1\n\n")


async def done_only(dialect: str, send: Send) -> None:
    await send(_begin(dialect) + b"[DONE]\n\n")


_TOLD = (endless, garbage, deep, html, nothing, comments, traceback, number, done_only)
LIES = {one.__name__.replace("_", "-"): one for one in _TOLD}


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        length = next((int(line.split(":")[1]) for line in head.split("\r\n") if line.startswith("content-length")), 0)
        await reader.readexactly(length)
        path = head.split(" ", 2)[1]
        if path.endswith("/apply-template"):
            writer.write(b'HTTP/1.1 200 OK\r\ncontent-length: 14\r\nconnection: close\r\n\r\n{"prompt":"P"}')
            return
        dialect, lie = path.split("/")[1].split(".")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")

        async def send(data: bytes) -> None:
            writer.write(b"%x\r\n%s\r\n" % (len(data), data))
            await writer.drain()

        await LIES[lie](dialect, send)
        writer.write(b"0\r\n\r\n")
        await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
        pass
    finally:
        writer.close()


@asynccontextmanager
async def _upstream() -> AsyncIterator[int]:
    server = await asyncio.start_server(_serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


@pytest.mark.timeout(300)
async def test_every_dialect_survives_every_lie(tmp_path: Path) -> None:
    async with _upstream() as port:
        places = {
            f"{dialect}.{lie}": {"dialect": dialect, "base_url": f"http://127.0.0.1:{port}/{dialect}.{lie}", "model": "m"}
            for dialect in GENERATING
            for lie in LIES
        }
        tree = {
            "deployments": {name: {**place, "params": "drop"} for name, place in places.items()},
            "models": {name: {"tiers": [[name]]} for name in places},
            "keys": {"declared": [declared_key("user", KEY)]},
        }
        wrong: list[str] = []
        with GatewayProcess(tmp_path, tree) as process:
            await asyncio.to_thread(process.start)
            async with httpx.AsyncClient(
                base_url=process.url, headers={"authorization": f"Bearer {KEY}"}, timeout=60
            ) as client:
                for name in places:
                    path, asked = _question(name)
                    answer = await client.post(path, json={"model": name, "stream": True, "max_tokens": 5, **asked})
                    wrong += [f"{name}: {one}" for one in _complaints(answer)]
                alive = await client.get("/health/live")
            assert alive.status_code == 200
            resident = max(psutil.Process(child.pid).memory_info().rss for child in process.children())
        assert not wrong, "\n".join(wrong)
        assert resident < 400 << 20


def _question(name: str) -> tuple[str, dict[str, object]]:
    if name.startswith("jquesnelle"):
        return "/v1/completions", {"prompt": "hi"}
    return "/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]}


def _complaints(answer: httpx.Response) -> list[str]:
    """What is wrong with an answer that ought to be an error, before or inside the stream."""
    text = answer.text
    found = [f"it shows {hidden!r}" for hidden in (SECRET, "127.0.0.1", "Traceback", "/srv/") if hidden in text]
    if answer.status_code == 200:
        events = [block.removeprefix("data: ") for block in text.split("\n\n") if block.startswith("data: ")]
        body = json.loads(events[-1]) if events and events[-1] != "[DONE]" else {}
    else:
        body = answer.json()
    error = body.get("error")
    if not isinstance(error, dict) or set(error) != {"message", "type", "param", "code"}:
        return [*found, f"no error: {answer.status_code} {text[:200]}"]
    return found if error["type"] == "server_error" else [*found, f"type {error['type']}"]
