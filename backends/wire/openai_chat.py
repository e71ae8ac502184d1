"""The OpenAI wire, as upstreams answer it: chat, completions and embeddings. Only the fields that are read.

Source: openai-openapi spec 2.3.0 (2026-08-21). Everything is optional because servers leave out what they like; what
one server shapes differently from the next (`usage`, `error`, `logprobs`, `arguments`) stays raw until it is needed.
"""

from __future__ import annotations

from typing import Any

import msgspec

EMPTY = msgspec.Raw(b"")


class FunctionPiece(msgspec.Struct, gc=False):
    """A function's name and a fragment of its arguments: a JSON string, or an object (Ollama, TGI <= 3.0)."""

    name: str | None = None
    arguments: msgspec.Raw = EMPTY


class ToolCallPiece(msgspec.Struct, gc=False):
    """A fragment of a tool call; `index` numbers the call within its choice."""

    index: int | None = None
    id: str | None = None
    function: FunctionPiece | None = None


class Delta(msgspec.Struct, gc=False):
    """What a choice says: a stream's `delta` or a whole answer's `message`.

    Reasoning is `reasoning` (vLLM >= 0.12), `reasoning_content` (others) or `thinking` (what speaks as Ollama does).
    `function_call` is what older servers answer with instead of `tool_calls`.
    """

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    thinking: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolCallPiece] | None = None
    function_call: FunctionPiece | None = None


class ChoicePiece(msgspec.Struct, gc=False):
    """One choice of a chunk or of a whole answer; `text` in completions. `usage`: where Moonshot AI tells it."""

    index: int = 0
    delta: Delta | None = None
    message: Delta | None = None
    text: str | None = None
    finish_reason: str | None = None
    logprobs: msgspec.Raw = EMPTY
    usage: msgspec.Raw = EMPTY


class Chunk(msgspec.Struct, gc=False):
    """One event of a stream, or a whole answer. `choices` is None when the key is absent: not a chunk, then.

    `prompt_token`: the prompt's token ids, from llama.cpp's old proxy where it was asked to `tokenize`.
    """

    choices: list[ChoicePiece] | None = None
    model: str | None = None
    usage: msgspec.Raw = EMPTY
    error: msgspec.Raw = EMPTY
    prompt_token: msgspec.Raw = msgspec.field(name="promptToken", default=EMPTY)


class UsageWire(msgspec.Struct, gc=False):
    """What an answer cost, in counts of any shape: `input_tokens` and `output_tokens` stand where the others are not given."""

    prompt_tokens: Any = msgspec.UNSET
    input_tokens: Any = None
    completion_tokens: Any = msgspec.UNSET
    output_tokens: Any = 0
    prompt_tokens_details: Any = None
    completion_tokens_details: Any = None


class CandidateWire(msgspec.Struct, gc=False):
    """A token with its logprob. `bytes` is null where the server does not know it."""

    token: str
    logprob: float
    bytes: list[int] | None = None


class TokenWire(msgspec.Struct, gc=False):
    """A generated token and its alternatives."""

    token: str
    logprob: float
    bytes: list[int] | None = None
    top_logprobs: list[CandidateWire] | None = None


class LogprobsWire(msgspec.Struct, gc=False):
    """Both forms: chat's `content`, or the parallel lists of legacy completions (`top_logprobs` by token text).

    llama.cpp's `/v1/completions` uses chat's form.
    """

    content: list[TokenWire] | None = None
    tokens: list[str] | None = None
    token_logprobs: list[float | None] | None = None
    top_logprobs: list[dict[str, float] | None] | None = None


class EmbeddingPiece(msgspec.Struct, gc=False):
    """One vector: floats, or base64 of float32 little-endian."""

    embedding: str | list[float]
    index: int = 0


class EmbeddingList(msgspec.Struct, gc=False):
    """The answer of `/embeddings`."""

    data: list[EmbeddingPiece] | None = None
    model: str | None = None
    usage: msgspec.Raw = EMPTY
    error: msgspec.Raw = EMPTY
