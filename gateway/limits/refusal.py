"""The sentence a refused client reads: which limit, how much is left, when to come back. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.domain.settlement import Rule, RuleState
from gateway.limits.headers import duration
from gateway.limits.store import LimitExceeded, LimitsUnavailable, QuotaExhausted

_UNITS = {"requests": "requests", "tokens": "tokens", "nusd": "nano-USD", "slots": "concurrent requests"}
_WINDOWS = {1_000: "second", 60_000: "minute", 3_600_000: "hour", 86_400_000: "day"}


def refusal(rules: Sequence[Rule], index: int, retry_after_ms: int, states: Sequence[RuleState]) -> LimitExceeded:
    """The error of an admission that `rules[index]` refused."""
    rule, left = rules[index], states[index].remaining
    per = "" if rule.kind == "lease" else f" per {_WINDOWS.get(rule.window_ms, duration(rule.window_ms))}"
    kind: type[LimitExceeded] = LimitExceeded
    if rule.kind == "quota":
        kind, per = QuotaExhausted, " in this period"
    scope = rule.name.split(":", 1)[0]
    message = (
        f"Limit of this {scope} reached: {rule.limit} {_UNITS[rule.unit]}{per}, {left} left, {rule.cost} asked. "
        f"Please try again in {duration(retry_after_ms)}."
    )
    return kind(message, rule=rule, retry_after_ms=retry_after_ms, states=states)


def unavailable(retry_after_ms: int, detail: str) -> LimitsUnavailable:
    """The error of an admission that could not be counted and whose rules deny on outage."""
    return LimitsUnavailable("Limits cannot be checked at the moment.", retry_after_ms=retry_after_ms, detail=detail)
