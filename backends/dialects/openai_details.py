"""The parts of an OpenAI-like answer that servers shape differently: usage, logprobs, tool arguments."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from backends.core.events import Candidate, TokenLogprob
from backends.core.usage import ABSURD, Usage
from backends.wire.openai_chat import EMPTY, LogprobsWire, TokenWire

_read_any = msgspec.json.Decoder().decode
_read_text = msgspec.json.Decoder(str).decode
_read_logprobs = msgspec.json.Decoder(LogprobsWire).decode


def read_usage(raw: msgspec.Raw, *, spoke: bool) -> Usage | None:
    """Usage as told, or None when it cannot be true: absent, negative, no integers, absurd, or zeros for a real answer."""
    try:
        told = _read_any(raw) if raw is not EMPTY else None
    except (ValueError, RecursionError):
        return None
    if not isinstance(told, dict):
        return None
    prompt, completion = told.get("prompt_tokens"), told.get("completion_tokens", 0)
    if type(prompt) is not int or type(completion) is not int:
        return None
    if not 0 < prompt < ABSURD or not 0 <= completion < ABSURD or (spoke and completion == 0):
        return None
    of_prompt, of_completion = told.get("prompt_tokens_details"), told.get("completion_tokens_details")
    cached = _detail(of_prompt, "cached_tokens", prompt) if of_prompt else 0
    reasoning = _detail(of_completion, "reasoning_tokens", completion) if of_completion else 0
    return Usage(prompt, completion, cached, reasoning)


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
    count = details.get(name) if isinstance(details, dict) else None
    return count if type(count) is int and 0 <= count <= most else 0


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


def read_logprobs(raw: msgspec.Raw) -> tuple[TokenLogprob, ...]:
    """Logprobs of chat's or of legacy completions' form; () for null.

    Raises:
        ValueError: neither form.
    """
    if bytes(raw) == b"null":
        return ()
    wire = _read_logprobs(raw)
    if wire.content is not None:
        return token_logprobs(wire.content)
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


def token_logprobs(tokens: Sequence[TokenWire]) -> tuple[TokenLogprob, ...]:
    """Logprobs of chat's form."""
    return tuple(_token(token) for token in tokens)


def _token(wire: TokenWire) -> TokenLogprob:
    top = tuple(
        Candidate(one.token, bytes(one.bytes) if one.bytes is not None else one.token.encode(), one.logprob)
        for one in wire.top_logprobs or ()
    )
    return TokenLogprob(wire.token, bytes(wire.bytes) if wire.bytes is not None else wire.token.encode(), wire.logprob, top)
