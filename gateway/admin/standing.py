"""How far limits are used now: what `/v1/me`, `/admin/v1/rules` and `switchyard quota` show of each."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal

from pydantic import BaseModel, Field

from gateway.config.shown_limits import shown_limit
from gateway.domain.principal import LimitSpec
from gateway.domain.settlement import Rule, RuleState
from gateway.limits.rules import Demand, rules_for

Scope = Literal["key", "user", "team", "organisation", "model", "gateway"]
#: How many limits one look at the store names.
_AT_ONCE = 64
_NOTHING = Demand(0)


class LimitView(BaseModel):
    """One limit, as far as it is used now."""

    scope: Scope = Field(description="who shares it")
    model: str | None = Field(default=None, description="the model whose requests alone it counts; null: those of all models")
    limit: dict[str, Any] = Field(description="as the configuration writes it")
    remaining: int = Field(description="in the limit's unit; money in nano-USD; a shadow limit refuses nothing at 0")
    resets_in_s: float = Field(description="seconds until it would be whole again if nothing else came")


async def standing(
    specs: Sequence[LimitSpec], peek: Callable[[Sequence[Rule]], Awaitable[Sequence[RuleState]]], now_us: Callable[[], int]
) -> list[LimitView]:
    """How far limits are used, asked for in bounded calls.

    Args:
        specs: each bound to its owner.
        peek: what is left of some rules now.
        now_us: the store's clock, µs UTC.

    Raises:
        LimitsUnavailable: the store does not answer.
    """
    views: list[LimitView] = []
    for start in range(0, len(specs), _AT_ONCE):
        some = specs[start : start + _AT_ONCE]
        rules = [rules_for((spec,), _NOTHING, now_us())[0] for spec in some]
        for spec, rule, state in zip(some, rules, await peek(rules), strict=True):
            left = state.remaining if rule.shadow is None else max(0, rule.shadow - (rule.limit - state.remaining))
            kind, _, name = spec.scope.partition(":")
            scope: Any = kind
            model = spec.model or (name if kind == "model" else None)
            limit = shown_limit(spec)
            views.append(LimitView(scope=scope, model=model, limit=limit, remaining=left, resets_in_s=state.reset_ms / 1000))
    return views
