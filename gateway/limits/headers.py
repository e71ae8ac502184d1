"""Response headers that tell a client its limits, in OpenAI's names (API reference, "Rate limits in headers"). Pure."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.domain.settlement import RuleState
from gateway.limits.rules import MAX_AMOUNT

Headers = list[tuple[bytes, bytes]]

_OF_REQUESTS = (b"x-ratelimit-limit-requests", b"x-ratelimit-remaining-requests", b"x-ratelimit-reset-requests")
_OF_TOKENS = (b"x-ratelimit-limit-tokens", b"x-ratelimit-remaining-tokens", b"x-ratelimit-reset-tokens")


def duration(ms: int) -> str:
    """Milliseconds as OpenAI writes durations: `120ms`, `1s`, `8.64s`, `6m0s`, `1h0m0s`."""
    if ms <= 0:
        return "0s"
    if ms < 1000:
        return f"{ms}ms"
    if ms < 60_000:
        return f"{ms / 1000:g}s"  # six digits hold it
    minutes, rest = divmod(ms, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{rest / 1000:g}s" if hours else f"{minutes}m{rest / 1000:g}s"


def limit_headers(states: Sequence[RuleState]) -> Headers:
    """`x-ratelimit-{limit,remaining,reset}-{requests,tokens}` of the tightest rule of each unit.

    The tightest rule has the least left; of two with the same left, the one that takes longer to be whole.
    """
    requests = tokens = None
    for state in states:
        rule = state.rule
        if rule.unit == "tokens":
            if rule.limit != MAX_AMOUNT and (tokens is None or _less(state, tokens)):
                tokens = state
        elif rule.unit == "requests" and rule.limit != MAX_AMOUNT and (requests is None or _less(state, requests)):
            requests = state
    of_requests = _told(_OF_REQUESTS, requests) if requests is not None else []
    return of_requests + _told(_OF_TOKENS, tokens) if tokens is not None else of_requests


def _told(names: tuple[bytes, bytes, bytes], state: RuleState) -> Headers:
    told = (b"%d" % state.rule.limit, b"%d" % state.remaining, duration(state.reset_ms).encode())
    return list(zip(names, told, strict=True))


def _less(one: RuleState, other: RuleState) -> bool:
    if one.remaining == other.remaining:
        return one.reset_ms > other.reset_ms
    return one.remaining < other.remaining


def retry_headers(retry_after_ms: int) -> Headers:
    """`retry-after` in whole seconds, rounded up and at least 1, and `retry-after-ms`."""
    return [
        (b"retry-after", b"%d" % max(1, -(-retry_after_ms // 1000))),
        (b"retry-after-ms", b"%d" % max(0, retry_after_ms)),
    ]
