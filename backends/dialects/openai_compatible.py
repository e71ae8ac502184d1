"""Any server that speaks OpenAI's `/chat/completions`, `/completions` and `/embeddings`, and Jina's `/rerank` beside them.

Source: openai-openapi spec 2.3.0 (2026-08-21); what servers do differently is data (`Quirks`), one line each in
`backends.dialects.server_quirks`, read in the servers' sources at the versions named there. `base_url` ends in `/v1`.

Unary jobs go upstream unary: what an answer costs, and which limits apply, may differ between the two forms at paid
services. Both give the same events, and a body is read by what it is, not by what was asked. Streams always ask for
usage where the server knows `stream_options`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Literal

import msgspec

from backends.core.capabilities import OPENAI_SAMPLING, Capabilities
from backends.core.contracts import NO_HEADERS, Decoder, UpstreamRequest
from backends.core.errors import BackendError
from backends.core.request import (
    EmbeddingRequest,
    GenerationRequest,
    ImageInput,
    Job,
    Message,
    Output,
    Part,
    Prompt,
    RerankRequest,
    Sampling,
    Text,
    Tool,
)
from backends.dialects.openai_answers import GenerationDecoder
from backends.dialects.openai_embeddings import embedding_decoder
from backends.dialects.rerank_answers import rerank_body, rerank_decoder
from backends.parsing import failures
from backends.wire.json_body import json_body

#: What OpenAI's own API takes.
OPENAI = OPENAI_SAMPLING | {
    *("chat", "completions", "embeddings", "dimensions", "token_input", "n", "tools", "tool_choice", "parallel_tool_calls"),
    *("response_format.json_object", "response_format.json_schema", "reasoning_effort", "logprobs", "suffix", "image_url"),
}
_JSON: Mapping[str, str] = {"content-type": "application/json"}


class Quirks(msgspec.Struct, frozen=True):
    """How one kind of server differs from OpenAI's own.

    Attributes:
        adds, lacks: capabilities beyond, and missing from, OpenAI's.
        spelling: our sampling names to its own; "" = it has none, never sent.
        chat_cap: its name of the output cap in chat (completions always say `max_tokens`).
        terminator: its clean end of a stream. `done`: `[DONE]`; `finish`: every choice's finish_reason, then close;
            `close`: close alone.
        stream_usage: it knows `stream_options.include_usage`.
        developer_role: it knows the role; else it becomes `system`.
        string_content: message text must be one string, never a list of parts.
        reasoning_field: where an earlier turn's reasoning goes; "" = it is not sent.
        logit_bias: a map from token id, or a list of [id, bias] pairs.
        named_tool: how one tool is forced. `object`: OpenAI's form; `only`: send that tool alone, and `required`.
        schema_field: where a bare JSON schema (without the name that `json_schema` requires) goes.
        grammar_field, choice_field, regex_field: where a GBNF grammar, the texts of a choice (nowhere: as a grammar), and a
            regular expression goes; within `response_format` it is a type of its own.
        open_top_p: `top_p` must be below 1; 1 means the same as leaving it out.
        base64_vectors: it can answer `encoding_format: base64`.
        whole_calls: each piece with a function name is a tool call of its own.
        cut_stops: it leaves the stop string in the text, or does not stop at all; with ("stop", "") it is not told of them.
        eos_texts: special tokens that it shows as text before the finish reason `eos_token`.
        usage_per_choice: with several choices it tells usage for each, and for one only when not streamed; so it is asked
            to stream whenever there are several.
        by_line: it ends its events with one newline instead of two.
        infer_length: where its finish reason does not tell `length` from `stop`.
        token_chunks: each chunk of a stream that has text is one token.
        least_top_logprobs: without so many alternatives it tells no logprobs at all.
        tokenizes: it can be asked to `tokenize` the prompt; a whole answer then lists its ids as `promptToken`.
    """

    name: str
    adds: frozenset[str] = frozenset()
    lacks: frozenset[str] = frozenset()
    spelling: tuple[tuple[str, str], ...] = ()
    chat_cap: Literal["max_completion_tokens", "max_tokens"] = "max_tokens"
    terminator: Literal["done", "finish", "close"] = "done"
    stream_usage: bool = True
    developer_role: bool = False
    string_content: bool = False
    reasoning_field: str = ""
    logit_bias: Literal["map", "pairs"] = "map"
    named_tool: Literal["object", "only"] = "object"
    schema_field: tuple[str, ...] = ("response_format",)
    grammar_field: tuple[str, ...] = ()
    choice_field: tuple[str, ...] = ()
    regex_field: tuple[str, ...] = ()
    open_top_p: bool = False
    base64_vectors: bool = False
    whole_calls: bool = False
    cut_stops: bool = False
    eos_texts: tuple[str, ...] = ()
    usage_per_choice: bool = False
    by_line: bool = False
    infer_length: Literal["", "completions", "always"] = ""
    token_chunks: bool = False
    least_top_logprobs: int = 0
    tokenizes: bool = False


class OpenAIOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is asked of a server beside the client's wishes. `tokenize`: the prompt's token ids, which count the prompt
    where the server's usage does not.
    """

    tokenize: bool = False


class OpenAICompatible:
    """The dialect, with one server's quirks."""

    name = "openai_compatible"
    needs_prompt = False

    def __init__(self, quirks: Quirks, options: OpenAIOptions | None = None) -> None:
        """Raises ValueError: an option that this kind of server does not know."""
        self.quirks = quirks
        self._options = options or OpenAIOptions()
        if self._options.tokenize and not quirks.tokenizes:
            raise ValueError(f"the quirks {quirks.name!r} know no option 'tokenize'")
        self._spelling = {ours: ours for ours in Sampling.__struct_fields__} | dict(quirks.spelling)

    @property
    def capabilities(self) -> Capabilities:
        """What this kind of server can do."""
        return (OPENAI | self.quirks.adds) - self.quirks.lacks

    def encode(self, job: Job, prompts: Sequence[Prompt] = ()) -> UpstreamRequest:
        """The request for a job. `prompts`, where given, take the place of the job's own conversation."""
        if not isinstance(job, GenerationRequest):
            if isinstance(job, RerankRequest):
                return UpstreamRequest("POST", "/rerank", _JSON, json_body(rerank_body(job)))
            return UpstreamRequest("POST", "/embeddings", _JSON, json_body(self._embedding(job)))
        prompts = prompts or job.prompts
        stream = job.stream or (self.quirks.usage_per_choice and job.choices > 1)
        body: dict[str, object] = {"model": job.model, "stream": stream}
        if stream and self.quirks.stream_usage:
            body["stream_options"] = {"include_usage": True}
        if prompts:
            inputs = [list(one.tokens) if one.tokens is not None else one.text for one in prompts]
            body["prompt"] = inputs[0] if len(inputs) == 1 else inputs
            if job.suffix:
                body["suffix"] = job.suffix
            if job.top_logprobs is not None:
                body["logprobs"] = max(self.quirks.least_top_logprobs, job.top_logprobs)
        else:
            body["messages"] = [encode_message(message, self.quirks) for message in job.messages]
            if job.tools:
                self._tools(job, body)
            if job.top_logprobs is not None:
                body["logprobs"] = True
                body["top_logprobs"] = max(self.quirks.least_top_logprobs, job.top_logprobs)
        self._sampling(job, "max_tokens" if prompts else self.quirks.chat_cap, body)
        if job.output.kind != "text":
            self._output(job.output, body)
        if job.n > 1:
            body["n"] = job.n
        if job.reasoning_effort is not None:
            body["reasoning_effort"] = job.reasoning_effort
        if self._options.tokenize and not stream:
            body["tokenize"] = True
        path = "/completions" if prompts else "/chat/completions"
        return UpstreamRequest("POST", path, _JSON, json_body(body))

    def decoder(self, job: Job, prompts: Sequence[Prompt] = (), headers: Mapping[str, str] = NO_HEADERS) -> Decoder:
        """A fresh decoder of a 2xx response's body."""
        if isinstance(job, GenerationRequest):
            return GenerationDecoder(job, self.quirks)
        return rerank_decoder(job) if isinstance(job, RerankRequest) else embedding_decoder(job)

    def failure(self, status: int, headers: Mapping[str, str], body: bytes) -> BackendError:
        """The error that a non-2xx response stands for."""
        return failures.failure(status, headers, body)

    def _embedding(self, job: EmbeddingRequest) -> dict[str, object]:
        body: dict[str, object] = {
            "model": job.model,
            "input": [list(one.tokens) if one.tokens is not None else one.text for one in job.inputs],
            "encoding_format": "base64" if self.quirks.base64_vectors else "float",
        }
        if job.dimensions is not None:
            body["dimensions"] = job.dimensions
        return body

    def _sampling(self, job: GenerationRequest, cap: str, body: dict[str, object]) -> None:
        for ours, value in job.sampling.stated().items():
            if ours == "max_tokens":
                body[cap] = value
            elif ours == "logit_bias":
                body[ours] = value if self.quirks.logit_bias == "pairs" else {str(id): bias for id, bias in value}
            elif (theirs := self._spelling[ours]) and not (ours == "top_p" and value >= 1 and self.quirks.open_top_p):
                body[theirs] = value

    def _output(self, output: Output, body: dict[str, object]) -> None:
        if output.kind == "json_object":
            body["response_format"] = {"type": "json_object"}
        elif output.choices and self.quirks.choice_field:
            _put(body, self.quirks.choice_field, list(output.choices))
        elif output.kind == "grammar":
            _put(body, self.quirks.grammar_field, output.grammar)
        elif output.kind == "regex":
            _put(body, self.quirks.regex_field, output.grammar)
        elif output.kind == "json_schema" and not output.name and self.quirks.schema_field != ("response_format",):
            _put(body, self.quirks.schema_field, output.schema)
        elif output.kind == "json_schema":
            schema: dict[str, object] = {"name": output.name or "answer", "schema": output.schema}
            if output.strict is not None:
                schema["strict"] = output.strict
            body["response_format"] = {"type": "json_schema", "json_schema": schema}

    def _tools(self, job: GenerationRequest, body: dict[str, object]) -> None:
        choice = job.tool_choice
        tools = job.tools
        if choice is not None and choice.mode == "function":
            if self.quirks.named_tool == "only":
                tools = tuple(tool for tool in tools if tool.name == choice.name)
                body["tool_choice"] = "required"
            else:
                body["tool_choice"] = {"type": "function", "function": {"name": choice.name}}
        elif choice is not None:
            body["tool_choice"] = choice.mode
        body["tools"] = [encode_tool(tool) for tool in tools]
        if job.parallel_tool_calls is not None:
            body["parallel_tool_calls"] = job.parallel_tool_calls


_beside = attrgetter("name", "tool_calls", "tool_call_id", "refusal", "reasoning")
_NOTHING_BESIDE = _beside(Message("user"))


def encode_message(message: Message, quirks: Quirks) -> dict[str, object]:
    """A message as OpenAI writes it, null-free."""
    role = "system" if message.role == "developer" and not quirks.developer_role else message.role
    wire: dict[str, object] = {"role": role}
    parts = message.parts
    if len(parts) == 1 and type(parts[0]) is Text:
        wire["content"] = parts[0].text
    elif all(isinstance(part, Text) for part in parts) and (not parts or quirks.string_content):
        if parts or not (message.tool_calls or message.refusal):
            wire["content"] = message.text
    else:
        wire["content"] = [_part(part) for part in parts]
    if _beside(message) == _NOTHING_BESIDE:  # nearly all
        return wire
    if message.name:
        wire["name"] = message.name
    if message.tool_calls:
        wire["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    if message.tool_call_id:
        wire["tool_call_id"] = message.tool_call_id
    if message.refusal:
        wire["refusal"] = message.refusal
    if message.reasoning and quirks.reasoning_field:
        wire[quirks.reasoning_field] = message.reasoning
    return wire


def _put(body: dict[str, object], path: tuple[str, ...], value: object) -> None:
    """Set a value at a path of keys; an empty path means that the server has no place for it."""
    if path[:1] == ("response_format",):
        body["response_format"] = {"type": path[1], path[1]: value}
        return
    for key in reversed(path):
        value = {key: value}
    if path and isinstance(value, dict):
        body.update(value)


def _part(part: Part) -> dict[str, object]:
    if isinstance(part, ImageInput):
        return {"type": "image_url", "image_url": {"url": part.url, "detail": part.detail}}
    return {"type": "text", "text": part.text}


def encode_tool(tool: Tool) -> dict[str, object]:
    """A tool as OpenAI writes it, its schema untouched."""
    function: dict[str, object] = {"name": tool.name, "parameters": tool.parameters}
    if tool.description:
        function["description"] = tool.description
    if tool.strict is not None:
        function["strict"] = tool.strict
    return {"type": "function", "function": function}
