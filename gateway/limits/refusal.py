"""The sentence a refused client reads: which limit, how much is left, when to come back. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from gateway.domain.settlement import Rule, RuleState
from gateway.limits.headers import duration
from gateway.limits.rules import owner_of
from gateway.limits.store import LimitExceeded, LimitsUnavailable, QuotaExhausted

_UNITS = {
    "requests": "requests",
    "input_tokens": "input tokens",
    "output_tokens": "output tokens",
    "tokens": "tokens",
    "slots": "concurrent requests",
}
_WINDOWS = {1_000: "second", 60_000: "minute", 3_600_000: "hour", 86_400_000: "day"}
_NUSD_PER_USD = 1_000_000_000
#: A period's name is `2026-11` or `2026-11-21`.
_MONTH_CHARS = 7


def refusal(rules: Sequence[Rule], index: int, retry_after_ms: int, states: Sequence[RuleState]) -> LimitExceeded:
    """The error of an admission that `rules[index]` refused."""
    rule, left = rules[index], states[index].remaining
    owner, model = owner_of(rule.name)
    of_model = f" for the model {model!r}" if model else ""
    amounts = f"{amount(rule.limit, rule)}{_per(rule)}, {amount(left, rule)} left, {amount(rule.cost, rule)} asked"
    message = f"Limit of this {owner}{of_model} reached: {amounts}. Please try again in {duration(retry_after_ms)}."
    kind: type[LimitExceeded] = LimitExceeded
    if rule.kind == "quota":
        kind = QuotaExhausted
        if rule.ends_us:
            message += f" It begins anew at {datetime.fromtimestamp(rule.ends_us // 1_000_000, UTC):%Y-%m-%dT%H:%M:%SZ}."
    return kind(message, rule=rule, retry_after_ms=retry_after_ms, states=states)


def amount(value: int, rule: Rule) -> str:
    """An amount of a rule's unit in words: `60 requests`, `0.25 USD`; the unit only at the limit itself."""
    if rule.unit == "nusd":
        whole, rest = divmod(value, _NUSD_PER_USD)
        return (f"{whole}.{rest:09d}".rstrip("0").rstrip(".")) + " USD"
    return f"{value} {_UNITS[rule.unit]}" if value == rule.limit else str(value)


def unavailable(retry_after_ms: int, detail: str) -> LimitsUnavailable:
    """The error of an admission that could not be counted and whose rules deny on outage."""
    return LimitsUnavailable("Limits cannot be checked at the moment.", retry_after_ms=retry_after_ms, detail=detail)


def _per(rule: Rule) -> str:
    if rule.kind == "lease":
        return ""
    if rule.kind == "quota":
        period = rule.name.rpartition(":")[2]
        return f" in the {'month' if len(period) == _MONTH_CHARS else 'day'} {period}"
    return f" per {_WINDOWS.get(rule.window_ms, duration(rule.window_ms))}"
