"""Anthropic's Messages API as a backend: `/v1/messages`, requests.

Source: PyPI anthropic 2.12.0 (types, 2026). `base_url` is the API's root, without `/v1`; the credential goes into
`x-api-key`. Answers are read in `anthropic_answers`.

Known limits: one choice a request; a temperature above 1 is refused, as is a seed; `reasoning_effort` becomes
`output_config.effort` with adaptive thinking, which older models do not know; reasoning of earlier turns is left out,
because it comes without the signature that the API wants.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from backends.core.capabilities import Capabilities
from backends.core.contracts import NO_HEADERS, Decoder, UpstreamRequest
from backends.core.errors import BackendError, BadRequest, UnsupportedParameter
from backends.core.request import GenerationRequest, ImageInput, Job, Message, Part, Prompt, Text, Tool
from backends.dialects.anthropic_answers import MessagesDecoder
from backends.dialects.plain_prompts import generation
from backends.parsing import failures
from backends.wire.json_body import json_body

VERSION = "2023-06-01"
CAPABILITIES: Capabilities = frozenset({
    *("chat", "max_tokens", "temperature", "top_p", "top_k", "stop", "tools", "tool_choice", "parallel_tool_calls"),
    *("reasoning_effort", "response_format.json_schema", "image_url", "needs_output_cap"),
})  # fmt: skip
_EFFORT = {"minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "xhigh", "max": "max"}
_CHOICES = {"auto": "auto", "required": "any", "none": "none", "function": "tool"}
_ANY_INPUT = msgspec.Raw(b'{"type":"object"}')


class Anthropic:
    """The dialect."""

    name = "anthropic"
    needs_prompt = False
    capabilities = CAPABILITIES

    def encode(self, job: Job, prompts: Sequence[Prompt] = ()) -> UpstreamRequest:
        """The request for a job.

        Raises:
            UnsupportedParameter: embeddings, a plain prompt, or a temperature above 1.
            BadRequest: an earlier tool call's arguments are no JSON object, or no turn is left to answer.
        """
        job = generation(job)
        if prompts or job.prompts:
            raise UnsupportedParameter(f"The model {job.model!r} takes messages, not prompts, here.", param="prompt")
        system = "\n\n".join(one.text for one in job.messages if one.role in ("system", "developer") and one.text)
        turns = _turns(job.messages)
        if not turns:
            raise BadRequest("There must be a message that is not a system message.", param="messages")
        body: dict[str, object] = {"model": job.model, "messages": turns, "stream": job.stream}
        if system:
            body["system"] = system
        self._sampling(job, body)
        self._output(job, body)
        if job.tools:
            body["tools"] = [_tool(one) for one in job.tools]
            if choice := _choice(job):
                body["tool_choice"] = choice
        headers = {"content-type": "application/json", "anthropic-version": VERSION}
        return UpstreamRequest("POST", "/v1/messages", headers, json_body(body))

    def decoder(self, job: Job, prompts: Sequence[Prompt] = (), headers: Mapping[str, str] = NO_HEADERS) -> Decoder:
        """A fresh decoder of a 2xx response's body."""
        return MessagesDecoder()

    def failure(self, status: int, headers: Mapping[str, str], body: bytes) -> BackendError:
        """The error that a non-2xx response stands for."""
        said = failures.envelope(body)
        if said.type == "not_found_error" and said.message.startswith("model:"):
            said = msgspec.structs.replace(said, code="model_not_found")
        return failures.verdict(status, said, failures.retry_after_ms(headers))

    def _sampling(self, job: GenerationRequest, body: dict[str, object]) -> None:
        sampling = job.sampling
        if sampling.temperature is not None and sampling.temperature > 1:
            raise UnsupportedParameter(f"The model {job.model!r} takes temperatures from 0 to 1 here.", param="temperature")
        for name in ("max_tokens", "temperature", "top_p"):
            if (value := getattr(sampling, name)) is not None:
                body[name] = value
        if sampling.top_k:
            body["top_k"] = sampling.top_k
        if sampling.stop:
            body["stop_sequences"] = list(sampling.stop)

    def _output(self, job: GenerationRequest, body: dict[str, object]) -> None:
        config: dict[str, object] = {}
        if job.output.kind == "json_schema":
            config["format"] = {"type": "json_schema", "schema": job.output.schema}
        if job.reasoning_effort == "none":
            body["thinking"] = {"type": "disabled"}
        elif job.reasoning_effort is not None:
            body["thinking"] = {"type": "adaptive"}
            config["effort"] = _EFFORT.get(job.reasoning_effort, job.reasoning_effort)
        if config:
            body["output_config"] = config


def _turns(messages: Sequence[Message]) -> list[dict[str, object]]:
    """User and assistant turns by turns: what one side says in a row, tool results among it, is one turn."""
    turns: list[tuple[str, list[dict[str, object]]]] = []
    for message in messages:
        if message.role in ("system", "developer"):
            continue
        role = "assistant" if message.role == "assistant" else "user"
        blocks = _blocks(message)
        if not blocks:
            continue
        if turns and turns[-1][0] == role:
            turns[-1][1].extend(blocks)
        else:
            turns.append((role, blocks))
    return [{"role": role, "content": blocks} for role, blocks in turns]


def _blocks(message: Message) -> list[dict[str, object]]:
    said = [_block(part) for part in message.parts if not isinstance(part, Text) or part.text]
    if message.role == "tool":
        result: dict[str, object] = {"type": "tool_result", "tool_use_id": message.tool_call_id}
        if said:
            result["content"] = said
        return [result]
    if message.refusal:
        said.append({"type": "text", "text": message.refusal})
    return said + [
        {"type": "tool_use", "id": call.id, "name": call.name, "input": _arguments(call.arguments)}
        for call in message.tool_calls
    ]


def _block(part: Part) -> dict[str, object]:
    if isinstance(part, Text):
        return {"type": "text", "text": part.text}
    return {"type": "image", "source": _source(part)}


def _source(image: ImageInput) -> dict[str, object]:
    if not image.url.startswith("data:"):
        return {"type": "url", "url": image.url}
    kind, found, data = image.url.removeprefix("data:").partition(";base64,")
    if not found:
        raise UnsupportedParameter("Images in `data:` URLs must be base64 here.", param="messages")
    return {"type": "base64", "media_type": kind, "data": data}


def _arguments(text: str) -> dict[str, object]:
    """Arguments as the object that the API wants: read, never pasted, for the text is the client's."""
    try:
        value = msgspec.json.decode(text or "{}")
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise BadRequest("The arguments of a tool call must be a JSON object.", param="messages")
    return value


def _tool(tool: Tool) -> dict[str, object]:
    schema = tool.parameters if bytes(tool.parameters).strip() not in (b"", b"{}") else _ANY_INPUT
    wire: dict[str, object] = {"name": tool.name, "input_schema": schema}
    if tool.description:
        wire["description"] = tool.description
    if tool.strict is not None:
        wire["strict"] = tool.strict
    return wire


def _choice(job: GenerationRequest) -> dict[str, object]:
    choice = job.tool_choice
    mode = choice.mode if choice is not None else "auto"
    wire: dict[str, object] = {"type": _CHOICES[mode]}
    if choice is not None and mode == "function":
        wire["name"] = choice.name
    if job.parallel_tool_calls is False and mode != "none":
        wire["disable_parallel_tool_use"] = True
    return wire if choice is not None or len(wire) > 1 else {}
