"""Formosa Foundation Model on AFS (TWCC): `/models/conversation` and `/models/generate`.

Source: docs.twcc.ai, "AFS ModelSpace" (conversation and generation APIs, 2024). `base_url` ends before `/models`. The
user's role is `human`; the credential goes into `X-API-KEY`. The OpenAI-like routes of the same service are
`openai_compatible`.

Tools go as `functions`, and come back as `function_call`, in the form that OpenAI's API had in 2023; with the option
`tool_form: tools` they go as `tools`, for models that know those. Both forms of an answer are read.

Known limits: not tried against the service, whose stream framing, errors and tools are documented only in part; a call
cannot be forced, and `functions` make one call a turn; one prompt and one choice a request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from backends.core.capabilities import Capabilities
from backends.core.contracts import NO_HEADERS, Decoder, UpstreamRequest
from backends.core.errors import BackendError
from backends.core.events import FinishReason
from backends.core.request import GenerationRequest, Job, Message, Prompt
from backends.dialects.openai_compatible import encode_tool
from backends.dialects.openai_details import read_arguments
from backends.dialects.plain_prompts import generation, one_prompt
from backends.dialects.text_answers import Called, Form, Piece, TextDecoder
from backends.parsing import failures
from backends.wire.json_body import json_body

CAPABILITIES: Capabilities = frozenset(
    {"chat", "completions", "max_tokens", "temperature", "top_p", "top_k", "stop", "seed", "frequency_penalty"}
    | {"needs_output_cap", "tools"}
)
_HEADERS: Mapping[str, str] = {"content-type": "application/json", "x-api-host": "afs-inference"}
_NAMES = {
    "max_tokens": "max_new_tokens", "top_p": "top_p", "seed": "seed",
    "frequency_penalty": "frequence_penalty",  # the service's own spelling
}  # fmt: skip
_ROLES = {"user": "human", "developer": "system"}
_FINISH: Mapping[str, FinishReason] = {"length": "length"}
_EMPTY = msgspec.Raw(b"")


class FfmOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What must be known of a model of the service. `tool_form`: how tools go to it."""

    tool_form: Literal["functions", "tools"] = "functions"


class _Function(msgspec.Struct, gc=False):
    name: str = ""
    arguments: msgspec.Raw = _EMPTY


class _Call(msgspec.Struct, gc=False):
    function: _Function | None = None
    id: str = ""


class _Record(msgspec.Struct, gc=False):
    generated_text: str | None = None
    prompt_tokens: int | None = None
    generated_tokens: int | None = None
    finish_reason: str | None = None
    function_call: _Function | None = None
    tool_calls: list[_Call] | None = None


_read = msgspec.json.Decoder(_Record, strict=False).decode


class Ffm:
    """The dialect."""

    name = "ffm"
    needs_prompt = False
    capabilities = CAPABILITIES

    def __init__(self, options: FfmOptions | None = None) -> None:
        self._as_tools = options is not None and options.tool_form == "tools"

    def encode(self, job: Job, prompts: Sequence[Prompt] = ()) -> UpstreamRequest:
        """The request for a job.

        Raises:
            UnsupportedParameter: embeddings, several prompts or token ids.
        """
        job = generation(job)
        sampling = job.sampling
        parameters = {theirs: value for ours, theirs in _NAMES.items() if (value := getattr(sampling, ours)) is not None}
        if sampling.top_k:
            parameters["top_k"] = sampling.top_k
        if sampling.temperature == 0:  # must be above 0; one candidate is the same
            parameters["top_k"] = 1
        elif sampling.temperature is not None:
            parameters["temperature"] = sampling.temperature
        if sampling.stop:
            parameters["stop_sequences"] = list(sampling.stop)
        body: dict[str, object] = {"model": job.model, "parameters": parameters, "stream": job.stream}
        if prompts or job.prompts:
            body["inputs"] = one_prompt(job, prompts).text
        else:
            body["messages"] = [wire for one in job.messages for wire in self._messages(one, job.messages)]
            if job.tools and (job.tool_choice is None or job.tool_choice.mode != "none"):
                tools = [encode_tool(tool) for tool in job.tools]
                body["tools" if self._as_tools else "functions"] = (
                    tools if self._as_tools else [tool["function"] for tool in tools]
                )
        path = "/models/generate" if "inputs" in body else "/models/conversation"
        return UpstreamRequest("POST", path, _HEADERS, json_body(body))

    def _messages(self, message: Message, turns: Sequence[Message]) -> list[dict[str, object]]:
        """A turn as the service writes it; several where it calls several functions, which have a turn each."""
        plain: dict[str, object] = {"role": _ROLES.get(message.role, message.role), "content": message.text}
        if self._as_tools:
            if message.tool_calls:
                plain["tool_calls"] = [
                    {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                    for call in message.tool_calls
                ]
            if message.tool_call_id:
                plain["tool_call_id"] = message.tool_call_id
            return [plain]
        if message.role == "tool":
            names = {call.id: call.name for turn in turns for call in turn.tool_calls}
            return [{"role": "function", "name": names.get(message.tool_call_id, message.name), "content": message.text}]
        return [
            {**plain, "function_call": {"name": call.name, "arguments": call.arguments}} for call in message.tool_calls
        ] or [plain]

    def decoder(self, job: Job, prompts: Sequence[Prompt] = (), headers: Mapping[str, str] = NO_HEADERS) -> Decoder:
        """A fresh decoder of a 2xx response's body."""
        return TextDecoder(generation(job), _FORM)

    def failure(self, status: int, headers: Mapping[str, str], body: bytes) -> BackendError:
        """The error that a non-2xx response stands for."""
        return failures.failure(status, headers, body)


def _event(data: bytes, job: GenerationRequest) -> Sequence[Piece] | None:
    record = _read(data)
    calls = _calls(record)
    if record.generated_text is None and not calls:
        return None
    return [
        Piece(
            record.generated_text or "",
            finished=bool(record.finish_reason),
            reason=_FINISH.get(record.finish_reason, "stop") if record.finish_reason else None,
            calls=calls,
            input_tokens=record.prompt_tokens or 0,
            output_tokens=record.generated_tokens or 0,
        )
    ]


def _calls(record: _Record) -> tuple[Called, ...]:
    found = [(call.id, call.function) for call in record.tool_calls or () if call.function is not None]
    if not found and record.function_call is not None:
        found = [("", record.function_call)]
    return tuple(Called(id, one.name, read_arguments(one.arguments) or "{}") for id, one in found if one.name)


def _quick(data: bytes) -> str:
    record = _read(data)
    if record.function_call is not None or record.tool_calls:
        return ""
    return "" if record.finish_reason or record.prompt_tokens or record.generated_tokens else record.generated_text or ""


def _answer(data: bytes, job: GenerationRequest) -> Sequence[Piece] | None:
    """The oldest answers have no finish reason."""
    pieces = _event(data, job)
    for piece in pieces or ():
        piece.finished = True
    return pieces


_FORM = Form(_event, _answer, terminator="finish", quick=_quick)
