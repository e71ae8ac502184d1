"""Ollama in its own words: `/api/chat`, `/api/generate` (raw) and `/api/embed`, NDJSON.

Source: ollama docs/api.md, api/types.go, server/routes.go at fb30760 (2026-08-21). `base_url` is the server's root.

Known limits: tool calls come whole, sometimes without ids, and `done_reason` stays `stop`; `prompt_eval_count` is
absent when the prompt was cached whole (then the gateway counts); one prompt and one choice a request; images as
`data:` URLs only; a forced tool is not known; releases before the end of 2025 ignore `logprobs` (take the capability away).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from backends.core.capabilities import OPENAI_SAMPLING, Capabilities
from backends.core.contracts import NO_HEADERS, Decoder, UpstreamRequest
from backends.core.errors import BackendError, BadRequest, UnsupportedParameter
from backends.core.events import FinishReason
from backends.core.request import EmbeddingRequest, GenerationRequest, ImageInput, Job, Message, Prompt
from backends.core.usage import ABSURD, Usage
from backends.dialects.openai_compatible import encode_tool
from backends.dialects.openai_details import read_arguments, token_logprobs
from backends.dialects.plain_prompts import generation
from backends.dialects.text_answers import Called, Form, Piece, TextDecoder
from backends.dialects.vector_answers import Vectors, vector_decoder
from backends.parsing import failures
from backends.parsing.failures import Envelope
from backends.parsing.vectors import pack
from backends.wire.json_body import json_body
from backends.wire.openai_chat import TokenWire

_OPTIONS = {
    "max_tokens": "num_predict", "temperature": "temperature", "top_p": "top_p", "stop": "stop", "seed": "seed",
    "presence_penalty": "presence_penalty", "frequency_penalty": "frequency_penalty", "top_k": "top_k", "min_p": "min_p",
    "typical_p": "typical_p", "repetition_penalty": "repeat_penalty", "repeat_last_n": "repeat_last_n",
}  # fmt: skip
CAPABILITIES: Capabilities = (OPENAI_SAMPLING | frozenset(_OPTIONS) | {
    *("chat", "completions", "embeddings", "dimensions", "tools", "suffix", "reasoning_effort", "image_url", "logprobs"),
    *("response_format.json_object", "response_format.json_schema"),
}) - {"logit_bias"}  # fmt: skip
_THINK: Mapping[str, bool | str] = {"none": False, "low": "low", "medium": "medium", "high": "high"}
_FINISH: Mapping[str, FinishReason] = {"length": "length"}
_EMPTY = msgspec.Raw(b"")
_UNREADABLE = (ValueError, RecursionError)


class _Function(msgspec.Struct, gc=False):
    name: str
    arguments: msgspec.Raw = _EMPTY


class _Call(msgspec.Struct, gc=False):
    function: _Function
    id: str | None = None


class _Message(msgspec.Struct, gc=False):
    content: str | None = None
    thinking: str | None = None
    tool_calls: list[_Call] | None = None


class _Record(msgspec.Struct, gc=False):
    """A line. `message` in chats, `response` in generations."""

    model: str = ""
    message: _Message | None = None
    response: str | None = None
    thinking: str | None = None
    done: bool = False
    done_reason: str = ""
    prompt_eval_count: int = 0
    eval_count: int = 0
    error: msgspec.Raw = _EMPTY
    logprobs: list[TokenWire] | None = None


class _Embedded(msgspec.Struct, gc=False):
    embeddings: list[list[float]]
    model: str = ""
    prompt_eval_count: int = 0


_read = msgspec.json.Decoder(_Record, strict=False).decode
_read_embedded = msgspec.json.Decoder(_Embedded, strict=False).decode


class Ollama:
    """The dialect."""

    name = "ollama"
    needs_prompt = False
    capabilities = CAPABILITIES

    def encode(self, job: Job, prompts: Sequence[Prompt] = ()) -> UpstreamRequest:
        """The request for a job.

        Raises:
            UnsupportedParameter: several prompts, or an image that is no `data:` URL.
            BadRequest: an earlier tool call's arguments are no JSON object.
        """
        if isinstance(job, EmbeddingRequest):
            wanted: dict[str, object] = {"model": job.model, "input": [one.text for one in job.inputs]}
            if job.dimensions is not None:
                wanted["dimensions"] = job.dimensions
            return _post("/api/embed", wanted)
        job = generation(job)
        prompts = prompts or job.prompts
        if len(prompts) > 1:
            raise UnsupportedParameter(f"The model {job.model!r} takes one prompt at a time here.", param="prompt")
        body: dict[str, object] = {"model": job.model, "stream": job.stream}
        if prompts:
            body["prompt"] = prompts[0].text
            body["raw"] = True
            if job.suffix:
                body["suffix"] = job.suffix
                body["raw"] = False  # the model's template places the suffix
        else:
            body["messages"] = _messages(job.messages)
            if job.tools and (job.tool_choice is None or job.tool_choice.mode != "none"):
                body["tools"] = [encode_tool(tool) for tool in job.tools]
        options = {
            theirs: value for ours, theirs in _OPTIONS.items() if (value := getattr(job.sampling, ours)) not in (None, ())
        }
        if options:
            body["options"] = options
        if job.output.kind == "json_object":
            body["format"] = "json"
        elif job.output.kind == "json_schema":
            body["format"] = job.output.schema
        if job.top_logprobs is not None:
            body["logprobs"] = True
            if job.top_logprobs:
                body["top_logprobs"] = job.top_logprobs
        if job.reasoning_effort is not None:
            body["think"] = _THINK.get(job.reasoning_effort, True)
        return _post("/api/generate" if prompts else "/api/chat", body)

    def decoder(self, job: Job, prompts: Sequence[Prompt] = (), headers: Mapping[str, str] = NO_HEADERS) -> Decoder:
        """A fresh decoder of a 2xx response's body."""
        if isinstance(job, EmbeddingRequest):
            return vector_decoder(job, _vectors)
        return TextDecoder(generation(job), _FORM)

    def failure(self, status: int, headers: Mapping[str, str], body: bytes) -> BackendError:
        """The error that a non-2xx response stands for."""
        return failures.failure(status, headers, body)


def _post(path: str, body: Mapping[str, object]) -> UpstreamRequest:
    return UpstreamRequest("POST", path, {"content-type": "application/json"}, json_body(body))


def _messages(messages: Sequence[Message]) -> list[dict[str, object]]:
    names = {call.id: call.name for message in messages for call in message.tool_calls}
    return [_message(message, names) for message in messages]


def _message(message: Message, names: Mapping[str, str]) -> dict[str, object]:
    wire: dict[str, object] = {"role": "system" if message.role == "developer" else message.role, "content": message.text}
    images: list[str] = []
    for part in message.parts:
        if isinstance(part, ImageInput):
            head, found, data = part.url.partition(";base64,")
            if not found or not head.startswith("data:"):
                raise UnsupportedParameter("Images must be given as base64 `data:` URLs here.", param="messages")
            images.append(data)
    if images:
        wire["images"] = images
    if message.reasoning:
        wire["thinking"] = message.reasoning
    if message.tool_calls:
        wire["tool_calls"] = [
            {"function": {"name": call.name, "arguments": _arguments(call.arguments)}} for call in message.tool_calls
        ]
    if name := message.name or names.get(message.tool_call_id, ""):
        wire["tool_name"] = name
    return wire


def _arguments(text: str) -> dict[str, object]:
    """Arguments as the object that Ollama wants: read, never pasted, for the text is the client's."""
    try:
        value = msgspec.json.decode(text or "{}")
    except _UNREADABLE:
        value = None
    if not isinstance(value, dict):
        raise BadRequest("The arguments of a tool call must be a JSON object.", param="messages")
    return value


def _line(data: bytes, job: GenerationRequest) -> Sequence[Piece] | Envelope | None:
    record = _read(data)
    if record.error is not _EMPTY and bytes(record.error) not in (b'""', b"null"):
        return None
    if record.done and not record.done_reason:
        return failures.Envelope("done without a reason: the runner went away", "incomplete_generation")
    message = record.message or _Message(record.response, record.thinking)
    return [
        Piece(
            message.content or "",
            finished=record.done,
            reason=_FINISH.get(record.done_reason, "stop"),
            input_tokens=record.prompt_eval_count,
            output_tokens=record.eval_count,
            logprobs=token_logprobs(record.logprobs or (), job.top_logprobs) if job.top_logprobs is not None else (),
            model=record.model,
            nothing_ran=record.done_reason in ("load", "unload"),
            reasoning=message.thinking or "",
            calls=tuple(
                Called(call.id or "", call.function.name, read_arguments(call.function.arguments) or "{}")
                for call in message.tool_calls or ()
            ),
        )
    ]


def _quick(data: bytes) -> str:
    record = _read(data)
    if record.done or record.error is not _EMPTY or record.thinking:
        return ""
    if (message := record.message) is None:
        return record.response or ""
    return "" if message.thinking or message.tool_calls else message.content or ""


def _vectors(body: bytes) -> Vectors:
    answer = _read_embedded(body)
    usage = Usage(answer.prompt_eval_count, 0) if 0 < answer.prompt_eval_count < ABSURD else None
    return Vectors({index: pack(vector) for index, vector in enumerate(answer.embeddings)}, answer.model, usage)


_FORM = Form(_line, _line, terminator="finish", lines=True, quick=_quick)
