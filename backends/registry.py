"""The one place that asks "which dialect, which quirks?"; local engines are in `backends.engines.kinds`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import msgspec

from backends.core.contracts import Dialect
from backends.dialects import llamacpp, tei, tgi
from backends.dialects.anthropic import Anthropic
from backends.dialects.chinese_alpaca import AlpacaOptions, ChineseAlpaca
from backends.dialects.ffm import Ffm, FfmOptions
from backends.dialects.jquesnelle import Jquesnelle
from backends.dialects.lightllm import LightLlm
from backends.dialects.llamacpp import LlamaCpp
from backends.dialects.ollama import Ollama
from backends.dialects.openai_compatible import OpenAICompatible, OpenAIOptions, Quirks
from backends.dialects.server_quirks import QUIRKS
from backends.dialects.sglang import LmDeploy, Sglang, SglangOptions
from backends.dialects.tei import Tei, TeiOptions
from backends.dialects.tgi import Tgi
from backends.dialects.triton import Triton, TritonOptions
from backends.parsing.think import THINK_TAGS, Tags
from backends.parsing.toolcalls.families import TOOL_SYNTAXES
from backends.parsing.toolcalls.machine import Syntax
from backends.remote.inspecting import Inspection
from backends.remote.listing import Listing
from backends.remote.rendering import PromptServer

#: No options at all.
NO_OPTIONS: Mapping[str, object] = MappingProxyType({})
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
        "ffm": (FfmOptions, Ffm),
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
#: Dialects whose output cap includes the prompt.
_CAP_INCLUDES_PROMPT = frozenset({"jquesnelle"})
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
    if name == "openai_compatible":
        return OpenAICompatible(_quirks(quirks or "openai"), msgspec.convert(dict(options), type=OpenAIOptions))
    if options and name not in _WITH_OPTIONS:
        raise ValueError(f"dialect {name!r} has no options")
    if name in _WITH_OPTIONS:
        kind, build = _WITH_OPTIONS[name]
        return build(msgspec.convert(dict(options), type=kind))
    return make()


def options(name: str) -> tuple[str, ...]:
    """The options that a dialect knows, by name."""
    if name == "openai_compatible":
        return OpenAIOptions.__struct_fields__
    return _WITH_OPTIONS[name][0].__struct_fields__ if name in _WITH_OPTIONS else ()


def credential_header(name: str) -> str:
    """The header that carries a deployment's credential in this dialect."""
    return _CREDENTIAL_HEADERS.get(name, "authorization")


def prompt_server(dialect_name: str) -> PromptServer | None:
    """How a dialect's own server renders and tokenises, for dialects whose server does."""
    return _PROMPT_SERVERS.get(dialect_name)


def batch(dialect: Dialect) -> int:
    """How many inputs, or documents, a request may have at such a server; 0 = as many as ours."""
    return dialect.batch if isinstance(dialect, Tei) else 0


def inspection(dialect_name: str) -> Inspection | None:
    """What else a dialect's servers can be asked; None where nothing is known."""
    return _INSPECTIONS.get(dialect_name)


def model_list(dialect_name: str) -> Listing | None:
    """Where a dialect's server lists its models; None where it does not."""
    return _MODEL_LISTS.get(dialect_name)


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


def cap_includes_prompt(dialect_name: str) -> bool:
    """Whether `encode` wants to know how many tokens a prompt's text has."""
    return dialect_name in _CAP_INCLUDES_PROMPT


def template_source(dialect: Dialect, *, own: bool) -> str:
    """Whose chat template renders conversations. `own`: the deployment has one."""
    if own and dialect.needs_prompt:
        return "ours"
    return "the server's" if not dialect.needs_prompt or dialect.name in _PROMPT_SERVERS else "built in: chatml"


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
