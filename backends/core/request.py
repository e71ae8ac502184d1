"""Neutral work: what a client asks, free of any wire format. All values are immutable.

`Job` is the union of the kinds of work. The protocol that parsed a request has checked types and ranges; a dialect
or an engine may rely on them.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

Role = Literal["system", "developer", "user", "assistant", "tool"]


class Text(msgspec.Struct, frozen=True, gc=False, tag="text"):
    """A piece of message text."""

    text: str


class ImageInput(msgspec.Struct, frozen=True, gc=False, tag="image"):
    """An image given by reference (`data:` or, where fetching is allowed, `https:`)."""

    url: str
    detail: str = "auto"


Part = Text | ImageInput


class ToolCall(msgspec.Struct, frozen=True, gc=False):
    """A call that an earlier assistant turn made. `arguments` is JSON text."""

    id: str
    name: str
    arguments: str


class Message(msgspec.Struct, frozen=True, gc=False):
    """One turn of a conversation."""

    role: Role
    parts: tuple[Part, ...] = ()
    name: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    reasoning: str = ""
    refusal: str = ""

    @property
    def text(self) -> str:
        """All text parts, joined."""
        return "".join(part.text for part in self.parts if isinstance(part, Text))


class Tool(msgspec.Struct, frozen=True, gc=False):
    """A function that the model may call. `parameters` is a JSON schema as JSON bytes (never re-ordered)."""

    name: str
    description: str = ""
    parameters: msgspec.Raw = msgspec.Raw(b"{}")
    strict: bool | None = None


class ToolChoice(msgspec.Struct, frozen=True, gc=False):
    """`name` is set when `mode` is `function`: that tool must be called."""

    mode: Literal["none", "auto", "required", "function"] = "auto"
    name: str = ""


class Output(msgspec.Struct, frozen=True, gc=False):
    """The form that the answer must take. `schema` is JSON bytes, `grammar` is GBNF or, of the kind `regex`, a regular
    expression. `choices`: the texts of which the answer is one, where the grammar says nothing else: some backends take them
    as they are. `asked_as`: the client's parameter, "" = `response_format`.
    """

    kind: Literal["text", "json_object", "json_schema", "grammar", "regex"] = "text"
    name: str = ""
    schema: msgspec.Raw = msgspec.Raw(b"")
    strict: bool | None = None
    grammar: str = ""
    choices: tuple[str, ...] = ()
    asked_as: str = ""


class Sampling(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """How tokens are chosen. None: not stated by the client, left to the backend's default.

    `max_tokens` is the effective output cap per choice (the larger of `max_tokens` and `max_completion_tokens`, or
    ours when the client stated none; `Call.options.stated_cap` tells which).
    """

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()
    # beyond OpenAI's own, as local backends know them
    top_k: int | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float | None = None
    repeat_last_n: int | None = None
    mirostat: int | None = None
    mirostat_tau: float | None = None
    mirostat_eta: float | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None

    def stated(self) -> dict[str, Any]:
        """What is not left to the backend, by name; a stated 0 or False is stated. One call into C: every request asks."""
        values: dict[str, Any] = msgspec.to_builtins(self)
        return values


class Prompt(msgspec.Struct, frozen=True, gc=False):
    """A finished prompt: text, or token ids when `tokens` is not None. `count`: a text's tokens, 0 = not known."""

    text: str = ""
    tokens: tuple[int, ...] | None = None
    count: int = 0


class GenerationRequest(msgspec.Struct, frozen=True, gc=False, tag="generation"):
    """Generate text. A conversation has `messages`; a plain completion has `prompts`, never both.

    Choice numbers: `prompt_index * n + sample_index`; so there are max(1, len(prompts)) * n choices.
    `top_logprobs`: None = no logprobs asked; 0..20 = alternatives per token.
    `parallel_tool_calls`, `reasoning_effort`: None = not stated.
    """

    model: str
    messages: tuple[Message, ...] = ()
    prompts: tuple[Prompt, ...] = ()
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    sampling: Sampling = Sampling()
    output: Output = Output()
    reasoning_effort: str | None = None
    n: int = 1
    top_logprobs: int | None = None
    suffix: str = ""
    stream: bool = False

    @property
    def choices(self) -> int:
        """How many choices the answer has."""
        return (len(self.prompts) or 1) * self.n

    @property
    def images(self) -> int:
        """How many images the conversation has."""
        return len([part for message in self.messages for part in message.parts if type(part) is ImageInput])


class EmbeddingRequest(msgspec.Struct, frozen=True, gc=False, tag="embedding"):
    """Embed each input. `dimensions`: None = the model's own width."""

    model: str
    inputs: tuple[Prompt, ...]
    dimensions: int | None = None


class RerankRequest(msgspec.Struct, frozen=True, gc=False, tag="rerank"):
    """Score each document by how well it answers the query: one `Score` a document, in any order."""

    model: str
    query: str
    documents: tuple[str, ...]


Job = GenerationRequest | EmbeddingRequest | RerankRequest
