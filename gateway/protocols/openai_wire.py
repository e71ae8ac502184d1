"""What clients of OpenAI's generation endpoints may send: one struct per body, its bounds in the types.

This is the declarative parameter table: a type's `Meta` is the range check (msgspec enforces it while decoding), and
the OpenAPI page is generated from the same structs. Unknown names are refused everywhere. Source: openai-openapi
(spec 2.3.0) and the parameters of openai-python 3.52; the local sampling parameters are llama.cpp's and vLLM's.

`IGNORED` parameters change no output here and are left out. Bounds that OpenAI does not state are ours.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

#: Most choices per prompt (`n`). OpenAI allows 128; one request must not fill every slot.
MAX_CHOICES = 16
#: Most prompts of one completion request, and most choices of one request in all.
MAX_PROMPTS = 128
MAX_MESSAGES = 2048
MAX_INPUTS = 2048
MAX_TOOLS = 128
#: No model's context is longer; what is over the context is refused by who knows it.
MAX_TOKENS = 1 << 24
MAX_GRAMMAR_CHARS = 1 << 16

#: Accepted from every client and left out: they choose price, storage, caching or bookkeeping at OpenAI, no output.
#: vLLM's `continuous_usage_stats` would repeat usage on every chunk: it is told once, at the end, as `include_usage` says.
IGNORED = (
    "metadata",
    "prediction",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
    "store",
    "stream_options.continuous_usage_stats",
    "stream_options.include_obfuscation",
    "user",
)
#: Known, but nothing here can honour them: refused unless null. `verbosity` and `modalities`: their default is fine.
REFUSED = ("audio", "function_call", "functions", "moderation", "web_search_options")

#: Kept as JSON bytes; UNSET when absent.
Json = Raw | UnsetType
ModelName = Annotated[str, Meta(min_length=1, max_length=256)]
Label = Annotated[str, Meta(max_length=512)]
TokenCount = Annotated[int, Meta(ge=1, le=MAX_TOKENS)]
TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Share = Annotated[float, Meta(ge=0, le=1)]
StopText = Annotated[str, Meta(max_length=256)]
Grammar = Annotated[str, Meta(min_length=1, max_length=MAX_GRAMMAR_CHARS)]
Choice = Annotated[list[Annotated[str, Meta(min_length=1, max_length=4096)]], Meta(min_length=1, max_length=1024)]
FunctionName = Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_.-]{1,64}(?![\s\S])")]


#: `logit_bias` and `metadata`, kept as JSON until their size is known: a million entries cost half a second to decode.
LogitBias = Annotated[dict[str, Annotated[float, Meta(ge=-100, le=100)]], Meta(max_length=300)]
Metadata = Annotated[dict[str, Annotated[str, Meta(max_length=512)]], Meta(max_length=16)]
MAX_SMALL_BYTES = 1 << 16


class Body(msgspec.Struct, frozen=True, gc=False, kw_only=True, forbid_unknown_fields=True):
    """What every client struct shares: unknown names are errors."""


class StreamOptions(Body, frozen=True, kw_only=True):
    """`stream_options`."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    continuous_usage_stats: bool | None = None


class GenerationBody(Body, frozen=True, kw_only=True):
    """What chat and plain completions have in common."""

    model: ModelName
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    max_tokens: TokenCount | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Share | None = None
    stop: StopText | Annotated[list[StopText], Meta(max_length=4)] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: Json = UNSET
    user: Label | None = None
    # Local sampling parameters; `repeat_penalty` and `n_predict` are llama.cpp's names of two that have another here.
    top_k: Annotated[int, Meta(ge=-1, le=1_000_000)] | None = None
    min_p: Share | None = None
    typical_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    repeat_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    repeat_last_n: Annotated[int, Meta(ge=-1, le=MAX_TOKENS)] | None = None
    n_predict: TokenCount | None = None
    mirostat: Annotated[int, Meta(ge=0, le=2)] | None = None
    mirostat_tau: Annotated[float, Meta(ge=0, le=100)] | None = None
    mirostat_eta: Share | None = None
    min_tokens: Annotated[int, Meta(ge=0, le=MAX_TOKENS)] | None = None
    ignore_eos: bool | None = None
    grammar: Grammar | None = None
    # vLLM's forms of the answer, and their older names.
    structured_outputs: Json = UNSET
    guided_json: Json = UNSET
    guided_grammar: Grammar | None = None
    guided_choice: Choice | None = None
    guided_regex: Grammar | None = None


class StructuredOutputs(Body, frozen=True, kw_only=True):
    """vLLM's `structured_outputs`; a structural tag is refused."""

    json: Json = UNSET
    grammar: Grammar | None = None
    choice: Choice | None = None
    regex: Grammar | None = None
    json_object: bool | None = None


class TextPart(Body, frozen=True, kw_only=True, tag_field="type", tag="text"):
    """A text content part."""

    text: str
    prompt_cache_breakpoint: Json = UNSET


class ImageUrl(Body, frozen=True, kw_only=True):
    """Where an image is: `data:` only, nothing is fetched."""

    url: str
    detail: Literal["auto", "low", "high", "original"] | None = None


class ImagePart(Body, frozen=True, kw_only=True, tag_field="type", tag="image_url"):
    """An image content part."""

    image_url: ImageUrl
    prompt_cache_breakpoint: Json = UNSET


class RefusalPart(Body, frozen=True, kw_only=True, tag_field="type", tag="refusal"):
    """A refusal that the assistant gave earlier."""

    refusal: str


class AudioPart(Body, frozen=True, kw_only=True, tag_field="type", tag="input_audio"):
    """Audio input: known and refused."""

    input_audio: Raw


class FilePart(Body, frozen=True, kw_only=True, tag_field="type", tag="file"):
    """File input: known and refused."""

    file: Raw


ContentPart = TextPart | ImagePart | RefusalPart | AudioPart | FilePart


class CalledFunction(Body, frozen=True, kw_only=True):
    """What an earlier assistant turn called; `arguments` is JSON text as the model wrote it."""

    name: Annotated[str, Meta(min_length=1, max_length=256)]
    arguments: str = ""


class PastCall(Body, frozen=True, kw_only=True):
    """A tool call of an earlier assistant turn. `index` is what an echoed stream delta carries."""

    id: Label
    function: CalledFunction
    type: Literal["function"] = "function"
    index: int | None = None


class ChatMessage(Body, frozen=True, kw_only=True):
    """One message. Answers of ours may be sent back whole, so their fields are all known."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | Annotated[list[ContentPart], Meta(min_length=1, max_length=MAX_MESSAGES)] | None = None
    name: Annotated[str, Meta(max_length=64)] | None = None
    tool_calls: Annotated[list[PastCall], Meta(max_length=MAX_TOOLS)] | None = None
    tool_call_id: Label | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    function_call: Json = UNSET
    audio: Json = UNSET
    annotations: Json = UNSET


class FunctionDef(Body, frozen=True, kw_only=True):
    """A function that may be called; `parameters` is a JSON schema, kept as it was written."""

    name: FunctionName
    description: str | None = None
    parameters: Json = UNSET
    strict: bool | None = None


class FunctionTool(Body, frozen=True, kw_only=True, tag_field="type", tag="function"):
    """A function tool."""

    function: FunctionDef


class CustomTool(Body, frozen=True, kw_only=True, tag_field="type", tag="custom"):
    """A custom (free-form) tool: known and refused."""

    custom: Raw


class NamedFunction(Body, frozen=True, kw_only=True):
    """A function by name."""

    name: FunctionName


class FunctionChoice(Body, frozen=True, kw_only=True, tag_field="type", tag="function"):
    """That one function must be called."""

    function: NamedFunction


class AllowedTool(Body, frozen=True, kw_only=True):
    """A tool by name."""

    function: NamedFunction
    type: Literal["function"] = "function"


class AllowedTools(Body, frozen=True, kw_only=True):
    """A subset of the tools, and whether one of them must be called."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[AllowedTool], Meta(min_length=1, max_length=MAX_TOOLS)]


class AllowedChoice(Body, frozen=True, kw_only=True, tag_field="type", tag="allowed_tools"):
    """Only these tools."""

    allowed_tools: AllowedTools


class CustomChoice(Body, frozen=True, kw_only=True, tag_field="type", tag="custom"):
    """A custom tool must be called: known and refused."""

    custom: Raw


class TextFormat(Body, frozen=True, kw_only=True, tag_field="type", tag="text"):
    """Plain text."""


class JsonObjectFormat(Body, frozen=True, kw_only=True, tag_field="type", tag="json_object"):
    """Any JSON object."""


class SchemaDef(Body, frozen=True, kw_only=True):
    """A named JSON schema for the answer."""

    name: FunctionName
    description: str | None = None
    schema: Json = UNSET
    strict: bool | None = None


class JsonSchemaFormat(Body, frozen=True, kw_only=True, tag_field="type", tag="json_schema"):
    """JSON that a schema describes."""

    json_schema: SchemaDef


class ChatBody(GenerationBody, frozen=True, kw_only=True):
    """POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Meta(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: TokenCount | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    tools: Annotated[list[FunctionTool | CustomTool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | FunctionChoice | AllowedChoice | CustomChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: TextFormat | JsonObjectFormat | JsonSchemaFormat | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    modalities: Annotated[list[Literal["text", "audio"]], Meta(min_length=1, max_length=2)] | None = None
    verbosity: Literal["low", "medium", "high"] | None = None
    metadata: Json = UNSET
    store: bool | None = None
    service_tier: Label | None = None
    safety_identifier: Label | None = None
    prompt_cache_key: Label | None = None
    prompt_cache_retention: Label | None = None
    prompt_cache_options: Json = UNSET
    prediction: Json = UNSET
    audio: Json = UNSET
    function_call: Json = UNSET
    functions: Json = UNSET
    moderation: Json = UNSET
    web_search_options: Json = UNSET


class CompletionBody(GenerationBody, frozen=True, kw_only=True):
    """POST /v1/completions. A missing or null prompt is the empty one."""

    prompt: str | Annotated[list[str | TokenId | list[TokenId]], Meta(min_length=1)] | None = None
    suffix: str | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Meta(ge=0, le=5)] | None = None
    best_of: Annotated[int, Meta(ge=0, le=20)] | None = None


class EmbeddingBody(Body, frozen=True, kw_only=True):
    """POST /v1/embeddings."""

    model: ModelName
    input: (
        Annotated[str, Meta(min_length=1)]
        | Annotated[
            list[Annotated[str, Meta(min_length=1)] | TokenId | Annotated[list[TokenId], Meta(min_length=1)]],
            Meta(min_length=1),
        ]
    )
    dimensions: Annotated[int, Meta(ge=1, le=1 << 16)] | None = None
    encoding_format: Literal["float", "base64"] | None = None
    user: Label | None = None
