"""GET /v1/me: what a key is, what its limits leave now, and what it has used. For every key, about itself alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.admin.caller import AdminParts
from gateway.admin.reports import UsageView, sums
from gateway.admin.shapes import instant
from gateway.config.shown_limits import shown_limit
from gateway.domain.principal import LimitSpec
from gateway.ledger.queries import DAY_US
from gateway.limits.rules import Demand, rules_for

_NOTHING = Demand(0)
#: How many limits one look at the store names.
_AT_ONCE = 64


class LimitView(BaseModel):
    """One limit that applies to the key, as far as it is used now."""

    scope: Literal["key", "user", "team", "organisation", "model", "gateway"] = Field(description="who shares it")
    model: str | None = Field(default=None, description="the model whose requests alone it counts; null: those of all models")
    limit: dict[str, Any] = Field(description="as the configuration writes it")
    remaining: int = Field(description="in the limit's unit; money in nano-USD; a shadow limit refuses nothing at 0")
    resets_in_s: float = Field(description="seconds until it would be whole again if nothing else came")


class MeView(BaseModel):
    """A key about itself."""

    object: Literal["me"] = "me"
    id: str
    team: str | None = None
    organisation: str | None = None
    user: str | None = None
    scopes: list[str]
    models: list[str] = Field(description="public names of the models that it may use")
    expires_at: str | None = None
    limits: list[LimitView]
    usage: list[UsageView] = Field(description="its own requests of the last 30 days, by UTC day")


def router(parts: AdminParts, ledger: AsyncEngine) -> APIRouter:
    """The route."""
    routes = APIRouter(tags=["self-service"])

    @routes.get("/v1/me")
    async def me(request: Request) -> MeView:
        """The key's own rules, what is left of them, and its usage."""
        now_us = parts.now_us()
        holder = await parts.auth.authenticate(request.scope["headers"], now_us)
        snapshot = parts.snapshot()
        allowed = sorted({route.name for route in snapshot.models.values() if snapshot.allowed(route, holder)})
        present = parts.present().models
        of_models = [spec for name in allowed if (route := present.get(name)) is not None for spec in route.limits]
        limits = await _limits(parts, [*holder.limits, *of_models])
        begin_us = (now_us // DAY_US - 29) * DAY_US
        return MeView(
            id=holder.key_id,
            team=holder.team_id or None,
            organisation=holder.org_id or None,
            user=holder.user or None,
            scopes=sorted(holder.scopes),
            models=allowed,
            expires_at=instant(holder.expires_us),
            limits=limits,
            usage=await sums(ledger, ["day"], begin_us, now_us + 1, {"key": holder.key_id}),
        )

    return routes


async def _limits(parts: AdminParts, specs: Sequence[LimitSpec]) -> list[LimitView]:
    """How far limits are used, asked for in bounded calls.

    Raises:
        LimitsUnavailable: the store does not answer.
    """
    views: list[LimitView] = []
    for start in range(0, len(specs), _AT_ONCE):
        some = specs[start : start + _AT_ONCE]
        rules = [rules_for((spec,), _NOTHING, parts.store_now_us())[0] for spec in some]
        for spec, rule, state in zip(some, rules, await parts.peek(rules), strict=True):
            left = state.remaining if rule.shadow is None else max(0, rule.shadow - (rule.limit - state.remaining))
            kind, _, name = spec.scope.partition(":")
            scope: Any = kind
            model = spec.model or (name if kind == "model" else None)
            limit = shown_limit(spec)
            views.append(LimitView(scope=scope, model=model, limit=limit, remaining=left, resets_in_s=state.reset_ms / 1000))
    return views
