"""What servers' documents describe, through a whole gateway: the client's stream is OpenAI's, or an error is one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.contract.test_described import CASES, Described
from tests.gateway_process import GatewayProcess, declared_key
from tests.unit.openai_schema import valid

KEY = "sk-test-user-0123456789abcdef"
#: Dialects of text alone take no tools.
ALL = {case.name: case for case in CASES if not case.asked.tool or case.dialect in ("openai_compatible", "ollama")}
PIECE = 11


async def _replay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One connection: `/<case>/...` answers that case, in small pieces."""
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            length = next((int(line.split(":")[1]) for line in head.split("\r\n") if line.startswith("content-length")), 0)
            await reader.readexactly(length)
            path = head.split(" ", 2)[1]
            if path.endswith("/apply-template"):
                writer.write(b'HTTP/1.1 200 OK\r\ncontent-length: 14\r\n\r\n{"prompt":"P"}')
                continue
            body = ALL[path.split("/")[1]].body.encode()
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
            for start in range(0, len(body), PIECE):
                piece = body[start : start + PIECE]
                writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            writer.write(b"0\r\n\r\n")
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
        pass
    finally:
        writer.close()


@asynccontextmanager
async def _upstream() -> AsyncIterator[int]:
    server = await asyncio.start_server(_replay, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


def _place(case: Described, port: int) -> dict[str, object]:
    place: dict[str, object] = {"dialect": case.dialect, "base_url": f"http://127.0.0.1:{port}/{case.name}", "model": "m"}
    return {**place, "params": "drop", **({"quirks": case.quirks} if case.quirks else {}), "options": case.options}


def _question(case: Described) -> dict[str, object]:
    asked: dict[str, object] = {"model": case.name, "messages": [{"role": "user", "content": "hi"}], "stream": True}
    asked["stream_options"] = {"include_usage": True}
    asked |= {"n": case.asked.n, "stop": list(case.asked.stop), "max_tokens": case.asked.max_tokens}
    if case.asked.tool:
        asked["tools"] = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    if case.asked.tool == "forced":
        asked["tool_choice"] = {"type": "function", "function": {"name": "f"}}
    return asked


async def test_every_described_answer_through_the_gateway(tmp_path: Path) -> None:
    async with _upstream() as port:
        tree = {
            "deployments": {name: _place(case, port) for name, case in ALL.items()},
            "models": {name: {"tiers": [[name]]} for name in ALL},
            "keys": {"declared": [declared_key("user", KEY)]},
        }
        wrong: list[str] = []
        with GatewayProcess(tmp_path, tree) as process:
            await asyncio.to_thread(process.start)
            async with httpx.AsyncClient(
                base_url=process.url, headers={"authorization": f"Bearer {KEY}"}, timeout=30
            ) as client:
                for name, case in ALL.items():
                    answer = await client.post("/v1/chat/completions", json=_question(case))
                    whole = _question(case) | {"stream": False}
                    del whole["stream_options"]
                    unary = await client.post("/v1/chat/completions", json=whole)
                    try:
                        _check(case, answer)
                        _check_whole(case, unary)
                    except (AssertionError, KeyError, IndexError, ValueError) as error:
                        wrong.append(f"{name}: {type(error).__name__}: {str(error)[:300]} {answer.text[:300]}")
        assert not wrong, "\n".join(wrong)


def _check(case: Described, answer: httpx.Response) -> None:
    events = [block.removeprefix("data: ") for block in answer.text.split("\n\n") if block.startswith("data: ")]
    if case.error is not None:
        assert answer.status_code in (200, case.error[0])
        whole = answer.json() if answer.status_code != 200 else json.loads(events[-1])
        valid("ErrorResponse", whole)
        error = whole["error"]
        assert case.error[1] == "*" or error["code"] == case.error[1]
        assert "[DONE]" not in events
        return
    assert answer.status_code == 200
    assert events.pop() == "[DONE]"
    chunks: list[dict[str, Any]] = [json.loads(event) for event in events]
    for one in chunks:
        valid("CreateChatCompletionStreamResponse", one)
    assert len({(one["id"], one["created"], one["object"], one["model"]) for one in chunks}) == 1
    texts: dict[str, str] = {}
    finishes: dict[str, str] = {}
    for one in (one for chunk in chunks for one in chunk["choices"]):
        index = str(one["index"])
        assert ("role" in one["delta"]) == (index not in texts)
        texts[index] = texts.get(index, "") + (one["delta"].get("content") or "")
        if one["finish_reason"] is not None:
            assert index not in finishes
            finishes[index] = one["finish_reason"]
    assert texts == (case.text if isinstance(case.text, dict) else {"0": case.text})
    assert finishes == (case.finish if isinstance(case.finish, dict) else {"0": case.finish})
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"]["total_tokens"] >= 0


def _check_whole(case: Described, answer: httpx.Response) -> None:
    """The fold of the same stream, or its error as a status."""
    if case.error is not None:
        assert answer.status_code == case.error[0]
        valid("ErrorResponse", answer.json())
        return
    assert answer.status_code == 200, answer.text[:300]
    body = answer.json()
    valid("CreateChatCompletionResponse", body)
    choices = {str(one["index"]): one for one in body["choices"]}
    assert {index: one["message"]["content"] or "" for index, one in choices.items()} == (
        case.text if isinstance(case.text, dict) else {"0": case.text}
    )
    assert {index: one["finish_reason"] for index, one in choices.items()} == (
        case.finish if isinstance(case.finish, dict) else {"0": case.finish}
    )
    calls = [(one["function"]["name"], one["function"]["arguments"]) for one in choices["0"]["message"].get("tool_calls", ())]
    assert calls == [tuple(one) for one in case.calls]
    assert choices["0"]["message"].get("reasoning_content", "") == case.reasoning
