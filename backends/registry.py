"""The one place that asks "which dialect, which quirks, which engine?".

Engines are named as strings, `module:Class`: a worker never imports one. Sources of the quirks, read 2026-11-21:
vLLM 0.33 wheel, llama.cpp server as vendored in llama-cpp-python 0.3.36, Ollama fb30760, text-generation-inference
db931fc, SGLang 0.5.23, transformers 5.23, LocalAI 2026-08, LMDeploy 0.18, FastChat 0.2.36, Triton server e1db8a6
(`python/openai`), TensorRT-LLM 2026 (`trtllm-serve`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import msgspec

from backends.core.capabilities import LOCAL_SAMPLING, OPENAI_SAMPLING, Capabilities
from backends.core.contracts import Dialect
from backends.dialects import llamacpp, tei, tgi
from backends.dialects.anthropic import Anthropic
from backends.dialects.chinese_alpaca import AlpacaOptions, ChineseAlpaca
from backends.dialects.ffm import Ffm
from backends.dialects.jquesnelle import Jquesnelle
from backends.dialects.lightllm import LightLlm
from backends.dialects.llamacpp import LlamaCpp
from backends.dialects.ollama import Ollama
from backends.dialects.openai_compatible import OpenAICompatible, Quirks
from backends.dialects.sglang import LmDeploy, Sglang, SglangOptions
from backends.dialects.tei import Tei, TeiOptions
from backends.dialects.tgi import Tgi
from backends.dialects.triton import Triton, TritonOptions
from backends.engines.options import EngineLoadFailed, read_options
from backends.engines.transformers import sampling as transformers_sampling
from backends.engines.transformers.settings import TransformersOptions
from backends.engines.vllm import arguments as vllm_arguments
from backends.engines.vllm import sampling as vllm_sampling
from backends.engines.vllm.settings import VllmOptions
from backends.parsing.think import THINK_TAGS, Tags
from backends.parsing.toolcalls.families import TOOL_SYNTAXES
from backends.parsing.toolcalls.machine import Syntax
from backends.remote.inspecting import Inspection
from backends.remote.listing import Listing
from backends.remote.rendering import PromptServer

_TOOLS = frozenset({"tools", "tool_choice", "parallel_tool_calls"})
_NO_SUFFIX = frozenset({"suffix", "reasoning_effort"})
#: What servers of text alone lack: tools, forms of output, several choices, embeddings, images, token ids.
_TEXT_ONLY = (
    _TOOLS
    | _NO_SUFFIX
    | {"n", "logprobs", "embeddings", "dimensions", "token_input", "image_url"}
    | {"response_format.json_object", "response_format.json_schema"}
)
#: Of servers whose own default ends an answer after a few tokens.
_CAPPED = frozenset({"needs_output_cap"})
_LLAMA = LOCAL_SAMPLING - {"min_tokens"}
_EOS_TEXTS = ("</s>", "<|im_end|>", "<|eot_id|>", "<|end_of_text|>", "<|endoftext|>", "<|end|>", "<end_of_turn>")

_QUIRKS = (
    # OpenAI's own API, and what answers like it.
    Quirks("openai", chat_cap="max_completion_tokens", developer_role=True, base64_vectors=True),
    # An OpenAI-like server of which nothing is known but that it is older than `max_completion_tokens`.
    Quirks("generic", lacks=_NO_SUFFIX, string_content=True),
    # `guided_*` is silently ignored since 0.12; `reasoning` was `reasoning_content`.
    Quirks(
        "vllm",
        adds=frozenset({"top_k", "min_p", "repetition_penalty", "min_tokens", "ignore_eos", "grammar"}),
        chat_cap="max_completion_tokens",
        reasoning_field="reasoning",
        schema_field=("structured_outputs", "json"),
        grammar_field=("structured_outputs", "grammar"),
        base64_vectors=True,
    ),
    # llama.cpp's `/v1`: best_of and suffix must not even be present; logit_bias pairs work on all versions; the object
    # form of tool_choice is not read; with n > 1 or several prompts usage is each choice's own (seen in xllamacpp).
    Quirks(
        "llamacpp",
        adds=_LLAMA | {"grammar"},
        lacks=_NO_SUFFIX | {"dimensions"},
        spelling=(("repetition_penalty", "repeat_penalty"), ("min_tokens", "")),
        reasoning_field="reasoning_content",
        logit_bias="pairs",
        named_tool="only",
        grammar_field=("grammar",),
        base64_vectors=True,
        usage_per_choice=True,
    ),
    # Ollama's `/v1`; prefer the native dialect: here an error in mid-stream is lost upstream.
    Quirks(
        "ollama",
        lacks=frozenset({"n", "logit_bias", "tool_choice", "parallel_tool_calls", "token_input", "logprobs"}),
        reasoning_field="reasoning",
        whole_calls=True,
    ),
    # TGI's Messages API: presence_penalty would become a repetition_penalty, n is ignored, a stream of a tool call may
    # end without finish_reason, `/v1/completions` shows special tokens.
    Quirks(
        "tgi",
        lacks=_NO_SUFFIX | {"presence_penalty", "logit_bias", "n", "embeddings", "token_input", "parallel_tool_calls"},
        spelling=(("presence_penalty", ""), ("repetition_penalty", "")),
        open_top_p=True,
        cut_stops=True,
        eos_texts=_EOS_TEXTS,
    ),
    Quirks(
        "sglang",
        adds=frozenset({"top_k", "min_p", "repetition_penalty", "min_tokens", "ignore_eos", "grammar"}),
        lacks=frozenset({"suffix"}),
        reasoning_field="reasoning_content",
        grammar_field=("ebnf",),
    ),
    # No `[DONE]`; unknown fields are refused, but known ones ignored with a line in its log: response_format,
    # presence_penalty, n and more; frequency_penalty becomes a repetition_penalty. Usage comes unasked on the last chunk.
    # Stop strings end the text and stay in it.
    Quirks(
        "transformers",
        lacks=_NO_SUFFIX
        | {"n", "logit_bias", "logprobs", "embeddings", "token_input", "parallel_tool_calls", "tool_choice"}
        | {"presence_penalty", "frequency_penalty", "response_format.json_object", "response_format.json_schema"},
        spelling=(("frequency_penalty", ""), ("presence_penalty", "")),
        terminator="finish",
        stream_usage=False,
        cut_stops=True,
    ),
    Quirks(
        "localai",
        adds=_LLAMA | {"grammar"},
        lacks=_NO_SUFFIX | {"logprobs", "token_input"},
        spelling=(("repetition_penalty", "repeat_penalty"), ("min_tokens", "")),
        grammar_field=("grammar",),
    ),
    Quirks(
        "lmdeploy",
        adds=frozenset({"top_k", "min_p", "repetition_penalty", "ignore_eos", "min_tokens"}),
        lacks=_NO_SUFFIX | {"embeddings", "token_input"},
        spelling=(("min_tokens", "min_new_tokens"),),
        reasoning_field="reasoning_content",
    ),
    # No usage in streams; errors are 400 with a five-digit code.
    Quirks(
        "fastchat",
        adds=frozenset({"top_k"}),
        lacks=_NO_SUFFIX | _TOOLS | {"logit_bias", "response_format.json_object", "response_format.json_schema", "seed"},
        stream_usage=False,
    ),
    # Triton's own OpenAI frontend: completions always say `stop`.
    Quirks(
        "triton",
        lacks=_NO_SUFFIX | {"n", "logit_bias", "response_format.json_object", "response_format.json_schema", "logprobs"},
        infer_length="completions",
    ),
    # `extra="forbid"`: nothing may be sent that it does not know.
    Quirks(
        "trtllm",
        adds=frozenset({"top_k", "min_p", "repetition_penalty", "min_tokens", "ignore_eos"}),
        lacks=_NO_SUFFIX | {"embeddings"},
    ),
    # npuichigo's proxy before Triton: `n` would become the beam width, usage is all zeros, `stop` must be a list, the
    # finish reason is always `stop`.
    Quirks(
        "openai_trtllm",
        adds=_CAPPED,
        lacks=_TEXT_ONLY | {"logit_bias"},
        string_content=True,
        stream_usage=False,
        infer_length="always",
        token_chunks=True,
    ),
    # Samplers are fixed when it starts; errors come under 200; usage without the prompt; other reasons say `system`.
    Quirks(
        "mbase",
        lacks=_TEXT_ONLY
        | {"completions", "temperature", "top_p", "seed", "presence_penalty", "frequency_penalty", "logit_bias"},
        spelling=(("stop", ""),),
        terminator="finish",
        stream_usage=False,
        developer_role=True,
        string_content=True,
        cut_stops=True,
    ),
    # transformers-openai-api by mesolitica: no `/v1` in its paths, no finish reason ever; stop strings that are no
    # single token would be deleted from the text instead of ending it.
    Quirks(
        "mesolitica",
        adds=frozenset({"top_k", "repetition_penalty"}) | _CAPPED,
        lacks=_TEXT_ONLY | {"completions", "seed", "presence_penalty", "frequency_penalty", "logit_bias"},
        spelling=(("stop", ""),),
        terminator="close",
        stream_usage=False,
        string_content=True,
        cut_stops=True,
        token_chunks=True,
    ),
    # llama.cpp's old proxy api_like_OAI.py: one newline an event, a `stop` that is no list is taken apart by letters.
    Quirks(
        "api_like_oai",
        adds=frozenset(
            {"top_k", "typical_p", "repetition_penalty", "repeat_last_n", "mirostat", "mirostat_tau", "mirostat_eta"}
        ),
        lacks=_TEXT_ONLY,
        spelling=(("repetition_penalty", "repeat_penalty"),),
        terminator="finish",
        stream_usage=False,
        string_content=True,
        by_line=True,
    ),
)

#: No options at all.
NO_OPTIONS: Mapping[str, object] = MappingProxyType({})
#: Quirks by name.
QUIRKS: Mapping[str, Quirks] = MappingProxyType({quirks.name: quirks for quirks in _QUIRKS})
#: What makes a dialect from its quirks ("" = none stated).
DIALECTS: Mapping[str, Callable[[], Dialect]] = MappingProxyType(
    {
        "openai_compatible": lambda: OpenAICompatible(QUIRKS["openai"]),
        "llamacpp": LlamaCpp,
        "llamacpp_legacy": LlamaCpp.legacy,
        "ollama": Ollama,
        "tgi": Tgi,
        "triton": Triton,
        "sglang": Sglang,
        "lmdeploy": LmDeploy,
        "lightllm": LightLlm,
        "chinese_alpaca": ChineseAlpaca,
        "ffm": Ffm,
        "jquesnelle": Jquesnelle,
        "tei": Tei,
        "anthropic": Anthropic,
    }
)
#: Dialects that a deployment tells more of its server: the options' type, and what makes the dialect from them.
_WITH_OPTIONS: Mapping[str, tuple[type[msgspec.Struct], Callable[[Any], Dialect]]] = MappingProxyType(
    {
        "triton": (TritonOptions, Triton),
        "sglang": (SglangOptions, Sglang),
        "chinese_alpaca": (AlpacaOptions, ChineseAlpaca),
        "tei": (TeiOptions, Tei),
    }
)
#: The header that carries the credential, where it is not `authorization`.
_CREDENTIAL_HEADERS: Mapping[str, str] = MappingProxyType({"anthropic": "x-api-key", "ffm": "x-api-key"})
_MODEL_LISTS: Mapping[str, Listing] = MappingProxyType(
    {
        "openai_compatible": Listing("/models", "data", "id"),
        "anthropic": Listing("/v1/models", "data", "id"),
        "ollama": Listing("/api/tags", "models", "name"),
    }
)
#: Dialects whose servers may leave out usage, and whose servers never say why an answer ended.
_TELL_NO_USAGE = frozenset({"triton", "chinese_alpaca", "jquesnelle", "ffm"})
_TELL_NO_REASON = frozenset({"triton", "chinese_alpaca", "jquesnelle"})
_INSPECTIONS: Mapping[str, Inspection] = MappingProxyType(
    {
        "llamacpp": Inspection(
            llamacpp.FACTS,
            llamacpp.facts,
            llamacpp.tokenize_request,
            llamacpp.tokens_of,
            llamacpp.detokenize_request,
            llamacpp.text_of,
        ),
        "llamacpp_legacy": Inspection(
            llamacpp.FACTS,
            llamacpp.facts,
            llamacpp.tokenize_request,
            llamacpp.tokens_of,
            llamacpp.detokenize_request,
            llamacpp.text_of,
        ),
        "tgi": Inspection(tgi.FACTS, tgi.facts, tgi.tokenize_request, tgi.tokens_of),
        "tei": Inspection(tei.FACTS, tei.facts),
    }
)
_PROMPT_SERVERS: Mapping[str, PromptServer] = MappingProxyType({"llamacpp": llamacpp})
#: What a local engine can do when it generates, and when it embeds, by kind.
_GENERATES: Mapping[str, Capabilities] = MappingProxyType(
    {
        "llamacpp": OPENAI_SAMPLING
        | LOCAL_SAMPLING
        | {"chat", "completions", "n", "logprobs", "token_input", "grammar", "needs_output_cap"}
        | {"response_format.json_object", "response_format.json_schema"},
        "scripted": frozenset(
            {"chat", "completions", "max_tokens", "temperature", "top_p", "top_k", "stop", "seed", "n", "logprobs"}
        )
        | {"ignore_eos", "min_tokens"},
        "vllm": vllm_sampling.CAPABILITIES | {"chat", "needs_output_cap"},
        "transformers": transformers_sampling.CAPABILITIES | {"chat", "needs_output_cap"},
    }
)
#: The option that has an engine read tool calls by itself, by kind.
_TOOL_PARSERS: Mapping[str, str] = MappingProxyType({"vllm": "tool_call_parser"})
#: Kinds whose models may be named as on a hub instead of by a path.
KNOW_HUBS = frozenset({"vllm", "transformers"})
#: The options of kinds whose options can be read without importing an engine.
_OPTIONS: Mapping[str, type[msgspec.Struct]] = MappingProxyType({"vllm": VllmOptions, "transformers": TransformersOptions})
#: Engines that hide control tokens unless they are told which are to be shown.
_SHOWS = frozenset({"llamacpp", "transformers"})
_EMBEDS: Capabilities = frozenset({"embeddings", "token_input", "dimensions"})
#: Engine kinds to `module:callable`, an import string: workers never import an engine.
ENGINES: Mapping[str, str] = MappingProxyType(
    {
        "llamacpp": "backends.engines.llamacpp.engine:load",
        "vllm": "backends.engines.vllm.engine:load",
        "transformers": "backends.engines.transformers.engine:load",
        "scripted": "backends.engines.scripted:ScriptedEngine",
    }
)


#: Families whose tool calls, and whose thoughts, can be read out of text.
TOOL_FAMILIES: Mapping[str, Syntax] = TOOL_SYNTAXES
THINK_FAMILIES: Mapping[str, Tags] = THINK_TAGS


def dialect(name: str, quirks: str = "", options: Mapping[str, object] = NO_OPTIONS) -> Dialect:
    """The dialect of that name, with that server's quirks and options.

    Raises:
        ValueError: unknown dialect, quirks or option, or an option of a wrong type; the known ones are named.
    """
    make = DIALECTS.get(name)
    if make is None:
        raise ValueError(f"unknown dialect {name!r}; known: {', '.join(sorted(DIALECTS))}")
    if quirks and name != "openai_compatible":
        raise ValueError(f"dialect {name!r} has no quirks, {quirks!r} was given")
    if options and name not in _WITH_OPTIONS:
        raise ValueError(f"dialect {name!r} has no options")
    if name in _WITH_OPTIONS:
        kind, build = _WITH_OPTIONS[name]
        return build(msgspec.convert(dict(options), type=kind))
    return OpenAICompatible(_quirks(quirks)) if quirks else make()


def options(name: str) -> tuple[str, ...]:
    """The options that a dialect knows, by name."""
    return _WITH_OPTIONS[name][0].__struct_fields__ if name in _WITH_OPTIONS else ()


def credential_header(name: str) -> str:
    """The header that carries a deployment's credential in this dialect."""
    return _CREDENTIAL_HEADERS.get(name, "authorization")


def prompt_server(dialect_name: str) -> PromptServer | None:
    """How a dialect's own server renders and tokenises, for dialects whose server does."""
    return _PROMPT_SERVERS.get(dialect_name)


def batch(dialect: Dialect) -> int:
    """How many inputs an embedding request may have at such a server; 0 = as many as ours."""
    return dialect.batch if isinstance(dialect, Tei) else 0


def inspection(dialect_name: str) -> Inspection | None:
    """What else a dialect's servers can be asked; None where nothing is known."""
    return _INSPECTIONS.get(dialect_name)


def model_list(dialect_name: str) -> Listing | None:
    """Where a dialect's server lists its models; None where it does not."""
    return _MODEL_LISTS.get(dialect_name)


def marker_options(kind: str, tools: str, thinking: str) -> dict[str, object]:
    """The options that make an engine of this kind show what these families mark calls and thoughts with.

    Raises:
        KeyError: unknown family.
    """
    syntax, tags = tool_syntax(tools), think_tags(thinking)
    shown = (*(syntax.tokens if syntax is not None else ()), *((tags.begin, tags.end) if tags is not None else ()))
    return {"shown": list(shown)} if shown and kind in _SHOWS else {}


def quirks_of(dialect_name: str) -> tuple[str, ...]:
    """The names of a dialect's sets of quirks."""
    return tuple(QUIRKS) if dialect_name == "openai_compatible" else ()


def tells(dialect_name: str, quirks: str) -> frozenset[str]:
    """Of `usage` and `reason`, what a server tells itself of its answers; the rest is counted where that can be."""
    if dialect_name == "openai_compatible":
        known = _quirks(quirks or "openai")
        usage, reason = known.stream_usage or known.name == "transformers", not known.infer_length and not known.token_chunks
    else:
        usage, reason = dialect_name not in _TELL_NO_USAGE, dialect_name not in _TELL_NO_REASON
    return frozenset(({"usage"} if usage else set()) | ({"reason"} if reason else set()))


def template_source(dialect: Dialect, *, own: bool) -> str:
    """Whose chat template renders conversations. `own`: the deployment has one."""
    if own and dialect.needs_prompt:
        return "ours"
    return "the server's" if not dialect.needs_prompt or dialect.name in _PROMPT_SERVERS else "built in: chatml"


def engine_problems(kind: str, options: Mapping[str, object]) -> Iterator[tuple[tuple[str, ...], str, str]]:
    """Key, problem and mend of each option that an engine of this kind cannot be started with, as far as that can be told
    without its library."""
    if kind not in _OPTIONS:
        return
    try:
        read = read_options(options, _OPTIONS[kind])
    except EngineLoadFailed as error:
        yield (), str(error), "mend or remove it"
        return
    if isinstance(read, VllmOptions):
        for name, problem, mend in vllm_arguments.problems(read.arguments):
            yield ("arguments", name), problem, mend
        if read.sleep_after_s is not None and read.arguments.get("enable_sleep_mode") is not True:
            yield (
                ("sleep_after_s",),
                "vLLM was not told that it will sleep",
                "write arguments.enable_sleep_mode: true, or remove it",
            )


def reads_tools(kind: str, options: Mapping[str, object]) -> bool:
    """Whether an engine with these options reads tool calls by itself."""
    return bool(options.get(_TOOL_PARSERS.get(kind, "")))


def engine_capabilities(kind: str, options: Mapping[str, object]) -> Capabilities:
    """What an engine of this kind can do under these options. `needs_output_cap`: it would else fill its whole context.

    Raises:
        ValueError: unknown kind.
    """
    if kind not in _GENERATES:
        raise ValueError(f"unknown engine kind {kind!r}; known: {', '.join(sorted(_GENERATES))}")
    if options.get("embedding"):
        return _EMBEDS
    return _GENERATES[kind] | (_TOOLS if reads_tools(kind, options) else frozenset())


def tool_syntax(family: str) -> Syntax | None:
    """How that family of models writes tool calls; None for "" (none stated).

    Raises:
        KeyError: unknown family.
    """
    return TOOL_FAMILIES[family] if family else None


def think_tags(family: str) -> Tags | None:
    """What is around that family's thoughts; None for "" (none stated).

    Raises:
        KeyError: unknown family.
    """
    return THINK_FAMILIES[family] if family else None


def _quirks(name: str) -> Quirks:
    if name not in QUIRKS:
        raise ValueError(f"unknown quirks {name!r}; known: {', '.join(sorted(QUIRKS))}")
    return QUIRKS[name]
