"""The parts of an OpenAI-like answer that servers shape differently: usage, logprobs, tool arguments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import UNSET

from backends.core.events import Candidate, TokenLogprob
from backends.core.usage import ABSURD, Usage, told_count
from backends.wire.openai_chat import EMPTY, LogprobsWire, TokenWire, UsageWire

_read_any = msgspec.json.Decoder().decode
_read_usage = msgspec.json.Decoder(UsageWire).decode
_read_text = msgspec.json.Decoder(str).decode
_read_logprobs = msgspec.json.Decoder(LogprobsWire, strict=False).decode


def read_usage(raw: msgspec.Raw, *, spoke: bool, prompt: int = 0) -> Usage | None:
    """Usage as told, or None when it cannot be true: absent, negative, no integers, absurd, or zeros for a real answer.

    `prompt`: the prompt's tokens as told elsewhere, for a usage that lacks them; 0 = not told.
    """
    try:
        told = _read_usage(raw)
    except (ValueError, RecursionError):
        return None
    prompt = told_count(told.input_tokens if told.prompt_tokens is UNSET else told.prompt_tokens) or prompt
    completion = told_count(told.output_tokens if told.completion_tokens is UNSET else told.completion_tokens)
    if completion is None or not 0 < prompt < ABSURD or not 0 <= completion < ABSURD or (spoke and completion == 0):
        return None
    of_prompt, of_completion = told.prompt_tokens_details, told.completion_tokens_details
    cached = _detail(of_prompt, "cached_tokens", prompt) if of_prompt else 0
    reasoning = _detail(of_completion, "reasoning_tokens", completion) if of_completion else 0
    return Usage(prompt, completion, cached, reasoning)


def count_ids(raw: msgspec.Raw) -> int:
    """How many token ids are listed; 0 for anything else."""
    ids = _read_any(raw)
    return len(ids) if isinstance(ids, list) else 0


def add_usage(told: Sequence[tuple[int, Usage | None]]) -> Usage | None:
    """One usage out of the choices' own: every output, each prompt once. None when one of them was not to be used.

    Args:
        told: prompt number and usage, for each choice.
    """
    if len(told) == 1:
        return told[0][1]
    usages = [usage for _, usage in told if usage is not None]
    if not usages or len(usages) < len(told):
        return None
    prompts = {prompt: usage for prompt, usage in told if usage is not None}.values()
    return Usage(
        sum(usage.input_tokens for usage in prompts),
        sum(usage.output_tokens for usage in usages),
        sum(usage.cached_input_tokens for usage in prompts),
        sum(usage.reasoning_tokens for usage in usages),
    )


def _detail(details: object, name: str, most: int) -> int:
    count = told_count(details.get(name)) if isinstance(details, dict) else None
    return count if count is not None and 0 <= count <= most else 0


def tidied(value: object) -> object:
    """A chunk's or an answer's values as most servers would have written them; changed in place.

    Mistral's reasoning models answer with a list of parts; servers that are not written in Python number ids, or give one
    tool call without its list, or a reason as an object.
    """
    choices = value.get("choices") if isinstance(value, dict) else None
    for choice in choices if isinstance(choices, list) else ():
        if not isinstance(choice, dict):
            continue
        if isinstance(reason := choice.get("finish_reason"), dict):
            choice["finish_reason"] = reason.get("type")
        for name in ("delta", "message"):
            if isinstance(told := choice.get(name), dict):
                _tidy(told)
    return value


def _tidy(told: dict[str, Any]) -> None:
    content = told.get("content")
    if isinstance(content, list):
        thoughts = [part for part in content if isinstance(part, dict) and part.get("type") == "thinking"]
        told["content"] = _text([part for part in content if part not in thoughts])
        if thoughts:
            told["reasoning_content"] = _text([part.get("thinking") for part in thoughts])
    for name in ("reasoning_content", "reasoning", "thinking"):
        if name in told:
            told[name] = _text(told[name])
    calls = told.get("tool_calls")
    if isinstance(calls, dict):
        told["tool_calls"] = calls = [calls]
    for call in calls if isinstance(calls, list) else ():
        if isinstance(call, dict) and type(call.get("id")) is int:
            call["id"] = str(call["id"])


def _text(value: object) -> str:
    """The text of a string, of a part, or of a list of parts."""
    if isinstance(value, list):
        return "".join(_text(part) for part in value)
    if isinstance(value, dict):
        return _text(value.get("text", value.get("content", "")))
    return value if isinstance(value, str) else ""


def read_arguments(raw: msgspec.Raw) -> str:
    """Arguments as text: a JSON string is decoded, an object is taken as it stands; "" for none.

    Raises:
        ValueError: a broken string.
    """
    if raw is EMPTY:
        return ""
    data = bytes(raw)
    if data == b"null":
        return ""
    return _read_text(data) if data.startswith(b'"') else data.decode()


def read_logprobs(raw: msgspec.Raw, top: int) -> tuple[TokenLogprob, ...]:
    """Logprobs of chat's or of legacy completions' form; () for null. `top`: alternatives that were asked; of chat's form no
    more are told, of the legacy form the chosen token may be one more.

    Raises:
        ValueError: neither form.
    """
    if bytes(raw) == b"null":
        return ()
    wire = _read_logprobs(raw)
    if wire.content is not None:
        return token_logprobs(wire.content, top)
    tops = wire.top_logprobs or []
    return tuple(
        TokenLogprob(
            token,
            token.encode(),
            logprob,
            tuple(
                Candidate(text, text.encode(), value)
                for text, value in sorted((tops[n] or {}).items() if n < len(tops) else (), key=lambda pair: -pair[1])
            ),
        )
        for n, (token, logprob) in enumerate(zip(wire.tokens or (), wire.token_logprobs or (), strict=False))
        if logprob is not None
    )


def token_logprobs(tokens: Sequence[TokenWire], top: int) -> tuple[TokenLogprob, ...]:
    """Logprobs of chat's form, with at most `top` alternatives."""
    return tuple(_token(token, top) for token in tokens)


def _token(wire: TokenWire, top: int) -> TokenLogprob:
    others = tuple(
        Candidate(one.token, bytes(one.bytes) if one.bytes is not None else one.token.encode(), one.logprob)
        for one in (wire.top_logprobs or ())[:top]
    )
    return TokenLogprob(wire.token, bytes(wire.bytes) if wire.bytes is not None else wire.token.encode(), wire.logprob, others)
