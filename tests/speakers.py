"""One upstream that speaks four wire languages, each under a path of its own, by one script: for clients' own libraries.

Paths: `/openai/v1`, `/ollama`, `/anthropic`, and `/tgi/MODEL`, as TGI is told no model. The model's name says what it
does: `json` answers an object, `endless` never stops, `fail-CODE` answers that status, `cut` closes in mid-stream, `mute`
says nothing; any other says four words, or calls the first tool that it is offered. `open` counts streams that somebody
still reads.
"""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

WORDS = ["Wörter ", "in ", "vier ", "Teilen 🌍"]
OBJECT = '{"city": "Paris", "people": 2100000}'
ARGUMENTS = {"a": 1, "b": 2}
VECTOR = [0.6, 0.8, 0.0]
INPUT_TOKENS = 7

Body = dict[str, Any]


class Cut(Exception):
    """Ends a stream without its terminator."""


class Speakers:
    """The upstream's state: what was asked, and how many streams are read."""

    def __init__(self) -> None:
        self.port = 0
        self.open = 0
        self.seen: list[tuple[str, Body]] = []

    @property
    def url(self) -> str:
        """`http://127.0.0.1:PORT`."""
        return f"http://127.0.0.1:{self.port}"

    def application(self) -> Starlette:
        """Every route."""
        routes: list[tuple[str, Callable[[Body], Response]]] = [
            ("/openai/v1/chat/completions", self._openai),
            ("/openai/v1/embeddings", self._openai_vectors),
            ("/ollama/api/chat", self._ollama),
            ("/ollama/api/embed", self._ollama_vectors),
            ("/anthropic/v1/messages", self._anthropic),
            ("/tgi/{model}/generate", self._tgi),
            ("/tgi/{model}/generate_stream", self._tgi_stream),
        ]
        return Starlette(routes=[Route(path, self._route(answer), methods=["POST"]) for path, answer in routes])

    def _route(self, answer: Callable[[Body], Response]) -> Callable[[Request], Any]:
        async def asked(request: Request) -> Response:
            body = {**await request.json(), **request.path_params}
            model = body["model"]
            self.seen.append((request.url.path, body))
            if model == "mute":
                await asyncio.sleep(60)
            if model.startswith("fail-"):
                status = int(model.removeprefix("fail-"))
                error = {"type": "scripted", "message": f"scripted {status}"}
                return JSONResponse({"error": error if "anthropic" in request.url.path else error["message"]}, status)
            return answer(body)

        return asked

    def _stream(self, pieces: Iterator[str], media_type: str, pause_s: float = 0.0) -> StreamingResponse:
        async def body() -> AsyncIterator[str]:
            self.open += 1
            try:
                for piece in pieces:
                    yield piece
                    await asyncio.sleep(pause_s)
            except Cut:
                raise ConnectionAbortedError("cut, as the script says") from None
            finally:
                self.open -= 1

        return StreamingResponse(body(), media_type=media_type)

    def _openai(self, body: Body) -> Response:
        call = _call(body)
        name, usage = body["model"], {"prompt_tokens": INPUT_TOKENS, "completion_tokens": 4, "total_tokens": INPUT_TOKENS + 4}
        function = {"name": call, "arguments": json.dumps(ARGUMENTS)}
        if not body.get("stream"):
            message: Body = {"role": "assistant", "content": None if call else "".join(_words(name))}
            if call:
                message["tool_calls"] = [{"id": "call_up", "type": "function", "function": function}]
            choice = {"index": 0, "message": message, "finish_reason": "tool_calls" if call else "stop"}
            return JSONResponse({"id": "x", "object": "chat.completion", "created": 1, "model": name, "choices": [choice],
                                 "usage": usage})  # fmt: skip

        def chunk(delta: Body, finish: str | None = None) -> str:
            choice = {"index": 0, "delta": delta, "finish_reason": finish}
            return _sse({"id": "x", "object": "chat.completion.chunk", "created": 1, "model": name, "choices": [choice]})

        def pieces() -> Iterator[str]:
            yield chunk({"role": "assistant", "content": ""})
            if call:
                yield chunk({"tool_calls": [{"index": 0, "id": "call_up", "type": "function",
                                             "function": {"name": call, "arguments": ""}}]})  # fmt: skip
                for part in _parts(json.dumps(ARGUMENTS)):
                    yield chunk({"tool_calls": [{"index": 0, "function": {"arguments": part}}]})
            else:
                yield from (chunk({"content": word}) for word in _words(name))
            yield chunk({}, "tool_calls" if call else "stop")
            yield _sse(
                {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": name, "choices": [], "usage": usage}
            )
            yield "data: [DONE]\n\n"

        return self._stream(pieces(), "text/event-stream", _pause(name))

    def _openai_vectors(self, body: Body) -> Response:
        inputs = body["input"] if isinstance(body["input"], list) else [body["input"]]
        short = body.get("encoding_format") == "base64"
        vector: Any = base64.b64encode(struct.pack("<3f", *VECTOR)).decode() if short else VECTOR
        data = [{"object": "embedding", "index": n, "embedding": vector} for n in range(len(inputs))]
        usage = {"prompt_tokens": len(inputs), "total_tokens": len(inputs)}
        return JSONResponse({"object": "list", "data": data, "model": body["model"], "usage": usage})

    def _ollama(self, body: Body) -> Response:
        call = _call(body)
        end = {"model": body["model"], "message": {"role": "assistant", "content": ""}, "done": True, "done_reason": "stop",
               "prompt_eval_count": INPUT_TOKENS, "eval_count": 4}  # fmt: skip
        calls = [{"function": {"name": call, "arguments": ARGUMENTS}}]

        def record(message: Body) -> Body:
            return {"model": body["model"], "message": {"role": "assistant", "content": "", **message}, "done": False}

        def pieces() -> Iterator[str]:
            said = [record({"tool_calls": calls})] if call else (record({"content": word}) for word in _words(body["model"]))
            yield from (json.dumps(one) + "\n" for one in said)
            yield json.dumps(end) + "\n"

        if body.get("stream"):
            return self._stream(pieces(), "application/x-ndjson", _pause(body["model"]))
        message = {"tool_calls": calls} if call else {"content": "".join(_words(body["model"]))}
        return JSONResponse({**record(message), **{name: end[name] for name in end if name != "message"}})

    def _ollama_vectors(self, body: Body) -> Response:
        inputs = body["input"] if isinstance(body["input"], list) else [body["input"]]
        return JSONResponse({"model": body["model"], "embeddings": [VECTOR] * len(inputs), "prompt_eval_count": len(inputs)})

    def _anthropic(self, body: Body) -> Response:
        call = _call(body)
        block: Body = {"type": "tool_use", "id": "toolu_up", "name": call, "input": ARGUMENTS} if call else {"type": "text"}
        reason, usage = "tool_use" if call else "end_turn", {"input_tokens": INPUT_TOKENS, "output_tokens": 4}
        message = {"id": "msg_up", "type": "message", "role": "assistant", "model": body["model"], "content": [],
                   "stop_reason": None, "stop_sequence": None, "usage": {**usage, "output_tokens": 1}}  # fmt: skip
        if not body.get("stream"):
            said = block if call else {**block, "text": "".join(_words(body["model"]))}
            return JSONResponse({**message, "content": [said], "stop_reason": reason, "usage": usage})

        def event(kind: str, **fields: Any) -> str:
            return f"event: {kind}\n" + _sse({"type": kind, **fields})

        def pieces() -> Iterator[str]:
            yield event("message_start", message=message)
            empty = {**block, "input": {}} if call else {**block, "text": ""}
            yield event("content_block_start", index=0, content_block=empty)
            if call:
                deltas = [{"type": "input_json_delta", "partial_json": part} for part in _parts(json.dumps(ARGUMENTS))]
                yield from (event("content_block_delta", index=0, delta=delta) for delta in deltas)
            else:
                for word in _words(body["model"]):
                    yield event("content_block_delta", index=0, delta={"type": "text_delta", "text": word})
            yield event("content_block_stop", index=0)
            yield event("message_delta", delta={"stop_reason": reason, "stop_sequence": None}, usage=usage)
            yield event("message_stop")

        return self._stream(pieces(), "text/event-stream", _pause(body["model"]))

    def _tgi(self, body: Body) -> Response:
        details = {"finish_reason": "eos_token", "generated_tokens": 4, "seed": None, "prefill": [], "tokens": []}
        told = {"x-prompt-tokens": str(INPUT_TOKENS), "x-generated-tokens": "4"}
        return JSONResponse({"generated_text": "".join(_tgi_words(body)), "details": details}, headers=told)

    def _tgi_stream(self, body: Body) -> Response:
        def pieces() -> Iterator[str]:
            number, text = 0, ""
            for number, word in enumerate(_tgi_words(body), 1):
                text += word
                token = {"id": number, "text": word, "logprob": -0.1, "special": False}
                yield _sse({"index": number, "token": token, "generated_text": None, "details": None})
            details = {"finish_reason": "eos_token", "generated_tokens": 4, "seed": None, "input_length": INPUT_TOKENS}
            token = {"id": 0, "text": "</s>", "logprob": -0.1, "special": True}
            yield _sse({"index": number + 1, "token": token, "generated_text": text, "details": details})

        return self._stream(pieces(), "text/event-stream", _pause(body["model"]))


def _call(body: Body) -> str:
    """The tool to call; "" = none."""
    tools = body.get("tools") or []
    if not tools or any(message["role"] == "tool" or _is_result(message) for message in body["messages"]):
        return ""
    return str(tools[0].get("name") or tools[0]["function"]["name"])


def _is_result(message: Body) -> bool:
    content = message.get("content")
    return isinstance(content, list) and any(part.get("type") == "tool_result" for part in content)


def _words(model: str) -> Iterator[str]:
    if model == "json":
        yield from _parts(OBJECT)
    elif model == "cut":
        yield WORDS[0]
        raise Cut
    elif model == "endless":
        while True:
            yield "la "
    else:
        yield from WORDS


def _tgi_words(body: Body) -> Iterator[str]:
    if "<tools>" in body["inputs"] and "<tool_response>" not in body["inputs"]:
        return iter(_parts('<tool_call>\n{"name": "add", "arguments": ' + json.dumps(ARGUMENTS) + "}\n</tool_call>"))
    return _words(body["model"])


def _parts(text: str) -> list[str]:
    return [text[at : at + 5] for at in range(0, len(text), 5)]


def _pause(model: str) -> float:
    return 0.02 if model == "endless" else 0.0


def _sse(value: Body) -> str:
    return f"data: {json.dumps(value)}\n\n"


@asynccontextmanager
async def speakers() -> AsyncIterator[Speakers]:
    """The running upstream on a free port of 127.0.0.1; for `tests.upstream.in_thread`."""
    upstream = Speakers()
    config = uvicorn.Config(upstream.application(), host="127.0.0.1", port=0, log_level="critical", lifespan="off", ws="none")
    server = uvicorn.Server(config)
    async with asyncio.TaskGroup() as group:
        serving = group.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        upstream.port = server.servers[0].sockets[0].getsockname()[1]
        try:
            yield upstream
        finally:
            server.should_exit = server.force_exit = True
            await serving
