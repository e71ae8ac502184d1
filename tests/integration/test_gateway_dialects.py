"""Every fixture through a whole gateway: the client sees OpenAI's schema, whatever its deployment speaks.

One upstream replays the fixtures' bodies, cut where they say; each has a model and a deployment of its own.
"""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.contract.cases import FIXTURES, Case, cases, cut
from tests.gateway_process import GatewayProcess, declared_key
from tests.unit.openai_schema import valid

KEY = "sk-test-user-0123456789abcdef"
NAMES = sorted(folder.name for folder in FIXTURES.iterdir() if any(folder.glob("*/case.json")))
ALL = {f"{name}.{case.id}": (name, case) for name in NAMES for case in cases(name)}


#: Of a whole answer and of a stream's chunk, by endpoint.
_SCHEMAS = {
    "/v1/chat/completions": ("CreateChatCompletionResponse", "CreateChatCompletionStreamResponse"),
    "/v1/completions": ("CreateCompletionResponse", "CreateCompletionChunk"),
    "/v1/embeddings": ("CreateEmbeddingResponse", ""),
}


def _with_float_vectors(body: dict[str, Any]) -> dict[str, Any]:
    """The schema knows vectors of numbers only; base64 is what SDKs ask for."""
    if body["object"] != "list":
        return body
    floats = [{**one, "embedding": [0.0] if isinstance(one["embedding"], str) else one["embedding"]} for one in body["data"]]
    return {**body, "data": floats}


async def _replay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One connection: `/<name>.<case>/...` answers that case."""
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            length = next((int(line.split(":")[1]) for line in head.split("\r\n") if line.startswith("content-length")), 0)
            await reader.readexactly(length)
            path = head.split(" ", 2)[1]
            if path.endswith("/apply-template"):
                writer.write(b'HTTP/1.1 200 OK\r\ncontent-length: 14\r\n\r\n{"prompt":"P"}')
                continue
            _, case = next(found for id, found in ALL.items() if id.lower() == path.split("/")[1])
            upstream = case.upstream
            lines = "".join(f"{name}: {value}\r\n" for name, value in upstream["headers"].items())
            writer.write(f"HTTP/1.1 {upstream['status']} X\r\n{lines}transfer-encoding: chunked\r\n\r\n".encode())
            for piece in cut(case.body, upstream["splits"]):
                if piece:
                    writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                    await writer.drain()
                    await asyncio.sleep(0)
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


def _deployment(id: str, name: str, case: Case, port: int) -> dict[str, object]:
    entry: dict[str, object] = {"dialect": name, "params": "drop", "model": case.client_request["model"]}
    root = f"http://127.0.0.1:{port}/{id}"
    own_root = name in ("openai_compatible", "chinese_alpaca", "jquesnelle") and case.quirks != "mesolitica"
    entry["base_url"] = f"{root}/v1" if own_root else root
    if case.quirks:
        entry["quirks"] = case.quirks
    if case.options:
        entry["options"] = case.options
    return entry


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield tmp_path_factory.mktemp("gateway")


async def test_every_fixture_through_the_gateway(folder: Path) -> None:
    async with _upstream() as port:
        tree = {
            "deployments": {id: _deployment(id, name, case, port) for id, (name, case) in ALL.items()},
            "models": {id: {"tiers": [[id]]} for id in ALL},
            "keys": {"declared": [declared_key("user", KEY)]},
        }
        wrong: list[str] = []
        with GatewayProcess(folder, tree) as process:
            await asyncio.to_thread(process.start)
            headers = {"authorization": f"Bearer {KEY}"}
            async with httpx.AsyncClient(base_url=process.url, headers=headers, timeout=30) as client:
                for id, (_, case) in ALL.items():
                    try:
                        answer = await client.post(case.endpoint, json={**case.client_request, "model": id})
                        _check(case, answer)
                    except (AssertionError, KeyError, IndexError, TypeError, ValueError) as error:
                        wrong.append(f"{id}: {type(error).__name__}: {str(error)[:300]}")
        assert not wrong, "\n".join(wrong)


def _check(case: Case, answer: httpx.Response) -> None:
    expect = case.expect
    assert answer.status_code == expect["status"], answer.text[:200]
    if expect["status"] != 200:
        _check_error(case, answer.json())
        return
    if expect["stream"]:
        _check_stream(case, answer.text)
        return
    body = answer.json()
    valid(_SCHEMAS[case.endpoint][0], _with_float_vectors(body))
    if "embedding" in expect:
        vector = body["data"][0]["embedding"]
        if case.client_request.get("encoding_format") == "base64":
            vector = list(struct.unpack(f"<{len(expect['embedding'])}f", base64.b64decode(vector)))
        assert vector == expect["embedding"]
        return
    choices = {one["index"]: one for one in body["choices"]}
    said = {n: (one["message"]["content"] or "") if "message" in one else one["text"] for n, one in choices.items()}
    _check_texts(case, said, {n: one["finish_reason"] for n, one in choices.items()})
    _check_usage(case, body["usage"])


def _check_error(case: Case, body: dict[str, Any]) -> None:
    valid("ErrorResponse", body)
    error = body["error"]
    assert error["type"] == case.expect["error_type"]
    if case.expect["error_code"] is not None:
        assert error["code"] == case.expect["error_code"]
    for hidden in ("127.0.0.1", "Traceback", "/x/", *case.expect.get("error_message_excludes", ())):
        assert hidden not in error["message"]


def _check_stream(case: Case, text: str) -> None:
    expect = case.expect
    events = [block.removeprefix("data: ") for block in text.split("\n\n") if block.startswith("data: ")]
    failed = expect["error_type"] is not None
    if failed:
        _check_error(case, json.loads(events.pop()))
    else:
        assert events.pop() == "[DONE]"
    assert "[DONE]" not in events
    chunks = [json.loads(event) for event in events]
    for chunk in chunks:
        valid(_SCHEMAS[case.endpoint][1], chunk)
    assert len({(one["id"], one["created"], one["object"], one["model"]) for one in chunks}) <= 1
    texts: dict[int, str] = {}
    finishes: dict[int, str | None] = {}
    for one in (one for chunk in chunks for one in chunk["choices"]):
        part = one["delta"].get("content") if "delta" in one else one["text"]
        texts[one["index"]] = texts.get(one["index"], "") + (part or "")
        if one["finish_reason"] is not None:
            assert one["index"] not in finishes
            finishes[one["index"]] = one["finish_reason"]
    if not failed:
        _check_texts(case, texts, finishes)
    elif isinstance(expect["text"], str):
        assert texts.get(0, "") == expect["text"]
    asked = (case.client_request.get("stream_options") or {}).get("include_usage", False)
    assert any(chunk.get("usage") for chunk in chunks) == (asked and not failed)
    if asked and not failed:
        assert chunks[-1]["choices"] == []
        _check_usage(case, chunks[-1]["usage"])


def _check_texts(case: Case, texts: dict[int, str], finishes: dict[int, str | None]) -> None:
    expect = case.expect
    if isinstance(expect["text"], dict):
        assert {str(n): one for n, one in texts.items()} == expect["text"]
        assert {str(n): one for n, one in finishes.items()} == expect["finish_reason"]
    elif expect["text"] is not None:
        assert texts == {0: expect["text"]}
        assert finishes == {0: expect["finish_reason"]}


def _check_usage(case: Case, usage: dict[str, Any]) -> None:
    if case.expect["usage"]:
        assert {name: usage[name] for name in case.expect["usage"]} == case.expect["usage"]
    else:
        assert usage["prompt_tokens"] >= 0 and usage["completion_tokens"] >= 0
