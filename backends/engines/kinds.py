"""Which kinds of local engines there are, what each can do, and what can be told of its options without importing it.

Engines are named as strings, `module:callable`: a worker never imports one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType

import msgspec

from backends.core.capabilities import LOCAL_SAMPLING, OPENAI_SAMPLING, TOOLS, Capabilities
from backends.engines.options import EngineLoadFailed, read_options
from backends.engines.transformers import sampling as transformers_sampling
from backends.engines.transformers.settings import TransformersOptions
from backends.engines.vllm import arguments as vllm_arguments
from backends.engines.vllm import sampling as vllm_sampling
from backends.engines.vllm.settings import VllmOptions
from backends.parsing.think import Tags
from backends.parsing.toolcalls.machine import Syntax

#: What a local engine can do when it generates, and when it embeds, by kind.
_GENERATES: Mapping[str, Capabilities] = MappingProxyType(
    {
        "llamacpp": OPENAI_SAMPLING
        | LOCAL_SAMPLING
        | {"chat", "completions", "n", "logprobs", "token_input", "grammar", "regex", "needs_output_cap"}
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
_RANKS: Capabilities = frozenset({"rerank"})
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


def marker_options(kind: str, syntax: Syntax | None, tags: Tags | None) -> dict[str, object]:
    """The options that make an engine of this kind show what tool calls and thoughts are marked with."""
    shown = (*(syntax.tokens if syntax is not None else ()), *((tags.begin, tags.end) if tags is not None else ()))
    return {"shown": list(shown)} if shown and kind in _SHOWS else {}


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
    if options.get("rerank"):
        return _RANKS
    return _GENERATES[kind] | (TOOLS if reads_tools(kind, options) else frozenset())
